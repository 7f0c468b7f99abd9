"""Lanes: which gap of the backlog the next batch is cut from. Pure; knows no store and no sink."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from repo.cursors import MOST_RANGES, Cursor, Span
from repo.delivery.protocol import Lane

__all__ = ["BATCH_SEQS", "DEFAULT_SHARE", "SHORT_BACKLOG", "Order", "Turns", "Work", "split"]

BATCH_SEQS = 10_000
"""About the seqs of a batch: how many the live lane takes when it begins."""

SHORT_BACKLOG = 10 * BATCH_SEQS
"""A backlog of up to this many seqs is sent in one lane, oldest first."""

DEFAULT_SHARE = 0.2
"""The part of the bytes that back-fill may send while the live lane has more than the link takes."""

_LEAST_SHARE = 0.01

Order = Literal["oldest", "newest"]


class Work(NamedTuple):
    """A gap of a lane. The next batch is cut from its start or, with `from_end`, from its end."""

    gap: Span
    from_end: bool = False


def split(cursor: Cursor, through: int, *, two: bool = True, order: Order = "oldest") -> dict[Lane, Work]:
    """Return the gap that each lane sends next; lanes without work are left out.

    The live lane sends the newest gap. If that is long, it begins with the newest batch of it, which leaves a gap to
    back-fill; but not if the cursor has its `MOST_RANGES`. Back-fill sends the other gaps, oldest first or newest
    first. If the backlog is short, or without `two` lanes, the live lane sends everything, oldest first.
    """
    gaps = cursor.gaps(through)
    if not gaps:
        return {}
    if not two or sum(gap.seqs for gap in gaps) <= SHORT_BACKLOG:
        return {Lane.LIVE: Work(gaps[0])}
    lanes: dict[Lane, Work] = {}
    if gaps[-1].last == through:
        newest = gaps.pop()
        if newest.seqs > SHORT_BACKLOG and len(cursor.ranges) < MOST_RANGES:
            begin = through - BATCH_SEQS
            gaps.append(Span(newest.first, begin))
            newest = Span(begin + 1, through)
        lanes[Lane.LIVE] = Work(newest)
    if gaps:
        lanes[Lane.BACKFILL] = Work(gaps[0]) if order == "oldest" else Work(gaps[-1], from_end=True)
    return lanes


class Turns:
    """Gives the lanes their turns by deficit round robin: each may send its share of the bytes of a round.

    A round has the bytes of a full batch. A lane that has sent everything goes to the end of the queue, so a few live
    readings wait for one full batch of another lane at most, and other lanes wait for one batch of them.
    """

    def __init__(self, share: float = DEFAULT_SHARE) -> None:
        share = min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
        self._shares: Mapping[Lane, float] = {
            Lane.LIVE: 1 - share,
            Lane.RECORDS: 1 - share,
            Lane.BACKFILL: share,
        }
        self._queue: deque[Lane] = deque()
        self._credit: dict[Lane, float] = {}
        self._is_begun = False
        """Whether the first lane of the queue has got the bytes of its turn."""

    def next(self, waiting: Iterable[Lane], round_bytes: int) -> Lane:
        """Return the lane whose turn it is, of those that have work; at least one has."""
        wanted = set(waiting)
        for lane in [lane for lane in self._queue if lane not in wanted]:
            self._leave(lane)
        for lane in self._shares:  # in this order if they come at the same time
            if lane in wanted and lane not in self._queue:
                self._queue.append(lane)
                self._credit[lane] = 0.0
        while True:
            lane = self._queue[0]
            if not self._is_begun:
                self._is_begun = True
                self._credit[lane] += self._shares[lane] * round_bytes
            if self._credit[lane] > 0:
                return lane
            self._queue.rotate(-1)
            self._is_begun = False

    def sent(self, lane: Lane, sent_bytes: int, *, emptied: bool) -> None:
        """Count a batch by its encoded size; `emptied` says that its lane had nothing left when it was cut."""
        if lane not in self._queue:
            return
        if emptied:
            self._leave(lane)
            for other, credit in self._credit.items():  # what they have sent kept nothing waiting
                self._credit[other] = max(credit, 0.0)
        else:
            self._credit[lane] -= sent_bytes

    def _leave(self, lane: Lane) -> None:
        if self._queue[0] is lane:
            self._is_begun = False
        self._queue.remove(lane)
        del self._credit[lane]
