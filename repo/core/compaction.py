"""Compaction: sorts closed slices of the columns by series, then time, each in one transaction that is then durable.

Every step takes the columns alone and releases them, so that readers, writers and other processes get their turns. A
kill at any time leaves each slice as it was, or sorted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from sqlalchemy import Connection

from repo.core.columns import OpenColumns
from repo.core.handle import Handle
from repo.core.reconcile import Known
from repo.cursors import Span
from repo.disk import space
from repo.engines.registry import engine_named
from repo.errors import FlushFailed, HoldfastError
from repo.queries.order import Order, Slice
from repo.queries.summaries import Summaries
from repo.repositories import sorting
from repo.repositories.apply import Applied
from repo.repositories.apply_table import ROW_GROUP_ROWS
from repo.repositories.slices import SliceRepository
from repo.repositories.sorting import Weight

__all__ = ["LARGEST_SPAN", "SLICE_ROWS", "Compaction", "Piece", "is_sorted_by_key"]

log = logging.getLogger("holdfast.compaction")

SLICE_ROWS = 8 * ROW_GROUP_ROWS
"""The points of a slice. Measured, they are sorted and written in less than a second."""

_SMALLEST_SHARE = 8
"""A slice with large texts may shrink to this fraction of the points: one row group. A smaller one would not help
queries."""

_ROW_BYTES = 64
"""The memory that sorting takes for a point, without its texts."""

_COPIES_OF_TEXTS = 2
"""Sorting copies, compresses and writes texts, which takes memory and time, too."""

_MOST_SORT_BYTES = 128_000_000
"""The largest amount to sort: more would make a step longer than about a second. Below that, up to a quarter more than
DuckDB's memory limit is sorted, because what does not fit is spilled."""

_DISK_BYTES_A_ROW = 100
"""The bytes that a step may add to the disk for a point, without its texts. 32 were measured: the sorted point, its
delete in the log, and what DuckDB spills at its default memory limit; up to 90 at a lower one."""

_DISK_COPIES_OF_TEXTS = 3

LARGEST_SPAN = Span(-(2**63), 2**63 - 1)
"""All seqs."""


def is_sorted_by_key(handle: Handle) -> bool:
    """Return whether the engine keeps the points sorted itself, so that there is nothing to compact. Opens no file."""
    return engine_named(handle.columns.backend.name).traits().keyed_by_series


@dataclass(frozen=True, slots=True)
class Piece:
    """A span that one step makes a slice, and what it does with its points."""

    slice: Slice
    action: Literal["sort", "note", "skip"]
    """Sort them; note that they arrived sorted; or skip them, as they are too large to be sorted."""
    weight: Weight
    replaced: tuple[Slice, ...]
    """The slices that it overlaps."""


