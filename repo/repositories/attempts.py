"""Attempts: the batch that each sink was sent and has not answered, on a connection that the caller provides.

Never commits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection

__all__ = ["Attempt", "AttemptRepository"]


class Attempt(NamedTuple):
    """A batch on its way; `first_seq` to `last_seq`, both inclusive, are 0 for a batch of records."""

    first_seq: int
    last_seq: int
    points: int
    checksum: str
    """The checksum of the seqs of its points, as of the last time it was sent; "" for records, and once it is
    emptied."""
    token: str
    """What an exact destination holds once it has stored this batch."""
    lane: str
    tries: int
    begun_us: int
    """When it was sent first, in µs since 1970 UTC."""
    is_damaged: bool = False
    """Whether the row has changed since it was written, so that nothing in it can be trusted."""

    @property
    def confirms_seqs(self) -> bool:
        """Whether its range of seqs is confirmed with it; False for records and for an emptied attempt."""
        return self.checksum != ""

    def without_items(self) -> Attempt:
        """Return the attempt without its items, which still moves its token: see `repo.delivery.chain`."""
        return self._replace(points=0, checksum="")


# SQL text for the driver: a delivery runs these for each batch, and building them takes longer than running them.
_FIELDS = Attempt._fields[:-1]
_NAMES = ", ".join(("sink", *_FIELDS))
_PUT = f"INSERT OR REPLACE INTO attempts ({_NAMES}) VALUES ({', '.join('?' * (1 + len(_FIELDS)))})"
_ALL = f"SELECT {_NAMES} FROM attempts"
_CHECKSUM = Attempt._fields.index("checksum")


class AttemptRepository:
    """Records and removes attempts, one a sink. Through the driver: the caller has begun a transaction to write.

    SQLite does not notice flipped bits, and a wrong range would be confirmed without having been sent. So the checksum
    is stored with the CRC-32 of the row.
    """

    def __init__(self, connection: Connection) -> None:
        self._driver: Any = connection.connection.driver_connection

    def put(self, sink: str, attempt: Attempt) -> None:
        """Record an attempt in place of the sink's last one."""
        row = [sink, *attempt[:-1]]
        row[1 + _CHECKSUM] = f"{attempt.checksum}.{_crc(row)}"
        self._driver.execute(_PUT, row)

    def all(self) -> dict[str, Attempt]:
        """Return the attempts by sink."""
        return {row[0]: _attempt(row) for row in self._driver.execute(_ALL)}

    def get(self, sink: str) -> Attempt | None:
        """Return the attempt of a sink, if it has one."""
        row = self._driver.execute(f"{_ALL} WHERE sink = ?", (sink,)).fetchone()
        return None if row is None else _attempt(row)

    def remove(self, sink: str) -> None:
        """Remove the attempt of a sink."""
        self._driver.execute("DELETE FROM attempts WHERE sink = ?", (sink,))


def _attempt(row: Iterable[Any]) -> Attempt:
    stored = list(row)
    stored[1 + _CHECKSUM], _, crc = stored[1 + _CHECKSUM].rpartition(".")
    return Attempt(*stored[1:])._replace(is_damaged=crc != _crc(stored))


def _crc(row: list[Any]) -> str:
    return f"{zlib.crc32(repr(row).encode('utf-8', 'surrogatepass')):08x}"
