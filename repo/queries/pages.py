"""Pages: splits a long result into pieces that a short transaction can read. Opens and commits nothing.

A range is split by time, a delivery by seq, never by `ORDER BY ... LIMIT`. The cost of a piece depends on its own
size only: both engines can seek by time and by seq, and nothing larger than a piece is sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from repo.engines.base import Shape
from repo.engines.registry import traits_of
from repo.queries import point_sql
from repo.queries.order import UNSORTED, Order
from repo.queries.point_sql import Query
from repo.queries.selection import Selection, Summary

__all__ = ["LISTS", "Lists", "PageForm", "ResultPages", "SeqPages", "TimePages"]

Known = Mapping[tuple[str, str], Summary]
Page = TypeVar("Page")

_FILL = 0.75
"""How full a page is planned to be: series are denser at some times than at others."""

_STEP = 4
"""How much wider or narrower the next piece may be."""


class PageForm(Protocol[Page]):
    """The form of a page: columns of Python values, or of pyarrow, pandas, polars or NumPy."""

    with_seq: bool
    """Whether it has the seqs."""

    def fetch(self, connection: Connection, query: Query, shape: Shape) -> Page | None:
        """Run the query; None if it has more rows than `shape.most`."""

    def size(self, page: Page) -> int:
        """Return its number of rows."""

    def reversed(self, page: Page) -> Page:
        """Return the rows in reverse order."""

    def first(self, page: Page, rows: int) -> Page:
        """Return the first rows."""


class ResultPages(Protocol):
    """The part of a result that is still to be read."""

    @property
    def done(self) -> bool:
        """Whether everything was read."""

    def step(self, connection: Connection, known: Known, form: PageForm[Page]) -> Page | None:
        """Read the next page; None if it would be empty or too large: call again."""


class Lists:
    """Pages as columns of Python values, each a list: all columns of the table, or only the readings of one series."""

    with_seq = True

    def fetch(self, connection: Connection, query: Query, shape: Shape) -> list[Sequence[Any]] | None:
        """Run the query; None if it has more rows than `shape.most`."""
        shape = shape._replace(sorted_by=query.sorted_by)
        columns = traits_of(connection).lists(connection, query.statement, shape)
        if columns is not None and query.names is not None:
            for at, names in enumerate(query.names):
                one = len(names) == 1
                columns[at] = names * len(columns[at]) if one else list(map(names.__getitem__, columns[at]))
        return columns

    def size(self, page: list[Sequence[Any]]) -> int:
        """Return its number of rows."""
        return len(page[0])

    def reversed(self, page: list[Sequence[Any]]) -> list[Sequence[Any]]:
        """Return the rows in reverse order."""
        return [column[::-1] for column in page]

    def first(self, page: list[Sequence[Any]], rows: int) -> list[Sequence[Any]]:
        """Return the first rows."""
        return self.between(page, 0, rows)

    def between(self, page: list[Sequence[Any]], start: int, end: int) -> list[Sequence[Any]]:
        """Return the rows from `start` up to `end`."""
        return [column[start:end] for column in page]


LISTS = Lists()


class TimePages:
    """The selected points in order of time, then names, in pages of about `rows` at most.

    Points of the same time are never split across pages, however many there are. With `newest_first` the pages come
    from the end, and each is in reverse order.
    """

    def __init__(self, selection: Selection, rows: int, *, newest_first: bool = False) -> None:
        self._rest = selection
        self._rows = rows
        self._newest_first = newest_first
        self._width_us: int | None = None
        self.done = False

    def step(self, connection: Connection, known: Known, form: PageForm[Page]) -> Page | None:
        """Read the next page; None if it would be empty or too large: call again."""
        points, first_us, last_us = self._totals(known)
        # The summaries only decide where to split; the first and last piece are as open as the selection.
        start_us = first_us if self._rest.start_us is None else max(first_us, self._rest.start_us)
        end_us = last_us + 1 if self._rest.end_us is None else min(last_us + 1, self._rest.end_us)
        if self._width_us is None and points > self._rows:
            self._width_us = max(1, int((last_us + 1 - first_us) / points * self._rows * _FILL))
        is_last = self._width_us is None or start_us + self._width_us >= end_us
        piece, span_us = self._rest, end_us - start_us
        if not is_last and self._width_us is not None:
            span_us = self._width_us
            if self._newest_first:
                piece = replace(piece, start_us=end_us - span_us)
            else:
                piece = replace(piece, end_us=start_us + span_us)
        query = point_sql.in_time(connection, piece, known, with_seq=form.with_seq)
        expected = points * span_us // max(1, last_us + 1 - first_us)
        page = form.fetch(connection, query, Shape(expected, self._rows if span_us > 1 else -1))
        if page is None:
            # The next piece ends before the first row that does not fit, so only one read is wasted.
            edge_us = point_sql.time_at(connection, piece, known, self._rows, newest_first=self._newest_first)
            self._width_us = max(1, end_us - 1 - edge_us if self._newest_first else edge_us - start_us)
            return None
        size = form.size(page)
        self.done = is_last
        if not is_last:
            if self._newest_first:
                self._rest = replace(self._rest, end_us=piece.start_us)
            else:
                self._rest = replace(self._rest, start_us=piece.end_us)
            grown = self._rows * _FILL / size if size else _STEP
            self._width_us = max(1, int(span_us * min(_STEP, max(1 / _STEP, grown))))
        if not size:
            return None
        return form.reversed(page) if self._newest_first else page

    def _totals(self, known: Known) -> tuple[int, int, int]:
        """Return how many points the selected series have in total, and the first and last time of them."""
        exact = self._rest.exact
        if exact is not None:
            one = known.get(exact)
            return (0, 0, 0) if one is None else (one.points, one.first_us, one.last_us)
        chosen = [summary for pair, summary in known.items() if self._rest.names(*pair)]
        if not chosen:
            return 0, 0, 0
        return (
            sum(summary.points for summary in chosen),
            min(summary.first_us for summary in chosen),
            max(summary.last_us for summary in chosen),
        )


class SeqPages:
    """The points after a seq in order of seq, in pages of at most `rows`.

    Seqs have gaps (overwritten and deleted points). After a piece without points the next one is wider. Negative seqs,
    which points of the legacy program have, may begin far after a given one, so their first one is searched.

    Each page of a sorted slice reads all of its row groups. So a slice is divided into equal pages, of which none
    reads two slices.
    """

    def __init__(self, after: int, rows: int, through: int, order: Order = UNSORTED) -> None:
        self._order = order
        self._after = after
        self._rows = self._width = rows
        self._through = through

    @property
    def done(self) -> bool:
        """Whether everything was read."""
        return self._after >= self._through

    def step(self, connection: Connection, known: Known, form: PageForm[Page]) -> Page | None:
        """Read the next page; None if it would be empty or too large: call again."""
        through = min(self._after + self._next_width(), self._through)
        query = point_sql.in_seq(connection, self._after, through, known)
        page = form.fetch(connection, query, Shape(through - self._after, self._rows))
        if page is None:
            self._width = self._rows
            return None
        self._after = through
        size = form.size(page)
        if not size and through < 0:
            self._after = max(through, point_sql.first_seq(connection) - 1)
        self._width = self._rows if size else self._width * _STEP
        return page if size else None

    def _next_width(self) -> int:
        if self._width != self._rows or (inside := self._order.covering(self._after + 1)) is None:
            return self._width
        left = inside.last_seq - self._after
        return -(-left // -(-left // self._rows))
