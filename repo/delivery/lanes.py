"""Lanes: which gap of the backlog the next batch is cut from. Pure; knows no store and no sink."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from repo.cursors import MOST_RANGES, Cursor, Span
from repo.delivery.protocol import Lane

__all__ = ["BATCH_ROWS", "DEFAULT_SHARE", "SHORT_BATCHES", "LaneWork", "Order", "Turns", "split"]

BATCH_ROWS = 10_000
"""A backlog of up to this many seqs is short, whatever a batch of the sink may hold."""

SHORT_BATCHES = 10
"""A backlog of up to this many batches is sent in one lane, oldest first."""

DEFAULT_SHARE = 0.2
"""The share of the bytes that back-fill may send while the live lane has more than the link can carry."""

_LEAST_SHARE = 0.01

Order = Literal["oldest", "newest"]


class LaneWork(NamedTuple):
    """A gap of a lane. The next batch is cut from its start or, with `from_end`, from its end."""

    gap: Span
    from_end: bool = False


def split(
    cursor: Cursor, through: int, *, batch: int = BATCH_ROWS, two: bool = True, order: Order = "oldest"
) -> dict[Lane, LaneWork]:
    """Return the gap that each lane sends next; lanes without work are left out.

    The live lane sends the newest gap. If that is long, it begins with its newest `batch` seqs, which leaves a gap to
    back-fill; but not if the cursor has its `MOST_RANGES`. Back-fill sends the other gaps, oldest or newest first. If
    the backlog is short, or without `two` lanes, the live lane sends everything, oldest first.
    """
    gaps, short = cursor.gaps(through), SHORT_BATCHES * batch
    if not gaps:
        return {}
    if not two or sum(gap.seqs for gap in gaps) <= short:
        return {Lane.LIVE: LaneWork(gaps[0])}
    lanes: dict[Lane, LaneWork] = {}
    if gaps[-1].last == through:
        newest = gaps.pop()
        if newest.seqs > short and len(cursor.ranges) < MOST_RANGES:
            begin = through - batch
            gaps.append(Span(newest.first, begin))
            newest = Span(begin + 1, through)
        lanes[Lane.LIVE] = LaneWork(newest)
    if gaps:
        lanes[Lane.BACKFILL] = LaneWork(gaps[0]) if order == "oldest" else LaneWork(gaps[-1], from_end=True)
    return lanes


class Turns:
    """Gives the lanes their turns by fair queueing: while several have work, each sends its share of the bytes.

    Each lane has a clock that advances by the bytes that it sends, divided by its share; the lane that is behind is
    next. A lane that had nothing to send starts at the clock of the others, before them unless it had the last turn. So
    a few live readings wait for one batch of another lane, and other lanes for one batch of them.
    """

    def __init__(self, share: float = DEFAULT_SHARE) -> None:
        share = min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
        self._shares: Mapping[Lane, float] = {
            Lane.LIVE: 1 - share,
            Lane.RECORDS: 1 - share,
            Lane.BACKFILL: share,
        }
        self._clocks: dict[Lane, float] = {}
        self._last: Lane | None = None

    def next(self, waiting: Iterable[Lane]) -> Lane:
        """Return the lane whose turn it is, of those that have work; at least one has."""
        wanted = set(waiting)
        self._clocks = {lane: at for lane, at in self._clocks.items() if lane in wanted}
        now = min(self._clocks.values(), default=0.0)
        self._clocks = {lane: self._clocks.get(lane, now) for lane in self._shares if lane in wanted}
        return min(self._clocks, key=lambda lane: (self._clocks[lane], lane is self._last))

    def sent(self, lane: Lane, sent_bytes: int, *, emptied: bool) -> None:
        """Count a batch by its encoded size; `emptied` says that its lane had nothing left when it was cut."""
        self._last = lane
        if emptied:
            self._clocks.pop(lane, None)
        elif lane in self._clocks:
            self._clocks[lane] += sent_bytes / self._shares[lane]
