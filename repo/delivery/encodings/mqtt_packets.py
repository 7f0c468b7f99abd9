"""The packets of MQTT that publish messages, and those that answer them. Pure.

A broker answers PUBLISH with PUBACK (QoS 1), or with PUBREC (QoS 2). The client answers PUBREC with PUBREL, which the
broker answers with PUBCOMP. In version 5, properties and reason codes are added to the packets of version 3.1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

__all__ = [
    "DISCONNECT",
    "FAILURE",
    "PUBACK",
    "PUBCOMP",
    "PUBREC",
    "Answer",
    "Answers",
    "Publications",
    "release",
]

PUBACK, PUBREC, PUBCOMP, DISCONNECT = 0x40, 0x50, 0x70, 0xE0
"""The first bytes of the packets that a broker answers with."""
FAILURE = 0x80
"""Reason codes from here on are failures."""

_ANSWERS = frozenset({PUBACK, PUBREC, PUBCOMP, DISCONNECT})
_MOST_BYTES = 1_048_576
"""An answer has a few bytes; in version 5, some text can follow."""


class Publications:
    """Makes the PUBLISH packets of a batch, which has the same properties in each; `b""` in version 3.1.1."""

    def __init__(self, *, qos: int, retain: bool, properties: bytes) -> None:
        self._first = bytes([0x30 | qos << 1 | retain])
        self._properties = properties
        self._topics: dict[str, bytes] = {}

    def packet(self, number: int, topic: str, payload: bytes) -> bytes:
        """Return the packet of a message; `number` is its id, from 1 to 65,535."""
        prefix = self._topics.get(topic)
        if prefix is None:
            encoded = topic.encode()
            prefix = self._topics[topic] = len(encoded).to_bytes(2, "big") + encoded
        size = _size(len(prefix) + 2 + len(self._properties) + len(payload))
        return b"".join((self._first, size, prefix, number.to_bytes(2, "big"), self._properties, payload))


def release(number: int) -> bytes:
    """Return the PUBREL packet of a message."""
    return b"\x62\x02" + number.to_bytes(2, "big")


class Answer(NamedTuple):
    """A packet from the broker; `number` is the id of a message, or 0."""

    kind: int
    number: int
    reason: int


class Answers:
    """Splits what a broker sends into its answers. Keeps the beginning of the next one."""

    def __init__(self) -> None:
        self._left = b""

    def of(self, received: bytes) -> Iterator[Answer]:
        """Yield the answers that are complete now; raises `ValueError` for anything else."""
        data = self._left + received
        at = 0
        while (head := _head(data, at)) is not None:
            begin, end = head
            if end > len(data):
                break
            yield _answer(data[at], data[begin:end])
            at = end
        self._left = data[at:]


def _answer(kind: int, body: bytes) -> Answer:
    if kind == DISCONNECT:
        return Answer(kind, 0, body[0] if body else 0)
    if len(body) < 2:
        raise ValueError("a packet without the id of a message")
    return Answer(kind, body[0] << 8 | body[1], body[2] if len(body) > 2 else 0)


def _head(data: bytes, at: int) -> tuple[int, int] | None:
    """Return where the body of the packet at `at` begins and ends; None if its length is not there yet."""
    if at < len(data) and data[at] not in _ANSWERS:
        raise ValueError(f"a packet that begins with 0x{data[at]:02X}")
    size = shift = 0
    for place in range(at + 1, min(at + 5, len(data))):
        size |= (data[place] & 0x7F) << shift
        shift += 7
        if data[place] < 0x80:
            if size > _MOST_BYTES:
                raise ValueError(f"a packet of {size:,} bytes")
            return place + 1, place + 1 + size
    if len(data) - at >= 5:
        raise ValueError("a packet without a length")
    return None


@lru_cache(4_096)
def _size(size: int) -> bytes:
    """Return a length as a packet has it: seven bits in a byte, the lowest first."""
    encoded = bytearray()
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)
