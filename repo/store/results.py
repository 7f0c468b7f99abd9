"""Results: the points that a query selects, read a page at a time, as dicts or as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import repeat
from typing import Any, TypeVar

from repo.core.handle import Reading
from repo.formats.arrays import frames
from repo.inputs.arguments import check_count
from repo.queries.pages import LISTS, PageForm, ResultPages
from repo.queries.rows import PointDict, point_dicts

__all__ = ["BATCH_ROWS", "PAGE_ROWS", "Result"]

PAGE_ROWS = 131_072
"""Rows per page of dicts; more than a day at 1 Hz. About 20 MB as read, and 100 ms under the lease."""

BATCH_ROWS = 524_288
"""Rows per page of columns: about 25 MB, and 50 ms under the lease."""

_DICTS = 4_096
"""How many dicts are made at a time in a loop over the points."""

_MOST_ROWS = 2**31 - 1
"""pyarrow and SQLite's driver count rows in 32 bits."""

_FEWEST = 1_024
"""The fewest rows of a page that is read for a limit: fewer are hardly faster, and cut at more places."""

_STEPS = 8
"""How often a page that was empty or too large is cut again under one lease."""

Page = TypeVar("Page")
Columns = list[Sequence[Any]]


class Result:
    """The points that a query selects: a range in order of time, then names; the result of `since` in order of seq.

    With `newest_first` a range is in the reverse order.

    Each method that reads the result runs the query again, a page at a time, each page in its own transaction. Neither
    lease nor snapshot is held between pages, so later pages may show writes made while reading. Not thread-safe.

    The columns are `sensor_id, metric_name, timestamp (µs, UTC), value (float64), value_text, quality (int32), metadata
    (JSON text)`, and `seq` for `since`. Names and types are the same on both engines, and for empty results. A number
    is in `value` and a text in `value_text`; the other one is missing, and both are if there was no reading. Each
    format needs only its own package, and raises `MissingExtra` without it.
    """

    def __init__(
        self,
        reading: Callable[[], AbstractContextManager[Reading]],
        begin: Callable[[int], ResultPages],
        series: tuple[str, str] | None = None,
        *,
        with_seq: bool = False,
        limit: int | None = None,
        shown: object = "",
    ) -> None:
        self._reading = reading
        self._begin = begin
        self._series = series
        self._with_seq = with_seq
        self._limit = limit
        self._shown = shown

    def __repr__(self) -> str:
        return f"<Result of {self._shown}; iterate it, or use .all(), .to_pandas() ...>"

    def __iter__(self) -> Iterator[PointDict]:
        for page in self._pages(LISTS, PAGE_ROWS):
            for part in _parts(page, _DICTS):
                yield from self._dicts(part)

    def all(self) -> list[PointDict]:
        """Return all points in one list, which takes about 450 bytes per point."""
        points: list[PointDict] = []
        for page in self._pages(LISTS, PAGE_ROWS):
            points += self._dicts(page)
        return points

    def pages(self, rows: int = PAGE_ROWS) -> Iterator[list[PointDict]]:
        """Yield the points as dicts, in lists of at most `rows`."""
        for page in self._lists(rows):
            yield self._dicts(page)

    def tuples(self, rows: int = PAGE_ROWS) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the points as stored, in lists of at most `rows`: the cheapest form that needs no package.

        `(sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata text, seq)`; the seq is None if the
        query is for one exact series.
        """
        for page in self._lists(rows):
            if self._series is None:
                yield list(zip(*page, strict=True))
            else:
                size = len(page[0])
                names = (repeat(name, size) for name in self._series)
                yield list(zip(*names, *page, repeat(None, size), strict=True))

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[Any]:
        """Yield `pyarrow.RecordBatch`es of at most `rows`, with the same schema; names are dictionary-encoded.

        Pages of `rows` are read and passed on without copying, in the engine's own chunks (about 100,000 rows in
        DuckDB). `rows` bounds the memory (about 50 bytes per row, plus texts).
        """
        rows = _page_rows(rows)
        for page in self._pages(frames.ArrowPages(with_seq=self._with_seq), rows):
            yield from page.to_batches(max_chunksize=rows)

    def to_arrow(self) -> Any:
        """Return a `pyarrow.Table`; names are dictionary-encoded."""
        return self._joined(frames.ArrowPages(with_seq=self._with_seq))

    def to_polars(self) -> Any:
        """Return a `polars.DataFrame`; names are Categorical. Needs no pyarrow."""
        return self._joined(frames.PolarsPages(with_seq=self._with_seq))

    def to_numpy(self) -> dict[str, Any]:
        """Return a dict of NumPy arrays; needs no other package.

        `timestamp` is datetime64[us] (UTC), a missing `value` is NaN, `quality` is a masked int32 array. Texts are
        object arrays, with None for missing ones.
        """
        joined: dict[str, Any] = self._joined(frames.NumpyPages(with_seq=self._with_seq))
        return joined

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`; names are categories, `quality` a nullable Int32. Needs no pyarrow."""
        return frames.to_pandas(self.to_numpy)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Stream the points to an Arrow consumer (pyarrow, polars, pandas, DuckDB), a page at a time."""
        form = frames.ArrowPages(with_seq=self._with_seq)
        return form.reader(self.batches()).__arrow_c_stream__(requested_schema)

    def _dicts(self, columns: Columns) -> list[PointDict]:
        return point_dicts(columns, self._series, with_seq=self._with_seq)

    def _lists(self, rows: int) -> Iterator[Columns]:
        # A page is larger than requested if more points than that share one timestamp.
        rows = _page_rows(rows)
        for page in self._pages(LISTS, rows):
            yield from _parts(page, rows)

    def _joined(self, form: Any) -> Any:
        return form.join(list(self._pages(form, BATCH_ROWS)))

    def _pages(self, form: PageForm[Page], rows: int) -> Iterator[Page]:
        pages: ResultPages | None = None
        left = self._limit
        if left is not None:
            rows = min(rows, max(left, _FEWEST))
        while (pages is None or not pages.done) and left != 0:
            with self._reading() as (connection, known):
                pages = pages or self._begin(rows)
                for _ in range(_STEPS):
                    page = pages.step(connection, known, form)
                    if page is not None or pages.done:
                        break
            if page is not None:
                if left is not None:
                    page = form.first(page, left)
                    left -= form.size(page)
                yield page


def _parts(page: Columns, rows: int) -> Iterator[Columns]:
    size = LISTS.size(page)
    for start in range(0, size, rows):
        yield page if size <= rows else LISTS.between(page, start, start + rows)


def _page_rows(rows: int) -> int:
    return min(check_count(rows, "rows"), _MOST_ROWS)
