"""An HTTP server whose connections, bodies and times are bounded, with TLS and an orderly end. Knows no store."""

from __future__ import annotations

import io
import logging
import re
import socket
import socketserver
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, cast

from repo.errors import HoldfastError, InvalidSettings

__all__ = ["Handler", "HttpServer", "Refused", "ServerLimits"]

log = logging.getLogger("holdfast.receiver")

_SLOWEST_BYTES_S = 1_000
"""The slowest rate at which a body may arrive."""
_RETRY_S = "5"
_DRAINED_BYTES = 134_217_728
"""A rejected body up to this size is read and dropped: a sender that is still sending would not see the answer."""
_PIECE_BYTES = 65_536


class ServerLimits(NamedTuple):
    """What a server admits."""

    connections: int
    """Connections at a time; other clients are asked to come back."""
    body_bytes: int
    """The largest body, also after decompression."""
    timeout_s: float
    """The time within which a request must arrive; a long body may take longer."""


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class HttpServer(ThreadingHTTPServer):
    """Listens on an address; raises `InvalidSettings` if it cannot."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[Handler],
        context: ssl.SSLContext | None,
        bounds: ServerLimits,
    ) -> None:
        self.context = context
        self.bounds = bounds
        self.is_ending = False
        self._places = threading.BoundedSemaphore(bounds.connections)
        self._mutex = threading.Lock()
        self._open: dict[Any, socket.socket] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, handler)
        except (OSError, UnicodeError) as error:
            raise InvalidSettings(f"cannot listen on {address[0]}:{address[1]}: {error}") from error

    def server_bind(self) -> None:
        """Bind without a name lookup for this machine, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, if there is room."""
        if not self._places.acquire(blocking=False):
            log.warning("%s was turned away: too many senders are connected", client_address[0])
            if self.context is None:  # for TLS, a handshake would be needed first
                with suppress(OSError):
                    request.settimeout(1)
                    request.sendall(
                        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n"
                        b"Connection: close\r\n\r\n"
                    )
            self.shutdown_request(request)
            return
        with self._mutex:
            self._open[request] = request
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._release(request)
            self.shutdown_request(request)
            log.exception("%s was turned away", client_address[0])

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  as the library has it
        """Log what ended a connection: nothing of an unfinished request was stored."""
        level = logging.INFO if isinstance(sys.exc_info()[1], OSError) else logging.ERROR
        log.log(level, "the connection of %s ended", client_address[0], exc_info=True)

    def secured(self, request: Any, connection: socket.socket) -> None:
        """Note the TLS connection that has taken over the socket of a request."""
        with self._mutex:
            self._open[request] = connection

    def finish(self) -> None:
        """Close the port and all idle connections, and wait for the requests in hand."""
        self.server_close()
        self.is_ending = True
        with self._mutex:
            waiting = list(self._open.values())
        for connection in waiting:
            with suppress(OSError):
                # On a TLS connection this would also end the encryption, and an answer would leave as plain text.
                socket.socket.shutdown(connection, socket.SHUT_RD)
        until = time.monotonic() + self.bounds.timeout_s
        while self._open and time.monotonic() < until:
            time.sleep(0.005)

    def _release(self, request: Any) -> None:
        with self._mutex:
            self._open.pop(request, None)
        self._places.release()


class _TimedReader(io.RawIOBase):
    """Reads a socket until a deadline, which a trickle of single bytes does not extend."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline_s = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(target)


class Handler(BaseHTTPRequestHandler):
    """Serves a connection; a subclass has `do_GET` and `do_POST`, which call `body` and `answer`."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    server_version = "Holdfast"
    sys_version = ""
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Complete the handshake of TLS, and read with deadlines from then on."""
        self.request.settimeout(self.server.bounds.timeout_s)
        if self.server.context is not None:
            plain = self.request
            self.request = self.server.context.wrap_socket(plain, server_side=True)
            self.server.secured(plain, self.request)
        super().setup()
        self.rfile.close()
        self._timed = _TimedReader(self.connection)
        self.rfile = cast("Any", io.BufferedReader(self._timed, 65_536))

    def finish(self) -> None:
        """Close the connection."""
        super().finish()
        if self.server.context is not None:
            with suppress(OSError):
                self.request.close()

    def handle_one_request(self) -> None:
        """Wait for a request; one that does not arrive in time ends the connection."""
        if self.server.is_ending:
            self.close_connection = True
            return
        self._timed.deadline_s = time.monotonic() + self.server.bounds.timeout_s
        super().handle_one_request()

    def log_message(self, *_: Any) -> None:
        """Log nothing: the answers have the outcome."""

    def body(self, admit: Callable[[], None]) -> bytes:
        """Return the body as it was sent, after `admit`. If that raises, the body is read and dropped.

        Raises `Refused`, and `OSError` if the connection breaks or the body does not arrive in time.
        """
        length = self.headers.get("Content-Length", "0")
        if not re.fullmatch(r"\d{1,18}", length, re.ASCII) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(400, "a Content-Length is required")
        size = int(length)
        try:
            admit()
            self._check_size(size)
        except (Refused, HoldfastError):
            self._drop(size)
            raise
        self._timed.deadline_s = time.monotonic() + self.server.bounds.timeout_s + size / _SLOWEST_BYTES_S
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            raise Refused(400, "the body is incomplete")
        return body

    def unpacked(self, body: bytes) -> bytes:
        """Return a body without its compression, which may not expand beyond the limit."""
        encoding = self.headers.get("Content-Encoding", "identity")
        if encoding == "identity":
            return body
        if encoding != "gzip":
            raise Refused(415, f"the encoding {encoding[:40]!r} is not supported; gzip is")
        inflate, limit = zlib.decompressobj(zlib.MAX_WBITS | 16), self.server.bounds.body_bytes
        try:
            plain = inflate.decompress(body, limit)
        except zlib.error as error:
            raise Refused(400, f"the body is not gzip: {error}") from error
        if inflate.unconsumed_tail:
            raise Refused(413, f"a body may have at most {limit:,} bytes after decompression")
        if not inflate.eof or inflate.unused_data:
            raise Refused(400, "the body is not one whole gzip stream")
        return plain

    def answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        """Send an answer, and the header with which a sender comes back to a busy server."""
        self.connection.settimeout(self.server.bounds.timeout_s)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", _RETRY_S)
        if self.close_connection or self.server.is_ending:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _check_size(self, size: int) -> None:
        if size > self.server.bounds.body_bytes:
            raise Refused(413, f"a body may have at most {self.server.bounds.body_bytes:,} bytes")

    def _drop(self, size: int) -> None:
        """Read a body of an accepted size without keeping it; otherwise close the connection after the answer."""
        if size > _DRAINED_BYTES:
            self.close_connection = True
            return
        self._timed.deadline_s = time.monotonic() + self.server.bounds.timeout_s
        while size and (piece := self.rfile.read(min(size, _PIECE_BYTES))):
            size -= len(piece)
        self.close_connection = self.close_connection or size > 0
