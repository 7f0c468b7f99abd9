"""Where the files lie: `DUCKDB_STORAGE_PATH` may name a place outside the folder, found again from both ends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from repo import DuckDBTimeSeriesStorage, InvalidSettings, OfflineBufferManager, Store
from repo.files import StoreFiles
from repo.schema.databases import find_targets
from repo.schema.upgrade import migrate_store
from tests.assets.unpack import LEGACY, unpack


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "disk" / "points.duckdb"
    monkeypatch.setenv("DUCKDB_STORAGE_PATH", str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "buffer"


@pytest.fixture
def made(folder: Path) -> Any:
    opened: list[Any] = []

    def keep(facade: Any) -> Any:
        opened.append(facade)
        return facade

    yield keep
    for facade in opened:
        facade.close() if isinstance(facade, DuckDBTimeSeriesStorage) else facade.shutdown()


@pytest.mark.duckdb
def test_the_columns_are_at_that_path_and_the_records_in_the_folder(
    outside: Path, folder: Path, made: Any
) -> None:
    buffer = made(OfflineBufferManager(folder))
    buffer.add_record("r", "s", {"value": 1.0})
    buffer._reference.store.checkpoint()
    assert outside.is_file()
    assert (folder / "offline_buffer.db").is_file()
    assert (folder / "timeseries.duckdb").resolve() == outside
    assert buffer._reference.store.size().columns_bytes >= outside.stat().st_size
    assert "points.duckdb" in buffer._reference.store.status().bytes_by_file


@pytest.mark.duckdb
def test_it_is_found_without_the_variable_by_everyone(
    outside: Path, folder: Path, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(OfflineBufferManager(folder))
    first.add_record("r", "s", {"value": 1.0})
    first.shutdown()
    monkeypatch.delenv("DUCKDB_STORAGE_PATH")
    with Store(folder) as store:
        assert len(store.points.range("s", None).all()) == 1
    assert {target.path for target in find_targets({"path": str(folder)}, {})} == {
        outside,
        folder / "offline_buffer.db",
    }
    assert [Path(found.file) for found in migrate_store(folder).databases] == [
        outside,
        folder / "offline_buffer.db",
    ]
    buffer, storage = made(OfflineBufferManager(folder)), made(DuckDBTimeSeriesStorage(outside))
    assert buffer._reference.store is storage._reference.store
    assert storage.query_latest("s")[0]["value"] == 1.0


def test_a_buffer_and_a_storage_on_one_file_are_one_store_whichever_comes_first(
    outside: Path, folder: Path, made: Any
) -> None:
    storage = made(DuckDBTimeSeriesStorage())
    storage.insert_data_point("S", "m", 1.0, 5)
    buffer = made(OfflineBufferManager(folder))
    assert buffer._reference.store is storage._reference.store
    buffer.add_record("r", "S", {"value": 2.0, "metric_name": "m"})
    assert [row["value"] for row in storage.query_latest("S")] == [2.0, 1.0]
    buffer.shutdown()
    storage.close()
    again = made(OfflineBufferManager(folder))
    assert len(again.get_pending_records()) == 1
    assert again.db_path.exists()
    with Store(folder, again._reference.store.settings) as store:
        assert store.status().records_pending == 1


@pytest.mark.duckdb
def test_both_ends_move_together(
    outside: Path, folder: Path, made: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    buffer = made(OfflineBufferManager(folder))
    buffer.add_record("r", "s", {"value": 1.0})
    buffer.shutdown()
    monkeypatch.delenv("DUCKDB_STORAGE_PATH")
    (tmp_path / "new").mkdir()
    for name in ("data", "disk"):
        shutil.move(tmp_path / name, tmp_path / "new" / name)
    moved = made(OfflineBufferManager(tmp_path / "new/data/buffer"))
    assert moved.duckdb_storage.query_latest("s")[0]["value"] == 1.0
    assert StoreFiles.of(tmp_path / "new/data/buffer").duckdb == tmp_path / "new/disk/points.duckdb"


@pytest.mark.duckdb
def test_columns_that_are_already_elsewhere_are_never_left_behind(
    folder: Path, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = made(OfflineBufferManager(folder))
    buffer.add_record("r", "s", {"value": 1.0})
    buffer.shutdown()
    monkeypatch.setenv("DUCKDB_STORAGE_PATH", str(tmp_path / "other.duckdb"))
    with pytest.raises(InvalidSettings, match=r"timeseries\.duckdb, not in .*other\.duckdb"):
        OfflineBufferManager(folder)
    assert not (tmp_path / "other.duckdb").exists()
    monkeypatch.setenv("DUCKDB_STORAGE_PATH", str(folder / "timeseries.duckdb"))
    assert made(OfflineBufferManager(folder)).duckdb_storage.query_latest("s")[0]["value"] == 1.0


def test_two_buffers_cannot_have_one_column_file(
    outside: Path, folder: Path, made: Any, tmp_path: Path
) -> None:
    made(OfflineBufferManager(folder))
    with pytest.raises(InvalidSettings, match="has the columns of the store"):
        OfflineBufferManager(tmp_path / "second")
    assert not (tmp_path / "second").exists()
    plain = made(OfflineBufferManager(tmp_path / "third", use_duckdb=False))
    assert plain.add_record("r", "s", {"value": 1.0}), "it has no DuckDB file to place"


@pytest.mark.duckdb
def test_the_columns_of_a_store_cannot_be_used_by_another_store(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(folder) as store:
        store.points.insert("s", "m", 1.0)
        store.flush()
    monkeypatch.setenv("DUCKDB_STORAGE_PATH", str(folder / "timeseries.duckdb"))
    with pytest.raises(InvalidSettings, match="has the columns of the store"):
        OfflineBufferManager(tmp_path / "second")
    assert not (tmp_path / "second").exists()
    assert sorted(path.name for path in folder.glob("*.meta.db")) == []


@pytest.mark.duckdb
def test_a_legacy_folder_may_have_its_column_file_elsewhere(
    outside: Path, folder: Path, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(LEGACY / "offline_buffer.db", folder / "offline_buffer.db")
    unpack(LEGACY / "timeseries_wal.duckdb", outside)
    outside.with_name(outside.name + ".wal").unlink()
    buffer = made(OfflineBufferManager(folder))
    stats = buffer.get_buffer_stats()
    assert stats["total_records"] == 441
    assert stats["duckdb"]["total_records"] == 1900
