"""A TCP proxy of the tests' own: cuts links, delays, resets, lets connections hang half open, drops answers."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self

__all__ = ["Proxy"]

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send a reset."""


class Proxy:
    """Passes connections to a port of loopback on. All switches work at any time, also on open connections."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.delay_s = 0.0
        """Seconds that each piece takes in each direction."""
        self.bytes_per_s: float | None = None
        self.connections = 0
        """Connections accepted so far."""
        self._is_cut = False
        self._answers_dropped = self._answers_passed = 0
        self._bytes_until_cut: int | None = None
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def cut(self, *, reset: bool = True) -> None:
        """Close all connections, with a reset or in order, and accept no new ones until `mend`."""
        with self._lock:
            self._is_cut = True
        self._drop(reset)

    def mend(self) -> None:
        """Accept connections again, and let everything flow."""
        with self._lock:
            self._is_cut = False
        self._flowing.set()

    def blink(self, *, reset: bool = True) -> None:
        """Close all connections; new ones are accepted at once."""
        self._drop(reset)

    def hang(self) -> None:
        """Pass nothing on until `mend`; connections stay open, as when the other side is gone without a word."""
        self._flowing.clear()

    def drop_answers(self, count: int, *, after: int = 0) -> None:
        """Cut each of the next `count` connections when the destination answers: it has the batch, the sender not.

        The first `after` answers are passed on, for protocols that need several for a batch.
        """
        with self._lock:
            self._answers_dropped, self._answers_passed = count, after

    def cut_after(self, count: int) -> None:
        """Cut the connection that has sent so many more bytes, once."""
        with self._lock:
            self._bytes_until_cut = count

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
        self._flowing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._drop(reset=True)

    def _drop(self, reset: bool) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(pair, reset=reset)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._is_cut:
                _close((client,), reset=True)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
            except OSError:
                _close((client,), reset=True)
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._pairs.append(pair)
                is_late = self._closed or self._is_cut
            if is_late:
                self._drop(reset=True)
                continue
            threading.Thread(target=self._serve, args=(pair,), daemon=True).start()

    def _serve(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Pass in both directions until both are at their end, and close the sockets."""
        client, server = pair
        answers = threading.Thread(target=self._pass, args=(pair, server, client, False), daemon=True)
        answers.start()
        self._pass(pair, client, server, True)
        answers.join()
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
        _close(pair, reset=False)

    def _pass(
        self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket, up: bool
    ) -> None:
        try:
            while piece := source.recv(65_536):
                self._flowing.wait()
                if self.bytes_per_s:
                    time.sleep(len(piece) / self.bytes_per_s)
                if self.delay_s:
                    time.sleep(self.delay_s)
                if up and self._is_last(len(piece)):
                    sink.sendall(piece[: len(piece) // 2])
                    break
                if not up and self._is_dropped():
                    break
                sink.sendall(piece)
            else:
                with suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
        except OSError:
            pass
        _close(pair, reset=True)

    def _is_last(self, size: int) -> bool:
        with self._lock:
            if self._bytes_until_cut is None:
                return False
            self._bytes_until_cut -= size
            if self._bytes_until_cut > 0:
                return False
            self._bytes_until_cut = None
            return True

    def _is_dropped(self) -> bool:
        with self._lock:
            if self._answers_dropped == 0:
                return False
            if self._answers_passed > 0:
                self._answers_passed -= 1
                return False
            self._answers_dropped -= 1
            return True


def _close(sockets: tuple[socket.socket, ...], *, reset: bool) -> None:
    for one in sockets:
        with suppress(OSError):
            if reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            one.shutdown(socket.SHUT_RDWR)
        one.close()
