"""Parquet files of points: their content, and the package that writes and reads them. Never accesses a store.

The format, version 1: one row per point, in slices of time. A slice is ordered by sensor, metric and time, so that
readers can skip by time and by series. Compressed with zstd, Parquet 2 encodings.

| column | type | |
|---|---|---|
| sensor_id, metric_name | string | |
| timestamp | timestamp[us, UTC] | exact; as an integer, the microseconds since 1970 |
| value | double | null: no reading, or a text |
| value_text | string | null: no reading, or a number |
| quality | int32 | |
| metadata | string | a JSON object, or null |
| seq | int64 | the store's number for the write |

The file's key-value metadata has `holdfast`, a JSON object with `format` (1) and `store` (the store's id). The checksum
of `NAME.parquet` is in `NAME.parquet.sha256`, as `sha256sum` writes it; in a bundle it is in the manifest.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repo.errors import MissingExtra
from repo.extras import missing_extra
from repo.formats.files.formats import FileReader, FileWriter

__all__ = ["COMPRESSIONS", "FORMAT", "ROW_GROUP_ROWS", "note_of", "reader_here", "writer_here"]

FORMAT = 1

COMPRESSIONS = ("zstd", "none")

ROW_GROUP_ROWS = 122_880
"""Rows per row group, fewer if their texts are long: about 400 KB in the file, 10 MB in memory."""


def note_of(store_id: str) -> str:
    """Return the note that a file has on its origin."""
    return json.dumps({"format": FORMAT, "store": store_id})


def writer_here(memory_limit_bytes: int, *, duckdb: bool) -> FileWriter:
    """Return the writer of the installed package; `duckdb` is whether DuckDB is. `MissingExtra` if none is."""
    if duckdb:
        from repo.formats.files.parquet_duckdb import DuckDBWriter

        return DuckDBWriter(memory_limit_bytes)
    try:
        _need_pyarrow()
    except MissingExtra as missing:
        missing.add_note("or export as NDJSON, which needs neither: --format ndjson, `store.export_ndjson`")
        raise
    from repo.formats.files.parquet_pyarrow import PyArrowWriter

    return PyArrowWriter()


@contextmanager
def reader_here(
    descriptor: int, path: Path, memory_limit_bytes: int, *, duckdb: bool
) -> Iterator[FileReader]:
    """Open a file with the installed package for the block. `path` is for messages."""
    if duckdb:
        from repo.formats.files.parquet_duckdb import opened_duckdb

        with opened_duckdb(descriptor, path, memory_limit_bytes) as reader:
            yield reader
        return
    _need_pyarrow()
    from repo.formats.files.parquet_pyarrow import opened_pyarrow

    with opened_pyarrow(descriptor, path) as arrow_reader:
        yield arrow_reader


def _need_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("Parquet needs DuckDB or pyarrow, and neither is installed", "arrow")
