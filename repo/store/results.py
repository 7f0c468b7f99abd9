"""Results: what a query for many points gives, read a page at a time, as dicts or as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from repo.core.handle import Reading
from repo.errors import InvalidQuery
from repo.formats.arrays import frames
from repo.queries.pages import Form, Pages, Rows
from repo.queries.rows import PointDict, range_dicts, seq_dicts

__all__ = ["BATCH_ROWS", "PAGE_ROWS", "Result"]

PAGE_ROWS = 131_072
"""Rows of a page of dicts, a day at 1 Hz among them: about 20 MB as read, and some 100 ms under the lease."""

BATCH_ROWS = 524_288
"""Rows of a page of columns: about 25 MB, and some 50 ms under the lease."""

_DICTS = 4_096
"""How many dicts are made ahead of a loop over the points."""

_STEPS = 8
"""How often a page that came out empty or too large is cut anew under one lease."""

Page = TypeVar("Page")


class Result:
    """The points that a query selects: of a range in order of time, then names; of `since` in order of seq.

    Every way of reading it runs the query anew, a page at a time, each page in a transaction of its own: nothing
    is held between pages, neither lease nor snapshot, so a write that comes meanwhile may show in later ones.
    It can be read again. Not thread-safe.

    As columns it has `sensor_id, metric_name, timestamp (µs, UTC), value (float64), value_text, quality (int32),
    metadata (JSON text)`, and after `since` also `seq`: the same names and types on both engines, and when there
    is nothing. A text is in `value_text`, a number in `value`, and the other is missing; both are, where there
    was no reading. Each shape needs its own package alone, and raises `MissingExtra` without it.
    """

    def __init__(
        self,
        reading: Callable[[], AbstractContextManager[Reading]],
        begin: Callable[[int], Pages],
        series: tuple[str, str] | None = None,
        *,
        with_seq: bool = False,
    ) -> None:
        self._reading = reading
        self._begin = begin
        self._series = series
        self._with_seq = with_seq

    def __iter__(self) -> Iterator[PointDict]:
        for page in self._pages(Rows(), PAGE_ROWS):
            for start in range(0, len(page), _DICTS):
                yield from self._dicts(page[start : start + _DICTS])

    def all(self) -> list[PointDict]:
        """Return all points at once; mind the memory (about 450 bytes a point)."""
        return [point for page in self._pages(Rows(), PAGE_ROWS) for point in self._dicts(page)]

    def pages(self, rows: int = PAGE_ROWS) -> Iterator[list[PointDict]]:
        """Yield the points as dicts, in lists of at most `rows`."""
        for page in self._slices(rows):
            yield self._dicts(page)

    def tuples(self, rows: int = PAGE_ROWS) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the points as they are stored, in lists of at most `rows`: the cheapest form without packages.

        `(sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata text, seq)`; the seq is None
        where one exact series was asked for.
        """
        for page in self._slices(rows):
            yield [(*self._series, *row, None) for row in page] if self._series else page

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[Any]:
        """Yield `pyarrow.RecordBatch`es of at most `rows`, all of one schema; names are dictionary-encoded.

        So many are read at a time, and come in the engine's own chunks (some 100,000 rows in DuckDB), uncopied;
        memory is bounded by `rows` (about 50 bytes each, and the texts).
        """
        for page in self._pages(frames.ArrowPages(with_seq=self._with_seq), rows):
            yield from page.to_batches(max_chunksize=rows)

    def to_arrow(self) -> Any:
        """Return a `pyarrow.Table`; names are dictionary-encoded."""
        return self._joined(frames.ArrowPages(with_seq=self._with_seq))

    def to_polars(self) -> Any:
        """Return a `polars.DataFrame`; names are Categorical. Needs no pyarrow."""
        return self._joined(frames.PolarsPages(with_seq=self._with_seq))

    def to_numpy(self) -> dict[str, Any]:
        """Return a dict of NumPy arrays; needs nothing else.

        `timestamp` is datetime64[us] (UTC), a missing `value` NaN, `quality` a masked int32 array; texts are
        objects, None where missing.
        """
        joined: dict[str, Any] = self._joined(frames.NumpyPages(with_seq=self._with_seq))
        return joined

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`; names are categories, `quality` a nullable Int32. Needs no pyarrow."""
        return frames.to_pandas(self.to_numpy())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Stream the points to whoever takes Arrow (pyarrow, polars, pandas, DuckDB), a page at a time."""
        form = frames.ArrowPages(with_seq=self._with_seq)
        return form.reader(self.batches()).__arrow_c_stream__(requested_schema)

    def _dicts(self, rows: list[Any]) -> list[PointDict]:
        return seq_dicts(rows) if self._with_seq else range_dicts(rows, self._series)

    def _slices(self, rows: int) -> Iterator[list[Any]]:
        # A page holds more than it should where more than that has one moment.
        for page in self._pages(Rows(), rows):
            for start in range(0, len(page), rows):
                yield page[start : start + rows]

    def _joined(self, form: Any) -> Any:
        return form.join(list(self._pages(form, BATCH_ROWS)))

    def _pages(self, form: Form[Page], rows: int) -> Iterator[Page]:
        if rows < 1:
            raise InvalidQuery(f"rows = {rows}: at least 1")
        pages: Pages | None = None
        while pages is None or not pages.done:
            with self._reading() as (connection, known):
                pages = pages or self._begin(rows)
                for _ in range(_STEPS):
                    page = pages.step(connection, known, form)
                    if page is not None or pages.done:
                        break
            if page is not None:
                yield page
