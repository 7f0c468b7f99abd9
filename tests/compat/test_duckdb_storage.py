"""`DuckDBTimeSeriesStorage` as documented, on both engines."""

from __future__ import annotations

import gc
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from repo import (
    DuckDBTimeSeriesStorage,
    InvalidPoint,
    InvalidQuery,
    OfflineBufferManager,
    Store,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
)
from tests.assets.unpack import LEGACY, unpack
from tests.compat.conftest import MakeStorage

pytestmark = pytest.mark.slow_on("sqlite")


def fill(storage: DuckDBTimeSeriesStorage, *values: Any, sensor: str = "S", metric: str = "m") -> None:
    rows = [
        {"sensor_id": sensor, "metric_name": metric, "value": value, "timestamp": 100.0 + n}
        for n, value in enumerate(values)
    ]
    assert storage.insert_batch(rows) == len(values)


def test_a_point_is_read_back_as_it_was_written(storage: DuckDBTimeSeriesStorage) -> None:
    before = time.time()
    assert storage.insert_data_point("S", "m", 1.5) is True
    assert storage.insert_data_point("S", "m", 2, 1000.25, 50, {"unit": "bar"}) is True
    found = storage.query_time_range("S", "m", 0, time.time() + 1)
    assert found[0] == {"timestamp": 1000.25, "value": 2.0, "quality": 50, "metadata": {"unit": "bar"}}
    assert list(found[1]) == ["timestamp", "value", "quality", "metadata"]
    assert before <= found[1]["timestamp"] <= time.time()
    assert (found[1]["quality"], found[1]["metadata"]) == (100, None)
    assert storage.insert_data_point("S", "m", 3.0, 1000.25)
    assert storage.query_time_range("S", "m", 1000.25, 1000.25)[0]["value"] == 3.0


def test_bounds_are_inclusive_to_the_microsecond(storage: DuckDBTimeSeriesStorage) -> None:
    fill(storage, 1.0, 2.0, 3.0, 4.0)
    assert [row["value"] for row in storage.query_time_range("S", "m", 101, 102)] == [2.0, 3.0]
    assert [row["value"] for row in storage.query_time_range("S", "m", 101.000001, 101.999999)] == []
    [row] = storage.query_time_range("S", "m", 101, 102, "sum")
    assert (row["value"], row["start_timestamp"], row["end_timestamp"]) == (5.0, 101.0, 102.0)
    assert storage.query_time_range("S", "m", 102, 101) == []


@pytest.mark.parametrize(
    ("aggregation", "value"), [("avg", 4.0), ("min", 1.0), ("max", 9.0), ("count", 3), ("sum", 12.0)]
)
def test_an_aggregate_is_one_dict(storage: DuckDBTimeSeriesStorage, aggregation: str, value: float) -> None:
    fill(storage, 1.0, None, 9.0, 2.0, None)
    assert storage.query_time_range("S", "m", 0, 200, aggregation) == [
        {
            "sensor_id": "S",
            "metric_name": "m",
            "value": value,
            "start_timestamp": 100.0,
            "end_timestamp": 103.0,
            "count": 3,
            "aggregation": aggregation,
        }
    ]
    assert storage.query_time_range("S", "m", 101, 101, aggregation) == [], "no reading, nothing"
    assert storage.query_time_range("S", "other", 0, 200, aggregation) == []


def test_a_series_of_texts_can_be_counted_only(storage: DuckDBTimeSeriesStorage) -> None:
    fill(storage, "OPEN", "SHUT")
    assert storage.query_time_range("S", "m", 0, 200, "count")[0]["value"] == 2
    with pytest.raises(InvalidQuery, match="text readings"):
        storage.query_time_range("S", "m", 0, 200, "max")


def test_names_are_matched_exactly_even_with_special_characters(storage: DuckDBTimeSeriesStorage) -> None:
    for sensor in ("*", "a'b", "a?", "ab"):
        storage.insert_data_point(sensor, "[m]", 1.0, 5)
    for sensor in ("*", "a'b", "a?"):
        assert len(storage.query_time_range(sensor, "[m]", 0, 10)) == 1
        assert storage.query_time_range(sensor, "[m]", 0, 10, "count")[0]["count"] == 1
        assert len(storage.query_latest(sensor)) == 1
    assert storage.cleanup_old_data(0, sensor_id="a?") == 1
    assert storage.get_storage_stats()["unique_sensors"] == 3


