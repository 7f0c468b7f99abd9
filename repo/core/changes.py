"""Changes: the input of the writer, and the result for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from math import isnan
from typing import Any, Self

from repo.core.codec import BLOCK_BYTES, BLOCK_POINTS, pack, pack_point
from repo.errors import Refusal
from repo.inputs.batch import Batch, CheckedPoint
from repo.inputs.values import KindsOf, check_rows
from repo.queries.selection import Selection
from repo.repositories.points import Written
from repo.repositories.records import NewRecord

__all__ = [
    "BulkChange",
    "Change",
    "DeleteChange",
    "PointsChange",
    "PositionChange",
    "RecordChange",
    "SettleChange",
    "Submission",
    "without_other_kinds",
]


@dataclass(slots=True)
class PointsChange:
    """Points to write, packed by the submitting thread: (count, block) in order.

    Points of a `record`, which precedes them in the submission, are only written if the record changed.
    """

    kinds: dict[tuple[str, str], str | None]
    blocks: list[tuple[int, bytes]]
    count: int
    """How many points the caller passed; the blocks have fewer if one replaces another of the same table."""
    keep: bool = False
    """Whether points that are already stored are kept."""
    record: RecordChange | None = None

    @classmethod
    def of(cls, batch: Batch, *, keep: bool = False, record: RecordChange | None = None) -> PointsChange:
        """Pack a batch into blocks that fit into a journal row."""
        kinds = dict(zip(batch.series, batch.kinds, strict=True))
        blocks = [(len(part.codes), pack(part)) for part in _parts(batch)]
        return cls(kinds, blocks, len(batch.codes), keep, record)

    @classmethod
    def of_point(cls, point: CheckedPoint) -> PointsChange:
        """Pack one point."""
        return cls({point[:2]: point.kind}, [(1, pack_point(point))], 1)


@dataclass(frozen=True, slots=True)
class BulkChange:
    """Seqs to reserve for a chunk of a table that goes straight to the columns; `token` identifies the chunk."""

    kinds: dict[tuple[str, str], str | None]
    count: int
    token: bytes


@dataclass(frozen=True, slots=True)
class DeleteChange:
    """A delete of all selected points that were written before it."""

    selection: Selection


@dataclass(slots=True)
class RecordChange:
    """A record to add; its points are a separate change in the same submission."""

    record: NewRecord
    changed: bool = False
    """Whether it was new, or its data differed from the stored data; set by the commit."""


@dataclass(slots=True)
class SettleChange:
    """Records to remove because they were sent, or whose attempt failed."""

    record_ids: Sequence[str]
    sent: bool
    increment_retry: bool = True
    found: int = 0
    """How many of them were pending; set by the commit."""


@dataclass(slots=True)
class PositionChange:
    """A batch of another store's sink: the submission is written only if `committed` is the token of the last one.

    If the last one has the token `following`, the batch is a repeat, and nothing is written. Any other token raises
    `StoreForked`.
    """

    store_id: str
    epoch: int
    sink: str
    committed: str | None
    following: str
    seqs: tuple[int, int] | None
    """The range that the batch covers; None for records."""
    repeat: bool = False
    """Whether the batch was written before; set by the commit."""


Change = PointsChange | BulkChange | DeleteChange | RecordChange | SettleChange


@dataclass(slots=True, eq=False)
class Submission:
    """Changes that are acknowledged together or not at all."""

    changes: Sequence[Change]
    refusals: tuple[Refusal, ...] = ()
    written: Written | None = None
    error: BaseException | None = None
    future: Future[Written] | None = None
    points: int = 0
    skippable: Batch | None = None
    """The rows of its only change, if rows whose kind differs from their series are skipped instead of refused."""
    position: PositionChange | None = None
    """For what another store sent: the position that is written with it."""

    @classmethod
    def of_rows(
        cls,
        rows: Iterable[Any],
        *,
        accept_bool: bool,
        now_us: int,
        skip: bool = False,
        kinds_of: KindsOf | None = None,
    ) -> Self:
        """Check rows as documented in `Points.insert_many`, and pack the good ones.

        Raises `InvalidPoint`, which lists every bad row; with `skip` they are listed in `refusals` instead.
        """
        batch, refusals = check_rows(
            rows, accept_bool=accept_bool, now_us=now_us, skip=skip, kinds_of=kinds_of if skip else None
        )
        changes = (PointsChange.of(batch),) if len(batch) else ()
        return cls(changes, refusals=refusals, skippable=batch if skip and len(batch) else None)

    def leave_out(self, known: dict[tuple[str, str], str]) -> None:
        """Refuse readings whose kind differs from their series' known kind; the rest is written."""
        batch = self.skippable
        assert batch is not None
        gone = {refusal.row for refusal in self.refusals}
        given = [row for row in range(len(batch) + len(gone)) if row not in gone]
        left, refused = without_other_kinds(batch, known, given)
        change = PointsChange.of(left)
        used = set(left.codes)
        change.kinds = {
            pair: kind
            for code, (pair, kind) in enumerate(zip(left.series, left.kinds, strict=True))
            if code in used
        }
        self.changes = (change,) if len(left) else ()
        self.refusals = tuple(sorted([*self.refusals, *refused], key=lambda refusal: refusal.row or 0))
        self.skippable = None


def without_other_kinds(
    batch: Batch, known: Mapping[tuple[str, str], str], given: Sequence[int]
) -> tuple[Batch, list[Refusal]]:
    """Remove the readings whose kind differs from their series' known kind.

    `given` has the caller's index of each row of the batch, for the refusals.
    """
    wrong = {
        code: known[pair]
        for code, (pair, kind) in enumerate(zip(batch.series, batch.kinds, strict=True))
        if pair in known and kind is not None and kind != known[pair]
    }
    rows: list[int] = []
    refusals: list[Refusal] = []
    for row, code in enumerate(batch.codes):
        if code in wrong and (row in batch.texts or not isnan(batch.values[row])):
            sensor, metric = batch.series[code]
            refusals.append(
                Refusal(
                    given[row],
                    "value",
                    f"is a {batch.kinds[code]}, but the series {sensor!r} {metric!r} holds {wrong[code]} values",
                )
            )
        else:
            rows.append(row)
    left = batch.rows(rows)
    left.kinds = [None if code in wrong else kind for code, kind in enumerate(batch.kinds)]
    return left, refusals


def _parts(batch: Batch) -> list[Batch]:
    """Split a batch into blocks of at most `BLOCK_POINTS` points and about `BLOCK_BYTES` bytes."""
    wide = sum(map(len, batch.texts.values())) + sum(map(len, batch.metadata.values()))
    rows = len(batch.codes)
    step = min(BLOCK_POINTS, max(1, rows * BLOCK_BYTES // (rows * 24 + 3 * wide + 1)))
    if rows <= step:
        return [batch]
    return [batch.part(start, min(start + step, rows)) for start in range(0, rows, step)]
