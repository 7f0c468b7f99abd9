"""An HTTP server on loopback that takes each request and forgets it. Counts the requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

__all__ = ["Discarding"]


class Discarding:
    """The server, while it runs."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests = 0

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Discarding]:
        """Serve in threads of this process until the end of the block."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                found.requests += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            found = cls(server.server_address[1])
            thread = Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield found
            finally:
                server.shutdown()
                thread.join()
