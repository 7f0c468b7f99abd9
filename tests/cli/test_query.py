"""`query`, `latest`, `series`: what is asked, and each form of the answer."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from typing import Any

import pytest

from tests.cli.conftest import Command, MakeOnce

T0 = 1_714_521_600  # 2024-05-01T00:00:00Z
POINT_KEYS = {"sensor_id", "metric_name", "timestamp", "timestamp_us", "value", "quality", "metadata"}


@pytest.fixture
def filled(command: Command, engine: str, make_once: MakeOnce) -> Any:
    make_once(f"filled-{engine}", command.folder, lambda: fill(command, engine))
    return command


def fill(command: Command, engine: str) -> None:
    rows: list[Any] = [("P-1", "flow", T0 + 600 * n, float(n)) for n in range(12)]
    rows += [("P-2", "flow", T0 + 600 * n, 100.0 + n) for n in range(12)]
    rows += [("P-1", "state", T0, "OPEN"), ("P-1", "state", T0 + 3_600, "CLOSED")]
    command("init", "--engine", engine)
    command.write(*rows)
    command.create_columns()


def test_points_are_printed_in_order_of_time_with_all_fields(filled: Any) -> None:
    filled.write(("P-3", "flow", T0 + 0.25, 7.5, 42, {"by": "hand"}))
    (point,) = filled.json("query", "P-3", "flow")
    assert point == {
        "sensor_id": "P-3",
        "metric_name": "flow",
        "timestamp": "2024-05-01T00:00:00.250000Z",
        "timestamp_us": T0 * 1_000_000 + 250_000,
        "value": 7.5,
        "quality": 42,
        "metadata": {"by": "hand"},
    }
    points = filled.json("query", "P-1", "flow")
    assert [p["value"] for p in points] == [float(n) for n in range(12)]
    assert points[0].keys() == POINT_KEYS


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("--start 2024-05-01T01:00Z", [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]),
        ("--end 2024-05-01T00:20:00Z", [0.0, 1.0]),
        (f"--start {T0 + 600} --end {T0 + 1800}", [1.0, 2.0]),
        ("--start 2024-05-01T03:30 --tz Europe/Oslo", [9.0, 10.0, 11.0]),
        ("--limit 2", [0.0, 1.0]),
        ("--start 2024-05-01 --limit 1", [0.0]),
        ("--start now", []),
    ],
)
@pytest.mark.slow_on("duckdb")
def test_a_range_begins_at_start_and_ends_before_end(filled: Any, options: str, values: list[float]) -> None:
    assert [p["value"] for p in filled.json("query", "P-1", "flow", *options.split())] == values


@pytest.mark.parametrize("options", ["--start -1h", "--since 1h", "--since -60m", "--start now-3600s"])
@pytest.mark.slow_on("duckdb")
def test_times_may_be_relative_to_now(on_store: Any, options: str) -> None:
    now = time.time()
    on_store.write(("s", "m", now - 7_200, 1.0), ("s", "m", now - 60, 2.0))
    assert [p["value"] for p in on_store.json("query", "s", "m", *options.split())] == [2.0]


@pytest.mark.slow_on("duckdb")
def test_names_may_be_globs(filled: Any) -> None:
    assert {p["sensor_id"] for p in filled.json("query", "P-*", "flow")} == {"P-1", "P-2"}
    assert [p["sensor_id"] for p in filled.json("latest", "P-[2-9]")] == ["P-2"]
    assert len(filled.json("query", "*", "*")) == 26


def test_aggregates_are_printed_for_the_whole_range_or_for_each_bucket(filled: Any) -> None:
    assert filled.json("query", "P-*", "flow", "--agg", "min,max", "--agg", "count") == [
        {"sensor_id": "P-1", "metric_name": "flow", "min": 0.0, "max": 11.0, "count": 12},
        {"sensor_id": "P-2", "metric_name": "flow", "min": 100.0, "max": 111.0, "count": 12},
    ]
    assert filled.json("query", "P-1", "flow", "--every", "1h") == [
        {
            "sensor_id": "P-1",
            "metric_name": "flow",
            "bucket": f"2024-05-01T0{hour}:00:00Z",
            "avg": 2.5 + 6 * hour,
            "bucket_us": (T0 + 3600 * hour) * 1_000_000,
        }
        for hour in (0, 1)
    ]


def test_aggregates_may_be_percentiles_and_buckets_may_be_months(filled: Any) -> None:
    (row,) = filled.json("query", "P-1", "flow", "--agg", "median,p25,stddev", "--every", "1mo")
    assert row["bucket"] == "2024-05-01T00:00:00Z"
    assert (row["median"], row["p25"]) == (5.5, 2.75)
    assert row["stddev"] == pytest.approx(13**0.5)


@pytest.mark.parametrize(
    ("fill", "middle"), [("none", []), ("null", [None]), ("previous", [8.0]), ("linear", [6.0])]
)
@pytest.mark.slow_on("duckdb")
def test_buckets_without_readings_are_filled_as_requested(
    on_store: Any, fill: str, middle: list[Any]
) -> None:
    on_store.write(("s", "m", T0, 8.0), ("s", "m", T0 + 7_200, 4.0))
    rows = on_store.json("query", "s", "m", "--every", "1h", "--agg", "avg,count", "--fill", fill)
    assert [row["avg"] for row in rows] == [8.0, *middle, 4.0]
    assert [row["count"] for row in rows] == [1, *(0 for _ in middle), 1]


def test_the_time_in_each_state_is_totalled_or_split_into_buckets(filled: Any) -> None:
    assert filled.json("query", "P-1", "state", "--states", "--end", "2024-05-01T04:00Z") == [
        {"sensor_id": "P-1", "metric_name": "state", "state": "CLOSED", "seconds": 10_800.0, "share": 0.75},
        {"sensor_id": "P-1", "metric_name": "state", "state": "OPEN", "seconds": 3_600.0, "share": 0.25},
    ]
    table = filled(
        *("query", "P-*", "*", "--states", "--every", "1d", "--tz", "Asia/Tokyo", "--end", "2024-05-02")
    ).stdout.splitlines()
    assert table[0].split() == ["sensor_id", "metric_name", "bucket", "state", "seconds", "share"]
    assert [line.split()[2:5] for line in table[1:]] == [
        ["2024-05-01T00:00:00+09:00", "CLOSED", "50400.0"],
        ["2024-05-01T00:00:00+09:00", "OPEN", "3600.0"],
    ]


def test_days_are_those_of_the_zone(filled: Any) -> None:
    (row,) = filled.json("query", "P-1", "flow", "--every", "1d", "--tz", "Asia/Tokyo", "--agg", "count")
    assert row["bucket"] == "2024-05-01T00:00:00+09:00"
    assert row["bucket_us"] == (T0 - 9 * 3600) * 1_000_000


@pytest.mark.slow_on("duckdb")
def test_a_state_series_has_texts(filled: Any) -> None:
    assert [p["value"] for p in filled.json("query", "P-1", "state")] == ["OPEN", "CLOSED"]
    assert filled.json("query", "P-1", "state", "--agg", "last,count")[0]["last"] == "CLOSED"
    assert "has text readings" in filled("query", "P-1", "state", "--agg", "avg", code=2).stderr


@pytest.mark.slow_on("duckdb")
def test_csv_contains_what_json_contains_and_can_be_ingested_again(filled: Any, tmp_path: Any) -> None:
    text = filled("query", "*", "flow", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["sensor_id", "metric_name", "timestamp", "value", "quality", "metadata"]
    assert [float(row["value"]) for row in rows] == [p["value"] for p in filled.json("query", "*", "flow")]
    before = filled.json("status")["points"]
    assert filled.json("ingest", "-", stdin=text)["points"] == 24
    assert filled.json("status")["points"] == before


@pytest.mark.slow_on("duckdb")
def test_ndjson_is_one_object_per_line(filled: Any) -> None:
    lines = filled("query", "P-1", "flow", "--format", "ndjson").stdout.splitlines()
    assert [json.loads(line) for line in lines] == filled.json("query", "P-1", "flow")


@pytest.mark.slow_on("duckdb")
def test_columns_of_a_table_are_aligned(filled: Any) -> None:
    lines = filled("query", "P-1", "flow", "--limit", "3").stdout.splitlines()
    assert lines[0].split() == ["sensor_id", "metric_name", "timestamp", "value", "quality"]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["P-1", "flow", "2024-05-01T00:00:00Z", "0.0", "100"]


@pytest.mark.slow_on("duckdb")
def test_infinite_values_are_valid_json(on_store: Any) -> None:
    on_store.write(("s", "m", T0, float("inf")), ("s", "m", T0 + 1, None), ("s", "m", T0 + 2, float("-inf")))
    assert [p["value"] for p in on_store.json("query", "s", "m")] == ["Infinity", None, "-Infinity"]


@pytest.mark.slow_on("duckdb")
def test_a_plot_draws_every_series(filled: Any) -> None:
    pytest.importorskip("plotext")
    drawn = filled("query", "P-1", "flow", "--format", "plot").stdout
    assert "P-1 flow" in drawn
    assert "11.0" in drawn
    assert "00:00" in drawn
    assert "\x1b" not in drawn
    both = filled("query", "P-*", "flow", "--every", "20m", "--agg", "max", "--format", "plot").stdout
    assert "P-1 flow max" in both
    assert "P-2 flow max" in both


@pytest.mark.slow_on("duckdb")
def test_a_plot_is_ascii_where_no_color_or_the_locale_asks_for_it(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("plotext")
    for variable, value in (("NO_COLOR", "1"), ("LC_ALL", "C")):
        with monkeypatch.context() as patched:
            patched.setenv(variable, value)
            drawn = filled("query", "P-*", "flow", "--format", "plot").stdout
        assert drawn.isascii()
        assert {"*", "o", "+", "|"} <= set(drawn), "each series has its own marker"


def test_without_plotext_a_plot_says_what_to_install(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotext", None)
    said = filled("query", "P-1", "flow", "--format", "plot", code=1).stderr
    assert "[terminal]'" in said


@pytest.mark.slow_on("duckdb")
def test_without_results_stdout_is_empty_and_stderr_says_so(filled: Any) -> None:
    result = filled("query", "P-9", "flow")
    assert result.stdout == ""
    assert "no points of P-9 flow" in result.stderr
    assert filled("-q", "query", "P-9", "flow").stderr == ""
    assert filled.json("query", "P-9", "flow") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--start whenever", "--start: 'whenever' is not a time"),
        ("--start 20240501", "could be a date or Unix seconds"),
        ("--start 1714521600000", "looks like milliseconds"),
        ("--since 5", "--since: '5' is not a duration; write numbers with units"),
        ("--since 1h --start now", "cannot be combined"),
        ("--end 5x", "--end: '5x' is not a time"),
        ("--every 5", "--every: '5' is not a duration; write numbers with units"),
        ("--every 0s", "positive"),
        ("--agg mode", "there is no aggregate 'mode'"),
        ("--agg p101", "there is no aggregate 'p101'"),
        ("--every 1.5mo", "whole microseconds or months"),
        ("--fill linear", "set their width with `every`"),
        ("--every 1h --fill up", "--fill"),
        ("--states --agg avg", "cannot be combined with --agg"),
        ("--tz Mars/Olympus", "no time zone"),
        ("--limit 0", "--limit"),
        ("--format xml", "--format"),
    ],
)
@pytest.mark.slow_on("duckdb")
def test_an_invalid_argument_is_a_usage_error(on_store: Any, options: str, message: str) -> None:
    result = on_store("query", "s", "m", *options.split(), code=2)
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.slow_on("duckdb")
def test_days_can_be_those_of_a_utc_offset(on_store: Any) -> None:
    on_store.write(("s", "m", T0, 1.0))
    [row] = on_store.json("query", "s", "m", "--every", "1d", "--tz", "-07:00")
    assert row["bucket"] == "2024-04-30T00:00:00-07:00"
    assert "no time zone 'Mars'" in on_store("query", "s", "m", "--tz", "Mars", code=2).stderr


@pytest.mark.slow_on("duckdb")
def test_latest_prints_one_point_per_series_or_as_many_as_requested(filled: Any) -> None:
    assert [(p["sensor_id"], p["metric_name"], p["value"]) for p in filled.json("latest")] == [
        ("P-1", "flow", 11.0),
        ("P-1", "state", "CLOSED"),
        ("P-2", "flow", 111.0),
    ]
    assert [p["value"] for p in filled.json("latest", "P-2", "flow", "--limit", "3")] == [111.0, 110.0, 109.0]
    assert filled.json("latest", "P-2")[0].keys() == POINT_KEYS


@pytest.mark.slow_on("duckdb")
def test_series_lists_what_matches_a_sensor_or_a_metric(filled: Any) -> None:
    filled("query", "*", "*", "--agg", "count")
    rows = filled.json("series")
    assert [(r["sensor_id"], r["metric_name"], r["kind"], r["points"]) for r in rows] == [
        ("P-1", "flow", "number", 12),
        ("P-1", "state", "text", 2),
        ("P-2", "flow", "number", 12),
    ]
    assert rows[0].keys() == {
        "sensor_id",
        "metric_name",
        "kind",
        "unit",
        "description",
        "labels",
        "points",
        "first_us",
        "last_us",
    }
    assert len(filled.json("series", "P-1")) == 2
    assert (
        filled("series", "P-2", "--format", "csv")
        .stdout.splitlines()[1]
        .startswith("P-2,flow,number,,12,2024-05")
    )
    assert filled("latest", "P-2", "--format", "csv").stdout.splitlines()[1].startswith("P-2,flow,2024-05")
    assert len(filled.json("series", "st*")) == 1
    assert filled.json("series", "none") == []
    assert "2024-05-01T00:00:00Z" in filled("series", "P-2").stdout


@pytest.mark.slow_on("duckdb")
def test_control_characters_in_old_names_never_reach_the_terminal(on_store: Any) -> None:
    on_store.write(("s", "m", T0, 1.0))
    on_store("query", "s", "m")
    database = sqlite3.connect(on_store.folder / "offline_buffer.db")
    bad = "evil\x1b[2J\x9b\u202e\nname"
    database.execute("UPDATE series SET sensor_id = ?", (bad,))
    database.execute("UPDATE latest SET sensor_id = ?", (bad,))
    database.commit()
    database.close()
    for result in (on_store("series"), on_store("latest"), on_store("--json", "series")):
        assert "evil" in result.stdout
        assert not {"\x1b", "\x9b", "\u202e"} & set(result.stdout)
    assert on_store.json("series")[0]["sensor_id"] == bad
    assert "evil\\x1b[2J" in on_store("series").stdout
    assert len(on_store("series").stdout.splitlines()) == 2
