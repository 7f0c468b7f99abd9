"""A persistent HTTP or HTTPS connection of a sink: sends a request, and returns the answer or the error of the link."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from repo.delivery.sinks.tls import client_context, halted_by_tls
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable
from repo.inputs.arguments import check_text, shown

__all__ = ["Answer", "Connection", "checked_url", "rejected"]

_LONGEST_S = 1e6
"""Python's sockets do not accept longer timeouts."""
_REFUSED = frozenset({400, 413, 422})
_AGAIN = frozenset({302, 303, 307, 408, 425, 429})
_NEVER = frozenset({501, 505})
_REMEDIES = {
    401: "; check the token, or the user and the password, of the sink",
    403: "; check what the token or the user of the sink may do there",
    404: "; check the URL and the options of the sink",
}
_ANSWER_BYTES = 1_048_576
_REASON_CHARS = 200


class Answer(NamedTuple):
    """A response."""

    status: int
    reason: str
    content_type: str
    body: bytes
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def __str__(self) -> str:
        said = self.body[:_REASON_CHARS].decode("utf-8", "replace").strip()
        return f"{self.status} {self.reason}: {said}" if said else f"{self.status} {self.reason}"


class Connection:
    """For one thread. `address` names the server in messages; redirects are not followed."""

    def __init__(self, url: SplitResult) -> None:
        self._url = url
        host = f"[{url.hostname}]" if url.hostname and ":" in url.hostname else url.hostname
        self.address = f"{url.scheme}://{host}" + (f":{url.port}" if url.port else "")
        self._connection: HTTPConnection | None = None

    @property
    def is_open(self) -> bool:
        """Whether `open` was called since `close`."""
        return self._connection is not None

    def open(self, options: Mapping[str, Any]) -> None:
        """Connect, with the options `timeout_s` and, for HTTPS, `ca_file`, `cert_file` and `key_file`."""
        self.close()
        host, timeout_s = self._url.hostname or "", min(options["timeout_s"], _LONGEST_S)
        if self._url.scheme == "https":
            context = client_context(options)
            self._connection = HTTPSConnection(host, self._url.port, timeout=timeout_s, context=context)
        else:
            self._connection = HTTPConnection(host, self._url.port, timeout=timeout_s)
        try:
            self._connection.connect()
        except OSError as error:
            self.close()
            raise self._broken(error) from error

    def close(self) -> None:
        """Close the connection. Safe to call again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def exchange(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        """Send a request that may be repeated, and return the answer; raises `SinkUnreachable` or `SinkHalted`.

        It is sent a second time if the server had closed the idle connection.
        """
        connection = self._connection
        assert connection is not None, "open comes first"
        kept_open = connection.sock is not None
        try:
            try:
                return _asked(connection, method, target, body, headers)
            except ConnectionError:
                if not kept_open:
                    raise
                connection.close()
                return _asked(connection, method, target, body, headers)
        except (OSError, HTTPException) as error:
            connection.close()
            raise self._broken(error) from error

    def _broken(self, error: OSError | HTTPException) -> SinkHalted | SinkUnreachable:
        return halted_by_tls(error, self.address) or SinkUnreachable(
            f"{self.address} did not answer: {str(error) or type(error).__name__}"
        )


def rejected(answer: Answer, address: str) -> SinkHalted | SinkRefused | SinkUnreachable:
    """Return the error for an answer other than success: whether to split the batch, to try again, or to halt."""
    said = f"{address} answered {answer}"
    status = answer.status
    if status in _REFUSED:
        return SinkRefused(said)
    if status in _AGAIN or (status >= 500 and status not in _NEVER):
        return SinkUnreachable(said, retry_after_s=answer.retry_after_s)
    return SinkHalted(said + _REMEDIES.get(status, ""))


def checked_url(url: str) -> SplitResult:
    """Parse the URL of a sink, which has a host, and no user name or password; raises `InvalidSettings`."""
    url = check_text(url, "url", error=InvalidSettings)
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  parses it
    except ValueError as error:
        raise InvalidSettings(f"{shown(url)} is not a URL: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise InvalidSettings(
            "the URL of a sink must not contain a user name or a password; pass them as options"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidSettings(f"{shown(url)} is not a URL such as http://host:port/path or https://host/path")
    return parts


def _asked(
    connection: HTTPConnection, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
) -> Answer:
    try:
        connection.request(method, target, body, headers)
    except (BrokenPipeError, ConnectionResetError) as error:
        # A server that refuses a large body answers and closes, before it has read all of it.
        if connection.sock is None:
            raise
        try:
            answer = _read(connection)
        except (OSError, HTTPException):
            raise error from None
        if answer.status < 400:
            raise
        connection.close()
        return answer
    return _read(connection)


def _read(connection: HTTPConnection) -> Answer:
    with connection.getresponse() as response:
        body = response.read(_ANSWER_BYTES)
        if not response.isclosed():
            connection.close()  # the rest of a long response would be read as the next one
        wait = response.getheader("Retry-After") or ""
        return Answer(
            response.status,
            response.reason,
            response.getheader("Content-Type") or "",
            body,
            float(wait) if wait.isascii() and wait.isdigit() else None,
        )
