"""Moving records from an SQLite buffer to one with DuckDB, as programs of the legacy package do it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from repo.offline_buffer import OfflineBufferManager
from tests.compat.commits import MOST_COMMITS, cpu_s_of_a_commit


def move(
    sqlite_buffer: OfflineBufferManager, duckdb_buffer: OfflineBufferManager, limit: int = 100_000
) -> int:
    """What such programs have in them, to the letter but for the imports."""
    moved = 0
    pending = sqlite_buffer.get_pending_records(limit=limit)
    for record in pending:
        if duckdb_buffer._is_time_series_data(record["data"]):
            duckdb_buffer.add_record(
                record_id=record["record_id"],
                source=record["source"],
                data=record["data"],
                timestamp=record["timestamp"],
            )
            sqlite_buffer.mark_sent(record["record_id"])
            moved += 1
    return moved


def fill(buffer: OfflineBufferManager, count: int) -> None:
    with buffer._reference.store.transaction() as transaction:
        for n in range(count):
            data: dict[str, Any] = {"event": "start"}
            if n % 10:
                data = {
                    "sensor_id": f"S-{n % 7}",
                    "metric_name": "pressure",
                    "value": n / 8,
                    "timestamp": 1000 + n,
                }
            transaction.records.add(f"r{n}", "well", data, timestamp=1000 + n)


@pytest.mark.duckdb
def test_records_move_from_folder_to_folder(tmp_path: Path) -> None:
    old = OfflineBufferManager(buffer_path=tmp_path / "old", use_duckdb=False)
    new = OfflineBufferManager(buffer_path=tmp_path / "new", use_duckdb=True)
    fill(old, 100)
    before = {record["record_id"]: record["data"] for record in old.get_pending_records()}
    assert move(old, new) == 90
    assert [record["data"] for record in old.get_pending_records()] == [{"event": "start"}] * 10
    after = new.get_pending_records()
    assert {record["record_id"]: record["data"] for record in after} == {
        record_id: data for record_id, data in before.items() if "value" in data
    }
    assert after[0]["timestamp"] == 1001.0
    assert new.duckdb_storage is not None
    assert new.get_buffer_stats()["duckdb"]["total_records"] == 90
    old.shutdown()
    new.shutdown()


@pytest.mark.parametrize("made_with", [False, True])
def test_on_one_folder_they_are_one_store_and_moving_loses_nothing(
    tmp_path: Path, made_with: bool, caplog: pytest.LogCaptureFixture
) -> None:
    OfflineBufferManager(tmp_path / "b", use_duckdb=made_with).shutdown()
    with caplog.at_level(logging.WARNING, "holdfast"):
        old = OfflineBufferManager(tmp_path / "b", use_duckdb=False)
        new = OfflineBufferManager(tmp_path / "b", use_duckdb=True)
    assert "share one store: there is nothing to move" in caplog.text
    assert (old.use_duckdb, old.duckdb_storage) == (False, None)
    fill(old, 100)
    assert move(old, new) == 90
    assert len(new.get_pending_records()) == 100, "none was sent, so every one waits"
    assert len(new._reference.store.points.range(None, None).all()) == 90, "and its points are there once"
    assert sum(new.mark_sent(record["record_id"]) for record in new.get_pending_records()) == 100
    assert old.get_pending_records() == []
    old.shutdown()
    new.shutdown()


@pytest.mark.duckdb
def test_an_sqlite_store_is_moved_to_duckdb_at_open_where_settings_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = OfflineBufferManager(tmp_path / "b", use_duckdb=False)
    fill(old, 10)
    old.shutdown()
    kept = OfflineBufferManager(tmp_path / "b")
    assert (kept.use_duckdb, kept.duckdb_storage) == (False, None), "the engine is a fact of the store"
    kept.shutdown()
    monkeypatch.setenv("HOLDFAST_CONVERT_AT_OPEN", "true")
    moved = OfflineBufferManager(tmp_path / "b")
    assert moved.use_duckdb
    assert moved.get_buffer_stats()["duckdb"]["total_records"] == 9
    assert (tmp_path / "b/timeseries.duckdb").exists()
    assert len(moved.get_pending_records()) == 10
    moved.shutdown()


def test_a_record_that_was_not_moved_is_settled_by_any_buffer_of_the_folder(tmp_path: Path) -> None:
    producer = OfflineBufferManager(tmp_path / "b", use_duckdb=True)
    sender = OfflineBufferManager(tmp_path / "b", use_duckdb=False)
    producer.add_record("r", "s", {"value": 1.0})
    assert sender.mark_failed("r")
    assert sender.mark_sent("r")
    assert producer.get_pending_records() == []
    producer.shutdown()
    sender.shutdown()


@pytest.mark.slow
def test_ten_thousand_records_move_in_a_minute(tmp_path: Path) -> None:
    commit_s = cpu_s_of_a_commit(tmp_path / "plain.db")
    old = OfflineBufferManager(buffer_path=tmp_path / "old", use_duckdb=False)
    new = OfflineBufferManager(buffer_path=tmp_path / "new", use_duckdb=True)
    fill(old, 10_000)
    started = time.process_time()  # CPU time, which other processes do not change much
    moved = move(old, new)
    spent_s = time.process_time() - started
    print(f"{moved} records moved in {spent_s:.1f} s of CPU: {moved / spent_s * 60:.0f} a minute")
    assert moved == 9_000, "every tenth has no reading"
    assert spent_s / moved < 3 * MOST_COMMITS * commit_s, "each is added, settled and looked for"
    old.shutdown()
    new.shutdown()
