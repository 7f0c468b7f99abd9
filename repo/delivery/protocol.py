"""What the forwarder and a sink exchange: batches, outcomes, and the protocol of a sink. Never reads or sends.

A batch covers a range of seqs, both ends inclusive, and holds the points of that range that the sink's filter selects.
Its identity is (store id, epoch, first seq, last seq). The range of an attempt stays the same until it succeeds or is
split. Its points may change in between, because a point that is overwritten moves to a higher seq.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

from repo.errors import SinkRefused

__all__ = ["Batch", "Columns", "Item", "Lane", "Outcome", "RecordItem", "Sink", "Tokens"]

Columns = Sequence[Sequence[Any]]
"""The points of a batch as columns, one sequence each, of equal length: `sensor_id`, `metric_name`, `timestamp_us`,
`value`, `value_text`, `quality`, `metadata` (JSON text or None), `seq` (ascending).

They come as the engine has them: lists, arrays of machine numbers, or `Coded` texts. All have `tolist` but lists."""


class Lane(StrEnum):
    """The part of the backlog that a batch comes from."""

    LIVE = "live"
    """The newest readings, or all of them if the backlog is short."""
    BACKFILL = "backfill"
    """Older readings that the live lane has overtaken."""
    RECORDS = "records"
    """Pending records instead of points."""


class Tokens(NamedTuple):
    """The link between two batches of an exact sink; texts of 32 hexadecimal digits.

    The sink compares `committed` with the token that it holds. If they are equal, it stores the batch and `next` in one
    transaction. If it holds `next`, it has the batch already. Any other token means that the store or the destination
    is a copy or was rolled back: `StoreForked`.
    """

    committed: str | None
    """The token of the last batch that the store knows to be stored; None before the first one."""
    next: str


class RecordItem(NamedTuple):
    """A pending record."""

    record_id: str
    source: str
    data: str
    """JSON text, as it was added."""
    timestamp_us: int


@dataclass(frozen=True)
class Batch:
    """A range of seqs with its points, or some pending records (lane `records`; the seqs are 0 then)."""

    store_id: str
    epoch: int
    sink: str
    first_seq: int
    last_seq: int
    lane: Lane
    tokens: Tokens
    columns: Columns = field(repr=False)
    records: Sequence[RecordItem] = field(default=(), repr=False)
    attempt: int = 1
    """How often this range was sent, this time included."""

    def __len__(self) -> int:
        return len(self.records) if self.lane is Lane.RECORDS else len(self.columns[0])

    @cached_property
    def rows(self) -> list[tuple[Any, ...]]:
        """The points as tuples with the fields of `Columns`, in ascending order of seq."""
        return list(zip(*self.columns, strict=True))

    def part(self, begin: int, end: int) -> Self:
        """Return a batch for the same range that has only some of the items."""
        if self.lane is Lane.RECORDS:
            return replace(self, records=self.records[begin:end])
        return replace(self, columns=[column[begin:end] for column in self.columns])

    def arrow(self) -> Any:
        """Return the points as a `pyarrow.Table`, with the columns of `to_arrow()` and `seq`; most are not copied.

        Raises `MissingExtra` without pyarrow, and `SinkRefused` if a text has a lone surrogate, which it cannot hold.
        """
        from repo.formats.arrays.frames import arrow_table

        try:
            return arrow_table(self.columns)
        except UnicodeEncodeError as error:
            raise SinkRefused(f"a text has a lone surrogate, which Arrow cannot hold: {error}") from error

    @property
    def is_repeat(self) -> bool:
        """Whether the destination may have this range already."""
        return self.attempt > 1


class Item(NamedTuple):
    """An item that a destination did not store, though it stored the rest of the batch."""

    row: int
    """Its index in `Batch.rows`, or in `Batch.records`."""
    reason: str
    too_late: bool = False
    """Whether it is only too old for the destination. It counts as refused otherwise."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A destination's answer to a batch: all of it is durable there, except the refused items."""

    refused: tuple[Item, ...] = ()
    """A repeat has them, too: the first answer may never have arrived."""
    repeat: bool = False
    """Whether the destination had the batch already."""
    sent_bytes: int = 0
    """The bytes sent, as encoded for the wire, if the sink counts them."""


class Sink(Protocol):
    """A destination of batches. One thread uses it at a time, not always the same one.

    Raises, from `open` and `send`:

    - `SinkUnreachable` (or an `OSError`): it is unknown whether the destination has the batch. It is sent again, after
      a growing delay.
    - `SinkHalted`: the destination rejects everything for now, whatever the batch contains: wrong credentials, a
      missing table or topic, a certificate. Nothing is skipped; the same batch is tried again every minute.
    - `SinkRefused`: the destination stored nothing of the batch because of its content, and does not say which item is
      wrong. The batch is split until the item is found. A sink that knows the items returns them in its outcome. If the
      sink is not exact, and has accepted nothing yet, see `repo.delivery.refusals`.
    - `StoreForked`: see `Tokens`. Delivery to this sink stops.

    Any other exception is a bug in the sink: `status` shows it, and the same batch is tried again every
    minute.
    """

    @property
    def name(self) -> str:
        """The name under which the store keeps this destination's cursor."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the destination stores `Tokens.next` in the transaction of the batch, so that nothing is repeated."""
        ...

    @property
    def takes_records(self) -> bool:
        """Whether batches of records can be sent to it."""
        ...

    def open(self, store_id: str, epoch: int) -> str | None:
        """Connect if necessary, and return the token that an exact destination holds; None if it has none.

        Called before the first batch, and again after each error.
        """
        ...

    def send(self, batch: Batch) -> Outcome:
        """Send a batch, and return once the destination has stored it durably."""
        ...

    def close(self) -> None:
        """Disconnect. Safe to call again; `open` connects again."""
        ...
