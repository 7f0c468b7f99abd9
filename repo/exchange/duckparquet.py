"""Parquet by DuckDB, in an instance of its own that reaches one open file and nothing else.

It is told the number of the file's descriptor, never its name: so no name is ever taken as a pattern or as SQL, and
what is read is what was opened and checked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from repo.engines.duckdb import open_sandbox, sandbox_path
from repo.errors import InvalidFile
from repo.exchange.fileplan import ColumnType, Plan
from repo.exchange.landing import digest
from repo.exchange.parquet import PAGE_BYTES, PAGE_ROWS, ROW_GROUP_ROWS, FileFacts, Group, Pages
from repo.exchange.streams import Chain, Page, take_page
from repo.exchange.tables import Held

__all__ = ["DuckDBReader", "DuckDBWriter", "opened_duckdb"]

_TABLE = (
    "sensor_id VARCHAR, metric_name VARCHAR, timestamp_us BIGINT, value DOUBLE, value_text VARCHAR, "
    "quality INTEGER, metadata VARCHAR, seq BIGINT"
)


class DuckDBWriter:
    """Writes files; `memory_limit_bytes` is for DuckDB's own buffers."""

    def __init__(self, memory_limit_bytes: int) -> None:
        self._memory_limit_bytes = memory_limit_bytes

    def write(self, descriptor: int, pages: Pages, *, compression: str, note: str) -> FileFacts:
        """See `ParquetWriter`."""
        with open_sandbox([descriptor], memory_limit_bytes=self._memory_limit_bytes) as base:
            base.execute(f"CREATE TABLE page ({_TABLE})")
            chain = Chain(base.cursor().sql("FROM page LIMIT 0"), _arrow_pages(base.cursor(), pages))
            file = sandbox_path(descriptor)
            codec = "uncompressed" if compression == "none" else compression
            quoted = note.replace("'", "''")
            base.register("points", chain)
            try:
                base.execute(
                    "COPY (SELECT sensor_id, metric_name, make_timestamptz(timestamp_us) AS timestamp, value, "
                    f"value_text, quality, metadata, seq FROM points) TO '{file}' (FORMAT parquet, "
                    f"COMPRESSION {codec}, PARQUET_VERSION v2, ROW_GROUP_SIZE {ROW_GROUP_ROWS}, USE_TMP_FILE false, "
                    f"KV_METADATA {{holdfast: '{quoted}'}})"
                )
            except duckdb.Error as error:
                if chain.error is not None:
                    raise chain.error from None
                raise OSError(*_reason(error)) from error
            finally:
                base.unregister("points")
                chain.close()
            [(points, *span)] = base.execute(
                "SELECT count(*), min(epoch_us(timestamp)), max(epoch_us(timestamp)), min(seq), max(seq) "
                f"FROM read_parquet('{file}')"
            ).fetchall()
        return FileFacts(points, os.fstat(descriptor).st_size, digest(descriptor), *span)


def _arrow_pages(connection: Any, pages: Pages) -> Iterator[Page]:
    for page in pages:
        if isinstance(page, Page):
            yield page
            continue
        connection.execute("TRUNCATE page")
        appender = connection.appender("page")
        appender.append_rows(page)
        appender.flush()
        yield take_page(connection.sql("FROM page"))


# --- reading --------------------------------------------------------------------------------------------


@contextmanager
def opened_duckdb(descriptor: int, path: Path, memory_limit_bytes: int) -> Iterator[DuckDBReader]:
    """Open a file for the block."""
    with open_sandbox([descriptor], memory_limit_bytes=memory_limit_bytes) as base:
        yield DuckDBReader(base, sandbox_path(descriptor), path)


