"""Reads the points of batches from the store: wide pages, from which narrow batches are cut. Sends nothing.

The newest points come from the journal if it has them all, so that no other process has to hand the columns over.

A page is read in a transaction of its own. Neither lease nor snapshot is held between pages, so a point may
be overwritten while its old value is still in a page. This is harmless if the old value is sent before the
new one. Therefore a page is dropped once a batch with newer writes was cut from another page, unless all
points of that batch are later in time; when something is deleted; and also some seconds after it was read, if
something was written since.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from repo.cursors import Span
from repo.delivery.lanes import LaneWork
from repo.delivery.limits import AS_TEXT, BatchLimits, Form
from repo.delivery.protocol import Columns, Lane
from repo.formats.arrays.columns import taken
from repo.queries.selection import Selection
from repo.queries.seq_page import SeqPage
from repo.store.store import Store

__all__ = ["Cut", "Reader"]

FRESH_S = 5.0
"""How long a page is used after something was written."""

_WHOLE: Final = BatchLimits(Form.TEXT, 2**63, 2**63)
"""Limits that no range reaches."""

_TIME, _VALUE_TEXT, _METADATA, _SEQ = 2, 4, 6, 7

_NO_COLUMNS: Columns = ((),) * 8


class Cut(NamedTuple):
    """The points of a batch, and the range of seqs that it answers for."""

    span: Span
    columns: Columns
    bytes: int
    """About how many they are in the form of the sink."""

    @property
    def points(self) -> int:
        """Their number."""
        return len(self.columns[_SEQ])

    def first(self, rows: int) -> Cut:
        """Return its first rows, which are not all, with the range up to the last of them."""
        span = Span(self.span.first, self.columns[_SEQ][rows - 1])
        return Cut(span, [column[:rows] for column in self.columns], self.bytes * rows // self.points)


class Reader:
    """Reads for one sink, in one thread. Keeps at most a page for each lane."""

    def __init__(
        self, store: Store, selection: Selection | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._selection = selection
        self._clock = clock
        self._pages: dict[Lane, _Page] = {}
        self._selected: dict[tuple[str, str], bool] = {}
        self._journal = store.points.journal_pages()
        self._empty = Span(0, -1)
        """A range without selected points. It stays empty, as a point that is written gets a higher seq."""

    def selects(self, sensor_id: str, metric_name: str) -> bool:
        """Return whether the points of a series are read."""
        return self._selection is None or self._selection.names(sensor_id, metric_name)

    def drop(self) -> None:
        """Forget all pages, so that the next batch is read from the store."""
        self._pages.clear()

    def cut(self, lane: Lane, work: LaneWork, last_seq: int, limits: BatchLimits = AS_TEXT) -> Cut:
        """Return the next batch of a lane: as much as `limits` allow, and at least one point.

        It has no points if there are none in the next part of the gap. `last_seq` is that of the store now.
        """
        page = self._pages.get(lane)
        if (
            page is None
            or not page.serves(work, self._clock(), last_seq)
            or self._has_deleted(page, last_seq)
        ):
            self._pages.pop(lane, None)  # before the next one is read, for the memory
            page = self._pages[lane] = self._next(work, last_seq)
        cut = page.cut(work.from_end, limits)
        if not page.left.seqs:
            del self._pages[lane]
        self._overtake(cut, page)
        return cut

    def _has_deleted(self, page: _Page, last_seq: int) -> bool:
        """Return whether points of a page may have been deleted since it was read."""
        if last_seq == page.checked_seq:
            return False
        found = self._store.sinks.may_have_deleted_after(page.checked_seq)
        page.checked_seq = last_seq
        return found

    def again(self, span: Span, last_seq: int, limits: BatchLimits = _WHOLE) -> Cut:
        """Read a range again, for a batch that was sent before; not through a page.

        The range ends sooner if it has more than `limits` allow, but not before its first point.
        """
        pieces: list[Cut] = []
        left, points, size = span, limits.points, limits.bytes
        while left.seqs > 0:
            page = self._page(self._store.points.page(*left), last_seq)
            if page.size and pieces and min(points, size) < 1:
                break
            piece = page.cut(False, BatchLimits(limits.form, max(points, 1), max(size, 1)))
            pieces.append(piece)
            self._overtake(piece, page)
            points, size = points - piece.points, size - piece.bytes
            left = Span(piece.span.last + 1, span.last)
            if page.left.seqs:
                break
        if len(pieces) == 1:
            return pieces[0]
        columns = [[value for piece in pieces for value in piece.columns[at]] for at in range(8)]
        return Cut(Span(span.first, left.first - 1), columns, sum(piece.bytes for piece in pieces))

    def _next(self, work: LaneWork, last_seq: int) -> _Page:
        """Read the next page of a gap: the newest points from the journal, if it has them all."""
        gap = work.gap
        if work.from_end:
            return self._page(self._store.points.page(*gap, backwards=True), last_seq)
        if self._empty.first <= gap.first <= self._empty.last:
            gap = Span(min(self._empty.last, gap.last) + 1, gap.last)
        if not gap.seqs:
            return _Page(work.gap, _NO_COLUMNS, last_seq, last_seq, self._clock())
        found = self._journal.page(gap) if gap.last == last_seq else None
        if found is None:
            found = self._store.points.page(*gap)
        page = self._page(found._replace(span=Span(work.gap.first, found.span.last)), last_seq)
        if not page.size:
            self._empty = page.left
        return page

    def _page(self, found: SeqPage, last_seq: int) -> _Page:
        columns = found.columns
        if self._selection is not None and columns[0]:
            columns = self._filtered(columns)
        return _Page(found.span, columns, found.watermark, last_seq, self._clock())

    def _filtered(self, columns: Columns) -> Columns:
        assert self._selection is not None
        pairs = list(zip(columns[0], columns[1], strict=True))
        for pair in set(pairs).difference(self._selected):
            self._selected[pair] = self._selection.names(*pair)
        rows = [row for row, pair in enumerate(pairs) if self._selected[pair]]
        return columns if len(rows) == len(pairs) else taken(columns, rows)

    def _overtake(self, cut: Cut, source: _Page) -> None:
        """Drop the pages that may have older values of the points of a batch with newer writes."""
        for lane, page in list(self._pages.items()):
            if page is not source and page.watermark < cut.span.last and cut.points:
                if page.last_us is None:
                    page.last_us = max(page.columns[_TIME], default=None)
                if page.last_us is not None and min(cut.columns[_TIME]) <= page.last_us:
                    del self._pages[lane]


class _Page:
    """A page, and what is left of it: a range of seqs, and of rows."""

    def __init__(
        self,
        span: Span,
        columns: Columns,
        watermark: int,
        last_seq: int,
        read_at_s: float,
    ) -> None:
        self.columns = columns
        self.watermark = watermark
        self.left = span
        self.last_us: int | None = None
        self.size = len(columns[_SEQ])
        self._begin, self._end = 0, self.size
        self.checked_seq = self._last_seq = last_seq
        self._read_at_s = read_at_s
        self._has_texts = any(columns[at].count(None) < self.size for at in (_VALUE_TEXT, _METADATA))
        self._name_bytes = 0
        if self.size:
            some = range(0, self.size, max(1, self.size // 100))
            self._name_bytes = sum(len(columns[0][at]) + len(columns[1][at]) for at in some) // len(some)

    def serves(self, work: LaneWork, now_s: float, last_seq: int) -> bool:
        """Return whether the next batch of this work can be cut from the page."""
        gap, left = work.gap, self.left
        if not left.seqs or left.first < gap.first or left.last > gap.last:
            return False
        if (left.last != gap.last) if work.from_end else (left.first != gap.first):
            return False
        return last_seq == self._last_seq or now_s - self._read_at_s < FRESH_S

    def cut(self, from_end: bool, limits: BatchLimits) -> Cut:
        """Take rows, and the seqs from or to the next row; all of them if no row is left."""
        sizes = self._sizes(from_end, min(limits.points, self._end - self._begin), limits.form)
        count = len(sizes)
        if count and sizes[-1] > limits.bytes:
            count = max(1, bisect_right(sizes, limits.bytes))
        seqs, left = self.columns[_SEQ], self.left
        if from_end:
            begin, end = self._end - count, self._end
            span = Span(left.first if begin == self._begin else seqs[begin], left.last)
            self.left, self._end = Span(left.first, span.first - 1), begin
        else:
            begin, end = self._begin, self._begin + count
            span = Span(left.first, left.last if end == self._end else seqs[end - 1])
            self.left, self._begin = Span(span.last + 1, left.last), end
        return Cut(span, [column[begin:end] for column in self.columns], sizes[count - 1] if count else 0)

    def _sizes(self, from_end: bool, count: int, form: Form) -> Sequence[int]:
        """Return the bytes of the next row, of the next two, and so on."""
        step = form.point_bytes + (self._name_bytes if form.repeats_names else 0)
        if not self._has_texts:
            return range(step, step * count + 1, step)
        begin, end = (self._end - count, self._end) if from_end else (self._begin, self._begin + count)
        texts, metadata = (self.columns[at][begin:end] for at in (_VALUE_TEXT, _METADATA))
        extra = form.text_bytes
        sizes = [
            step + (0 if text is None else extra + len(text)) + (0 if about is None else extra + len(about))
            for text, about in zip(texts, metadata, strict=True)
        ]
        return list(accumulate(reversed(sizes) if from_end else sizes))
