"""Attempts: the batch that each sink was sent and has not answered, on a connection that the caller provides.

Never commits.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from repo.models import AttemptRow

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


_NAMES = Attempt._fields
_ALL = select(AttemptRow.sink, *(getattr(AttemptRow, name) for name in _NAMES))


class AttemptRepository:
    """Records and removes attempts, one a sink."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, sink: str, attempt: Attempt) -> None:
        """Record an attempt in place of the sink's last one."""
        row = attempt._asdict()
        self._connection.execute(
            insert(AttemptRow)
            .values(sink=sink, **row)
            .on_conflict_do_update(index_elements=["sink"], set_=row)
        )

    def all(self) -> dict[str, Attempt]:
        """Return the attempts by sink."""
        return {row[0]: Attempt(*row[1:]) for row in self._connection.execute(_ALL)}

    def get(self, sink: str) -> Attempt | None:
        """Return the attempt of a sink, if it has one."""
        row = self._connection.execute(_ALL.where(AttemptRow.sink == sink)).one_or_none()
        return None if row is None else Attempt(*row[1:])

    def remove(self, sink: str | None = None) -> None:
        """Remove the attempt of a sink, or those of all sinks."""
        statement = delete(AttemptRow)
        self._connection.execute(statement if sink is None else statement.where(AttemptRow.sink == sink))
