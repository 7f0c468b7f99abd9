"""An HTTP server of the tests' own: gives the answers that a test sets, and keeps what it was sent."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

__all__ = ["Asked", "Scripted", "receipt"]


@dataclass
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    """Decompressed if it was gzipped."""


@dataclass
class Reply:
    """One answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after: bytes = b""
    """What follows the answer, though nobody asked for it."""


Answering = Callable[[Asked], Reply]


def receipt(asked: Asked, **more: Any) -> Reply:
    """The answer that confirms the batch."""
    return Reply(200, json.dumps({"key": asked.headers["idempotency-key"], **more}).encode())


class Scripted(ThreadingHTTPServer):
    """Listens on loopback while it is used as a context. `answer` may be replaced at any time."""

    daemon_threads = False

    def __init__(self, answer: Answering = receipt, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[Asked] = []
        self._connections: list[socket.socket] = []
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and remember to close it."""
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def handle_error(self, *_: Any) -> None:
        """Keep quiet about clients that hang up."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        asked = Asked(self.path, headers, body)
        self.server.asked.append(asked)
        reply = self.server.answer(asked)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body + reply.after)

    def log_message(self, *_: Any) -> None:
        pass
