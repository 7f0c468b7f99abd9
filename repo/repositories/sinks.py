"""Sinks and their cursors, on a connection that the caller provides. Never commits."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.sqlite import insert

from repo.models import SinkCursor

__all__ = ["Cursor", "SinkRepository"]


class Cursor(NamedTuple):
    """A sink's name, and the seq through which it has confirmed everything."""

    name: str
    confirmed_seq: int
    updated_us: int


class SinkRepository:
    """Registers sinks and moves their cursors."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def register(self, name: str, now_us: int) -> int:
        """Add a sink whose cursor is at the start, unless it exists; returns the seq that it has confirmed."""
        self._connection.execute(
            insert(SinkCursor)
            .values(name=name, confirmed_seq=0, created_us=now_us, updated_us=now_us)
            .on_conflict_do_nothing()
        )
        confirmed = self._connection.scalar(select(SinkCursor.confirmed_seq).where(SinkCursor.name == name))
        assert confirmed is not None
        return confirmed

    def confirm(self, name: str, seq: int, now_us: int) -> bool:
        """Move a cursor forward to `seq`; it never moves back. Returns False if the sink is unknown."""
        result = self._connection.execute(
            update(SinkCursor)
            .where(SinkCursor.name == name)
            .values(confirmed_seq=func.max(SinkCursor.confirmed_seq, seq), updated_us=now_us)
        )
        return bool(result.rowcount)

    def list(self) -> list[Cursor]:
        """Return all sinks in order of their names."""
        query = select(SinkCursor.name, SinkCursor.confirmed_seq, SinkCursor.updated_us).order_by(
            SinkCursor.name
        )
        return [Cursor(*row) for row in self._connection.execute(query)]
