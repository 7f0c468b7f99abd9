"""The package that writes and reads Parquet files here: DuckDB, or pyarrow where DuckDB is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repo.errors import MissingExtra
from repo.extras import missing_extra, pyarrow_is_installed
from repo.formats.files.formats import FileReader, FileWriter

__all__ = ["reader_here", "writer_here"]


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
    if not pyarrow_is_installed():
        raise missing_extra("Parquet needs DuckDB or pyarrow, and neither is installed", "arrow")
