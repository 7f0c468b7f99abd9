"""A store on each engine, and what real servers need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from tests.conftest import Templates
from tests.delivery.servers.certificates import Certificates, make_certificates
from tests.delivery.servers.postgresql import PostgresqlServer, why_no_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A running server, which tests may restart. Skips where it is not installed."""
    if (why := why_no_postgresql()) is not None:
        pytest.skip(why)
    server = PostgresqlServer()
    yield server
    server.close()


@pytest.fixture
def store(tmp_path: Path, engine: Any, templates: Templates) -> Iterator[Store]:
    templates.copy(engine, 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(engine=engine, background=False)) as opened:
        opened._handle.columns.stays_open = True  # as with a background thread
        yield opened


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Start a server that gives everyone the same answer; returns its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: bytes = b"", **headers: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/points"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate for 127.0.0.1 with its key."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))
