"""The usage that the document of the legacy package shows, in an empty folder, without arguments of our own.

Only the imports differ. Each step is used as that document uses it, and its result is what the document says.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from repo.duckdb_storage import DuckDBTimeSeriesStorage
from repo.offline_buffer import OfflineBufferManager
from tests.conftest import RunPython

pytestmark = pytest.mark.duckdb


def test_a_buffer_with_the_documented_configuration_takes_a_reading_and_reports_it(tmp_path: Path) -> None:
    manager = OfflineBufferManager(
        buffer_path="./data/buffer",
        max_buffer_size=100000,
        max_buffer_size_mb=500,
        cleanup_interval=3600,
        use_duckdb=True,
    )
    buffer = OfflineBufferManager(use_duckdb=True)
    reading = {"sensor_id": "SENSOR-001", "metric_name": "pressure", "value": 2500.5, "quality": 100}
    assert buffer.add_record(record_id="REC-001", source="sensor-001", data=reading) is True
    stats = buffer.get_buffer_stats()
    assert (stats["total_records"], stats["duckdb_enabled"]) == (1, True)
    assert isinstance(stats["buffer_size_mb"], float)
    points = stats["duckdb"]
    assert (points["total_records"], points["unique_sensors"], points["unique_metrics"]) == (1, 1, 1)
    assert 0 < points["storage_size_mb"] < 10
    assert manager.get_buffer_stats()["total_records"] == 1, "the same folder"
    assert {"offline_buffer.db", "timeseries.duckdb"} <= {
        file.name for file in (tmp_path / "data/buffer").iterdir()
    }
    for one in (manager, buffer):
        one.shutdown()


def test_a_storage_is_written_queried_aggregated_and_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = DuckDBTimeSeriesStorage(
        db_path="./data/edge/timeseries.duckdb", max_size_mb=1000, enable_compression=True
    )
    series: dict[str, Any] = {"sensor_id": "SENSOR-001", "metric_name": "pressure"}
    assert storage.insert_data_point(**series, value=2500.5, timestamp=time.time(), quality=100) is True
    [point] = storage.query_time_range(**series, start_time=time.time() - 3600, end_time=time.time())
    assert (point["value"], point["quality"], point["metadata"]) == (2500.5, 100, None)
    day: dict[str, Any] = {"start_time": time.time() - 86400, "end_time": time.time()}
    for aggregation in ("avg", "AVG", "Max", "sum"):
        [found] = storage.query_time_range(**series, **day, aggregation=aggregation)
        assert (found["value"], found["count"], found["aggregation"]) == (2500.5, 1, aggregation)
    assert storage.query_latest("SENSOR-001")[0]["metric_name"] == "pressure"
    backup = "./data/backup/timeseries.parquet"
    assert storage.export_to_parquet(output_path=backup, sensor_id="SENSOR-001") is True
    assert (tmp_path / backup).stat().st_size > 0
    assert storage.export_to_parquet("./data/backup/none.parquet", sensor_id="SENSOR-002") is True
    assert "none.parquet was written, but no point matches" in caplog.text
    other = DuckDBTimeSeriesStorage("./data/other/timeseries.duckdb")
    assert other.import_from_parquet(backup) == 1
    for one in (storage, other):
        one.close()


def test_values_are_taken_as_the_documented_methods_took_them() -> None:
    storage = DuckDBTimeSeriesStorage()
    given = ("2500.5", True, False, 7, " 1e3 ", "OPEN")
    for at, value in enumerate(given):
        metric = "state" if value == "OPEN" else "m"
        assert storage.insert_data_point("S", metric, value, timestamp=100.0 + at) is True
    rows = [
        {"sensor_id": "B", "metric_name": "m", "value": "1.5", "timestamp": 1.0},
        ("B", "m", 2.0, "2.5"),
        {"sensor_id": "B", "metric_name": "m", "value": True, "timestamp": 3.0},
    ]
    assert storage.insert_batch(rows) == 3
    values = [row["value"] for row in storage.query_time_range("S", "m", 0, 1000)]
    assert values == [2500.5, 1.0, 0.0, 7.0, 1000.0]
    assert {type(value) for value in values} == {float}
    assert storage.query_latest("S", "state")[0]["value"] == "OPEN"
    assert [row["value"] for row in storage.query_time_range("B", "m", 0, 1000)] == [1.5, 2.5, 1.0]
    storage.close()
    buffer = OfflineBufferManager()
    assert buffer.add_record("r", "gw", {"sensor_id": "S", "value": "12.5", "temperature": True}) is True
    assert buffer.duckdb_storage is not None
    latest = {row["metric_name"]: row["value"] for row in buffer.duckdb_storage.query_latest("S")}
    assert latest == {"unknown": 12.5, "temperature": 1.0}
    buffer.shutdown()


def test_the_migration_script_moves_the_readings_of_an_sqlite_buffer(tmp_path: Path) -> None:
    old = OfflineBufferManager(use_duckdb=False)
    assert old.add_record("a", "gw-1", {"sensor_id": "S", "metric_name": "flow", "value": 1.5}, 1000.0)
    assert old.add_record("b", "gw-2", {"well_name": "W", "pressure": 2.5}, 1001.0)
    assert old.add_record("c", "gw-2", {"event": "start"}, 1002.0)
    storage = DuckDBTimeSeriesStorage()
    for record in old.get_pending_records(limit=10000):
        data = record["data"]
        if old._is_time_series_data(data):
            assert storage.insert_data_point(
                sensor_id=data.get("sensor_id", record["source"]),
                metric_name=data.get("metric_name", "unknown"),
                value=data.get("value", 0),
                timestamp=record["timestamp"],
            )
    assert storage.query_time_range("S", "flow", 1000, 1000)[0]["value"] == 1.5
    assert storage.query_latest("gw-2")[0] == {
        "metric_name": "unknown",
        "timestamp": 1001.0,
        "value": 0.0,
        "quality": 100,
        "metadata": None,
    }
    assert len(old.get_pending_records()) == 3
    storage.close()
    old.shutdown()


def test_the_documented_variables_name_the_place_and_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USE_DUCKDB", "true")
    monkeypatch.setenv("DUCKDB_STORAGE_PATH", "./data/edge/timeseries.duckdb")
    monkeypatch.setenv("DUCKDB_MAX_SIZE_MB", "1000")
    buffer = OfflineBufferManager()
    assert buffer.use_duckdb is True
    assert buffer.get_buffer_stats()["duckdb"]["max_size_mb"] == 1000
    assert (tmp_path / "data/edge/timeseries.duckdb").exists()
    buffer.shutdown()


OLD_DUCKDB = """
import logging
import sys
sys.path.insert(0, sys.argv[1])
logging.basicConfig(format="%(levelname)s: %(message)s")
from repo import OfflineBufferManager
for folder in sys.argv[2:]:
    print(f"opening {folder}", file=sys.stderr)
    buffer = OfflineBufferManager(folder)
    print(buffer.use_duckdb, buffer.add_record("r", "s", {"value": 1}))
    buffer.shutdown()
"""


def test_the_documented_duckdb_version_is_refused_with_the_one_that_is_needed(
    tmp_path: Path, run_python: RunPython
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/duckdb.py").write_text('__version__ = "0.9.2"\n')
    full = OfflineBufferManager(tmp_path / "full")
    full.shutdown()
    done = run_python(OLD_DUCKDB, tmp_path / "old", tmp_path / "buffer", tmp_path / "full", fresh=True)
    assert done.stdout.split()[:2] == ["False", "True"], done.stderr
    said = "WARNING: Failed to initialize DuckDB, falling back to SQLite: duckdb 0.9.2 is installed, but "
    assert said + "Holdfast needs 2.0.1" in done.stderr
    assert "pip install 'duckdb>=2.0.1,<2.1'" in done.stderr
    _, _, of_full = done.stderr.partition(f"opening {tmp_path / 'full'}")
    assert "duckdb 0.9.2 is installed" in of_full, "a store whose columns are in DuckDB"
