"""The first refusals of a sink that has accepted nothing yet: they are in doubt until it accepts another item.

A destination that keeps no position, has accepted nothing yet and refuses an item may refuse everything: it may be the
wrong path of a server. So the item is neither in quarantine nor confirmed, and other items are sent alone, from the
whole backlog. Once one is accepted, the items in doubt go into quarantine. Otherwise the sink is halted, and they stay
in the backlog.
"""

from __future__ import annotations

from repo.cursors import Cursor, Span
from repo.delivery.sending import Answered
from repo.errors import SinkHalted, counted
from repo.repositories.sinks import SinkInfo, Totals

__all__ = ["Doubts", "has_accepted"]

MOST_DOUBTED = 8
"""This many items are sent alone before a sink that has accepted nothing yet is halted."""


class Doubts:
    """The items of one sink that are in doubt, each of them refused alone. For one thread."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._items: list[Answered] = []

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def are_enough(self) -> bool:
        """Whether the sink has refused so many items that it probably refuses everything."""
        return len(self._items) == MOST_DOUBTED

    @property
    def record_ids(self) -> set[str]:
        """Those of the records among the items."""
        return {record.record_id for item in self._items for record in item.sending.records}

    def add(self, item: Answered) -> None:
        """Add an item, whose attempt was dropped."""
        self._items.append(item)

    def take(self) -> Answered:
        """Remove the oldest item, and return it."""
        return self._items.pop(0)

    def gap(self, cursor: Cursor, last_seq: int) -> Span | None:
        """Return where the next point to send alone is looked for: farther on in the backlog each time.

        None if nothing is left but the items in doubt.
        """
        for item in self._items:
            if item.sending.attempt.confirms_seqs:
                cursor = cursor.confirm(*item.sending.span)
        gaps = cursor.gaps(last_seq)
        begin = self._items[0].sending.span.first
        begin += (last_seq - begin) * len(self._items) // (MOST_DOUBTED - 1)
        rest = [Span(max(gap.first, begin), gap.last) for gap in gaps if gap.last >= begin]
        return next(iter(rest or gaps), None)

    def halt(self) -> SinkHalted:
        """Return the error for a sink that refuses everything, and forget the items."""
        sent = "that was sent alone" if len(self._items) == 1 else "that were sent alone"
        [last] = self._items[-1].refused
        error = SinkHalted(
            f"{self._sink} has accepted nothing yet, and refuses {counted(len(self._items), 'item')} {sent}, so "
            "nothing is put into quarantine; check the URL and the options of the sink. Its last reason: "
            f"{last.reason}"
        )
        self._items = []
        return error


def has_accepted(info: SinkInfo, answered: Answered | None) -> bool:
    """Return whether a sink has ever stored an item."""
    totals = Totals() if answered is None else answered.totals
    return any((info.sent_points, info.sent_records, totals.points, totals.records))
