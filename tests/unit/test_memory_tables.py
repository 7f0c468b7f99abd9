"""Columns in memory are scanned by DuckDB as they are, as often as needed, and are freed afterwards."""

from __future__ import annotations

import gc
import weakref
from array import array
from collections import Counter

import pytest

from repo.core.incoming import Incoming
from repo.formats.arrays.memory import BATCH_ROWS, MemoryColumn, MemoryTable
from repo.inputs.values import check_rows

duckdb = pytest.importorskip("duckdb")


def test_a_table_in_memory_is_read_in_order_several_times_and_then_freed() -> None:
    rows = 2 * BATCH_ROWS + 7
    table = MemoryTable(
        [
            MemoryColumn("text", array("I", (row % 4 for row in range(rows))), ["ä", None, "", "ä"]),
            MemoryColumn("us", array("q", range(-5, rows - 5))),
            MemoryColumn("value", array("d", map(float, range(rows)))),
            MemoryColumn("quality", array("i", (row % 256 for row in range(rows)))),
        ]
    )
    connection = duckdb.connect()
    connection.register("held", table)
    expected = [(["ä", None, "", "ä"][row % 4], row - 5, float(row), row % 256) for row in range(rows)]
    for _ in range(2):
        assert connection.execute("FROM held").fetchall() == expected
    counted = connection.execute("SELECT text, count(*) FROM held GROUP BY ALL").fetchall()
    assert dict(counted) == Counter(row[0] for row in expected)
    connection.unregister("held")
    ended = weakref.ref(table)
    del table
    gc.collect()
    assert ended() is None


def test_incoming_points_are_the_same_as_rows_and_as_columns() -> None:
    incoming = Incoming()
    first, _ = check_rows([("a", "m", 1, 1.0), ("b", "m", 1, "open")], accept_bool=False, now_us=0)
    second, _ = check_rows(
        [("b", "m", 2, None, 7), ("c", "n", 2, -1.5, 8, {"k": 1})], accept_bool=False, now_us=0
    )
    third, _ = check_rows([("c", "n", 3, 2.0)], accept_bool=False, now_us=0)
    for batch, seq in ((first, 1), (second, 10), (third, 20)):
        incoming.add(batch, seq)
    rows = [
        ("a", "m", 1_000_000, 1.0, None, 100, None, 1),
        ("b", "m", 1_000_000, None, "open", 100, None, 2),
        ("b", "m", 2_000_000, None, None, 7, None, 10),
        ("c", "n", 2_000_000, -1.5, None, 8, '{"k":1}', 11),
        ("c", "n", 3_000_000, 2.0, None, 100, None, 20),
    ]
    connection = duckdb.connect()
    connection.register("held", incoming.table())
    assert list(incoming.rows()) == connection.execute(incoming.select("held")).fetchall() == rows
    assert incoming.end_of(11) == (-1.5, None, 8, '{"k":1}', 11)
    earlier, later = incoming.halves()
    assert [*earlier.rows(), *later.rows()] == rows
