"""Batches made by hand, as the forwarder makes them: ranges of seqs that follow each other, and a chain of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

from repo.delivery.protocol import Batch, Lane, RecordItem, Tokens

__all__ = ["MOMENT_US", "Chain", "columns_of"]

MOMENT_US = 1_767_225_600_000_000
"""2026-01-01, UTC."""

_Rows = Iterable[Sequence[Any]]


def columns_of(rows: _Rows) -> list[tuple[Any, ...]]:
    """Return rows of `protocol.Columns` as columns."""
    return [tuple(column) for column in zip(*rows, strict=True)] or [()] * 8


class Chain:
    """A store's batches to one sink, of which each follows the one before."""

    def __init__(self, sink: str = "hub", store_id: str | None = None, epoch: int = 0) -> None:
        self.sink, self.epoch = sink, epoch
        self.store_id = store_id or uuid4().hex
        self.token: str | None = None
        self.last_seq = 0

    def batch(
        self, rows: _Rows, last_seq: int | None = None, first_seq: int | None = None, **changes: Any
    ) -> Batch:
        """Return the next batch. Its range ends with its last row, unless `last_seq` is given."""
        columns = columns_of(rows)
        last = last_seq if last_seq is not None else columns[7][-1]
        return Batch(
            store_id=self.store_id,
            epoch=self.epoch,
            sink=self.sink,
            first_seq=self.last_seq + 1 if first_seq is None else first_seq,
            last_seq=last,
            lane=changes.pop("lane", Lane.LIVE),
            tokens=Tokens(self.token, uuid4().hex),
            columns=columns,
            **changes,
        )

    def records(self, records: Sequence[RecordItem]) -> Batch:
        """Return a batch of records."""
        return self.batch([], 0, 0, lane=Lane.RECORDS, records=records)

    def confirm(self, batch: Batch) -> None:
        """Note that the sink has stored a batch."""
        self.token = batch.tokens.next
        self.last_seq = max(self.last_seq, batch.last_seq)

    def numbers(self, count: int, value: float = 1.5, step_us: int = 1_000_000) -> list[Sequence[Any]]:
        """Return the next rows: two sensors, one number each."""
        first = self.last_seq + 1
        return [
            (f"S-{seq % 2}", "flow", MOMENT_US + seq * step_us, value, None, 100, None, seq)
            for seq in range(first, first + count)
        ]
