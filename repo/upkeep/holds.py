"""Holds: which points a cleanup keeps, because a sink that holds has not confirmed them. Deletes nothing.

A sink holds the points above its low mark, of all series. The limits of its hold (`max_backlog`) release some of them.
Keeping a store below its limit in bytes takes precedence over every hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, func, select

from repo.core.handle import Handle
from repo.cursors import Cursor
from repo.models import Point
from repo.queries.selection import Known, Selection
from repo.repositories.ledger import LedgerRepository, Loss
from repo.repositories.series import LatestRepository
from repo.repositories.sinks import MaxBacklog, SinkRepository
from repo.repositories.state import StateRepository
from repo.upkeep.usage import sizes_of

__all__ = ["Hold", "Holds", "holds_of"]


@dataclass(frozen=True, slots=True)
class Hold:
    """What one sink holds: points with a seq above `through_seq`, and a time at or after `from_us`, if that is set."""

    sink: str
    confirmed: Cursor
    through_seq: int
    """Its low mark, or above it if `max_backlog` limits the points or the bytes of the hold."""
    from_us: int | None
    limits: MaxBacklog | None


@dataclass(frozen=True, slots=True)
class Holds:
    """The holds of a store at one moment."""

    holds: tuple[Hold, ...]
    last_seq: int = 0

    @property
    def sinks(self) -> tuple[str, ...]:
        """The names of the sinks that hold something."""
        return tuple(hold.sink for hold in self.holds if hold.through_seq < self.last_seq)

    def released(self, chosen: Selection) -> list[Selection]:
        """Return selections that together have the selected points that no sink holds; the chosen one without holds."""
        if not self.holds:
            return [chosen]
        cuts = sorted({hold.from_us for hold in self.holds if hold.from_us is not None})
        edges: list[int | None] = [None, *cuts, None]
        parts = []
        for at, start_us in enumerate(edges[:-1]):
            part = _within(chosen, start_us, edges[at + 1])
            holding = [
                hold.through_seq
                for hold in self.holds
                if hold.from_us is None or (start_us is not None and hold.from_us <= start_us)
            ]
            if part is not None:
                parts.append(replace(part, through_seq=min(holding)) if holding else part)
        return parts

    def undelivered(self, connection: Connection, parts: Sequence[Selection], known: Known) -> dict[str, int]:
        """Count the points of `released` parts that a sink has not confirmed, by sinks whose limit releases them."""
        found = {}
        for hold in self.holds:
            if hold.limits is None:
                continue
            query = select(func.count()).where(Point.seq > hold.confirmed.low)
            for first, last in hold.confirmed.ranges:
                query = query.where(~Point.seq.between(first, last))
            found[hold.sink] = sum(
                connection.execute(query.where(piece.where(Point, known))).scalar_one()
                for part in parts
                for piece in part.pieces(known)
            )
        return {sink: count for sink, count in found.items() if count}

    def note(self, handle: Handle, undelivered: dict[str, int]) -> None:
        """Add an entry to the ledger for each sink whose hold its limits ended. The drop has its own entry."""
        if not undelivered:
            return
        now_us = handle.clock()
        limits = {hold.sink: hold.limits for hold in self.holds}
        with handle.metadata.write() as connection:
            state = StateRepository(connection).get()
            assert state is not None
            LedgerRepository(connection).add(
                [
                    Loss(
                        entry_id=f"{state.store_id}:max-backlog:{sink}:{now_us}",
                        what="points",
                        reason="max-backlog",
                        detail=_detail(sink, count, limits[sink]),
                        dropped=0,
                        first_us=None,
                        last_us=None,
                        recorded_us=now_us,
                    )
                    for sink, count in undelivered.items()
                ]
            )


def holds_of(handle: Handle) -> Holds:
    """Return the holds as of now, from SQLite only."""
    now_us = handle.clock()
    with handle.metadata.read() as connection:
        state = StateRepository(connection).get()
        assert state is not None
        sinks = [sink for sink in SinkRepository(connection).list(now_us, state.last_seq) if sink.hold]
        points = LatestRepository(connection).totals().points
    found = []
    for sink in sinks:
        through_seq, from_us = sink.confirmed_seq, None
        if limits := sink.max_backlog:
            most = [limits.points] if limits.points is not None else []
            if limits.bytes is not None:
                columns_bytes = sum(sizes_of(handle.files.column_files()).values())
                most.append(limits.bytes * points // columns_bytes if columns_bytes else limits.bytes)
            through_seq = max([through_seq, *(state.last_seq - count for count in most)])
            from_us = None if limits.age_us is None else now_us - limits.age_us
        found.append(Hold(sink.name, sink.cursor, through_seq, from_us, sink.max_backlog))
    return Holds(tuple(found), state.last_seq)


def _within(chosen: Selection, start_us: int | None, end_us: int | None) -> Selection | None:
    """Return the part of a selection with times in [start_us, end_us); None if it is empty."""
    starts = [us for us in (chosen.start_us, start_us) if us is not None]
    ends = [us for us in (chosen.end_us, end_us) if us is not None]
    start, end = max(starts, default=None), min(ends, default=None)
    if start is not None and end is not None and start >= end:
        return None
    return replace(chosen, start_us=start, end_us=end)


def _detail(sink: str, count: int, limits: MaxBacklog | None) -> str:
    given = (
        {}
        if limits is None
        else {name: value for name, value in limits._asdict().items() if value is not None}
    )
    return json.dumps({"sink": sink, "undelivered": count, "max_backlog": given}, ensure_ascii=False)