class DuckDBReader:
    """Reads a file. Not thread-safe."""

    def __init__(self, base: Any, file: str, path: Path) -> None:
        self._base = base
        self._file = file
        self._path = path
        self._source = f"read_parquet('{file}', hive_partitioning = false, file_row_number = true)"
        self._page_rows = PAGE_ROWS
        self._rows = 0

    def types(self) -> dict[str, ColumnType]:
        """See `ParquetReader`."""
        with self._naming():
            found = self._base.execute(f"DESCRIBE SELECT * FROM {self._source}").fetchall()
        return {
            name: ColumnType(_family(kind), kind[:80])
            for name, kind, *_ in found
            if name != "file_row_number"  # DuckDB's own
        }

    def look(self, plan: Plan) -> int:
        """See `ParquetReader`."""
        columns = [_quoted(column) for column in plan.columns.values()]
        # A sum of hashes needs every value, where a minimum would be taken from the file's statistics.
        texts = " + ".join(
            f"coalesce(strlen({_quoted(plan.columns[field])}), 0)"
            for field in ("sensor_id", "metric_name", "value_text", "metadata")
            if field in plan.columns and plan.types[field].family != "null"
        )
        with self._naming():
            [(rows, text_bytes, _)] = self._base.execute(
                f"SELECT count(*), coalesce(sum({texts}), 0)::BIGINT, bit_xor(hash({', '.join(columns)})) "
                f"FROM {self._source}"
            ).fetchall()
        row_bytes = 64 + text_bytes // max(rows, 1)
        self._page_rows = max(1, min(PAGE_ROWS, PAGE_BYTES // row_bytes))
        self._rows = int(rows)
        return self._rows

    def pages(self, plan: Plan) -> Iterator[DuckDBPage]:
        """See `ParquetReader`; `look` first, so that the pages are as large as they may be."""
        for start in range(0, self._rows, self._page_rows):
            with self._naming():
                self._base.execute("DROP TABLE IF EXISTS page")  # first: two do not fit into the memory
                self._base.execute(
                    f"CREATE TABLE page AS SELECT {_selected(plan)} FROM {self._source} "
                    f"WHERE file_row_number >= {start:d} AND file_row_number < {start + self._page_rows:d}"
                )
                page = DuckDBPage(self._base)
            yield page

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.Error, OSError) as error:
            told = str(error).replace(self._file, self._path.name).strip().partition("\n\n")[0]
            raise InvalidFile(
                f"{self._path} cannot be read as Parquet: {told}. It is damaged, cut short, or needs a larger "
                "duckdb_memory_limit_bytes",
                path=self._path,
            ) from error


class DuckDBPage:
    """See `ReadPage`; the rows are a table of the sandbox."""

    def __init__(self, base: Any) -> None:
        self._base = base
        nameless = "sensor_id IS NULL OR metric_name IS NULL OR timestamp_us IS NULL"
        [(self.rows, self.nulls)] = base.execute(
            f"SELECT count(*), count(*) FILTER ({nameless}) FROM page"
        ).fetchall()
        if self.nulls:
            base.execute(f"DELETE FROM page WHERE {nameless}")
        self.groups = [
            Group((sensor, metric), *told)
            for sensor, metric, *told in base.execute(
                "SELECT sensor_id, metric_name, count(*), count(value), count(value_text), min(timestamp_us), "
                "max(timestamp_us) FROM page GROUP BY ALL"
            ).fetchall()
        ]

    def leave_out(self, doomed: Sequence[tuple[tuple[str, str], bool]]) -> int:
        """See `ReadPage`."""
        dropped = 0
        for pair, texts in doomed:
            column = "value_text" if texts else "value"
            [(count,)] = self._base.execute(
                f"DELETE FROM page WHERE sensor_id = ? AND metric_name = ? AND {column} IS NOT NULL", pair
            ).fetchall()
            dropped += count
        return dropped

    def table(self) -> Any:
        """See `ReadPage`."""
        return Held(self._base, "page")

    def duplicates(self) -> int:
        """See `ReadPage`."""
        [(rows, distinct)] = self._base.execute(
            "SELECT count(*), count(DISTINCT hash(sensor_id, metric_name, timestamp_us)) FROM page"
        ).fetchall()
        return int(rows - distinct)

    def identities(self) -> Sequence[tuple[str, str, int]]:
        """See `ReadPage`."""
        found: list[tuple[str, str, int]] = self._base.execute(
            "SELECT DISTINCT sensor_id, metric_name, timestamp_us FROM page"
        ).fetchall()
        return found


def _selected(plan: Plan) -> str:
    """Return the SQL of a stored point's columns; what no conversion can save becomes a null or an absurd time."""

    def column(field: str, missing: str) -> str:
        if field not in plan.columns or plan.types[field].family == "null":
            return f"NULL::{missing}"
        return _quoted(plan.columns[field])

    value = column("value", "DOUBLE")
    if "value" in plan.types and plan.types["value"].family in ("decimal", "bool"):
        value = f"{value}::DOUBLE"
    if "value" not in plan.columns:
        value = "NULL::DOUBLE"
    return ", ".join(
        f"{sql} AS {name}"
        for name, sql in (
            ("sensor_id", column("sensor_id", "VARCHAR")),
            ("metric_name", column("metric_name", "VARCHAR")),
            ("timestamp_us", _time(plan)),
            ("value", value),
            ("value_text", column("value_text", "VARCHAR")),
            ("quality", column("quality", "INTEGER")),
            ("metadata", column("metadata", "VARCHAR")),
        )
    )


def _time(plan: Plan) -> str:
    """Return the SQL of the time in µs; one past 64 bits becomes the largest number, to be refused with a reason."""
    if "timestamp_us" in plan.columns:
        return _bounded(_quoted(plan.columns["timestamp_us"]), 1)
    column, kind = _quoted(plan.columns["timestamp"]), plan.types["timestamp"]
    if kind.family == "float":
        return f"TRY_CAST(round_even({column}::DOUBLE * 1e6, 0) AS BIGINT)"
    if kind.family == "integer":
        return _bounded(column, 1_000_000)
    if kind.name == "TIMESTAMPTZ_NS":  # a cast would round it
        ns = f"epoch_ns({column})"
        return f"({ns} - (({ns} % 1000) + 1000) % 1000) // 1000"
    return f"CASE WHEN NOT isfinite({column}) THEN {_LARGEST} ELSE epoch_us({column}) END"


_LARGEST = 2**63 - 1


def _bounded(column: str, factor: int) -> str:
    limit = _LARGEST // factor
    return (
        f"CASE WHEN {column}::HUGEINT NOT BETWEEN -{limit} AND {limit} THEN {_LARGEST} "
        f"ELSE ({column}::HUGEINT * {factor})::BIGINT END"
    )


def _family(kind: str) -> str:
    for family, starts in _FAMILIES.items():
        if kind.partition("(")[0] in starts and "[" not in kind:
            return family
    return "other"


_FAMILIES = {
    "text": ("VARCHAR", "ENUM"),
    "moment": ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"),
    "float": ("DOUBLE", "FLOAT"),
    "integer": ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    "decimal": ("DECIMAL",),
    "bool": ("BOOLEAN",),
    "null": ('"NULL"',),
}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _reason(error: duckdb.Error) -> tuple[int, str]:
    """Return the system's number for what DuckDB only tells in words, and the words."""
    text = str(error)
    return (errno.ENOSPC if "No space left on device" in text else errno.EIO), text
