"""The package that writes and reads Parquet files here: DuckDB, or pyarrow where DuckDB is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from repo.errors import MissingExtra
from repo.extras import imported, missing_extra
from repo.formats.files.interfaces import FileReader, FileWriter

__all__ = ["SharedInstance", "reader_here", "writer_here"]


def writer_here(memory_limit_bytes: int, *, duckdb: bool) -> FileWriter:
    """Return the writer of the installed package; `duckdb` is whether DuckDB is. `MissingExtra` if none is."""
    if duckdb:
        from repo.formats.files.parquet_duckdb_writer import DuckDBWriter

        return DuckDBWriter(memory_limit_bytes)
    try:
        _need_pyarrow()
    except MissingExtra as missing:
        missing.add_note("or export as NDJSON, which needs neither: --format ndjson, `store.export_ndjson`")
        raise
    from repo.formats.files.parquet_pyarrow import PyArrowWriter

    return PyArrowWriter()


class SharedInstance:
    """A DuckDB instance for reading these open files; it is opened with the first connection. Not thread-safe.

    To open an instance takes longer than to read a small file.
    """

    def __init__(self, descriptors: Sequence[int], memory_limit_bytes: int) -> None:
        self._descriptors = descriptors
        self._memory_limit_bytes = memory_limit_bytes
        self._until_closed = ExitStack()
        self._base: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._base = None
        self._until_closed.close()

    def connection(self) -> Any:
        """Return a new connection."""
        if self._base is None:
            from repo.engines.duckdb.driver import open_sandbox

            self._base = self._until_closed.enter_context(
                open_sandbox(self._descriptors, memory_limit_bytes=self._memory_limit_bytes)
            )
        return self._base.cursor()


@contextmanager
def reader_here(
    descriptor: int, path: Path, instance: SharedInstance, *, duckdb: bool
) -> Iterator[FileReader]:
    """Open a file of the instance with the installed package for the block. `path` is for messages."""
    if duckdb:
        from repo.formats.files.parquet_duckdb import DuckDBReader

        yield DuckDBReader(instance.connection(), descriptor, path)
        return
    _need_pyarrow()
    from repo.formats.files.parquet_pyarrow import opened_pyarrow

    with opened_pyarrow(descriptor, path) as arrow_reader:
        yield arrow_reader


def _need_pyarrow() -> None:
    try:
        imported("pyarrow")
    except ImportError as error:
        raise missing_extra("Parquet needs DuckDB or pyarrow, and neither is installed", "arrow") from error