def test_the_latest_points_of_all_metrics_are_newest_first(storage: DuckDBTimeSeriesStorage) -> None:
    fill(storage, 1.0, 2.0, 3.0, metric="a")
    storage.insert_data_point("S", "b", 9.0, 101.5)
    storage.insert_data_point("T", "a", 7.0, 500)
    assert [(r["metric_name"], r["value"], r["timestamp"]) for r in storage.query_latest("S", limit=3)] == [
        ("a", 3.0, 102.0),
        ("b", 9.0, 101.5),
        ("a", 2.0, 101.0),
    ]
    assert set(storage.query_latest("S")[0]) == {"timestamp", "metric_name", "value", "quality", "metadata"}
    assert [r["value"] for r in storage.query_latest("S", "a", limit=1)] == [3.0]
    assert storage.query_latest("nobody") == []


def test_stats_have_the_documented_keys(storage: DuckDBTimeSeriesStorage) -> None:
    assert storage.get_storage_stats()["time_range"] == {"start": None, "end": None, "duration_seconds": 0.0}
    fill(storage, 1.0, 2.0, 3.0)
    fill(storage, 1.0, sensor="T", metric="other")
    stats = storage.get_storage_stats()
    assert list(stats) == [
        "total_records",
        "unique_sensors",
        "unique_metrics",
        "time_range",
        "storage_size_mb",
        "max_size_mb",
        "usage_percent",
    ]
    assert (stats["total_records"], stats["unique_sensors"], stats["unique_metrics"]) == (4, 2, 2)
    assert stats["time_range"] == {"start": 100.0, "end": 102.0, "duration_seconds": 2.0}
    assert 0 < stats["storage_size_mb"] < 10
    assert stats["usage_percent"] == pytest.approx(stats["storage_size_mb"] / 10)


def test_bad_points_are_left_out_of_a_batch_and_named_in_the_log(
    storage: DuckDBTimeSeriesStorage, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"sensor_id": "S", "metric_name": "m", "value": 1.0, "timestamp": 1},
        {"sensor_id": "", "metric_name": "m", "value": 1.0, "timestamp": 2},
        ("S", "m", 3, 3.0),
    ]
    with caplog.at_level(logging.WARNING, "holdfast"):
        assert storage.insert_batch(rows) == 2
    assert "1 of 3 points were rejected; the first: row 1: sensor_id" in caplog.text
    assert storage.insert_batch([]) == 0
    with pytest.raises(InvalidPoint):
        storage.insert_data_point("", "m", 1.0)


def test_old_points_are_deleted_counted_and_in_the_ledger(storage: DuckDBTimeSeriesStorage) -> None:
    now = time.time()
    for sensor in ("S", "T"):
        for age in (10, 2_591_900, 2_592_100, 3_000_000):
            storage.insert_data_point(sensor, "m", 1.0, now - age)
    assert storage.cleanup_old_data(sensor_id="S") == 2
    assert storage.cleanup_old_data() == 2
    assert storage.cleanup_old_data() == 0
    assert storage.get_storage_stats()["total_records"] == 4
    assert storage._reference.store.status().ledger_dropped == 4


def test_a_full_storage_raises_and_takes_more_once_there_is_room(make_storage: Any) -> None:
    storage = make_storage(max_size_mb=0)
    with pytest.raises(StoreFull, match="max_size_mb"):
        storage.insert_data_point("S", "m", 1.0)
    with pytest.raises(StoreFull):
        storage.insert_batch([("S", "m", 1, 1.0)])
    assert storage.get_storage_stats()["total_records"] == 0
    assert make_storage(max_size_mb=100).insert_data_point("S", "m", 1.0)


def test_objects_on_one_real_path_share_one_store(make_storage: Any, tmp_path: Path) -> None:
    first = make_storage("edge/a.duckdb")
    (tmp_path / "other").symlink_to(tmp_path / "edge")
    second, third = make_storage("other/a.duckdb"), make_storage("edge/b.duckdb")
    assert first._reference.store is second._reference.store
    assert third._reference.store is not first._reference.store
    first.close()
    first.close()
    with pytest.raises(StoreClosed):
        first.query_latest("S")
    assert second.insert_data_point("S", "m", 1.0)
    third.insert_data_point("S", "m", 2.0)
    assert second.query_latest("S")[0]["value"] == 1.0
    assert third.query_latest("S")[0]["value"] == 2.0


def test_neighbours_in_one_folder_do_not_wait_for_each_other(make_storage: Any) -> None:
    first, second = make_storage("edge/a.duckdb"), make_storage("edge/b.duckdb")
    with first._reference.store._handle.columns.alone("a test"):
        second.insert_data_point("S", "m", 1.0, 5)  # if it waited, it would end in `StoreBusy`
        assert len(second.query_time_range("S", "m", 0, 10)) == 1


