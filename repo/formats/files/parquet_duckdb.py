"""Parquet by DuckDB, in an instance of its own that can access one open file and nothing else.

DuckDB gets the number of the file's descriptor, never its name. So no name is interpreted as a pattern or as SQL, and
the file that is read is the one that was opened and checked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import duckdb

from repo.durable import digest
from repo.engines.duckdb.driver import open_sandbox, sandbox_path
from repo.errors import InvalidFile, InvalidPoint
from repo.fields import EXACT_INT
from repo.formats.arrays.memory import KeptStream
from repo.formats.arrays.scan import ScannedSeries, scan
from repo.formats.arrays.streams import Chain, HasStream, Page, take_page
from repo.formats.arrays.tables import Held
from repo.formats.files.checksums import BadPage, Chunk, check_pages
from repo.formats.files.formats import PAGE_BYTES, PAGE_ROWS, FileFacts, Group, Validation, WrittenPages
from repo.formats.files.local_times import UNREADABLE, spans_of, text_times
from repo.formats.files.mapping import NO_QUALITY, ColumnType, ReadPlan, WideColumn
from repo.formats.files.parquet import ROW_GROUP_ROWS
from repo.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US
from repo.values import KIND_NUMBER, KIND_TEXT

__all__ = [
    "MOMENT",
    "DuckDBReader",
    "DuckDBWriter",
    "copy_options",
    "disk_error",
    "run_aside",
]

_MOST_GROUP_ROWS = 2_000_000
"""With larger row groups, each query of a page would read too many other rows; 1,048,576 is common."""

_MANY_GROUPS = 8
"""In a file with this many row groups the last one is a small part."""

_TABLE = (
    "series INTEGER, timestamp_us BIGINT, value DOUBLE, value_text VARCHAR, quality INTEGER, "
    "metadata VARCHAR, seq BIGINT"
)

MOMENT = (
    f"CASE WHEN timestamp_us = {2**63 - 1} THEN 'infinity'::TIMESTAMPTZ "
    "WHEN timestamp_us < -9223372022400000000 THEN '-infinity'::TIMESTAMPTZ "
    "ELSE make_timestamptz(timestamp_us) END"
)
"""DuckDB has no other representation of these times, which only the legacy program accepted."""


class DuckDBWriter:
    """Writes files; `memory_limit_bytes` limits DuckDB's own buffers."""

    columnar = True

    def __init__(self, memory_limit_bytes: int) -> None:
        self._memory_limit_bytes = memory_limit_bytes

    def write(self, descriptor: int, pages: WrittenPages, *, compression: str, note: str) -> FileFacts:
        """See `FileWriter`."""
        with (
            open_sandbox([descriptor], memory_limit_bytes=self._memory_limit_bytes) as base,
            closing(_arrow_pages(pages, self._memory_limit_bytes)) as arrow,
        ):
            base.execute(f"CREATE TABLE page ({_TABLE})")
            _name(base, pages.series)
            chain = Chain(base.cursor().sql("FROM page"), arrow)
            file = sandbox_path(descriptor)
            row_group_bytes = f"ROW_GROUP_SIZE_BYTES {self._memory_limit_bytes // 8}"
            try:
                run_aside(
                    base,
                    chain,
                    "COPY (SELECT getvariable('sensors')[series + 1]::VARCHAR AS sensor_id, "
                    f"getvariable('metrics')[series + 1]::VARCHAR AS metric_name, {MOMENT} AS timestamp, value, "
                    f"value_text, quality, metadata, seq FROM points) TO '{file}' "
                    f"({copy_options(pages.points, compression, note)}, {row_group_bytes})",
                )
            except duckdb.Error as error:
                if chain.error is not None:
                    raise chain.error from None
                raise disk_error(error) from error
            finally:
                base.unregister("points")
                chain.close()
            [(points, *span)] = base.execute(
                "SELECT count(*), min(epoch_us(timestamp)), max(epoch_us(timestamp)), min(seq), max(seq) "
                f"FROM read_parquet('{file}')"
            ).fetchall()
        return FileFacts(points, os.fstat(descriptor).st_size, digest(descriptor), *span)


