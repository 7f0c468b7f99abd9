"""The receiver process: an HTTP server on the loopback interface that accepts batches and returns receipts."""

from __future__ import annotations

import argparse
import json
import socketserver
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from repo.delivery.batch import BatchKey, checksum
from repo.demo.process import announce, obey
from repo.demo.receiver_store import Keeping, Taken

__all__ = ["Receiver"]

PATH = "/points"
_BODY_BYTES = 256_000_000


class Receiver(ThreadingHTTPServer):
    """Accepts batches at `/points`, and reports its content at `/report`.

    The port is bound but does not listen at first: connections are refused, as on a link that is down, until `listen`
    is called. `on_batch` is called after each new or known batch, before its receipt is sent.
    """

    daemon_threads = True

    def __init__(self, keeping: Keeping, on_batch: Callable[[Taken], None] | None = None) -> None:
        self.keeping = keeping
        self.on_batch = on_batch
        self.is_listening = False
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server_bind()

    def server_bind(self) -> None:
        """Bind without a name lookup for this machine, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    @property
    def url(self) -> str:
        """The URL for batches."""
        return f"http://127.0.0.1:{self.server_port}{PATH}"

    def listen(self) -> None:
        """Bring the link up: accept connections in a separate thread."""
        self.server_activate()
        self.is_listening = True
        threading.Thread(
            target=self.serve_forever, args=(0.05,), name="holdfast-demo-receiver", daemon=True
        ).start()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != PATH or not length.isdigit() or int(length) > _BODY_BYTES:
            self.close_connection = True  # the body was not read
            self._answer(400, {"error": f"POST to {PATH}, with a Content-Length up to {_BODY_BYTES}"})
            return
        body = self.rfile.read(int(length))
        try:
            key = BatchKey.parse(self.headers.get("Idempotency-Key", ""))
        except ValueError as error:
            self._answer(400, {"error": str(error)})
            return
        if checksum(body) != key.checksum:
            self._answer(503, {"error": "the body does not fit the checksum of its key; send it again"})
            return
        taken = self.server.keeping.take(key, body)
        if taken.expected is not None:
            self._answer(409, {"error": f"the next seq to come is {taken.expected}, not {key.first_seq}"})
            return
        if self.server.on_batch is not None:
            self.server.on_batch(taken)
        self._answer(200, {"key": str(key), "repeat": taken.repeat})

    def do_GET(self) -> None:
        if self.path == "/report":
            self._answer(200, self.server.keeping.report())
        else:
            self._answer(404, {"error": "there is only /report"})

    def log_message(self, *_: Any) -> None:
        """Log nothing: the responses have the outcome."""

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(arguments: Sequence[str] | None = None) -> None:
    """Store batches in `file`. Connections are refused until the order `listen`; `report` returns an event."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    keeping = Keeping(options.file)
    receiver = Receiver(
        keeping,
        lambda taken: announce("taken", points=taken.points, dropped=taken.dropped, repeat=taken.repeat),
    )
    done = threading.Event()
    obey(
        {
            "listen": receiver.listen,
            "report": lambda: announce("report", **keeping.report()),
            "close": done.set,
        }
    )
    announce("ready", url=receiver.url)
    done.wait()
    keeping.close()


if __name__ == "__main__":
    main()
