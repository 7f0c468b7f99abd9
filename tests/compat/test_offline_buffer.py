"""`OfflineBufferManager` as documented, on both engines."""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repo import InvalidPoint, InvalidRecord, OfflineBufferManager, Store, StoreClosed
from repo.engines.registry import ENGINES, LEGACY
from repo.repositories.ledger import LedgerRepository, Loss

pytestmark = pytest.mark.slow_on("duckdb")  # records are in SQLite, whatever the engine of the columns

READING = {"sensor_id": "S-1", "metric_name": "pressure", "value": 2500.5, "quality": 90}


def ledger(buffer: OfflineBufferManager) -> list[Loss]:
    with buffer._reference.store._handle.metadata.read() as connection:
        return LedgerRepository(connection).list()


def points(buffer: OfflineBufferManager) -> list[tuple[Any, ...]]:
    found = buffer._reference.store.points.range(None, None)
    return [(row["sensor_id"], row["metric_name"], row["value"], row["quality"]) for row in found]


def test_a_pending_record_has_the_documented_keys_and_its_complete_data(buffer: OfflineBufferManager) -> None:
    before = time.time()
    data = READING | {"note": {"deep": ["ø", None, True]}}
    assert buffer.add_record("r1", "gateway", data) is True
    assert buffer.add_record("r2", "other", {"status": "ok"}, timestamp=1000.25) is True
    first, second = buffer.get_pending_records()
    assert list(first) == [
        "id",
        "record_id",
        "source",
        "data",
        "timestamp",
        "retry_count",
        "last_retry",
        "created_at",
    ]
    assert first["data"] == data
    assert (first["record_id"], first["source"]) == ("r1", "gateway")
    assert before <= first["timestamp"] <= time.time()
    assert (first["retry_count"], first["last_retry"]) == (0, None)
    assert (second["timestamp"], second["id"] > first["id"]) == (1000.25, True)
    assert [r["record_id"] for r in buffer.get_pending_records(source="other")] == ["r2"]
    assert [r["record_id"] for r in buffer.get_pending_records(limit=1)] == ["r1"]
    assert points(buffer) == [("S-1", "pressure", 2500.5, 90)]


def test_settling_returns_whether_the_record_was_pending(buffer: OfflineBufferManager) -> None:
    buffer.add_record("r", "s", READING)
    assert buffer.mark_failed("r") is True
    assert buffer.mark_failed("r", increment_retry=False) is True
    [record] = buffer.get_pending_records()
    assert record["retry_count"] == 1
    assert record["last_retry"] >= record["created_at"]
    assert buffer.get_pending_records(max_retries=1) == []
    assert buffer.mark_sent("r") is True
    assert buffer.mark_sent("r") is False
    assert buffer.mark_failed("r") is False
    assert buffer.get_pending_records() == []
    assert len(points(buffer)) == 1, "points stay as history"


def test_the_same_id_again_changes_nothing_or_replaces_the_data(buffer: OfflineBufferManager) -> None:
    buffer.add_record("r", "s", READING)
    buffer.mark_failed("r")
    assert buffer.add_record("r", "s", dict(READING)) is True
    assert buffer.add_record("r", "s", READING | {"value": 1.0}, timestamp=5) is True
    [record] = buffer.get_pending_records()
    assert (record["data"]["value"], record["retry_count"], record["timestamp"]) == (1.0, 1, 5.0)
    assert len(points(buffer)) == 2


def test_errors_are_raised_and_nothing_is_written(buffer: OfflineBufferManager) -> None:
    with pytest.raises(InvalidRecord):
        buffer.add_record("r", "s", {"bad": {1, 2}})
    with pytest.raises(InvalidPoint, match="milliseconds"):
        buffer.add_record("r", "s", READING, timestamp=1_714_521_600_000)
    with pytest.raises(InvalidPoint):
        buffer.add_record("", "s", READING)
    assert buffer.get_pending_records() == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"value": 1}, True),
        ({"flowRate": 1, "x": 2}, True),
        ({"well_name": "W"}, True),
        ({"timestamp": None}, True),
        ({"status": "ok", "metric": "m"}, False),
        ({}, False),
        (["value"], False),
        (None, False),
    ],
    ids=repr,
)
def test_time_series_data_is_recognized_by_its_fields(
    buffer: OfflineBufferManager, data: Any, expected: bool
) -> None:
    assert buffer._is_time_series_data(data) is expected


