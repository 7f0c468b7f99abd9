"""Parquet files of points: what is in one, and which tool writes and reads it here. Never touches a store.

The format, version 1. One row a point, in slices of time; within a slice ordered by sensor, metric and time, so
that readers can skip by time and by series. Compressed with zstd, Parquet 2 encodings.

| column | type | |
|---|---|---|
| sensor_id, metric_name | string | |
| timestamp | timestamp[us, UTC] | exact; as an integer, the microseconds since 1970 |
| value | double | null: no reading, or a text |
| value_text | string | null: no reading, or a number |
| quality | int32 | |
| metadata | string | a JSON object, or null |
| seq | int64 | the store's number for the write; null where it was given up |

The file's key-value metadata has `holdfast`, a JSON object with `format` (1) and `store` (the store's id). Beside
`NAME.parquet` stands `NAME.parquet.sha256`, as `sha256sum` writes it; in a bundle the manifest has the sums.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from repo.errors import MissingExtra
from repo.exchange.fileplan import ColumnType, Plan
from repo.exchange.streams import Page

__all__ = [
    "COLUMNS",
    "COMPRESSIONS",
    "FORMAT",
    "PAGE_BYTES",
    "PAGE_ROWS",
    "FileFacts",
    "Group",
    "Look",
    "Pages",
    "ParquetReader",
    "ParquetWriter",
    "ReadPage",
    "note_of",
    "reader_here",
    "writer_here",
]

FORMAT = 1

COLUMNS = {
    "sensor_id": "VARCHAR",
    "metric_name": "VARCHAR",
    "timestamp": "TIMESTAMP WITH TIME ZONE",
    "value": "DOUBLE",
    "value_text": "VARCHAR",
    "quality": "INTEGER",
    "metadata": "VARCHAR",
    "seq": "BIGINT",
}
"""The columns of a file, with their types as SQL names them."""

COMPRESSIONS = ("zstd", "none")

ROW_GROUP_ROWS = 122_880
"""Rows that are encoded together: some 400 KB in the file, 10 MB in memory."""

PAGE_ROWS = 2 * ROW_GROUP_ROWS
PAGE_BYTES = 24_000_000
"""A page that is read has at most so many rows, and about so many bytes: several copies of it may exist at a time."""

Pages = Iterator[Page | Sequence[Sequence[Any]]]
"""Points in order, as Arrow batches or as rows; columns as in the table `time_series_data`."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What was found in a file that was just written; times in µs, None where it has no points."""

    points: int
    bytes: int
    sha256: str
    first_us: int | None
    last_us: int | None
    first_seq: int | None
    last_seq: int | None


class ParquetWriter(Protocol):
    """A tool that writes files."""

    def write(self, descriptor: int, pages: Pages, *, compression: str, note: str) -> FileFacts:
        """Write all pages into an empty file, and look at what is in it then.

        In memory there are one page and one row group. Raises what the pages raise, or OSError.
        """


def note_of(store_id: str) -> str:
    """Return the file's own note of where it comes from."""
    return json.dumps({"format": FORMAT, "store": store_id})


def writer_here(memory_limit_bytes: int, *, duckdb: bool) -> ParquetWriter:
    """Return the tool that is installed; `duckdb` says whether that one is. `MissingExtra` where there is none."""
    if duckdb:
        from repo.exchange.duckparquet import DuckDBWriter

        return DuckDBWriter(memory_limit_bytes)
    _need_pyarrow()
    from repo.exchange.arrowparquet import PyArrowWriter

    return PyArrowWriter()


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a file that was gone through once."""

    rows: int
    row_bytes: int
    """About what a row takes in memory, its texts included."""


@dataclass(frozen=True, slots=True)
class Group:
    """What a page holds of one series: whether there are numbers and texts, and its span in µs."""

    pair: tuple[str, str]
    rows: int
    numbers: bool
    texts: bool
    first_us: int
    last_us: int


class ReadPage(Protocol):
    """Some rows of a file, in memory until the next page is read."""

    rows: int
    """How many there were."""
    nulls: int
    """How many of them name no series or no time; the rest of this object leaves them out."""
    groups: list[Group]

    def leave_out(self, doomed: Sequence[tuple[tuple[str, str], bool]]) -> int:
        """Drop the texts (True) or the numbers (False) of series, and return how many those were."""

    def duplicates(self) -> int:
        """Return how many have the series and time of another one, which is not left out, nor to be refused."""

    def table(self) -> Any:
        """Return the rows as `insert_table` takes them, with the columns of a stored point but seq."""

    def identities(self) -> Sequence[tuple[str, str, int]]:
        """Return series and time of each row."""


class ParquetReader(Protocol):
    """A file that is open for reading. What it finds wrong it raises as `InvalidFile`, naming the file."""

    def types(self) -> dict[str, ColumnType]:
        """Return the columns at the top, and their types."""

    def look(self, plan: Plan) -> Look:
        """Decode everything that the plan wants, so that damage is found."""

    def pages(self, plan: Plan, look: Look) -> Iterator[ReadPage]:
        """Yield all rows, in order, each page until the next is taken. `look` is what was found before."""


@contextmanager
def reader_here(
    descriptor: int, path: Path, memory_limit_bytes: int, *, duckdb: bool
) -> Iterator[ParquetReader]:
    """Open a file by the tool that is installed, for the block. `path` is for messages."""
    if duckdb:
        from repo.exchange.duckparquet import opened_duckdb

        with opened_duckdb(descriptor, path, memory_limit_bytes) as reader:
            yield reader
        return
    _need_pyarrow()
    from repo.exchange.arrowparquet import opened_pyarrow

    with opened_pyarrow(descriptor, path) as arrow_reader:
        yield arrow_reader


def _need_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra(
            "Parquet needs DuckDB or pyarrow, and neither is installed: pip install 'holdfast-edge[arrow]'"
        )
