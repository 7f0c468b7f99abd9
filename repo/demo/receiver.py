"""The receiver process: a store of its own that takes the batches of other stores, on the loopback interface."""

from __future__ import annotations

import argparse
import socket
import threading
from collections.abc import Sequence

from repo.delivery.receiver import Receiver
from repo.demo.process import announce, obey
from repo.store.store import Store

__all__ = ["DISPUTED"]

DISPUTED = ("GATEWAY", "clock")
"""A series that has numbers at the receiver and texts at the site, so the receiver refuses what the site sends."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Take batches into `store`. Connections are refused until the order `listen`; `close` ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    options = parser.parse_args(arguments)
    listen, close = threading.Event(), threading.Event()

    def closing() -> None:
        close.set()
        listen.set()

    obey({"listen": listen.set, "close": closing})
    with Store(options.store) as store, socket.socket() as reserved:
        store.points.insert(*DISPUTED, 0.0, 0.0)
        # A port that is bound but does not listen refuses connections, as on a link that is down.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        announce("ready", url=f"http+holdfast://127.0.0.1:{port}")
        listen.wait()
        reserved.close()
        if not close.is_set():
            with Receiver(store, port=port):
                announce("listening")
                close.wait()
    announce("finished")


if __name__ == "__main__":
    main()