@pytest.mark.slow_on  # on none
def test_stats_have_the_documented_keys(buffer: OfflineBufferManager, engine: str) -> None:
    empty = buffer.get_buffer_stats()
    assert (empty["total_records"], empty["by_source"], empty["oldest_record_age_seconds"]) == (0, {}, 0.0)
    now = time.time()
    for n in range(4):
        buffer.add_record(f"r{n}", f"s{n % 2}", READING | {"timestamp": now - 60 + n}, timestamp=now - 100)
    buffer.mark_failed("r0")
    stats = buffer.get_buffer_stats()
    assert list(stats) == [
        "total_records",
        "by_source",
        "by_retry_count",
        "oldest_record_age_seconds",
        "buffer_size_mb",
        "max_buffer_size",
        "max_buffer_size_mb",
        "buffer_usage_percent",
        "duckdb_enabled",
    ] + (["duckdb"] if engine == "duckdb" else [])
    assert stats["total_records"] == 4
    assert stats["by_source"] == {"s0": 2, "s1": 2}
    assert stats["by_retry_count"] == {0: 3, 1: 1}
    assert 100 <= stats["oldest_record_age_seconds"] < 160
    assert 0 < stats["buffer_size_mb"] < 20
    assert stats["buffer_usage_percent"] == pytest.approx(0.004)
    assert stats["duckdb_enabled"] is buffer.use_duckdb is (engine == "duckdb")
    if engine == "duckdb":
        assert buffer.duckdb_storage is not None
        inner = stats["duckdb"]
        assert (inner["total_records"], inner["unique_sensors"], inner["unique_metrics"]) == (4, 1, 1)
        assert inner["time_range"] == pytest.approx(
            {"start": now - 60, "end": now - 57, "duration_seconds": 3}
        )
    else:
        assert buffer.duckdb_storage is None


def test_a_full_buffer_returns_false_and_accepts_more_once_there_is_room(make_buffer: Any) -> None:
    buffer = make_buffer(max_buffer_size=3)
    assert [buffer.add_record(f"r{n}", "s", READING) for n in range(5)] == [True, True, True, False, False]
    assert len(points(buffer)) <= 3
    assert buffer.add_record("r1", "s", {"status": "other"}) is True, "replacing is no growth"
    assert buffer.add_record("r1", "s", {"status": "other"}) is True
    buffer.mark_sent("r0")
    assert buffer.add_record("r5", "s", READING) is True
    assert buffer.add_record("r6", "s", READING) is False
    assert buffer.get_buffer_stats()["buffer_usage_percent"] == 100.0


def test_threads_fill_a_buffer_to_its_limit_and_no_further(make_buffer: Any) -> None:
    buffer = make_buffer(max_buffer_size=50)
    added: list[bool] = []

    def add(thread: int) -> None:
        added.extend(buffer.add_record(f"{thread}-{n}", "s", {"n": n}) for n in range(20))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert added.count(True) == 50
    assert buffer.get_buffer_stats()["total_records"] == 50


@pytest.mark.slow_on("duckdb")
def test_the_bytes_of_what_waits_are_limited(make_buffer: Any) -> None:
    buffer = make_buffer(max_buffer_size_mb=4)
    text = "x" * 20_000
    assert buffer.add_record("first", "s", {"text": text, "value": 1})
    buffer._reference.store.checkpoint()  # so that DuckDB's file has the blocks of every column
    added = 0
    while buffer.add_record(f"r{added}", "s", {"text": text, "value": added}):
        added += 1
        assert added < 1000
    assert added > 10
    files = buffer._reference.store.files
    size = buffer._reference.store.size(inside=True)
    used = size.metadata_bytes - size.metadata_free_bytes
    assert 3 * 2**20 < used < 4.5 * 2**20
    assert buffer._reference.store.size().columns_bytes == sum(
        path.stat().st_size for path in files.column_files() if path.exists()
    )
    buffer.clear_buffer()
    time.sleep(1.1)  # sizes are looked at inside once a second
    assert buffer.add_record("again", "s", {"text": text}), "free blocks inside the files are room"


