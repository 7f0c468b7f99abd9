"""Publishes messages over the connection of an MQTT client that has logged in: many packets with each read and write.

The client would write each message by itself and read its answer byte by byte, which takes twenty times the CPU time.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from repo.delivery.encodings.messages import Message
from repo.delivery.encodings.mqtt_packets import (
    DISCONNECT,
    FAILURE,
    PUBREC,
    Answer,
    Answers,
    Publications,
    release,
)

__all__ = ["MOST_MESSAGES", "NO_MESSAGES", "ConnectionLost", "Publishing"]

MOST_MESSAGES = 65_000
"""An unacknowledged message has an id of 16 bits."""
NO_MESSAGES = range(0)
_PIECE_BYTES = 65_536
_ACK_AT_ONCE: int | None = getattr(socket, "TCP_QUICKACK", None)
"""With Nagle's algorithm, a broker sends its second answer once the first is acknowledged, which may take 40 ms."""
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ConnectionLost(Exception):
    """The connection can no longer be used. `reason` is the code that the broker gave for it, if it gave one."""

    def __init__(self, said: str, *, reason: int | None = None) -> None:
        super().__init__(said)
        self.reason = reason


class Publishing:
    """Publishes over one connection, for one thread. After any error, the connection must be closed.

    `connection` is a socket that does not block, and that nobody else reads. `window` messages may be on their way.
    """

    def __init__(self, connection: Any, *, window: int, timeout_s: float) -> None:
        self._socket = connection
        self._window = window
        self._timeout_s = timeout_s
        self._answers = Answers()
        self._queued = bytearray()
        self._sent = 0

    def check(self) -> None:
        """Raise `ConnectionLost` if the broker has closed the connection."""
        for _ in self._received():
            pass

    def publish(
        self,
        messages: Sequence[Message],
        packets: Publications,
        codes: dict[int, int],
        *,
        one_by_one: range = NO_MESSAGES,
    ) -> None:
        """Publish messages in order, until `codes` has the reason code of each, by its position.

        Each of those `one_by_one` waits for the answer to the one before it, and the others for room in the window.
        At most `MOST_MESSAGES`. Raises `ConnectionLost`, or `TimeoutError` if nothing happens for too long; what was
        answered is in `codes`.
        """
        self._sent, limit_s = 0, time.monotonic() + self._timeout_s
        while len(codes) < len(messages):
            answered = len(codes)
            most = self._window if answered >= one_by_one.stop else max(1, one_by_one.start - answered)
            self._queue(messages, packets, answered + min(most, self._window))
            self._wait(limit_s)
            before = len(codes), len(self._queued)
            try:
                self._read(codes)
                self._write()
            except ConnectionLost:
                with suppress(ConnectionLost):  # it may say why
                    self._read(codes)
                if len(codes) < len(messages):
                    raise
            if before != (len(codes), len(self._queued)):
                limit_s = time.monotonic() + self._timeout_s

    def _queue(self, messages: Sequence[Message], packets: Publications, end: int) -> None:
        """Queue the next messages up to this position, as many as fit into a write."""
        end = min(end, len(messages))
        while self._sent < end and len(self._queued) < _PIECE_BYTES:
            topic, payload, _ = messages[self._sent]
            self._sent += 1
            self._queued += packets.packet(self._sent, topic, payload)

    def _read(self, codes: dict[int, int]) -> None:
        """Note the answers that have arrived."""
        for kind, number, reason in self._received():
            if not 0 < number <= self._sent:
                continue
            if kind == PUBREC and reason < FAILURE:
                self._queued += release(number)
            else:
                codes[number - 1] = reason

    def _wait(self, limit_s: float) -> None:
        """Wait until something can be read or written."""
        left_s = limit_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"nothing happened within {self._timeout_s:g} s")
        if not self._queued and _ACK_AT_ONCE is not None:
            with suppress(OSError):  # it would only be slower
                self._socket.setsockopt(socket.IPPROTO_TCP, _ACK_AT_ONCE, 1)
        ready = select.poll()
        ready.register(self._socket, select.POLLIN | (select.POLLOUT if self._queued else 0))
        ready.poll(left_s * 1000)

    def _write(self) -> None:
        """Write what is queued, as much as is possible now."""
        if not self._queued:
            return
        try:
            del self._queued[: self._socket.send(self._queued)]
        except _LATER:
            return
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def _received(self) -> Iterator[Answer]:
        """Yield the answers that have arrived; then raises `ConnectionLost` if the broker has closed the connection."""
        while True:
            try:
                data = self._socket.recv(_PIECE_BYTES)
            except _LATER:
                return
            except OSError as error:
                raise ConnectionLost(str(error)) from error
            if not data:
                raise ConnectionLost("the link broke")
            try:
                for answer in self._answers.of(data):
                    if answer.kind == DISCONNECT:
                        raise ConnectionLost("it disconnected", reason=answer.reason)
                    yield answer
            except ValueError as error:
                raise ConnectionLost(f"it sent {error}") from error
