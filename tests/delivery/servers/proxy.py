"""A TCP proxy of the tests' own: cuts links, delays, resets, lets connections hang half open, drops or keeps back."""

from __future__ import annotations

import select
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
    """Passes connections to a port of loopback on. All switches work at any time, also on open connections.

    With `announced`, answers that name the address of the destination, as those of Kafka do, name the proxy's instead.
    """

    def __init__(self, target_port: int, *, announced: bool = False) -> None:
        self.target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.delay_s = 0.0
        """Seconds that each piece takes in each direction."""
        self.bytes_per_s: float | None = None
        self.connections = 0
        """Connections accepted so far."""
        self.held = threading.Event()
        """Set when something is kept back."""
        self._addresses = _address(target_port), _address(self.port)
        self._announced = announced
        self._hold_after: int | None = None
        self._hold_from = b""
        self._hold_answers_to: bytes | None = None
        self._holding: socket.socket | None = None
        self._let_go = threading.Event()
        self._is_late = False
        self._is_recording = False
        self._recorded = bytearray()
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

    def hold_after(self, count: int, of: bytes = b"") -> None:
        """Keep back what is sent after `count` more bytes, by the connection that sends them, until `let_go`.

        They are counted from a piece with `of` in it. The connection to the destination stays open, also if the sender
        is killed.
        """
        self._prepare_to_hold()
        with self._lock:
            self._hold_after, self._hold_from = count, of

    def hold_answers(self, to: bytes = b"") -> None:
        """Keep back the answers to a connection once it has sent something with `to` in it, until `let_go`."""
        self._prepare_to_hold()
        with self._lock:
            self._hold_answers_to = to

    def let_go(self, *, late: bool = False) -> None:
        """End the connection whose data is kept back; with `late`, pass the data on first."""
        with self._lock:
            self._hold_after = self._hold_answers_to = self._holding = None
            self._is_late = late
        self._let_go.set()

    def record(self) -> None:
        """Remember what the next connections send, for `repeat`."""
        with self._lock:
            self._is_recording, self._recorded = True, bytearray()

    def repeat(self) -> bytes:
        """Send the requests of HTTP that were recorded once more, over one connection, and return the answers."""
        with self._lock:
            self._is_recording, content = False, bytes(self._recorded)
        requests, answers = content.count(b" HTTP/1.1\r\n"), b""
        with socket.create_connection(("127.0.0.1", self.target_port), timeout=300) as connection:
            connection.sendall(content)
            with suppress(OSError):
                while answers.count(b"HTTP/1.1 ") < requests and (piece := connection.recv(65_536)):
                    answers += piece
        return answers

    def _prepare_to_hold(self) -> None:
        self.let_go()
        self.held = threading.Event()
        self._let_go = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
        self._flowing.set()
        self.let_go()
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
                server = socket.create_connection(("127.0.0.1", self.target_port), timeout=60)
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
                kept_from = self._kept_from(source, piece) if up else self._is_kept(sink)
                if kept_from is not None:
                    sink.sendall(piece[:kept_from])
                    later = self._kept(source, piece[kept_from:])
                    if not self._is_late:
                        break
                    piece = later
                if up and self._is_recording:
                    self._recorded += piece
                if self._announced and not up:
                    piece = piece.replace(*self._addresses)
                sink.sendall(piece)
            else:
                with suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
        except OSError:
            pass
        _close(pair, reset=True)

    def _kept_from(self, sender: socket.socket, piece: bytes) -> int | None:
        """Return after how many bytes of a piece something begins that is kept back; None if it is passed on."""
        with self._lock:
            if self._hold_answers_to is not None and self._hold_answers_to in piece:
                self._hold_answers_to, self._holding = None, sender
            if self._hold_after is None or self._hold_from not in piece:
                return None
            count, self._hold_from = self._hold_after, b""
            self._hold_after = None if count < len(piece) else count - len(piece)
            return count if count < len(piece) else None

    def _is_kept(self, sender: socket.socket) -> int | None:
        """Return 0 if an answer to this sender is kept back, None if it is passed on."""
        with self._lock:
            return 0 if self._holding is sender else None

    def _kept(self, source: socket.socket, content: bytes) -> bytes:
        """Keep back what comes until `let_go`, and return it."""
        let_go = self._let_go
        self.held.set()
        while not let_go.wait(0.005):
            with suppress(OSError, ValueError):  # another thread may close the connection here
                if not select.select([source], [], [], 0)[0]:
                    continue
                if piece := source.recv(65_536):
                    content += piece
                    continue
            let_go.wait()
        return content

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


def _address(port: int) -> bytes:
    """Return an address as it is in an answer of Kafka."""
    return b"127.0.0.1" + struct.pack(">i", port)


def _close(sockets: tuple[socket.socket, ...], *, reset: bool) -> None:
    for one in sockets:
        with suppress(OSError):
            if reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            one.shutdown(socket.SHUT_RDWR)
        one.close()
