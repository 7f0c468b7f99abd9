"""The HTTP sink: one POST per batch. Owns the connection; the formats know what is sent and what an answer says.

Every request has the key of its batch (`repo.delivery.keys`) in `Idempotency-Key`, its lane in `Holdfast-Lane`, and the
number of the attempt in `Holdfast-Attempt`. The options are those of the kind `http` in `repo.store.sink_options`.

| answer | |
|---|---|
| what the format calls a success | delivered |
| 400, 413, 422 | the destination rejects an item: the batch is split |
| 408, 425, 429, 5xx, 302, 303, 307 | tried again; `Retry-After` in seconds is respected |
| any other, and a certificate that is not trusted | halted until the cause is fixed |

Redirects are never followed. The destination keeps no position: it gets each batch at least once, and cannot notice
that a store is a copy of another one.
"""

from __future__ import annotations

import base64
import re
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from repo.arguments import check_text, shown
from repo.delivery.keys import BatchKey
from repo.delivery.protocol import Batch, Outcome
from repo.delivery.secrets import Secret
from repo.delivery.sinks.http_formats import Answer, format_of
from repo.delivery.sinks.tls import client_context, halted_by_tls
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable
from repo.formats.compression import packed
from repo.store.sink_options import effective_options

__all__ = ["HttpSink"]

_LONGEST_S = 1e6
"""Python's sockets count no longer timeouts."""
_REFUSED = frozenset({400, 413, 422})
_AGAIN = frozenset({302, 303, 307, 408, 425, 429})
_NEVER = frozenset({501, 505})
_ANSWER_BYTES = 1_048_576
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER = "header."


class _Sent(NamedTuple):
    answer: Answer
    retry_after_s: float | None