def test_old_and_failed_records_are_dropped_by_hand_with_the_documented_defaults(
    buffer: OfflineBufferManager,
) -> None:
    now = time.time()
    buffer.add_record("old", "s", {"n": 1}, timestamp=now - 604_900)
    buffer.add_record("young", "s", {"n": 2}, timestamp=now - 604_700)
    buffer.add_record("failed", "s", {"n": 3})
    for _ in range(19):
        buffer.mark_failed("failed")
    assert buffer.cleanup_old_records() == 1
    buffer.mark_failed("failed")
    assert buffer.cleanup_old_records() == 1
    assert [r["record_id"] for r in buffer.get_pending_records()] == ["young"]
    assert {(loss.what, loss.reason, loss.dropped) for loss in ledger(buffer)} == {
        ("records", "age", 1),
        ("records", "retries", 1),
    }


def test_clearing_returns_the_count_and_is_recorded_in_the_ledger(buffer: OfflineBufferManager) -> None:
    for n in range(5):
        buffer.add_record(f"r{n}", f"s{n % 2}", READING)
    assert buffer.clear_buffer("s1") == 2
    assert buffer.clear_buffer("nobody") == 0
    assert buffer.clear_buffer() == 3
    assert buffer.clear_buffer() == 0
    assert sorted((loss.reason, loss.dropped) for loss in ledger(buffer)) == [("clear", 2), ("clear", 3)]


def test_the_thread_cleans_up_and_ends_at_shutdown(make_buffer: Any) -> None:
    buffer = make_buffer(cleanup_interval=0.05)
    buffer.add_record("old", "s", {"n": 1}, timestamp=time.time() - 700_000)
    thread = buffer._cleaner
    until = time.monotonic() + 300
    while buffer.get_pending_records() and time.monotonic() < until:
        time.sleep(0.01)
    assert buffer.get_pending_records() == []
    buffer.shutdown()
    assert not thread.is_alive()


def test_a_dropped_buffer_stops_its_thread_and_closes_its_store(tmp_path: Path, engine: str) -> None:
    buffer = OfflineBufferManager(tmp_path / "b", cleanup_interval=0.05, use_duckdb=engine == "duckdb")
    thread, store = buffer._cleaner, buffer._reference.store
    assert thread is not None
    del buffer
    thread.join(300)
    assert not thread.is_alive()
    with pytest.raises(StoreClosed):
        store.records.count()


def test_after_shutdown_calls_are_refused_and_no_data_is_lost(make_buffer: Any) -> None:
    buffer = make_buffer()
    buffer.add_record("r", "s", READING)
    buffer.shutdown()
    buffer.shutdown()
    for call in (
        lambda: buffer.add_record("x", "s", READING),
        buffer.get_pending_records,
        lambda: buffer.mark_sent("r"),
        buffer.get_buffer_stats,
    ):
        with pytest.raises(StoreClosed):
            call()
    again = make_buffer()
    assert [r["record_id"] for r in again.get_pending_records()] == ["r"]
    assert len(points(again)) == 1


def test_buffers_on_one_real_path_share_one_store(make_buffer: Any, tmp_path: Path) -> None:
    first = make_buffer()
    (tmp_path / "link").symlink_to(tmp_path / "buffer")
    second = make_buffer("link")
    assert second._reference.store is first._reference.store
    first.add_record("r", "s", READING)
    first.shutdown()
    assert second.mark_sent("r") is True, "the last to leave closes"
    second.shutdown()
    with pytest.raises(StoreClosed):
        second._reference.shared.store.records.count()


def test_a_store_reads_what_a_buffer_wrote(buffer: OfflineBufferManager, tmp_path: Path) -> None:
    buffer.add_record("r", "s", READING)
    assert buffer.db_path == tmp_path / "buffer" / "offline_buffer.db"
    assert buffer.db_path.exists()
    with Store(tmp_path / "buffer") as store:
        assert store.records.mark_sent("r") == 1
    assert buffer.get_pending_records() == []


def test_without_duckdb_it_warns_and_everything_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    missing = replace(LEGACY, why_missing=lambda: "duckdb is not installed")
    monkeypatch.setitem(ENGINES, LEGACY.name, missing)
    monkeypatch.setattr("repo.offline_buffer.duckdb_is_installed", lambda: False)
    with caplog.at_level(logging.WARNING, "holdfast"):
        buffer = OfflineBufferManager(tmp_path / "b")
    assert any(
        record.levelname == "WARNING"
        and record.getMessage().startswith("Failed to initialize DuckDB, falling back to SQLite: ")
        for record in caplog.records
    )
    assert (buffer.use_duckdb, buffer.duckdb_storage) == (False, None)
    assert buffer.add_record("r", "s", READING)
    assert buffer.get_buffer_stats()["duckdb_enabled"] is False
    assert len(points(buffer)) == 1
    buffer.shutdown()
