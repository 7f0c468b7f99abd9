"""`sql`: a SELECT on the store, in every form of output, and nothing but a SELECT."""

from __future__ import annotations

import json
from typing import Any

import pytest

T0 = 1_714_521_600
QUERY = (
    "SELECT sensor_id, count(*) AS n, max(value) AS top FROM time_series_data GROUP BY sensor_id ORDER BY 1"
)


def test_a_select_is_printed_in_every_format_and_includes_points_in_the_journal(on_store: Any) -> None:
    on_store.write(*((sensor, "m", T0 + n, n / 3) for sensor in ("a", "b") for n in range(3)))
    rows = [{"sensor_id": "a", "n": 3, "top": 2 / 3}, {"sensor_id": "b", "n": 3, "top": 2 / 3}]
    assert on_store.json("sql", QUERY) == rows
    assert on_store("sql", QUERY, "--csv").stdout.splitlines()[:2] == [
        "sensor_id,n,top",
        "a,3,0.6666666666666666",
    ]
    lines = on_store("sql", QUERY, "--format", "ndjson").stdout.splitlines()
    assert list(map(json.loads, lines)) == rows
    assert on_store("sql", "-", stdin=QUERY).stdout.split()[:6] == [
        "sensor_id",
        "n",
        "top",
        "a",
        "3",
        str(2 / 3),
    ]
    assert on_store("sql", f"{QUERY} LIMIT 0").stderr == "no rows\n"
    empty = on_store("sql", "SELECT sensor_id, unit FROM series_info").stdout.splitlines()
    assert empty[0].split() == ["sensor_id", "unit"], "columns without a value are shown, too"


@pytest.mark.slow_on("duckdb")
def test_values_are_bound(on_store: Any) -> None:
    on_store.write(("it's", "m", T0, 1.5), ("5", "m", T0, 2.5))
    query = "SELECT value FROM time_series_data WHERE sensor_id = $s AND value > $low"
    assert on_store.json("sql", query, "-p", "s", "it's", "-p", "low", "1") == [{"value": 1.5}]
    assert on_store.json("sql", query, "-p", "s", "5", "-p", "low", "1") == [{"value": 2.5}]


def test_types_that_json_does_not_have_are_texts_and_numbers(on_duckdb: Any) -> None:
    query = (
        "SELECT make_timestamp(1) AS t, DATE '2026-01-02' AS d, 1.5::DECIMAL(4, 1) AS x, 'a'::BLOB AS b, "
        "[1, 2] AS l, {'k': DATE '2026-01-02'} AS s, 2::HUGEINT AS h, INTERVAL 1 DAY AS i, 'inf'::DOUBLE AS f"
    )
    [row] = on_duckdb.json("sql", query)
    assert row == {
        "t": "1970-01-01T00:00:00.000001",
        "d": "2026-01-02",
        "x": 1.5,
        "b": "61",
        "l": [1, 2],
        "s": {"k": "2026-01-02"},
        "h": 2,
        "i": "1 day, 0:00:00",
        "f": "Infinity",
    }
    assert "2026-01-02" in on_duckdb("sql", query, "--csv").stdout


def test_statements_that_write_are_refused_and_an_unknown_table_is_answered_with_the_tables(
    on_store: Any,
) -> None:
    on_store.write(("a", "m", T0, 1.0))
    for query in (
        "DELETE FROM time_series_data",
        "DROP TABLE series",
        "SELECT 1; SELECT 2",
        "",
        "PRAGMA x = 1",
    ):
        assert "sql: " in on_store("sql", query, code=2).stderr
    assert "The tables are time_series_data, series" in on_store("sql", "SELECT * FROM points", code=2).stderr
    assert len(on_store.json("query", "a", "m")) == 1
