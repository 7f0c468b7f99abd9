"""The HTTP sink: one POST per batch, with its key in a header. Owns the connection, never the cursor.

The request is a `POST` with a body as described in `repo.delivery.batch`, `Content-Type: application/x-ndjson` and
`Idempotency-Key: <the batch's key>`. A receipt is a response 200-299 whose body is a JSON object with the same key:
`{"key": "...", "repeat": false}`. A response without it is not a receipt: the login page of a captive portal also
answers 200.

Responses 408, 425, 429 and 5xx are retried (`Retry-After` in seconds is respected); any other response refuses the
batch. Redirects are not followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from repo.arguments import check_seconds, check_text, shown
from repo.delivery.batch import DeliveryBatch
from repo.delivery.sinks import Receipt
from repo.errors import InvalidSettings, SinkRefused, SinkUnreachable

__all__ = ["HttpSink"]

_LONGEST_S = 1e6
"""Python's sockets count no longer timeouts."""

_AGAIN = frozenset({408, 425, 429})
_ANSWER_BYTES = 65_536


class HttpSink:
    """Sends batches to an HTTP or HTTPS URL over one persistent connection. For one thread.

    `timeout_s` limits connecting, sending and each wait for the response. `headers` are sent with every request, such
    as an authorization, and are never logged.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        url = check_text(url, "url", error=InvalidSettings)
        name = check_text(name, "name", error=InvalidSettings)
        timeout_s = min(check_seconds(timeout_s, "timeout_s", error=InvalidSettings), _LONGEST_S)
        headers = _checked(headers)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidSettings(f"{url!r} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidSettings(f"{url!r} is not a URL such as http://host:port/path or https://host/path")
        if parts.username is not None or parts.password is not None:
            raise InvalidSettings(
                "the URL of a sink must not contain a user name or a password; pass them in `headers`"
            )
        self._name = name
        self._address = f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection: HTTPConnection = kind(parts.hostname, port, timeout=timeout_s)
        self._headers = {
            "Content-Type": "application/x-ndjson",
            "Accept": "application/json",
            **headers,
        }

    @property
    def name(self) -> str:
        """The name of the cursor in the store."""
        return self._name

    def send(self, batch: DeliveryBatch) -> Receipt:
        """Send one batch and return the receipt; raises `SinkUnreachable` or `SinkRefused`."""
        kept_open = self._connection.sock is not None
        try:
            try:
                status, reason, retry_after, answer = self._exchange(batch)
            except ConnectionError:
                if not kept_open:
                    raise
                # The receiver closed the idle connection; the link may work. The key makes sending again safe.
                self._connection.close()
                status, reason, retry_after, answer = self._exchange(batch)
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise SinkUnreachable(
                f"{self._address} did not answer: {str(error) or type(error).__name__}"
            ) from error
        return self._receipt(status, reason, retry_after, answer)

    def close(self) -> None:
        """Close the connection. Safe to call again; sending reopens it."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, batch: DeliveryBatch) -> tuple[int, str, str | None, bytes]:
        headers = {**self._headers, "Idempotency-Key": batch.key}
        self._connection.request("POST", self._target, batch.body, headers)
        with self._connection.getresponse() as response:
            answer = response.read(_ANSWER_BYTES)
            if not response.isclosed():
                self._connection.close()  # the rest of a long response would be read as the next one
            return response.status, response.reason, response.getheader("Retry-After"), answer

    def _receipt(self, status: int, reason: str, retry_after: str | None, answer: bytes) -> Receipt:
        said = answer[:200].decode("utf-8", "replace").strip()
        if status in _AGAIN or status >= 500:
            after_s = (
                float(retry_after)
                if retry_after and retry_after.isascii() and retry_after.isdigit()
                else None
            )
            raise SinkUnreachable(
                f"{self._address} answered {status} {reason}: {said}", retry_after_s=after_s
            )
        if not 200 <= status < 300:
            raise SinkRefused(f"{self._address} answered {status} {reason}: {said}")
        try:
            receipt = json.loads(answer)
            return Receipt(str(receipt["key"]), receipt.get("repeat") is True)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SinkUnreachable(
                f"{self._address} answered {status} without a receipt (a login page, a proxy?): {said}"
            ) from error


def _checked(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the caller's headers; raises `InvalidSettings`, without their values, which may be secret."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise InvalidSettings(f"headers = {shown(headers)}: a dict of texts is expected")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidSettings(f"headers: the name {shown(name)} and its value must be texts")
    return dict(headers)
