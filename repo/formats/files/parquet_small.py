"""Small Parquet files by DuckDB, from columns in memory. The instance stays open, because opening it takes far longer.

DuckDB writes into a file in memory, whose descriptor is all that it can access.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import Any

import duckdb

from repo.engines.duckdb.driver import open_sandbox, sandbox_path
from repo.formats.arrays.columns import Coded
from repo.formats.arrays.memory import MemoryColumn, MemoryTable
from repo.formats.files.parquet_duckdb_writer import MOMENT, copy_options, disk_error, run_aside

__all__ = ["SmallFiles"]

_MISSING = {"q": -(2**63), "d": float("nan")}
"""The number that is written where one is missing; no point has it."""

_QUERY = (
    f"SELECT sensor_id::VARCHAR AS sensor_id, metric_name::VARCHAR AS metric_name, {MOMENT} AS timestamp, "
    "CASE WHEN isnan(value) THEN NULL ELSE value END AS value, value_text::VARCHAR AS value_text, "
    f"nullif(quality, {_MISSING['q']})::INTEGER AS quality, metadata::VARCHAR AS metadata, seq "
    "FROM points ORDER BY sensor_id, metric_name, timestamp_us"
)


class SmallFiles:
    """Makes one file at a time; `memory_limit_bytes` limits DuckDB's own buffers. Not thread-safe."""

    def __init__(self, memory_limit_bytes: int) -> None:
        self._memory_limit_bytes = memory_limit_bytes
        self._opened: tuple[Any, int] | None = None
        self._until_closed = ExitStack()

    def content(self, columns: Sequence[Sequence[Any]], *, compression: str, note: str) -> bytes:
        """Return a file of at least one point, ordered by series and time.

        The columns are those of `repo.delivery.protocol.Columns`. Raises OSError if the file cannot be made.
        """
        base, descriptor = self._opened or self._open()
        table = MemoryTable(
            [
                _texts("sensor_id", columns[0]),
                _texts("metric_name", columns[1]),
                _numbers("timestamp_us", columns[2], "q"),
                _numbers("value", columns[3], "d"),
                _texts("value_text", columns[4]),
                _numbers("quality", columns[5], "q"),
                _texts("metadata", columns[6]),
                _numbers("seq", columns[7], "q"),
            ]
        )
        os.ftruncate(descriptor, 0)
        options = copy_options(len(columns[0]), compression, note)
        try:
            run_aside(base, table, f"COPY ({_QUERY}) TO '{sandbox_path(descriptor)}' ({options})")
        except duckdb.Error as error:
            raise disk_error(error) from error
        finally:
            base.unregister("points")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def close(self) -> None:
        """Close the instance; the next file opens one again."""
        self._opened = None
        self._until_closed.close()

    def _open(self) -> tuple[Any, int]:
        descriptor = _file_in_memory()
        self._until_closed.callback(os.close, descriptor)
        base = self._until_closed.enter_context(
            open_sandbox([descriptor], memory_limit_bytes=self._memory_limit_bytes)
        )
        self._opened = base, descriptor
        return self._opened


def _file_in_memory() -> int:
    """Open a file in memory, or a temporary one where the system has none in memory (macOS)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("holdfast-parquet")
    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _texts(name: str, column: Sequence[str | None]) -> MemoryColumn:
    if isinstance(column, Coded):
        return MemoryColumn(name, array("I", column.codes), column.texts)
    places: dict[str | None, int] = {}
    numbers = array("I", [places.setdefault(text, len(places)) for text in column])
    return MemoryColumn(name, numbers, list(places))


def _numbers(name: str, column: Sequence[float | None], typecode: str) -> MemoryColumn:
    if isinstance(column, array) and column.typecode in (typecode, "i"):
        return MemoryColumn(name, column)
    missing = _MISSING[typecode]
    return MemoryColumn(name, array(typecode, [missing if one is None else one for one in column]))