def _name(base: Any, series: Sequence[tuple[str, str]]) -> None:
    """Set `sensors` and `metrics` to the names of the series, as ENUMs: with texts each row would get a copy.

    They must not be written as ENUMs. The dictionary of a row group would have "" for each name that does not occur in
    it; if pyarrow reads dictionaries, it merges these entries and assigns wrong names to the rows after them.
    """
    for place, kind in enumerate(("sensor", "metric")):
        names = [pair[place] for pair in series]
        base.execute(f"SET VARIABLE {kind}s = ?::VARCHAR[]", [names])
        base.execute(f"CREATE TYPE {kind} AS ENUM (SELECT DISTINCT unnest(getvariable('{kind}s')))")
        base.execute(f"SET VARIABLE {kind}s = getvariable('{kind}s')::{kind}[]")


def copy_options(points: int, compression: str, note: str) -> str:
    """Return the options of COPY for a file of about so many points."""
    codec = "uncompressed" if compression == "none" else compression
    quoted = note.replace("'", "''")
    return (
        f"FORMAT parquet, COMPRESSION {codec}, PARQUET_VERSION v2, {_grouping(points)}, USE_TMP_FILE false, "
        f"WRITE_BLOOM_FILTER false, KV_METADATA {{holdfast: '{quoted}'}}"
    )


def _grouping(points: int) -> str:
    """Return the options for row groups, and for dictionaries if at most every other value is new.

    By default DuckDB uses a dictionary if one value in five is new. The option is one number for all row groups and
    columns. It is not set if the last group, with fewer rows, would get a dictionary of its times, unless that group is
    a small part of the file. Points that are read as one page form one group.
    """
    rows = max(points, 2) if points <= PAGE_ROWS else ROW_GROUP_ROWS
    most = rows // 2
    last = points % rows or rows
    fits = last > most or points >= _MANY_GROUPS * rows
    return f"ROW_GROUP_SIZE {rows}" + (f", DICTIONARY_SIZE_LIMIT {most}" if fits else "")


def run_aside(base: Any, points: HasStream, sql: str) -> None:
    """Run SQL on the `points` in a separate thread while this one waits.

    Python raises Ctrl-C only in the main thread. There it would be raised inside DuckDB's call for the next page, and
    be lost.
    """
    with ThreadPoolExecutor(1, "holdfast-copy") as beside:
        beside.submit(int).result()  # if Ctrl-C interrupts the start of a thread, nobody joins it
        try:
            beside.submit(base.register, "points", points).result()
            beside.submit(base.execute, sql).result()
        except KeyboardInterrupt:
            base.interrupt()
            raise


def _arrow_pages(pages: WrittenPages, memory_limit_bytes: int) -> Generator[Page]:
    """Yield pages as Arrow. Rows are converted in a separate database: in the writer's, COPY would keep them all."""
    places = {pair: place for place, pair in enumerate(pages.series)}
    with ExitStack() as stack:
        apart: Any = None
        for page in pages.pages:
            if isinstance(page, Page):
                yield page
                continue
            if apart is None:
                apart = stack.enter_context(open_sandbox([], memory_limit_bytes=memory_limit_bytes))
                apart.execute(f"CREATE TABLE page ({_TABLE})")
            apart.execute("TRUNCATE page")
            appender = apart.appender("page")
            appender.append_rows([(places[row[0], row[1]], *row[2:]) for row in page])
            appender.flush()
            yield take_page(apart.sql("FROM page"))


# --- reading --------------------------------------------------------------------------------------------


