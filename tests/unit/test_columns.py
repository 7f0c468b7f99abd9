"""Columns of machine numbers that are read from Arrow streams: the same values as the driver's rows."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from repo.formats.arrays.columns import Coded, read_columns, taken

duckdb = pytest.importorskip("duckdb")


def test_a_stream_is_read_as_arrays_and_as_lists_where_values_are_missing() -> None:
    connection = duckdb.connect()
    query = """
        SELECT i::INTEGER AS number, i * 1000000007 AS large, i / 7.0 AS fraction,
            CASE WHEN i % 3 = 1 THEN i / 2.0 END AS sparse, NULL::DOUBLE AS nothing, NULL::VARCHAR AS no_text,
            CASE i % 5 WHEN 0 THEN 'é日' || i WHEN 1 THEN '' END AS text, 'x' || i AS every
        FROM range($1, $2) numbers (i) ORDER BY i
    """
    for rows in (0, 1, 9, 125_000):  # the last one has more than one batch
        expected = connection.execute(query, [5, 5 + rows]).fetchall()
        columns: Any = read_columns(connection.sql(query, params=[5, 5 + rows]), "iqddduuu")
        assert list(zip(*columns, strict=True)) == expected
        if rows > 1:
            kinds = [column.typecode if isinstance(column, array) else type(column) for column in columns]
            assert kinds == ["i", "q", "d", list, list, list, list, list]

    for start in (0, 1, 7, 8, 2_047, 2_048, 70_000):  # slices of buffers, whose bits begin anywhere
        part = f"SELECT sparse, text FROM ({query}) OFFSET {start} LIMIT 1000"
        columns = read_columns(connection.sql(part, params=[5, 90_000]), "du")
        assert list(zip(*columns, strict=True)) == connection.execute(part, [5, 90_000]).fetchall()


def test_a_stream_that_fails_leaves_a_transaction_that_can_be_rolled_back() -> None:
    connection = duckdb.connect()
    connection.begin()
    failing = "SELECT (CASE WHEN i = 2000000 THEN 'x' ELSE '1' END)::BIGINT FROM range(3000000) numbers (i)"
    with pytest.raises((OSError, duckdb.Error)):
        read_columns(connection.sql(failing), "q")
    connection.rollback()
    assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_coded_texts_are_a_sequence_and_columns_are_taken_in_their_form() -> None:
    names = Coded(["a", "b", "c"], array("i", [2, 0, 1, 2]))
    assert (len(names), names[0], names[-1], list(names)) == (4, "c", "c", ["c", "a", "b", "c"])
    assert names.tolist() == list(names)
    assert list(names[1:3]) == ["a", "b"]
    assert (names.count("c"), names.index("b"), "d" in names) == (2, 2, False)
    columns = (names, array("q", [1, 2, 3, 4]), ["x", None, "y", None])
    coded, numbers, texts = taken(columns, [3, 0])
    assert list(coded) == ["c", "c"]
    assert numbers == array("q", [4, 1])
    assert texts == [None, "x"]
