"""A table that DuckDB scans gives what the same table gives row by row, or it is not scanned at all."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repo.core.bulk import _plain
from repo.formats.arrays.scan import SOURCE, batch_of, scan
from repo.formats.arrays.tables import table_of
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US
from repo.inputs.values import check_columns
from repo.queries.rows import rows_of

pytestmark = pytest.mark.duckdb

names = st.sampled_from(["a", "b", "ü", "c'--"])
odd_names = st.sampled_from(["", "a\x00", "x" * 256, None])
instants = st.integers(MIN_TIMESTAMP_US, MAX_TIMESTAMP_US)
metadata = st.sampled_from(["{}", '{"a":1}', '{"a": 1}', "[]", "", None])
TYPES: dict[str, list[tuple[pa.DataType, st.SearchStrategy[Any]]]] = {
    "timestamp": [
        (pa.float64(), st.floats(-5e9, 5e9)),
        (pa.float64(), st.floats()),
        (pa.int64(), st.integers(-(10**10), 10**10)),
        (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
        (pa.timestamp("us", "UTC"), instants),
        (pa.timestamp("ns", "UTC"), st.integers(-(10**18), 10**18)),
        (pa.timestamp("ms", "+01:00"), st.integers(MIN_TIMESTAMP_US // 1000, MAX_TIMESTAMP_US // 1000)),
        (pa.timestamp("us"), instants),
    ],
    "timestamp_us": [(pa.int64(), instants), (pa.int64(), st.integers(-(2**63), 2**63 - 1))],
    "value": [
        (pa.float64(), st.floats()),
        (pa.float32(), st.floats(width=32)),
        (pa.int64(), st.integers(-(2**54), 2**54)),
        (pa.uint64(), st.integers(0, 2**54)),
        (pa.int8(), st.integers(-128, 127)),
        (pa.string(), st.sampled_from(["OPEN", "SHUT", "", "1.5", "nan", "a\nb", "☃"])),
        (pa.bool_(), st.booleans()),
        (pa.null(), st.none()),
    ],
    "quality": [
        (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
        (pa.int64(), st.integers(-(2**33), 2**33)),
        (pa.uint8(), st.integers(0, 255)),
        (pa.null(), st.none()),
    ],
}


@pytest.fixture(scope="module")
def scratch() -> Iterator[Any]:
    import duckdb

    with duckdb.connect(":memory:") as connection:
        yield connection


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(1, 12))
    odd = draw(st.integers(0, 5)) == 0
    name = st.one_of(names, odd_names) if odd else names

    def column(kind: pa.DataType, cells: st.SearchStrategy[Any]) -> pa.Array:
        cells = st.one_of(cells, st.none()) if draw(st.integers(0, 5)) == 0 else cells
        return pa.array(draw(st.lists(cells, min_size=rows, max_size=rows)), kind)

    time = draw(st.sampled_from(["timestamp", "timestamp_us"]))
    columns = {"sensor_id": column(pa.string(), name), "metric_name": column(pa.string(), name)}
    for field in (time, "value", "quality"):
        columns[field] = column(*draw(st.sampled_from(TYPES[field])))
    if draw(st.booleans()):
        columns["metadata"] = column(pa.string(), metadata)
    if draw(st.booleans()):
        columns["value_text"] = column(pa.string(), st.sampled_from(["OPEN", None, None]))
    return pa.table(columns)


def bits(row: Any) -> tuple[Any, ...]:
    """A row in which minus zero differs from zero."""
    return tuple(struct.pack("<d", cell) if isinstance(cell, float) else cell for cell in row)


@settings(max_examples=100)
@given(tables())
def test_a_scanned_table_gives_what_its_rows_give(scratch: Any, table: pa.Table) -> None:
    [chunk] = table_of(table, 1000, scratch).chunks
    batch, refusals = check_columns(_plain(chunk.lists(0, 1000)), accept_bool=False, skip=True)
    found = scan(scratch, chunk.source)
    if found is None:
        return
    assert refusals == ()
    scratch.register(SOURCE, chunk.source)
    scanned = scratch.execute(found.select).fetchall()
    rows = [row[:7] for row in rows_of(batch, range(len(batch)))]
    assert list(map(bits, scanned)) == list(map(bits, rows))
    packed = batch_of(scratch, chunk.source, None, found)
    if packed is not None:
        assert [bits(row[:7]) for row in rows_of(packed, range(len(packed)))] == list(map(bits, rows))
    assert {group.pair: group.kind for group in found.groups} == dict(
        zip(batch.series, batch.kinds, strict=True)
    )
    assert found.rows == sum(group.rows for group in found.groups) == len(rows)
    assert found.unique == (len({row[:3] for row in rows}) == len(rows))
    for group in found.groups:
        mine = [row for row in rows if row[:2] == group.pair]
        assert (group.first_us, group.last_us) == (min(r[2] for r in mine), max(r[2] for r in mine))
        assert bits(group.newest) == bits(rows[group.place][3:7])
        assert rows[group.place][2] == group.last_us


@settings(max_examples=40)
@given(st.lists(st.tuples(names, names, st.floats(-4e9, 4e9), st.floats()), min_size=1, max_size=20))
def test_an_ordinary_table_is_scanned(scratch: Any, rows: list[Any]) -> None:
    columns = zip(("sensor_id", "metric_name", "timestamp", "value"), zip(*rows, strict=True), strict=True)
    [chunk] = table_of(dict(columns), 1000, scratch).chunks
    assert scan(scratch, chunk.source) is not None
