"""Sinks, their cursors, and why a delivery fails, on a connection that the caller provides. Never commits."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sqlalchemy import Connection, case, func, select, update
from sqlalchemy.dialects.sqlite import insert

from repo.models import SinkCursor

__all__ = ["Cursor", "DeliveryFailure", "FailureKind", "SinkRepository"]

FailureKind = Literal["unreachable", "refused"]

_STATES: dict[str, FailureKind] = {"failing": "unreachable", "halted": "refused"}
_STATE_OF = {kind: state for state, kind in _STATES.items()}


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


_ALL = select(
    *(SinkCursor.name, SinkCursor.confirmed_seq, SinkCursor.updated_us),
    *(SinkCursor.state, SinkCursor.last_error, SinkCursor.since_us),
).order_by(SinkCursor.name)


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
        result = self._connection.execute(
            update(SinkCursor)
            .where(SinkCursor.name == name)
            .values(
                confirmed_seq=func.max(SinkCursor.confirmed_seq, seq),
                updated_us=now_us,
                state="running",
                since_us=None,
                last_error=None,
                failures=0,
            )
        )
        return bool(result.rowcount)

    def note_failure(self, name: str, kind: FailureKind, reason: str, now_us: int) -> None:
        """Record that deliveries to a sink fail; a failure of the same kind keeps the time at which it began."""
        state = _STATE_OF[kind]
        self._connection.execute(
            update(SinkCursor)
            .where(SinkCursor.name == name)
            .values(
                state=state,
                last_error=reason,
                since_us=case((SinkCursor.state == state, SinkCursor.since_us), else_=now_us),
                failures=SinkCursor.failures + 1,
            )
        )

    def list(self) -> list[Cursor]:
        """Return all sinks in order of their names."""
        return [_cursor(*row) for row in self._connection.execute(_ALL)]


def _cursor(
    name: str, seq: int, updated_us: int, state: str, reason: str | None, since_us: int | None
) -> Cursor:
    kind = _STATES.get(state)
    failure = None if kind is None else DeliveryFailure(kind, reason or "", since_us or updated_us)
    return Cursor(name, seq, updated_us, failure)