class Compaction:
    """A run over the slices of the columns up to `through`, in steps; or, if that is None, over the closed ones.

    With `only_closed`, it leaves out slices with less than `SLICE_ROWS` seqs after them, and those skipped before.
    """

    def __init__(
        self, handle: Handle, *, only_closed: bool = False, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._handle = handle
        self._only_closed = only_closed
        self._stop = stop
        self._position = LARGEST_SPAN.first
        self._rows = SLICE_ROWS
        self.closes_at = LARGEST_SPAN.first
        """After the last step: the watermark at which the next slice closes."""

    def step(self, opened: OpenColumns, through: int, *, dry_run: bool = False) -> Piece | None:
        """Plan the next slice and, unless `dry_run`, make it one; None if nothing is left, or `stop` returned True.

        The caller has the columns alone. Raises `StoreFull` if the disk may have too little room, or the typed errors
        of a commit and a checkpoint; the slice is then as it was, or sorted.
        """
        piece = self._plan(opened, through)
        if piece is None:
            return None
        if not dry_run:
            try:
                self._make(opened, piece)
            except _Stopped:
                return None
            except HoldfastError as error:
                # A smaller slice may fit. DuckDB was opened again, so the caller has to begin again, too.
                if not opened.backend.is_out_of_memory(error) or self._rows <= self._least_rows:
                    raise
                self._rows //= 2
                log.info("a slice does not fit into the memory limit of DuckDB; trying a smaller one")
                return self.step(self._handle.columns.reopen(), through)
        self._rows = SLICE_ROWS
        self._position = piece.slice.last_seq + 1
        return piece

    # --- planning -------------------------------------------------------------------------------------

    @property
    def _least_rows(self) -> int:
        return max(1, SLICE_ROWS // _SMALLEST_SHARE)

    def _plan(self, opened: OpenColumns, through: int) -> Piece | None:
        order = self._handle.flusher.order
        with opened.flush_connection.begin():
            span = self._next_span(opened.flush_connection, order, through)
            if span is None:
                return None
            return self._piece(opened.flush_connection, order, span)

    def _next_span(self, connection: Connection, order: Order, through: int) -> Span | None:
        """Return the next span that belongs to no slice, with the small slice before it if both fit into one."""
        start = sorting.first_seq(connection) if order.first_seq is None else order.first_seq
        if start is None:
            self.closes_at = through + 2 * SLICE_ROWS
            return None
        last = through - SLICE_ROWS if self._only_closed else through
        for gap in order.gaps(max(start, self._position), last, skipped=not self._only_closed):
            if self._only_closed and gap.last == last and gap.last - gap.first + 1 < SLICE_ROWS:
                self.closes_at = gap.first + 2 * SLICE_ROWS - 1
                return None
            if (both := self._with_small_slice_before(connection, order, gap)) is not None:
                return both
            span = self._fitted(connection, gap)
            is_thin = self._only_closed and span.last == last and span.last - span.first >= SLICE_ROWS
            if is_thin and sorting.count(connection, span) * 2 < SLICE_ROWS:
                self.closes_at = through + SLICE_ROWS // 2
                return None
            return span
        self.closes_at = (start - 1 if order.last_seq is None else order.last_seq) + 2 * SLICE_ROWS
        return None

    def _with_small_slice_before(self, connection: Connection, order: Order, gap: Span) -> Span | None:
        """Return a span from the start of the slice before a gap, if that is small and both fit into one slice.

        The slice is then rewritten, but never for less than its own number of new points.
        """
        before = order.covering(gap.first - 1)
        is_small = before is not None and before.is_sorted and before.rows * 2 < SLICE_ROWS
        if before is None or not is_small or before.last_seq + 1 == self._position:  # of this run
            return None
        span = self._fitted(connection, Span(before.first_seq, gap.last))
        weight = sorting.weigh(connection, span)
        fits = span.last >= gap.first and not self._is_too_large(weight)
        return span if fits and weight.rows >= 2 * before.rows else None

    def _fitted(self, connection: Connection, gap: Span) -> Span:
        """Return the span from the start of a gap that has enough points for a slice, and not too many."""
        seqs = self._rows
        span = Span(gap.first, min(gap.last, gap.first + seqs - 1))
        while span.last < gap.last:  # seqs have gaps: overwritten and deleted points
            rows = sorting.count(connection, span)
            if rows * 2 >= self._rows:
                break
            wider = Span(span.first, min(gap.last, span.first + 2 * seqs - 1))
            if sorting.count(connection, wider) > self._rows:
                return Span(span.first, min(gap.last, span.last + self._rows - rows))
            span, seqs = wider, 2 * seqs
        return span

    def _piece(self, connection: Connection, order: Order, span: Span) -> Piece:
        weight = sorting.weigh(connection, span)
        while self._is_too_large(weight) and weight.rows >= 2 * self._least_rows:
            span = Span(span.first, (span.first + span.last) // 2)
            weight = sorting.weigh(connection, span)
        action: Literal["sort", "note", "skip"]
        action = "skip" if self._is_too_large(weight) else "sort"
        if sorting.is_sorted(connection, span):
            action = "note"
        through = span.first - 1 if action == "skip" else span.last
        replaced = tuple(
            one for one in order.slices if one.first_seq <= span.last and one.last_seq >= span.first
        )
        return Piece(Slice(*span, weight.rows, through), action, weight, replaced)

    def _is_too_large(self, weight: Weight) -> bool:
        most = min(self._handle.settings.duckdb_memory_limit_bytes * 5 // 4, _MOST_SORT_BYTES)
        return weight.rows * _ROW_BYTES + weight.text_bytes * _COPIES_OF_TEXTS > most

    # --- doing ----------------------------------------------------------------------------------------

    def _make(self, opened: OpenColumns, piece: Piece) -> None:
        """Commit the slice, verify it by what is read back, and make it durable."""
        handle, path = self._handle, opened.backend.path
        if piece.action == "sort":
            wanted = piece.weight.rows * _DISK_BYTES_A_ROW + piece.weight.text_bytes * _DISK_COPIES_OF_TEXTS
            space.refuse_full_disk([(path.parent, wanted + space.HEADROOM_BYTES)], f"compacting {path}")
        opened = handle.flusher.commit(opened, _SliceWork(piece, self._go_on))
        if piece.slice not in handle.flusher.read_order(opened).slices:
            raise FlushFailed(
                f"the seqs {piece.slice.first_seq} to {piece.slice.last_seq} of {path} are not recorded as a slice "
                "after a commit; no point is lost, try again",
                path=path,
            )
        if piece.action == "sort":
            handle.make_durable(opened)
        elif piece.action == "skip":
            log.info(
                "the seqs %d to %d of %s are not sorted: their points have %d bytes of text, too much for the memory "
                "limit of DuckDB",
                *(*piece.slice.span, path, piece.weight.text_bytes),
            )

    def _go_on(self) -> None:
        if self._stop():
            raise _Stopped("compaction was asked to stop; nothing was changed")


class _Stopped(HoldfastError):
    """The run was asked to stop, inside a transaction, which was rolled back."""


@dataclass(frozen=True, slots=True)
class _SliceWork:
    """A slice, as work for flush: part of no journal rows, so that the watermark stays, and no summary changes."""

    journalled: ClassVar[bool] = True
    is_part: ClassVar[bool] = True
    copies: ClassVar[bool] = False
    through: ClassVar[int] = 0
    digest: ClassVar[int] = 0
    piece: Piece
    go_on: Callable[[], None]

    def apply(self, connection: Connection, known: Known) -> Applied:
        """Sort the points, and record the slice; see `Work`."""
        if self.piece.action == "sort":
            self.go_on()
            sorting.rewrite(connection, self.piece.slice.span, self.piece.weight, self.go_on)
        SliceRepository(connection).replace(self.piece.replaced, self.piece.slice)
        return Applied(Summaries.copied(known))

    def loss(self, _applied: Applied) -> None:
        """Nothing is dropped; see `Work`."""
