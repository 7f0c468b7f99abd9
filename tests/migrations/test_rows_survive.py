"""Rows through every revision, up, down and up again; and what a downgrade refuses to lose."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from repo.errors import HoldfastError
from repo.schema import runner
from repo.schema.version import HEAD
from tests.assets.unpack import expected as expected_in
from tests.migrations.checksums import checksum

OpenEngine = Callable[[Path], Engine]

POINTS = [
    # timestamp_us, sensor_id, metric_name, value, quality, metadata
    (3_000_000, "b", "pressure", 2500.5, 100, None),
    (1_000_000, "b", "pressure", -math.inf, None, '{"k": "ü"}'),
    (-5, "", "temperature", 5e-324, -7, "{not json"),
    (2_000_000, "b", "pressure", 0.1, 192, None),
    (2**62, "a'b\"; --", "flow rate", 1e308, 2**31 - 1, ""),
]
RECORDS = [
    (7, "r-1", "gw", '{"v": 1}', 1.5, 0, None, 2.0),
    (9, "r-2", "gw", b'{"v": ', "2023-01-01", "many", "never", 3.0),
]
POINT_COLUMNS = "timestamp_us, sensor_id, metric_name, value, quality, metadata"
RECORD_COLUMNS = "id, record_id, source, data, timestamp, retry_count, last_retry, created_at"


def _put(engine: Engine, table: str, columns: str, rows: list[Any]) -> None:
    names = columns.split(", ")
    with engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO {table} ({columns}) VALUES ({', '.join(':' + name for name in names)})"),
            [dict(zip(names, row, strict=True)) for row in rows],
        )


def _get(engine: Engine, table: str, columns: str = "*") -> list[Any]:
    return _same(_read(engine, table, columns))


def _read(engine: Engine, table: str, columns: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(f"SELECT {columns} FROM {table}")))


def _same(rows: list[Any]) -> list[Any]:
    return sorted((tuple(row) for row in rows), key=str)


def test_points_survive_every_revision_up_down_and_up_again(
    timeseries_file: Path, open_engine: OpenEngine
) -> None:
    engine = open_engine(timeseries_file)
    runner.upgrade(engine, "timeseries", "0001")
    _put(engine, "time_series_data", POINT_COLUMNS, POINTS)
    _put(engine, "storage_metadata", "key, value", [("note", "kept")])
    for _ in range(2):
        assert runner.upgrade(engine, "timeseries") == ("0001", HEAD)
        assert _get(engine, "time_series_data", POINT_COLUMNS) == _same(POINTS)
        assert set(_get(engine, "time_series_data", "value_text")) == {(None,)}
        in_time = _read(engine, "time_series_data ORDER BY timestamp_us, sensor_id, metric_name", "seq")
        assert [seq for (seq,) in in_time] == [-5, -4, -3, -2, -1]
        assert _get(engine, "storage_metadata", "key, value") == [("note", "kept")]
        assert runner.check(engine, "timeseries") == []
        assert runner.downgrade(engine, "timeseries", "0001") == (HEAD, "0001")
        assert _get(engine, "time_series_data", POINT_COLUMNS) == _same(POINTS)
    again = POINTS[0]
    with pytest.raises(Exception, match=r"(?i)constraint|unique"):
        _put(engine, "time_series_data", POINT_COLUMNS, [again])


def test_the_summary_of_each_series_is_computed_from_the_points_that_are_kept(
    timeseries_file: Path, open_engine: OpenEngine
) -> None:
    engine = open_engine(timeseries_file)
    runner.upgrade(engine, "timeseries", "0001")
    _put(engine, "time_series_data", POINT_COLUMNS, POINTS)
    runner.upgrade(engine, "timeseries")
    assert _get(engine, "series") == _same([
        ("b", "pressure", 3, 1_000_000, 3_000_000, 2500.5, None, 100, None, -2),
        ("", "temperature", 1, -5, -5, 5e-324, None, -7, "{not json", -5),
        ("a'b\"; --", "flow rate", 1, 2**62, 2**62, 1e308, None, 2**31 - 1, "", -1),
    ])  # fmt: skip
    assert _get(engine, "timeseries_state") == []
    assert _get(engine, "loss_ledger") == []


def test_nan_becomes_no_reading_also_in_the_summary(tmp_path: Path, open_engine: OpenEngine) -> None:
    engine = open_engine(tmp_path / "timeseries.duckdb")
    runner.upgrade(engine, "timeseries", "0001")
    _put(
        engine,
        "time_series_data",
        POINT_COLUMNS,
        [(1, "s", "m", math.nan, 100, None), (0, "s", "m", 4.0, 1, None)],
    )
    runner.upgrade(engine, "timeseries")
    assert _get(engine, "time_series_data", "timestamp_us, value") == [(0, 4.0), (1, None)]
    assert _get(engine, "series", "count, last_us, last_value") == [(2, 1, None)]


def test_a_value_that_is_not_a_number_stops_the_migration_of_a_sqlite_file(
    tmp_path: Path, open_engine: OpenEngine
) -> None:
    engine = open_engine(tmp_path / "timeseries.sqlite")
    runner.upgrade(engine, "timeseries", "0001")
    odd = [(1, "s", "m", "OPEN", 100, None)]
    _put(engine, "time_series_data", POINT_COLUMNS, odd)
    with pytest.raises(HoldfastError, match="cannot store TEXT value in REAL column"):
        runner.upgrade(engine, "timeseries")
    assert runner.current(engine) == "0001"
    assert _get(engine, "time_series_data", POINT_COLUMNS) == odd


def test_records_keep_their_ids_their_sequence_and_odd_values(
    tmp_path: Path, open_engine: OpenEngine
) -> None:
    engine = open_engine(tmp_path / "offline_buffer.db")
    runner.upgrade(engine, "metadata", "0001")
    _put(engine, "buffered_records", RECORD_COLUMNS, [*RECORDS, (5000, "gone", "gw", "{}", 1, 0, None, 1)])
    _put(engine, "buffer_metadata", "key, value", [("note", "kept")])
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM buffered_records WHERE id = 5000"))
    for _ in range(2):
        runner.upgrade(engine, "metadata")
        assert _get(engine, "buffered_records", RECORD_COLUMNS) == _same(RECORDS)
        assert _get(engine, "buffer_metadata") == [("note", "kept")]
        assert _get(engine, "sqlite_sequence") == [("buffered_records", 5000)]
        assert runner.check(engine, "metadata") == []
        runner.downgrade(engine, "metadata", "0001")
        assert _get(engine, "buffered_records", RECORD_COLUMNS) == _same(RECORDS)


def test_a_legacy_file_without_its_indexes_gets_them(tmp_path: Path, open_engine: OpenEngine) -> None:
    path = tmp_path / "offline_buffer.db"
    with closing(sqlite3.connect(path)) as legacy, legacy:
        legacy.execute(
            "CREATE TABLE buffered_records (id INTEGER PRIMARY KEY AUTOINCREMENT, "
            "record_id TEXT UNIQUE NOT NULL, source TEXT NOT NULL, data TEXT NOT NULL, "
            "timestamp REAL NOT NULL, retry_count INTEGER DEFAULT 0, last_retry REAL, "
            "created_at REAL NOT NULL)"
        )
    legacy.close()
    engine = open_engine(path)
    runner.upgrade(engine, "metadata")
    assert runner.check(engine, "metadata") == []
    names = _get(engine, "sqlite_master WHERE type = 'index' AND tbl_name = 'buffered_records'", "name")
    assert {("idx_timestamp",), ("idx_source",), ("idx_retry_count",)} <= set(names)


LEDGER = (
    "INSERT INTO loss_ledger (entry_id, what, reason, recorded_us) VALUES ('e', 'points', 'retention', 1)"
)
POINT = "INSERT INTO time_series_data VALUES ('s', 'm', 1, NULL, {}, 1, NULL, 1)"
DESCRIBED = "INSERT INTO series (sensor_id, metric_name, unit) VALUES ('s', 'm', 'bar')"
SINK = "INSERT INTO sinks (name, confirmed_seq, created_us, updated_us) VALUES ('s', 1, 1, 1)"
LOSSES = [
    ("metadata", "INSERT INTO journal VALUES (1, 1, 'points', x'00', 1)", "journal entries"),
    ("metadata", SINK, "sinks"),
    ("metadata", LEDGER, "entries of the loss ledger"),
    ("metadata", DESCRIBED, "series descriptions"),
    ("timeseries", POINT.format("'OPEN'"), "text points"),
    ("timeseries", POINT.format("NULL"), "points without a number"),
    ("timeseries", LEDGER, "entries of the loss ledger"),
]


@pytest.mark.parametrize(("database", "statement", "named"), LOSSES)
def test_a_downgrade_that_would_lose_something_is_refused_and_changes_nothing(
    database: runner.Database, statement: str, named: str, tmp_path: Path, open_at_head: OpenEngine
) -> None:
    files = ["offline_buffer.db"] if database == "metadata" else ["timeseries.duckdb", "timeseries.sqlite"]
    for file in files:
        engine = open_at_head(tmp_path / file)
        with engine.begin() as connection:
            connection.execute(text(statement))
        with pytest.raises(HoldfastError, match=rf"no place for {named}.* \(1 in \w+\)"):
            runner.downgrade(engine, database, "0001", path=tmp_path / file)
        assert runner.current(engine) == HEAD
        assert runner.check(engine, database) == []


def test_a_downgrade_below_the_legacy_schema_is_refused_and_changes_nothing(
    database_file: Path, open_at_head: OpenEngine
) -> None:
    database: runner.Database = "metadata" if database_file.suffix == ".db" else "timeseries"
    engine = open_at_head(database_file)
    with pytest.raises(HoldfastError, match="cannot go below revision 0001"):
        runner.downgrade(engine, database, "base")
    assert runner.current(engine) == HEAD
    assert runner.check(engine, database) == []


# --- files that the legacy program left ----------------------------------------------------------------


def _nan_to_null(rows: list[Any]) -> list[Any]:
    return [tuple(None if value != value else value for value in row) for row in rows]


@pytest.mark.parametrize("name", ["timeseries.duckdb"])
def test_the_points_of_a_clean_legacy_file_reach_the_head_unchanged(
    name: str, sample: Callable[[str], Path], open_engine: OpenEngine
) -> None:
    path = sample(name)
    engine, expected = open_engine(path), expected_in(path.name)
    legacy = _read(engine, "time_series_data", POINT_COLUMNS)
    assert checksum(legacy) == expected["time_series_data"]
    assert runner.upgrade(engine, "timeseries") == (None, HEAD)
    assert runner.check(engine, "timeseries") == []
    upgraded = _read(engine, "time_series_data", POINT_COLUMNS)
    assert checksum(upgraded) == checksum(_nan_to_null(legacy))
    assert len(upgraded) == expected["time_series_data"]["rows"]
    missing = expected["special_values"]["nan"] + expected["special_values"]["null"]
    assert sum(row[3] is None for row in upgraded) == missing
    assert (
        checksum(_get(engine, "storage_metadata", "key, value, updated_at")) == expected["storage_metadata"]
    )
    counted = _get(
        engine,
        "time_series_data GROUP BY 1, 2",
        "sensor_id, metric_name, count(*), min(timestamp_us), max(timestamp_us)",
    )
    assert _get(engine, "series", "sensor_id, metric_name, count, first_us, last_us") == counted


@pytest.mark.parametrize("name", ["offline_buffer.db", "offline_buffer_wal.db", "offline_buffer_odd.db"])
def test_the_records_of_a_legacy_file_reach_the_head_and_come_back_unchanged(
    name: str, sample: Callable[[str], Path], open_engine: OpenEngine
) -> None:
    path = sample(name)
    engine, expected = open_engine(path), expected_in(path.name)
    for down in (False, True):
        if down:
            runner.downgrade(engine, "metadata", "0001")
        else:
            runner.upgrade(engine, "metadata")
        assert checksum(_get(engine, "buffered_records", RECORD_COLUMNS)) == expected["buffered_records"]
        assert checksum(_get(engine, "buffer_metadata", "key, value")) == expected["buffer_metadata"]
        assert _get(engine, "sqlite_sequence", "seq") == [(expected["sqlite_sequence"],)]
