"""Signatures and defaults of the two documented classes, as a program sees them, and what the environment changes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import repo
import repo.duckdb_storage
import repo.offline_buffer
from repo import DuckDBTimeSeriesStorage, InvalidSettings, OfflineBufferManager

BUFFER = """
    __init__(buffer_path='./data/buffer', max_buffer_size=100000, max_buffer_size_mb=500, \
cleanup_interval=3600, use_duckdb=True)
    add_record(record_id, source, data, timestamp=None)
    get_pending_records(source=None, limit=1000, max_retries=10)
    mark_sent(record_id)
    mark_failed(record_id, increment_retry=True)
    get_buffer_stats()
    cleanup_old_records(max_age_seconds=604800, max_retries=20)
    clear_buffer(source=None)
    shutdown()
    _is_time_series_data(data)
"""
STORAGE = """
    __init__(db_path='./data/edge/timeseries.duckdb', max_size_mb=1000, enable_compression=True)
    insert_data_point(sensor_id, metric_name, value, timestamp=None, quality=100, metadata=None)
    insert_batch(data_points)
    query_time_range(sensor_id, metric_name, start_time, end_time, aggregation=None)
    query_latest(sensor_id, metric_name=None, limit=100)
    get_storage_stats()
    cleanup_old_data(max_age_seconds=2592000, sensor_id=None)
    export_to_parquet(output_path, sensor_id=None, start_time=None, end_time=None)
    import_from_parquet(input_path)
"""


def written(function: object) -> str:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in signature.parameters.items()
        if name != "self"
    )


@pytest.mark.parametrize(
    ("kind", "documented"), [(OfflineBufferManager, BUFFER), (DuckDBTimeSeriesStorage, STORAGE)]
)
def test_signatures_and_defaults_are_as_documented(kind: type, documented: str) -> None:
    for line in documented.split("\n")[1:-1]:
        name = line.strip().partition("(")[0]
        assert f"{name}({written(getattr(kind, name))})" == line.strip()


def test_both_classes_can_be_imported_from_their_documented_modules() -> None:
    assert repo.offline_buffer.OfflineBufferManager is repo.OfflineBufferManager is OfflineBufferManager
    assert repo.duckdb_storage.DuckDBTimeSeriesStorage is repo.DuckDBTimeSeriesStorage


@pytest.mark.duckdb
def test_without_arguments_and_environment_the_documented_places_are_used(tmp_path: Path) -> None:
    buffer = OfflineBufferManager()
    storage = DuckDBTimeSeriesStorage()
    try:
        assert (buffer.max_buffer_size, buffer.max_buffer_size_mb, buffer.cleanup_interval) == (
            100_000,
            500,
            3600,
        )
        assert buffer.use_duckdb is True
        assert storage.max_size_mb == 1000
        assert sorted(path.name for path in (tmp_path / "data/buffer").glob("*[bd]")) == [
            "offline_buffer.db",
            "timeseries.duckdb",
        ]
        assert (tmp_path / "data/edge/timeseries.duckdb").exists()
        assert (tmp_path / "data/edge/timeseries.duckdb.meta.db").exists()
    finally:
        storage.close()
        buffer.shutdown()


@pytest.mark.duckdb
def test_the_environment_comes_before_defaults_and_after_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFLINE_BUFFER_PATH", str(tmp_path / "named"))
    monkeypatch.setenv("OFFLINE_BUFFER_MAX_SIZE", "7")
    monkeypatch.setenv("OFFLINE_BUFFER_MAX_SIZE_MB", "12.5")
    monkeypatch.setenv("OFFLINE_BUFFER_CLEANUP_INTERVAL", "60")
    monkeypatch.setenv("USE_DUCKDB", "False")
    monkeypatch.setenv("DUCKDB_STORAGE_PATH", str(tmp_path / "elsewhere/p.duckdb"))
    monkeypatch.setenv("DUCKDB_MAX_SIZE_MB", "3")
    named, given = OfflineBufferManager(), OfflineBufferManager("./data/buffer", 100000, use_duckdb=True)
    storage, other = DuckDBTimeSeriesStorage(), DuckDBTimeSeriesStorage("./own.duckdb", max_size_mb=1000)
    try:
        assert named.buffer_path == tmp_path / "named"
        assert (named.max_buffer_size, named.max_buffer_size_mb, named.cleanup_interval) == (7, 12.5, 60)
        assert (named.use_duckdb, named.duckdb_storage) == (False, None)
        assert (given.buffer_path, given.max_buffer_size) == (Path("data/buffer"), 100_000), (
            "given, though the default"
        )
        assert given.max_buffer_size_mb == 12.5
        assert given.use_duckdb
        assert (tmp_path / "elsewhere/p.duckdb").exists()
        assert storage.max_size_mb == 3
        assert storage._reference.store is given._reference.store, "one file, one store"
        assert other.max_size_mb == 1000
        assert other._reference.store is not storage._reference.store
    finally:
        for facade in (named, given):
            facade.shutdown()
        storage.close()
        other.close()


@pytest.mark.parametrize(
    ("variable", "text"),
    [("OFFLINE_BUFFER_MAX_SIZE", "many"), ("USE_DUCKDB", "perhaps"), ("DUCKDB_MAX_SIZE_MB", "-1")],
)
def test_a_variable_that_cannot_be_read_is_an_error_that_names_it(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidSettings, match=f"{variable}|max_size_mb"):
        (DuckDBTimeSeriesStorage if "DUCKDB_MAX" in variable else OfflineBufferManager)()


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLINE_BUFFER_MAX_SIZE", " ")
    buffer = OfflineBufferManager()
    assert buffer.max_buffer_size == 100_000
    buffer.shutdown()
