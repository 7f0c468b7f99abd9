"""Refused items: which go into quarantine, and when there are so many that the items cannot be the cause.

An exact destination whose answer was lost is asked again for what it refused.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from repo.delivery.protocol import Batch, Item, Lane, Outcome, Sink
from repo.errors import SinkHalted, SinkRefused, counted
from repo.repositories.quarantine import Quarantined

__all__ = ["Refusals", "check_rows", "named_again", "quarantined"]

MOST_QUARANTINED = 10_000
"""The maximum number of items of a sink in quarantine."""

WINDOW_ITEMS, MOST_REFUSED = 100_000, 1_000
"""A sink that refuses more than 1,000 of the last 100,000 items is halted: the items are probably not the cause."""


class Refusals:
    """Counts the items that a sink was sent lately, and those that it refused. For one thread."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._recent: deque[tuple[int, int]] = deque()
        self._sent = self._refused = 0

    def add(self, items: int, refused: int) -> None:
        """Count a batch that was answered."""
        if not items:
            return
        self._recent.append((items, refused))
        self._sent += items
        self._refused += refused
        self._forget(WINDOW_ITEMS)

    def too_many(self, items: int, refused: int, held: int) -> SinkHalted | None:
        """Return the error to halt with if too many items were refused; None otherwise.

        `refused` of the `items` of a batch were refused just now, and `held` items of the sink are in quarantine.
        """
        if not refused:
            return None
        self._forget(WINDOW_ITEMS - items)
        if refused + self._refused > MOST_REFUSED:
            return SinkHalted(
                f"{self._sink} refuses more than {MOST_REFUSED:,} of {WINDOW_ITEMS:,} items, so nothing more is put "
                "into quarantine. `holdfast quarantine list` shows the reasons; fix the destination"
            )
        if held + refused > MOST_QUARANTINED:
            return SinkHalted(
                f"the quarantine of {self._sink} is full ({MOST_QUARANTINED:,} items). List it with `holdfast "
                "quarantine list`, then send the items again with `retry`, or give them up with `drop`"
            )
        return None

    def _forget(self, items: int) -> None:
        """Forget the oldest batches, until the remaining ones have at most this many items."""
        while self._recent and self._sent > items:
            sent, refused = self._recent.popleft()
            self._sent -= sent
            self._refused -= refused


def check_rows(outcome: Outcome, batch: Batch) -> None:
    """Raise `ValueError` if a destination names a row that it was not sent."""
    for item in outcome.refused:
        if not 0 <= item.row < len(batch):
            raise ValueError(f"row {item.row} was refused, of a batch of {counted(len(batch), 'item')}")


def named_again(sink: Sink, batch: Batch, error: SinkRefused) -> Outcome:
    """Ask an exact destination, which has a batch, for its refused items in parts, because it rejects the whole one.

    It may reject a batch that it has if its limits have been lowered. It recognizes the parts by the token,
    and stores none of them.
    """
    if not len(batch):
        return Outcome(repeat=True)
    if len(batch) == 1:
        raise SinkHalted(
            f"{sink.name} has stored a batch whose answer was lost, and now rejects the same batch ({error}); raise "
            "its limit again until the batch is confirmed"
        )
    refused: list[Item] = []
    for begin, end in ((0, len(batch) // 2), (len(batch) // 2, len(batch))):
        part = batch.part(begin, end)
        try:
            outcome = sink.send(part)
            check_rows(outcome, part)
        except SinkRefused as again:
            outcome = named_again(sink, part, again)
        refused += [item._replace(row=item.row + begin) for item in outcome.refused]
    return Outcome(tuple(refused), repeat=True)


def quarantined(batch: Batch, item: Item) -> Quarantined:
    """Return the row of the quarantine for an item that a destination refused."""
    kind: Any = "too_late" if item.too_late else "refused"
    if batch.lane is Lane.RECORDS:
        record = batch.records[item.row]
        return Quarantined(
            *(batch.sink, item.reason, record.timestamp_us, kind),
            record_id=record.record_id,
            source=record.source,
            data=record.data,
        )
    sensor, metric, time_us, value, text, quality, metadata, seq = (
        column[item.row] for column in batch.columns
    )
    return Quarantined(
        *(batch.sink, item.reason, time_us, kind, seq, sensor, metric, value, text, quality, metadata)
    )
