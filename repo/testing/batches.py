"""Batches as the forwarder makes them: ranges of seqs that follow each other, with a chain of tokens. No store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from repo.delivery.protocol import Batch, Lane, RecordItem, Sink, Tokens
from repo.errors import SinkRefused

__all__ = ["Batches", "Point"]

Point = tuple[str, str, int, float | str | None] | tuple[str, str, int, float | str | None, int, str | None]
"""`(sensor_id, metric_name, timestamp_us, value)`, optionally with quality and metadata (JSON text)."""


class Batches:
    """The batches of one store to one sink. Starts as a new store, with no batch sent."""

    def __init__(self, sink: str, *, store_id: str | None = None, epoch: int = 1) -> None:
        self.sink = sink
        self.store_id = store_id or uuid4().hex
        self.epoch = epoch
        self.token: str | None = None
        """The token of the last batch that was confirmed."""
        self.last_seq = 0

    def points(
        self,
        points: Sequence[Point],
        *,
        lane: Lane = Lane.LIVE,
        first_seq: int | None = None,
        last_seq: int | None = None,
    ) -> Batch:
        """Return a batch of points. Its range follows the last confirmed one, unless `first_seq` is given."""
        first = self.last_seq + 1 if first_seq is None else first_seq
        rows = [(*point, *_REST[len(point) :]) for point in points]
        columns = (
            [row[0] for row in rows],
            [row[1] for row in rows],
            [row[2] for row in rows],
            [None if isinstance(row[3], str) else row[3] for row in rows],
            [row[3] if isinstance(row[3], str) else None for row in rows],
            [row[4] for row in rows],
            [row[5] for row in rows],
            list(range(first, first + len(rows))),
        )
        last = max(first, first + len(rows) - 1) if last_seq is None else last_seq
        return self._batch(first, last, lane, columns)

    def records(self, records: Sequence[RecordItem]) -> Batch:
        """Return a batch of records."""
        return self._batch(0, 0, Lane.RECORDS, ([],) * 8, records)

    def _batch(
        self, first: int, last: int, lane: Lane, columns: Any, records: Sequence[RecordItem] = ()
    ) -> Batch:
        tokens = Tokens(self.token, uuid4().hex)
        return Batch(self.store_id, self.epoch, self.sink, first, last, lane, tokens, columns, records)

    def confirm(self, batch: Batch) -> None:
        """Note that the sink has the batch: the next one follows it."""
        self.token = batch.tokens.next
        self.last_seq = max(self.last_seq, batch.last_seq)

    def deliver(self, sink: Sink, points: Sequence[Point], **details: Any) -> dict[int, str]:
        """Send points as a forwarder does; returns the reason by row for those that were refused.

        A batch that the sink refuses is split until the refused items are alone. Other errors are raised.
        """
        if not points:
            return {}
        batch = self.points(points, **details)
        try:
            outcome = sink.send(batch)
        except SinkRefused as error:
            if len(points) == 1:
                return {0: str(error)}
            half, first = len(points) // 2, batch.first_seq
            refused = self.deliver(sink, points[:half], **{**details, "first_seq": first})
            rest = self.deliver(sink, points[half:], **{**details, "first_seq": first + half})
            return refused | {half + row: reason for row, reason in rest.items()}
        self.confirm(batch)
        return {item.row: item.reason for item in outcome.refused}


_REST = ("", "", 0, None, 100, None)
