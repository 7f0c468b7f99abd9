"""Parquet by pyarrow, for installations without DuckDB. Its pages have their own checksums."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repo.disk.durable import digest
from repo.errors import InvalidFile
from repo.formats.arrays.streams import Page
from repo.formats.files.interfaces import (
    PAGE_BYTES,
    PAGE_ROWS,
    Bounds,
    FileFacts,
    Group,
    Validation,
    WrittenPages,
)
from repo.formats.files.local_times import UNREADABLE, spans_of, text_times
from repo.formats.files.mapping import NO_QUALITY, ColumnType, ReadPlan
from repo.formats.files.parquet import ROW_GROUP_ROWS
from repo.inputs.fields import EXACT_INT
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US

__all__ = ["SCHEMA", "PyArrowReader", "PyArrowWriter", "opened_pyarrow"]

SCHEMA = pa.schema(
    {
        "sensor_id": pa.string(),
        "metric_name": pa.string(),
        "timestamp": pa.timestamp("us", "UTC"),
        "value": pa.float64(),
        "value_text": pa.string(),
        "quality": pa.int32(),
        "metadata": pa.string(),
        "seq": pa.int64(),
    }
)

_REPETITIVE = ["sensor_id", "metric_name", "value", "value_text", "quality", "metadata"]


class PyArrowWriter:
    """Writes files."""

    columnar = False

    def write(self, descriptor: int, pages: WrittenPages, *, compression: str, note: str) -> FileFacts:
        """See `FileWriter`."""
        bounds = Bounds()
        with (
            open(descriptor, "wb", closefd=False) as stream,
            pq.ParquetWriter(
                stream,
                SCHEMA.with_metadata({"holdfast": note}),
                compression=compression,
                use_dictionary=_REPETITIVE,
                column_encoding={"timestamp": "DELTA_BINARY_PACKED", "seq": "DELTA_BINARY_PACKED"},
                data_page_version="2.0",
                write_page_checksum=True,
            ) as writer,
        ):
            for page in pages.pages:
                assert not isinstance(page, Page), "Arrow pages come from DuckDB, which writes them itself"
                if len(page):
                    table = page.cast(SCHEMA) if isinstance(page, pa.Table) else _table(page)
                    bounds.add(_span(table["timestamp"].cast(pa.int64())), _span(table["seq"]))
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        with open(descriptor, "rb", closefd=False) as written:
            points = pq.read_metadata(written).num_rows
        return FileFacts(
            points, os.fstat(descriptor).st_size, digest(descriptor), *bounds.times, *bounds.seqs
        )


def _table(rows: Sequence[Sequence[Any]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table(
        [pa.array(list(column), field.type) for column, field in zip(columns, SCHEMA, strict=True)],
        schema=SCHEMA,
    )


def _span(numbers: pa.ChunkedArray) -> tuple[int, int]:
    found = pc.min_max(numbers).as_py()
    return found["min"], found["max"]


# --- reading --------------------------------------------------------------------------------------------

_BATCH_ROWS = 8_192
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_IDENTITY = ["sensor_id", "metric_name", "timestamp_us"]


@contextmanager
def opened_pyarrow(descriptor: int, path: Path) -> Iterator[PyArrowReader]:
    """Open a file for the block."""
    with open(descriptor, "rb", closefd=False) as stream:
        yield PyArrowReader(stream, path)


class PyArrowReader:
    """Reads a file, and verifies the checksums of its pages if it has them. Not thread-safe."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._path = path
        with self._naming():
            self._file = pq.ParquetFile(
                stream, page_checksum_verification=True, coerce_int96_timestamp_unit="us"
            )

    def types(self) -> dict[str, ColumnType]:
        """See `FileReader`."""
        with self._naming():
            return {
                field.name: ColumnType(_family(field.type), str(field.type)[:80])
                for field in self._file.schema_arrow
            }

    def validate(self, plan: ReadPlan) -> Validation:
        """See `FileReader`."""
        rows = size = 0
        for column in plan.read_columns():
            if self._file.schema_arrow.names.count(column) > 1:
                raise InvalidFile(f"{self._path} has several columns {column!r}", path=self._path)
        with self._naming():
            for batch in self._batches(plan):
                rows, size = rows + batch.num_rows, size + batch.nbytes
        expected = self._file.metadata.num_rows
        if rows != expected:  # page headers have no checksum
            raise InvalidFile(
                f"{self._path} is damaged: it has only {rows:,} of its {expected:,} rows", path=self._path
            )
        return Validation(rows, size // max(rows, 1) + 64 * len(plan.wide))

    def pages(self, plan: ReadPlan, validation: Validation) -> Iterator[ArrowPage]:
        """See `FileReader`."""
        batches = self._batches(plan)
        kinds = self._stored_kinds(plan)
        most_rows = min(PAGE_ROWS // 4, PAGE_BYTES // max(validation.row_bytes, 1))
        while True:
            held: list[pa.RecordBatch] = []
            rows = size = 0
            with self._naming():
                for batch in batches:
                    held.append(batch)
                    rows, size = rows + batch.num_rows, size + batch.nbytes
                    if rows >= most_rows or size >= PAGE_BYTES:
                        break
                if not held:
                    return
                tables = _stored_forms(pa.Table.from_batches(held), plan, kinds)
                pages = [ArrowPage(table) for table in tables]
            yield from pages

    def _stored_kinds(self, plan: ReadPlan) -> dict[str, str]:
        """Return for each column of a wide file `number` or `text`, or its own type if floats would round it."""
        kinds = {one.column: "text" if one.kind.family == "text" else "number" for one in plan.wide}
        large = {
            one.column: one.kind.name
            for one in plan.wide
            if one.kind.family == "decimal" or (one.kind.family == "integer" and "64" in one.kind.name)
        }
        if not large:
            return kinds
        with self._naming():
            for batch in self._file.iter_batches(_BATCH_ROWS, columns=list(large), use_threads=False):
                found = [name for name in large if kinds[name] == "number" and _is_large(batch[name])]
                kinds.update({name: large[name] for name in found})
        return kinds

    def _batches(self, plan: ReadPlan) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(
            batch_size=_BATCH_ROWS, columns=plan.read_columns(), use_threads=False
        )

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InvalidFile(
                f"{self._path} cannot be read as Parquet: {error}. It is damaged or truncated; copy it again",
                path=self._path,
            ) from error


class ArrowPage:
    """See `ReadPage`."""

    def __init__(self, table: pa.Table) -> None:
        self.rows = table.num_rows
        named = pc.and_(
            pc.and_(table["sensor_id"].is_valid(), table["metric_name"].is_valid()),
            table["timestamp_us"].is_valid(),
        )
        self._table = table.filter(named)
        self.nulls = self.rows - self._table.num_rows
        value = self._table["value"]
        number = value.is_valid()
        if pa.types.is_floating(value.type):
            number = pc.and_(number, pc.invert(pc.fill_null(pc.is_nan(value.cast(pa.float64())), True)))
        reading = pc.or_(number, self._table["value_text"].is_valid())
        marked = self._table.append_column("reading", reading)
        found = marked.group_by(["sensor_id", "metric_name"], use_threads=False).aggregate(
            [
                ("timestamp_us", "count"),
                ("value", "count"),
                ("value_text", "count"),
                ("reading", "sum"),
                ("timestamp_us", "min"),
                ("timestamp_us", "max"),
            ]
        )
        self.groups = [
            Group(
                (row["sensor_id"], row["metric_name"]),
                row["timestamp_us_count"],
                row["value_count"],
                row["value_text_count"],
                row["reading_sum"],
                row["timestamp_us_min"],
                row["timestamp_us_max"],
            )
            for row in found.to_pylist()
        ]

    def leave_out(self, doomed: Sequence[tuple[tuple[str, str], bool]]) -> int:
        """See `ReadPage`."""
        before = self._table.num_rows
        for (sensor, metric), texts in doomed:
            here = pc.and_(
                pc.equal(self._table["sensor_id"], sensor), pc.equal(self._table["metric_name"], metric)
            )
            read = self._table["value_text" if texts else "value"].is_valid()
            self._table = self._table.filter(pc.invert(pc.and_(here, read)))
        return int(before - self._table.num_rows)

    def table(self) -> Any:
        """See `ReadPage`."""
        return self._table

    def duplicates(self) -> int:
        """See `ReadPage`."""
        times = self._table["timestamp_us"]
        storable = pc.and_(  # others are refused
            pc.greater_equal(times, MIN_TIMESTAMP_US), pc.less_equal(times, MAX_TIMESTAMP_US)
        )
        rows = self._table.filter(storable)
        return int(rows.num_rows - _distinct(rows).num_rows)

    def identities(self) -> Sequence[tuple[str, str, int]]:
        """See `ReadPage`."""
        columns = [column.to_pylist() for column in _distinct(self._table).select(_IDENTITY).columns]
        return list(zip(*columns, strict=True))


def _distinct(table: pa.Table) -> pa.Table:
    return table.select(_IDENTITY).group_by(_IDENTITY).aggregate([])


def _stored_forms(table: pa.Table, plan: ReadPlan, kinds: Mapping[str, str]) -> list[pa.Table]:
    """Return the rows as columns of a stored point: one table or, for a wide file, one for each type of values.

    Inconvertible values become a null or an out-of-range time.
    """
    time = _time(table, plan)
    if not plan.wide:
        value = _column(table, plan, "value", pa.float64())
        family = plan.types["value"].family if "value" in plan.types else ""
        # Decimals beyond the integers that a float can hold stay unchanged, so that rounded ones are refused.
        if family == "bool" or (family == "decimal" and not _is_large(value)):
            value = value.cast(pa.float64(), safe=False)
        texts = _column(table, plan, "value_text", pa.string())
        return [_fields(table, plan, time, value, texts, plan.metric)]
    blocks: dict[str, list[pa.Table]] = {}
    for one in plan.wide:
        column, kind = table[one.column], kinds[one.column]
        if one.kind.family == "null":
            continue
        given = column.is_valid()
        if one.kind.family == "float":
            given = pc.and_(given, pc.invert(pc.fill_null(pc.is_nan(column.cast(pa.float64())), True)))
        texts = column.cast(pa.string()) if kind == "text" else pa.nulls(table.num_rows, pa.string())
        value = pa.nulls(table.num_rows, pa.float64()) if kind == "text" else column
        if kind == "number":
            value = column.cast(pa.float64(), safe=False)
        blocks.setdefault(kind, []).append(_fields(table, plan, time, value, texts, one.metric).filter(given))
    return [pa.concat_tables(tables) for tables in blocks.values()]


def _fields(
    table: pa.Table, plan: ReadPlan, time: Any, value: Any, texts: Any, metric: str | None
) -> pa.Table:
    def named(field: str, constant: str | None) -> Any:
        if constant is None:
            return _column(table, plan, field, pa.string())
        return pa.repeat(pa.scalar(constant, pa.string()), table.num_rows)

    return pa.table(
        {
            "sensor_id": named("sensor_id", plan.sensor),
            "metric_name": named("metric_name", metric),
            "timestamp_us": time,
            "value": value,
            "value_text": texts,
            "quality": _quality(table, plan),
            "metadata": _column(table, plan, "metadata", pa.string()),
        }
    )


def _column(table: pa.Table, plan: ReadPlan, field: str, missing: pa.DataType) -> Any:
    if field not in plan.columns or plan.types[field].family == "null":
        return pa.nulls(table.num_rows, missing)
    found = table[plan.columns[field]]
    return _text(found) if missing == pa.string() else found


def _text(column: Any) -> Any:
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    return column.cast(pa.string())


def _is_large(column: Any) -> bool:
    """Return whether there are numbers beyond the integers that a float can hold."""
    as_floats = column.cast(pa.float64(), safe=False)
    return bool(pc.any(pc.greater_equal(pc.abs(as_floats), EXACT_INT)).as_py())


def _quality(table: pa.Table, plan: ReadPlan) -> Any:
    """Return the qualities. A float that is not an integer becomes one that is refused."""
    column = _column(table, plan, "quality", pa.int32())
    if "quality" not in plan.types or plan.types["quality"].family != "float":
        return column
    column = column.cast(pa.float64())
    column = pc.if_else(pc.is_nan(column), None, column)
    fits = pc.and_(pc.equal(column, pc.trunc(column)), pc.less(pc.abs(column), 2.0**31))
    return pc.if_else(fits, pc.if_else(fits, column, 0.0).cast(pa.int64()), NO_QUALITY)


def _time(table: pa.Table, plan: ReadPlan) -> Any:
    if "timestamp_us" in plan.columns:
        return _signed(table[plan.columns["timestamp_us"]])
    column = table[plan.columns["timestamp"]]
    family = plan.types["timestamp"].family
    if family == "text":
        return pa.array(text_times(_text(column).to_pylist(), plan.zone), pa.int64())
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if pa.types.is_timestamp(column.type):
        micros = _micros(column)
        return _utc(micros, plan) if family == "naive" and plan.zone is not UTC else micros
    if pa.types.is_integer(column.type):
        return _times(_signed(column), plan.us_per_count)
    micros = pc.multiply(column.cast(pa.float64()), float(plan.us_per_count))
    micros = pc.round(micros, round_mode="half_to_even")
    fits = pc.less(pc.abs(micros), 2.0**62)
    counts = pc.if_else(fits, micros, 0.0).cast(pa.int64())
    return pc.if_else(fits, counts, pc.if_else(pc.is_nan(micros), None, 2**63 - 1))


def _micros(column: Any) -> Any:
    per_second = _PER_SECOND[column.type.unit]
    counts = column.cast(pa.int64())
    if per_second > 1_000_000:
        toward_zero = pc.divide(counts, 1_000)
        below = pc.less(counts, pc.multiply(toward_zero, 1_000))
        return pc.subtract(toward_zero, below.cast(pa.int64()))
    return _times(counts, 1_000_000 // per_second)


def _utc(local: Any, plan: ReadPlan) -> Any:
    """Return the times UTC of local times of the plan's zone."""
    bounds = pc.min_max(local)
    if not bounds["min"].is_valid:
        return local
    found = local
    for span in reversed(spans_of(plan.zone, bounds["min"].as_py(), bounds["max"].as_py())):
        moved = UNREADABLE if span.offset_us is None else pc.subtract(local, span.offset_us)
        found = pc.if_else(pc.less(local, span.end_us), moved, found)
    return found


def _signed(column: Any) -> Any:
    """Return integers of 64 bits; values that do not fit become the largest one."""
    if pa.types.is_uint64(column.type):
        column = pc.min_element_wise(column, pa.scalar(2**63 - 1, pa.uint64()), skip_nulls=False)
    return column.cast(pa.int64())


def _times(counts: Any, factor: int) -> Any:
    """Multiply; results beyond 64 bits become the largest integer."""
    limit = (2**63 - 1) // factor
    fits = pc.and_(pc.greater_equal(counts, -limit), pc.less_equal(counts, limit))
    return pc.if_else(fits, pc.multiply(pc.if_else(fits, counts, 0), factor), 2**63 - 1)


def _family(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_dictionary(kind):
        return _family(kind.value_type)
    for family, tests in (
        (
            "text",
            (
                types.is_string,
                types.is_large_string,
                types.is_string_view,
                types.is_binary,
                types.is_large_binary,
                types.is_binary_view,
                types.is_fixed_size_binary,
            ),
        ),
        ("naive", (types.is_date,)),
        ("float", (types.is_floating,)),
        ("integer", (types.is_integer,)),
        ("decimal", (types.is_decimal,)),
        ("bool", (types.is_boolean,)),
        ("null", (types.is_null,)),
    ):
        if any(test(kind) for test in tests):
            return family
    if types.is_timestamp(kind):
        return "naive" if kind.tz is None else "moment"
    return "other"
