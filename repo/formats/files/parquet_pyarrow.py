"""Parquet by pyarrow, for installations without DuckDB. Its pages have their own checksums."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repo.durable import digest
from repo.errors import InvalidFile
from repo.fields import EXACT_INT
from repo.formats.arrays.streams import Page
from repo.formats.files.formats import (
    PAGE_BYTES,
    PAGE_ROWS,
    Bounds,
    FileFacts,
    Group,
    Validation,
    WrittenPages,
)
from repo.formats.files.mapping import ColumnType, ReadPlan
from repo.formats.files.parquet import ROW_GROUP_ROWS
from repo.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US

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
                if page:
                    columns = [list(column) for column in zip(*page, strict=True)]
                    bounds.add(columns[2], columns[7])
                    writer.write_table(_table(columns), row_group_size=ROW_GROUP_ROWS)
        with open(descriptor, "rb", closefd=False) as written:
            points = pq.read_metadata(written).num_rows
        return FileFacts(
            points, os.fstat(descriptor).st_size, digest(descriptor), *bounds.times, *bounds.seqs
        )


def _table(columns: Sequence[list[Any]]) -> pa.Table:
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


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
            self._file = pq.ParquetFile(stream, page_checksum_verification=True)

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
        for column in plan.columns.values():
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
        return Validation(rows, size // max(rows, 1))

    def pages(self, plan: ReadPlan, validation: Validation) -> Iterator[ArrowPage]:
        """See `FileReader`."""
        batches = self._batches(plan)
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
                page = ArrowPage(_stored_form(pa.Table.from_batches(held), plan))
            yield page

    def _batches(self, plan: ReadPlan) -> Iterator[pa.RecordBatch]:
        columns = list(dict.fromkeys(plan.columns.values()))
        yield from self._file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InvalidFile(
                f"{self._path} cannot be read as Parquet: {error}. It is damaged or truncated",
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


def _stored_form(table: pa.Table, plan: ReadPlan) -> pa.Table:
    """Return the columns of a stored point. Inconvertible values become a null or an out-of-range time."""

    def column(field: str, missing: pa.DataType) -> Any:
        if field not in plan.columns or plan.types[field].family == "null":
            return pa.nulls(table.num_rows, missing)
        found = table[plan.columns[field]]
        return found.cast(pa.string()) if missing == pa.string() else found

    value = column("value", pa.float64())
    if "value" in plan.types and plan.types["value"].family in ("decimal", "bool"):
        as_floats = value.cast(pa.float64(), safe=False)
        # Decimals beyond the integers that a float can hold stay unchanged, so that rounded ones are refused.
        if (
            plan.types["value"].family == "bool"
            or not pc.any(pc.greater_equal(pc.abs(as_floats), EXACT_INT)).as_py()
        ):
            value = as_floats
    return pa.table(
        {
            "sensor_id": column("sensor_id", pa.string()),
            "metric_name": column("metric_name", pa.string()),
            "timestamp_us": _time(table, plan),
            "value": value,
            "value_text": column("value_text", pa.string()),
            "quality": column("quality", pa.int32()),
            "metadata": column("metadata", pa.string()),
        }
    )


def _time(table: pa.Table, plan: ReadPlan) -> Any:
    if "timestamp_us" in plan.columns:
        return _signed(table[plan.columns["timestamp_us"]])
    column = table[plan.columns["timestamp"]]
    if pa.types.is_timestamp(column.type):
        per_second = _PER_SECOND[column.type.unit]
        counts = column.cast(pa.int64())
        if per_second > 1_000_000:
            toward_zero = pc.divide(counts, 1_000)
            below = pc.less(counts, pc.multiply(toward_zero, 1_000))
            return pc.subtract(toward_zero, below.cast(pa.int64()))
        return _times(counts, 1_000_000 // per_second)
    if pa.types.is_integer(column.type):
        return _times(_signed(column), plan.us_per_count)
    micros = pc.multiply(column.cast(pa.float64()), float(plan.us_per_count))
    micros = pc.round(micros, round_mode="half_to_even")
    fits = pc.less(pc.abs(micros), 2.0**62)
    counts = pc.if_else(fits, micros, 0.0).cast(pa.int64())
    return pc.if_else(fits, counts, pc.if_else(pc.is_nan(micros), None, 2**63 - 1))


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
        ("text", (types.is_string, types.is_large_string, types.is_string_view)),
        ("float", (types.is_floating,)),
        ("integer", (types.is_integer,)),
        ("decimal", (types.is_decimal,)),
        ("bool", (types.is_boolean,)),
        ("null", (types.is_null,)),
    ):
        if any(test(kind) for test in tests):
            return family
    return "moment" if types.is_timestamp(kind) and kind.tz is not None else "other"
