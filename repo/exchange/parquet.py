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
from dataclasses import dataclass
from typing import Any, Protocol

from repo.errors import MissingExtra
from repo.exchange.streams import Page

__all__ = [
    "COLUMNS",
    "COMPRESSIONS",
    "FORMAT",
    "FileFacts",
    "Pages",
    "ParquetWriter",
    "note_of",
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
    if importlib.util.find_spec("pyarrow") is not None:
        from repo.exchange.arrowparquet import PyArrowWriter

        return PyArrowWriter()
    raise MissingExtra(
        "Parquet needs DuckDB or pyarrow, and neither is installed: pip install 'holdfast-edge[arrow]'"
    )