class DuckDBReader:
    """Reads a file. Not thread-safe."""

    def __init__(self, base: Any, descriptor: int, path: Path) -> None:
        self._base = base
        self._descriptor = descriptor
        self._file = sandbox_path(descriptor)
        self._path = path
        options = "hive_partitioning = false, file_row_number = true, binary_as_string = true"
        self._source = f"read_parquet('{self._file}', {options})"

    def types(self) -> dict[str, ColumnType]:
        """See `FileReader`."""
        with self._naming():
            found = self._base.execute(f"DESCRIBE SELECT * FROM {self._source}").fetchall()
        return {
            name: ColumnType(_family(kind), kind[:80])
            for name, kind, *_ in found
            if name != "file_row_number"  # DuckDB's own
        }

    def validate(self, plan: ReadPlan) -> Validation:
        """See `FileReader`."""
        with self._naming():
            check_pages(self._descriptor, self._chunks(plan))
        columns = [_quoted(column) for column in plan.read_columns()]
        # Hashes need every value, whereas a minimum would come from the file's statistics.
        texts = " + ".join(
            f"coalesce(strlen({_quoted(plan.columns[field])}), 0)"
            for field in ("sensor_id", "metric_name", "value_text", "metadata")
            if field in plan.columns and plan.types[field].family != "null"
        )
        texts += "".join(
            f" + coalesce(strlen({_quoted(one.column)}), 0)" for one in plan.wide if one.kind.family == "text"
        )
        with self._naming():
            [(rows, text_bytes, _)] = self._base.execute(
                f"SELECT count(*), coalesce(sum({texts or 0}), 0)::BIGINT, bit_xor(hash({', '.join(columns)})) "
                f"FROM {self._source}"
            ).fetchall()
        return Validation(int(rows), 64 * max(1, len(plan.wide)) + text_bytes // max(rows, 1))

    def pages(self, plan: ReadPlan, validation: Validation) -> Iterator[DuckDBPage]:
        """See `FileReader`."""
        fitting = max(1, min(PAGE_ROWS, PAGE_BYTES // validation.row_bytes))
        # Full row groups of DuckDB: a partial one would be compressed again at each checkpoint.
        page_rows = fitting - fitting % ROW_GROUP_ROWS or fitting
        with self._naming():
            texts = "timestamp" in plan.types and plan.types["timestamp"].family == "text"
            in_place = not (texts or plan.wide) and self._can_be_read_often()
            selects = self._selects(plan)
            connections = [self._base.cursor(), self._base.cursor()]

        def page(number: int) -> DuckDBPage:
            span, block = divmod(number, len(selects))
            start = span * page_rows
            where = f"file_row_number >= {start:d} AND file_row_number < {start + page_rows:d}"
            connection = connections[number % 2]
            source = f"FROM {self._source}"
            if texts:
                self._read_times(connection, plan, where)
                source += f" JOIN holdfast_times ON file_row_number = {_PLACE}"
            order = " ORDER BY file_row_number" if texts else ""  # a join does not keep it
            pieces = [
                f"(SELECT {fields} {source} WHERE {where}{and_}{order})" for fields, and_ in selects[block]
            ]
            return DuckDBPage(connection, " UNION ALL ".join(pieces), in_place=in_place)

        count = -(-validation.rows // page_rows) * len(selects)
        with ThreadPoolExecutor(1, "holdfast-page") as beside:
            ahead: Future[DuckDBPage] | None = None
            for number in range(count):
                with self._naming():
                    current = page(number) if ahead is None else ahead.result()
                # The next page is inspected while this one is stored; two copies would not fit into memory.
                last = number + 1 == count
                ahead = None if last or current.is_copy else beside.submit(page, number + 1)
                yield current
                current.drop()

    def _chunks(self, plan: ReadPlan) -> Iterator[Chunk]:
        found = self._base.execute(
            "SELECT path_in_schema, dictionary_page_offset, data_page_offset, total_compressed_size "
            f"FROM parquet_metadata('{self._file}')"
        ).fetchall()
        wanted = set(plan.read_columns())
        for name, dictionary, data, size in found:
            if name in wanted and data is not None and size is not None:
                yield Chunk(name, min(dictionary or data, data), size)

    def _selects(self, plan: ReadPlan) -> list[list[tuple[str, str]]]:
        """Return the blocks that are read one after the other from each span of rows.

        A block is one query or several, each given by its fields and a further condition. A long file has one block.
        The columns of a wide file form one block for each type that they have as stored.
        """
        time = self._time_sql(plan)
        if not plan.wide:
            as_floats = not self._has_large_decimals(plan)
            return [[(_selected(plan, time, as_floats=as_floats), "")]]
        blocks: dict[str, list[tuple[str, str]]] = {}
        for one in plan.wide:
            column = _quoted(one.column)
            kind = self._stored_kind(one)
            if kind == "none":
                continue
            texts = "NULL::VARCHAR" if kind != "text" else f"{column}::VARCHAR"
            values = {"text": "NULL::DOUBLE", "number": f"{column}::DOUBLE"}.get(kind, column)
            fields = _fields(plan, time, values, texts, metric=one.metric)
            given = f" AND {column} IS NOT NULL" + (
                f" AND NOT isnan({column})" if one.kind.family == "float" else ""
            )
            blocks.setdefault(kind, []).append((fields, given))
        return list(blocks.values())

    def _stored_kind(self, one: WideColumn) -> str:
        """Return `number` or `text`, `none` for a column without values, or its own type if floats would round it."""
        family = one.kind.family
        if family in ("text", "null"):
            return "text" if family == "text" else "none"
        if family == "decimal" or (family == "integer" and "BIGINT" in one.kind.name):
            column = _quoted(one.column)
            [(large,)] = self._base.execute(
                f"SELECT coalesce(bool_or(abs({column}::DOUBLE) >= {EXACT_INT}), false) FROM {self._source}"
            ).fetchall()
            if large:
                return one.kind.name
        return "number"

    def _time_sql(self, plan: ReadPlan) -> str:
        if "timestamp" not in plan.types or plan.types["timestamp"].family != "naive" or plan.zone is UTC:
            return _time(plan)
        local = _epoch_us(_quoted(plan.columns["timestamp"]), plan.types["timestamp"].name)
        [(first, last)] = self._base.execute(
            f"SELECT coalesce(min({local}), 0), coalesce(max({local}), 0) FROM {self._source}"
        ).fetchall()
        cases = "".join(
            f" WHEN {local} < {span.end_us} THEN "
            + (f"{local} - {span.offset_us}" if span.offset_us is not None else f"{UNREADABLE}")
            for span in spans_of(plan.zone, first, last)
        )
        return f"CASE{cases} ELSE {local} END"

    def _read_times(self, connection: Any, plan: ReadPlan, where: str) -> None:
        """Put the times that are texts into the table `holdfast_times`."""
        column = _quoted(plan.columns["timestamp"])
        connection.execute(
            f"CREATE OR REPLACE TEMPORARY TABLE holdfast_times ({_PLACE} BIGINT, {_MOMENT_US} BIGINT)"
        )
        found = connection.cursor().execute(
            f"SELECT file_row_number, {column} FROM {self._source} WHERE {where}"
        )
        appender = connection.appender("holdfast_times")
        while rows := found.fetchmany(_TEXT_ROWS):
            places, texts = zip(*rows, strict=True)
            appender.append_rows(list(zip(places, text_times(texts, plan.zone), strict=True)))
        appender.flush()

    def _can_be_read_often(self) -> bool:
        """Return whether some rows can be read without reading many others."""
        [(largest,)] = self._base.execute(
            f"SELECT coalesce(max(row_group_num_rows), 0) FROM parquet_metadata('{self._file}')"
        ).fetchall()
        return bool(largest <= _MOST_GROUP_ROWS)

    def _has_large_decimals(self, plan: ReadPlan) -> bool:
        """Return whether there are decimals beyond the integers that a float can hold; only some types have them."""
        if "value" not in plan.types or plan.types["value"].family != "decimal":
            return False
        value = _quoted(plan.columns["value"])
        [(found,)] = self._base.execute(
            f"SELECT coalesce(bool_or(abs({value}::DOUBLE) >= {EXACT_INT}), false) FROM {self._source}"
        ).fetchall()
        return bool(found)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except BadPage as error:
            raise InvalidFile(f"{self._path} is damaged: {error}", path=self._path) from error
        except (duckdb.Error, OSError, InvalidPoint) as error:  # `scan` raises the last one
            reason = str(error).replace(self._file, self._path.name).strip().partition("\n\n")[0]
            advice = "It is damaged or truncated; copy it again"
            if isinstance(error, duckdb.OutOfMemoryException):
                advice = "Set a larger duckdb_memory_limit_bytes"
            raise InvalidFile(
                f"{self._path} cannot be read as Parquet: {reason.rstrip('.')}. {advice}",
                path=self._path,
            ) from error


class DuckDBPage:
    """See `ReadPage`; the rows are the view `page` of a connection, on the file or on a copy in memory.

    With `in_place` the file is read again for each query of the scan, which is faster than a copy in DuckDB, as that
    loses the dictionaries. What is then stored is kept as Arrow, outside of DuckDB's memory.
    """

    def __init__(self, base: Any, select: str, *, in_place: bool) -> None:
        self._base = base
        self._kept: KeptStream | None = None
        base.execute(f"CREATE OR REPLACE TEMPORARY VIEW page AS {select}")
        self.is_copy = False
        if not in_place:
            self._copy()
        self._scan = scan(base, None, "FROM page")
        if self._scan is not None:
            # Read once more here, beside the storing of the page before.
            self._kept = KeptStream(base.sql("FROM page")) if in_place else None
            self.rows, self.nulls = self._scan.rows, 0
            self.groups = [_group(one) for one in self._scan.groups]
        else:
            self.rows, self.nulls = self._without_nameless()
            self.groups = self._groups()

    def _copy(self) -> None:
        self._forget()
        if not self.is_copy:
            self._base.execute("CREATE TEMPORARY TABLE copied AS FROM page")
            self._base.execute("CREATE OR REPLACE TEMPORARY VIEW page AS FROM copied")
            self.is_copy = True

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.drop()
            self._kept = None

    def drop(self) -> None:
        """Free the memory; the page is no longer valid."""
        self._forget()
        if self.is_copy:
            self._base.execute("DROP VIEW page")
            self._base.execute("DROP TABLE copied")

    def _without_nameless(self) -> tuple[int, int]:
        """Drop the rows without a series or time; returns the numbers of all rows and of dropped rows."""
        nameless = "sensor_id IS NULL OR metric_name IS NULL OR timestamp_us IS NULL"
        [(rows, nulls)] = self._base.execute(
            f"SELECT count(*), count(*) FILTER ({nameless}) FROM page"
        ).fetchall()
        if nulls:
            self._copy()
            self._base.execute(f"DELETE FROM copied WHERE {nameless}")
            self._scan = scan(self._base, None, "FROM page")
        return rows, nulls

    def _groups(self) -> list[Group]:
        return [
            Group((sensor, metric), *counts)
            for sensor, metric, *counts in self._base.execute(
                "SELECT sensor_id, metric_name, count(*), count(value), count(value_text), "
                "count(*) FILTER (NOT isnan(value::DOUBLE) OR value_text IS NOT NULL), "
                "min(timestamp_us), max(timestamp_us) FROM page GROUP BY ALL"
            ).fetchall()
        ]

    def leave_out(self, doomed: Sequence[tuple[tuple[str, str], bool]]) -> int:
        """See `ReadPage`."""
        self._copy()
        dropped = 0
        for pair, texts in doomed:
            column = "value_text" if texts else "value"
            [(count,)] = self._base.execute(
                f"DELETE FROM copied WHERE sensor_id = ? AND metric_name = ? AND {column} IS NOT NULL", pair
            ).fetchall()
            dropped += count
        self._scan = scan(self._base, None, "FROM page")
        return dropped

    def table(self) -> Any:
        """See `ReadPage`."""
        return Held(self._base, "page", self._scan, self._kept)

    def duplicates(self) -> int:
        """See `ReadPage`."""
        if self._scan is not None and self._scan.unique:
            return 0
        [(rows, distinct)] = self._base.execute(
            "SELECT count(*), count(DISTINCT hash(sensor_id, metric_name, timestamp_us)) FROM page "
            f"WHERE timestamp_us BETWEEN {MIN_TIMESTAMP_US} AND {MAX_TIMESTAMP_US}"  # others are refused
        ).fetchall()
        return int(rows - distinct)

    def identities(self) -> Sequence[tuple[str, str, int]]:
        """See `ReadPage`."""
        found: list[tuple[str, str, int]] = self._base.execute(
            "SELECT DISTINCT sensor_id, metric_name, timestamp_us FROM page"
        ).fetchall()
        return found


def _group(found: ScannedSeries) -> Group:
    """Return the scan result for a series without anything unusual, which therefore has one kind."""
    numbers = found.readings if found.kind == KIND_NUMBER else 0
    texts = found.readings if found.kind == KIND_TEXT else 0
    return Group(found.pair, found.rows, numbers, texts, found.readings, found.first_us, found.last_us)


def _selected(plan: ReadPlan, time: str, *, as_floats: bool) -> str:
    """Return the SQL of a stored point's columns. Inconvertible values become a null or an out-of-range time.

    Decimals stay unchanged unless `as_floats` is set, so that those that would be rounded are refused.
    """
    value = _column(plan, "value", "DOUBLE")
    if "value" in plan.types and plan.types["value"].family in (
        ("decimal", "bool") if as_floats else ("bool",)
    ):
        value = f"{value}::DOUBLE"
    return _fields(plan, time, value, _column(plan, "value_text", "VARCHAR"), metric=plan.metric)


def _fields(plan: ReadPlan, time: str, value: str, text: str, *, metric: str | None) -> str:
    sensor = _column(plan, "sensor_id", "VARCHAR") if plan.sensor is None else _literal(plan.sensor)
    named = _column(plan, "metric_name", "VARCHAR") if metric is None else _literal(metric)
    return ", ".join(
        f"{sql} AS {name}"
        for name, sql in (
            ("sensor_id", sensor),
            ("metric_name", named),
            ("timestamp_us", time),
            ("value", value),
            ("value_text", text),
            ("quality", _quality(plan)),
            ("metadata", _column(plan, "metadata", "VARCHAR")),
        )
    )


def _column(plan: ReadPlan, field: str, missing: str) -> str:
    if field not in plan.columns or plan.types[field].family == "null":
        return f"NULL::{missing}"
    return _quoted(plan.columns[field])


def _quality(plan: ReadPlan) -> str:
    """Return the SQL of the quality. A float that is not an integer becomes one that is refused."""
    column = _column(plan, "quality", "INTEGER")
    if "quality" not in plan.types or plan.types["quality"].family != "float":
        return column
    return (
        f"CASE WHEN {column} IS NULL OR isnan({column}) THEN NULL WHEN {column} = trunc({column}) AND abs({column}) < "
        f"{2**31} THEN {column}::BIGINT ELSE {NO_QUALITY} END"
    )


def _time(plan: ReadPlan) -> str:
    """Return the SQL of the time in µs. One beyond 64 bits becomes the largest number, which is refused."""
    if "timestamp_us" in plan.columns:
        return _bounded(_quoted(plan.columns["timestamp_us"]), 1)
    column, kind = _quoted(plan.columns["timestamp"]), plan.types["timestamp"]
    if kind.family == "text":
        return _MOMENT_US
    if kind.family == "float":
        us = f"round_even({column}::DOUBLE * {plan.us_per_count:d}, 0)"
        return (
            f"CASE WHEN {us} IS NULL OR isnan({us}) THEN NULL WHEN abs({us}) < {2**62} THEN TRY_CAST({us} AS BIGINT) "
            f"ELSE {_LARGEST} END"
        )
    if kind.family == "integer":
        return _bounded(column, plan.us_per_count)
    return _epoch_us(column, kind.name)


def _epoch_us(column: str, kind: str) -> str:
    if kind in ("TIMESTAMPTZ_NS", "TIMESTAMP_NS"):  # a cast would round it
        ns = f"epoch_ns({column})"
        return f"({ns} - (({ns} % 1000) + 1000) % 1000) // 1000"
    return f"CASE WHEN NOT isfinite({column}) THEN {_LARGEST} ELSE epoch_us({column}) END"


_PLACE, _MOMENT_US = '"holdfast place"', '"holdfast time"'
_TEXT_ROWS = 10_000


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


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
    "naive": ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE"),
    "float": ("DOUBLE", "FLOAT"),
    "integer": ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    "decimal": ("DECIMAL",),
    "bool": ("BOOLEAN",),
    "null": ('"NULL"',),
}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def disk_error(error: duckdb.Error) -> OSError:
    """Return the error of the system for one that DuckDB reports only as text."""
    text = str(error)
    return OSError(errno.ENOSPC if "No space left on device" in text else errno.EIO, text)