class HttpSink:
    """Sends batches to an HTTP or HTTPS URL over one persistent connection. For one thread; `open` comes first.

    The options are texts, numbers and booleans, as listed for the kind `http`. A secret may also be the value itself
    instead of `env:NAME` or `file:PATH`; it is never logged.
    """

    exact = False

    def __init__(self, url: str, *, name: str, **options: Any) -> None:
        self._name = check_text(name, "name", error=InvalidSettings)
        self._options = effective_options("http", options)
        self._format = format_of(self._options)
        parts = _checked_url(url)
        self._parts = parts
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
        self._address = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
        path = (
            quote(parts.path, safe="/%:@!$&'()*+,;=~") if parts.path not in ("", "/") else self._format.path
        )
        query = "&".join(text for text in (parts.query, urlencode(self._format.parameters())) if text)
        self._target = path + (f"?{query}" if query else "")
        self._connection: HTTPConnection | None = None
        self._headers: dict[str, str] = {}
        for option in options:
            header = option.removeprefix(_HEADER)
            if option.startswith(_HEADER) and not _HEADER_NAME.fullmatch(header):
                raise InvalidSettings(f"{shown(header)} is no name of a header")

    @property
    def name(self) -> str:
        """The name of the sink in the store."""
        return self._name

    @property
    def takes_records(self) -> bool:
        """Whether the format can express records."""
        return self._format.takes_records

    def open(self, store_id: str, epoch: int) -> None:  # noqa: ARG002  it keeps no position
        """Read secrets and certificates, and connect. The destination holds no token."""
        self.close()
        timeout_s = min(self._options["timeout_s"], _LONGEST_S)
        host = self._parts.hostname or ""
        self._headers = self._new_headers()
        if self._parts.scheme == "https":
            context = client_context(self._options)
            self._connection = HTTPSConnection(host, self._parts.port, timeout=timeout_s, context=context)
        else:
            self._connection = HTTPConnection(host, self._parts.port, timeout=timeout_s)
        try:
            self._connection.connect()
        except OSError as error:
            self.close()
            raise self._broken(error) from error

    def send(self, batch: Batch) -> Outcome:
        """Send a batch and return what the destination says about it."""
        if self._connection is None:
            self.open(batch.store_id, batch.epoch)
        encoded = self._format.encode(batch)
        if not encoded.texts:
            return Outcome(encoded.refused)
        content = self._format.body(encoded)
        key = str(BatchKey.of(batch, content))
        body = self._packed(content)
        headers = {
            **self._headers,
            "Idempotency-Key": key,
            "Holdfast-Lane": str(batch.lane),
            "Holdfast-Attempt": str(batch.attempt),
        }
        sent = self._exchange(body, headers)
        outcome = self._format.outcome(sent.answer, key, encoded, self._address)
        if outcome is None:
            raise self._rejected(sent)
        return Outcome(
            tuple(sorted({*encoded.refused, *outcome.refused})), outcome.repeat, sent_bytes=len(body)
        )

    def close(self) -> None:
        """Close the connection. Safe to call again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _new_headers(self) -> dict[str, str]:
        headers = {"Content-Type": self._format.content_type, "Accept": "application/json"}
        if self._options["compression"] != "none":
            headers["Content-Encoding"] = self._options["compression"]
        token, user, password = (self._options[name] for name in ("token", "user", "password"))
        if token is not None:
            headers["Authorization"] = f"{self._format.token_scheme} {Secret('token', token).reveal()}"
        elif user is not None:
            known = Secret("password", password).reveal() if password is not None else ""
            both = f"{Secret('user', user).reveal()}:{known}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(both).decode()}"
        for option, value in self._options.items():
            if option.startswith(_HEADER):
                headers[option.removeprefix(_HEADER)] = Secret(option, value).reveal()
        for header, value in headers.items():
            if not value.isascii():
                raise SinkHalted(
                    f"the header {header} must be ASCII; check the token or option that it is made of"
                )
        return headers

    def _packed(self, content: bytes) -> bytes:
        if self._options["compression"] == "none":
            return content
        target = BytesIO()
        with packed(target, self._options["compression"]) as stream:
            stream.write(content)
        return target.getvalue()

    def _exchange(self, body: bytes, headers: dict[str, str]) -> _Sent:
        connection = self._connection
        assert connection is not None
        kept_open = connection.sock is not None
        try:
            try:
                return _post(connection, self._target, body, headers)
            except ConnectionError:
                if not kept_open:
                    raise
                # The destination closed the idle connection; the link may work. The key makes sending again safe.
                connection.close()
                return _post(connection, self._target, body, headers)
        except (OSError, HTTPException) as error:
            connection.close()
            raise self._broken(error) from error

    def _broken(self, error: OSError | HTTPException) -> SinkHalted | SinkUnreachable:
        return halted_by_tls(error, self._address) or SinkUnreachable(
            f"{self._address} did not answer: {str(error) or type(error).__name__}"
        )

    def _rejected(self, sent: _Sent) -> SinkHalted | SinkRefused | SinkUnreachable:
        said = f"{self._address} answered {sent.answer}"
        status = sent.answer.status
        if status in _REFUSED:
            return SinkRefused(said)
        if status in _AGAIN or (status >= 500 and status not in _NEVER):
            return SinkUnreachable(said, retry_after_s=sent.retry_after_s)
        return SinkHalted(said)


def _post(connection: HTTPConnection, target: str, body: bytes, headers: dict[str, str]) -> _Sent:
    try:
        connection.request("POST", target, body, headers)
    except (BrokenPipeError, ConnectionResetError) as error:
        # A server that refuses a large body answers and closes, before it has read all of it.
        try:
            sent = _read(connection)
        except (OSError, HTTPException):
            raise error from None
        if sent.answer.status < 400:
            raise
        connection.close()
        return sent
    return _read(connection)


def _read(connection: HTTPConnection) -> _Sent:
    with connection.getresponse() as response:
        answer = response.read(_ANSWER_BYTES)
        if not response.isclosed():
            connection.close()  # the rest of a long response would be read as the next one
        wait = response.getheader("Retry-After") or ""
        return _Sent(
            Answer(response.status, response.reason, response.getheader("Content-Type") or "", answer),
            float(wait) if wait.isascii() and wait.isdigit() else None,
        )


def _checked_url(url: str) -> SplitResult:
    url = check_text(url, "url", error=InvalidSettings)
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  parses it
    except ValueError as error:
        raise InvalidSettings(f"{shown(url)} is not a URL: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise InvalidSettings(
            "the URL of a sink must not contain a user name or a password; pass them as the options user and password"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidSettings(f"{shown(url)} is not a URL such as http://host:port/path or https://host/path")
    return parts
