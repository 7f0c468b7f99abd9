"""Attempts: the batch that each sink was sent and has not answered, on a connection that the caller provides.

Never commits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection

__all__ = ["Attempt", "AttemptRepository"]


class Attempt(NamedTuple):
    """A batch on its way; `first_seq` to `last_seq`, both inclusive, are 0 for a batch of records."""

    first_seq: int
    last_seq: int
    points: int
    checksum: str
    """Of the packed columns, as they were when it was sent last; "" for records."""
    token: str
    """What an exact destination holds once it has stored this batch."""
    lane: str
    tries: int
    begun_us: int
    """When it was sent first, in µs since 1970 UTC."""


# SQL text for the driver: a delivery runs these for each batch, and building them takes longer than running them.
_NAMES = ", ".join(("sink", *Attempt._fields))
_PUT = f"INSERT OR REPLACE INTO attempts ({_NAMES}) VALUES ({', '.join('?' * (1 + len(Attempt._fields)))})"
_ALL = f"SELECT {_NAMES} FROM attempts"


class AttemptRepository:
    """Records and removes attempts, one a sink. Through the driver: the caller has begun a transaction to write."""

    def __init__(self, connection: Connection) -> None:
        self._driver: Any = connection.connection.driver_connection

    def put(self, sink: str, attempt: Attempt) -> None:
        """Record an attempt in place of the sink's last one."""
        self._driver.execute(_PUT, (sink, *attempt))

    def all(self) -> dict[str, Attempt]:
        """Return the attempts by sink."""
        return {row[0]: Attempt(*row[1:]) for row in self._driver.execute(_ALL)}

    def get(self, sink: str) -> Attempt | None:
        """Return the attempt of a sink, if it has one."""
        row = self._driver.execute(f"{_ALL} WHERE sink = ?", (sink,)).fetchone()
        return None if row is None else Attempt(*row[1:])

    def remove(self, sink: str) -> None:
        """Remove the attempt of a sink."""
        self._driver.execute("DELETE FROM attempts WHERE sink = ?", (sink,))
