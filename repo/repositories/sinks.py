"""Sinks, their cursors, and why a delivery fails, on a connection that the caller provides. Never commits."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from repo.models import BufferMetadata, SinkCursor

__all__ = ["Cursor", "DeliveryFailure", "FailureKind", "SinkRepository"]

FailureKind = Literal["unreachable", "refused"]

_FAILURE = "holdfast.sink-failure:"
"""The start of the keys, in the key-value table, of the failures: one for each sink that fails, before its name."""


class DeliveryFailure(NamedTuple):
    """Why nothing is delivered to a sink at the moment, and since when, in µs since 1970 UTC."""

    kind: FailureKind
    reason: str
    since_us: int


class Cursor(NamedTuple):
    """A sink's name, and the seq through which it has confirmed everything."""

    name: str
    confirmed_seq: int
    updated_us: int
    failure: DeliveryFailure | None = None


_ALL = select(SinkCursor.name, SinkCursor.confirmed_seq, SinkCursor.updated_us).order_by(SinkCursor.name)
_FAILURES = select(BufferMetadata.key, BufferMetadata.value).where(
    func.substr(BufferMetadata.key, 1, len(_FAILURE)) == _FAILURE
)


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
        """Move a cursor forward to `seq`, and remove the failure; returns False if the sink is unknown.

        A cursor never moves back.
        """
        self._connection.execute(delete(BufferMetadata).where(BufferMetadata.key == _FAILURE + name))
        result = self._connection.execute(
            update(SinkCursor)
            .where(SinkCursor.name == name)
            .values(confirmed_seq=func.max(SinkCursor.confirmed_seq, seq), updated_us=now_us)
        )
        return bool(result.rowcount)

    def note_failure(self, name: str, kind: FailureKind, reason: str, now_us: int) -> None:
        """Record that deliveries to a sink fail; a failure of the same kind keeps the time at which it began."""
        before = self._failures().get(name)
        since_us = before.since_us if before is not None and before.kind == kind else now_us
        value = json.dumps([kind, reason, since_us])
        self._connection.execute(
            insert(BufferMetadata)
            .values(key=_FAILURE + name, value=value)
            .on_conflict_do_update(index_elements=["key"], set_={"value": value})
        )

    def list(self) -> list[Cursor]:
        """Return all sinks in order of their names."""
        failures = self._failures()
        return [Cursor(*row, failures.get(row[0])) for row in self._connection.execute(_ALL)]

    def _failures(self) -> dict[str, DeliveryFailure]:
        return {
            key.removeprefix(_FAILURE): DeliveryFailure(*json.loads(value))
            for key, value in self._connection.execute(_FAILURES)
        }
