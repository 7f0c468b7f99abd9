"""NDJSON files of points, as exports write them, read for imports. Needs no package.

If DuckDB is installed, the rows go through it, and reach the columns as fast as those of Parquet.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from repo.errors import InvalidFile
from repo.formats.compression import unpacked
from repo.formats.files.interfaces import (
    PAGE_BYTES,
    PAGE_ROWS,
    Group,
    ReadPage,
    Validation,
)
from repo.formats.files.mapping import ColumnType, ReadPlan
from repo.formats.lines import Objects
from repo.formats.ndjson_lines import StoredRow, stored_row
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US, Unfit

__all__ = ["ENDING", "NdjsonReader", "opened_ndjson"]

ENDING = ".ndjson.gz"

_BATCH_ROWS = 8_192
_BATCH_CHARS = 1_048_576
"""The rows that exist as Python objects at a time when they are passed to DuckDB: 5 MB."""


@contextmanager
def opened_ndjson(
    descriptor: int, path: Path, memory_limit_bytes: int, *, duckdb: bool
) -> Iterator[NdjsonReader]:
    """Open a file for the block. `duckdb` is whether DuckDB is installed; `path` is for messages."""
    with open(descriptor, "rb", closefd=False) as stream, ExitStack() as stack:
        if not duckdb:
            yield NdjsonReader(stream, path)
            return
        from repo.engines.duckdb.driver import open_sandbox

        # Opened with the first page: to validate needs none, and opening takes 20 ms.
        yield NdjsonReader(
            stream, path, lambda: stack.enter_context(open_sandbox([], memory_limit_bytes=memory_limit_bytes))
        )


class NdjsonReader:
    """Reads a file, compressed or not. A line that no export writes makes the whole file invalid. Not thread-safe."""

    def __init__(
        self, stream: io.BufferedReader, path: Path, open_base: Callable[[], Any] | None = None
    ) -> None:
        self._stream = stream
        self._path = path
        self._open_base = open_base

    def types(self) -> dict[str, ColumnType]:
        """See `FileReader`; the columns of the format."""
        return dict(_TYPES)

    def validate(self, plan: ReadPlan) -> Validation:  # noqa: ARG002  there is only one format
        """See `FileReader`."""
        return Validation(sum(map(len, self._batches(_BATCH_ROWS, _BATCH_CHARS))))

    def pages(self, plan: ReadPlan, validation: Validation) -> Iterator[ReadPage]:  # noqa: ARG002
        """See `FileReader`."""
        if self._open_base is None:
            yield from map(PlainPage, self._batches(PAGE_ROWS // 4, PAGE_BYTES // 2))
        else:
            yield from self._duckdb_pages(self._open_base())

    def _duckdb_pages(self, base: Any) -> Iterator[ReadPage]:
        from repo.formats.files.duckdb_page import DuckDBPage

        batches = self._batches(_BATCH_ROWS, _BATCH_CHARS)
        while first := next(batches, None):
            # First, because two tables do not fit into memory.
            base.execute("DROP TABLE IF EXISTS parsed")
            base.execute(f"CREATE TABLE parsed ({_COLUMNS})")
            for batch in chain([first], islice(batches, PAGE_ROWS // _BATCH_ROWS - 1)):
                appender = base.appender("parsed")
                appender.append_rows(batch)
                appender.flush()
            page = DuckDBPage(base, "FROM parsed", in_place=True)
            yield page
            page.drop()

    def _batches(self, most_rows: int, most_chars: int) -> Iterator[list[StoredRow]]:
        """Yield all rows from the beginning, in batches."""
        self._stream.seek(0)
        with unpacked(self._stream, str(self._path)) as plain:
            text = io.TextIOWrapper(plain, encoding="utf-8", errors="surrogateescape", newline="")
            try:
                yield from self._parsed(Objects(text), most_rows, most_chars)
            finally:
                text.detach()

    def _parsed(self, objects: Objects, most_rows: int, most_chars: int) -> Iterator[list[StoredRow]]:
        rows: list[StoredRow] = []
        through = most_chars
        try:
            while (found := objects.next_object()) is not None:
                rows.append(stored_row(found))
                if len(rows) == most_rows or objects.chars >= through:
                    yield rows
                    rows, through = [], objects.chars + most_chars
        except Unfit as fault:
            raise InvalidFile(
                f"{self._path}, line {objects.line}: {fault}. The file is damaged, or not an export of points; "
                "`holdfast ingest` reads other files, line by line",
                path=self._path,
            ) from fault
        if rows:
            yield rows


_TYPES = {
    "sensor_id": ColumnType("text", "text"),
    "metric_name": ColumnType("text", "text"),
    "timestamp_us": ColumnType("integer", "integer"),
    "value": ColumnType("float", "number"),
    "value_text": ColumnType("text", "text"),
    "quality": ColumnType("integer", "integer"),
    "metadata": ColumnType("text", "object"),
}

_COLUMNS = (
    "sensor_id VARCHAR, metric_name VARCHAR, timestamp_us BIGINT, value DOUBLE, value_text VARCHAR, "
    "quality INTEGER, metadata VARCHAR"
)


class PlainPage:
    """See `ReadPage`; the rows are Python objects."""

    nulls = 0

    def __init__(self, rows: list[StoredRow]) -> None:
        self._rows = rows
        self.rows = len(rows)
        pairs = Counter((row[0], row[1]) for row in rows)
        numbers = Counter((row[0], row[1]) for row in rows if row[3] is not None)
        texts = Counter((row[0], row[1]) for row in rows if row[4] is not None)
        spans: dict[tuple[str, str], tuple[int, int]] = {}
        for sensor, metric, us, *_ in rows:
            low, high = spans.get((sensor, metric), (us, us))
            spans[sensor, metric] = (min(low, us), max(high, us))
        self.groups = [
            Group(pair, count, numbers[pair], texts[pair], numbers[pair] + texts[pair], *spans[pair])
            for pair, count in pairs.items()
        ]

    def leave_out(self, doomed: Sequence[tuple[tuple[str, str], bool]]) -> int:
        """See `ReadPage`."""
        marks = set(doomed)
        kept = [
            row
            for row in self._rows
            if not (row[3] is not None and ((row[0], row[1]), False) in marks)
            and not (row[4] is not None and ((row[0], row[1]), True) in marks)
        ]
        dropped = len(self._rows) - len(kept)
        self._rows = kept
        return dropped

    def table(self) -> Any:
        """See `ReadPage`."""
        return dict(zip(_TYPES, map(list, zip(*self._rows, strict=True)), strict=True))

    def duplicates(self) -> int:
        """See `ReadPage`."""
        storable = [row[:3] for row in self._rows if MIN_TIMESTAMP_US <= row[2] <= MAX_TIMESTAMP_US]
        return len(storable) - len(set(storable))

    def identities(self) -> Sequence[tuple[str, str, int]]:
        """See `ReadPage`."""
        return list({row[:3]: None for row in self._rows})