def test_its_metadata_is_next_to_it_and_it_opens_again(make_storage: Any, tmp_path: Path) -> None:
    storage = make_storage("edge/p.duckdb")
    storage.insert_data_point("S", "m", 1.0, 5)
    storage.close()
    assert (tmp_path / "edge/p.duckdb.meta.db").is_file()
    assert make_storage("edge/p.duckdb").query_latest("S")[0]["value"] == 1.0


def test_in_the_folder_of_a_buffer_it_is_the_store_of_the_buffer(tmp_path: Path) -> None:
    buffer = OfflineBufferManager(tmp_path / "b")
    storage = DuckDBTimeSeriesStorage(str(tmp_path / "b/timeseries.duckdb"))
    try:
        assert storage._reference.store is buffer._reference.store
        buffer.add_record("r", "s", {"value": 1.0})
        assert storage.query_latest("s")[0]["metric_name"] == "unknown"
        assert not (tmp_path / "b/timeseries.duckdb.meta.db").exists()
    finally:
        storage.close()
        buffer.shutdown()
    alone = DuckDBTimeSeriesStorage(str(tmp_path / "b/timeseries.duckdb"))
    assert alone.query_latest("s")[0]["value"] == 1.0, "and so it is without the buffer"
    alone.close()


def test_the_store_of_a_file_opens_by_its_path(make_storage: Any, tmp_path: Path) -> None:
    storage = make_storage("edge/p.duckdb")
    storage.insert_data_point("S", "m", 1.0, 5)
    storage.close()
    with Store(tmp_path / "edge/p.duckdb", create=False) as store:
        assert len(store.points.range("S", "m").all()) == 1
        assert "p.duckdb.meta.db" in store.status().bytes_by_file


def test_a_file_that_lost_its_metadata_is_damage_not_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    storage = DuckDBTimeSeriesStorage(str(path))
    storage.insert_data_point("S", "m", 1.0)
    storage._reference.store.checkpoint()
    storage.close()
    for file in tmp_path.glob("p.duckdb.meta.db*"):
        file.unlink()
    with pytest.raises(StoreCorrupt, match=r"p\.duckdb\.meta\.db"):
        DuckDBTimeSeriesStorage(str(path))


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_storage_that_the_garbage_collector_finds_in_its_background_thread_is_closed(
    make_storage: MakeStorage, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_other_tests = {*threading.enumerate()}
    make_storage().close()
    gc.disable()
    try:
        storage = DuckDBTimeSeriesStorage(str(tmp_path / "edge" / "points.duckdb"))
        handle, background = storage._reference.store._handle, storage._reference.store._background
        assert background is not None
        release_if_due = handle.columns.release_if_due
        found_by = []

        def collect_first() -> None:
            release_if_due()
            gc.collect()
            found_by.append(threading.current_thread())

        monkeypatch.setattr(handle.columns, "release_if_due", collect_first)
        circle: list[Any] = [storage]
        circle.append(circle)
        del storage, circle
        deadline_s = time.monotonic() + 300
        while not handle.metadata._closed and time.monotonic() < deadline_s:
            time.sleep(0.01)
    finally:
        gc.enable()
    assert found_by[0] is background._thread
    assert handle.metadata._closed
    for thread in {*threading.enumerate()} - of_other_tests:
        if thread.name.startswith("holdfast"):
            thread.join(300)
            assert not thread.is_alive()


@pytest.mark.duckdb
def test_a_file_of_the_legacy_program_is_taken_over_with_its_points(tmp_path: Path) -> None:
    unpack(LEGACY / "timeseries_wal.duckdb", tmp_path / "timeseries_wal.duckdb")
    with pytest.raises(StoreCorrupt):
        DuckDBTimeSeriesStorage(str(tmp_path / "timeseries_wal.duckdb"))
    (
        tmp_path / "timeseries_wal.duckdb.wal"
    ).unlink()  # one that DuckDB 2 would destroy was refused, untouched
    storage = DuckDBTimeSeriesStorage(str(tmp_path / "timeseries_wal.duckdb"))
    assert storage.get_storage_stats()["total_records"] == 1900
    assert storage.insert_data_point("new", "m", 1.0)
    assert storage.get_storage_stats()["total_records"] == 1901
    storage.close()


@pytest.mark.duckdb
def test_without_compression_the_file_is_larger(tmp_path: Path) -> None:
    sizes = {}
    rows = [("S", "m", 1000.0 + n, float(n % 7), 100) for n in range(60_000)]
    for compress in (True, False):
        storage = DuckDBTimeSeriesStorage(str(tmp_path / f"{compress}.duckdb"), enable_compression=compress)
        storage.insert_batch(rows)
        storage._reference.store.checkpoint()
        sizes[compress] = storage._reference.store.size(inside=True).columns_used_bytes
        storage.close()
    assert sizes[False] > 2 * sizes[True]
