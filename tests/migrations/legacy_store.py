"""Stores as the legacy program leaves them, of any size: its schema, with its key and its indexes. Judges nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from repo.clock import system_clock
from repo.engines.registry import LEGACY
from repo.engines.sqlite import driver as sqlite
from repo.files import StoreFiles
from repo.schema.version import version_of
from repo.settings import Settings

__all__ = [
    "Contents",
    "add_each_pointer",
    "add_pointer",
    "add_pointers",
    "contents",
    "make_legacy_store",
    "original_of",
    "wrong_seqs",
]

COLUMNS = """
CREATE TABLE time_series_data (
    timestamp_us BIGINT NOT NULL, sensor_id VARCHAR NOT NULL, metric_name VARCHAR NOT NULL, value DOUBLE NOT NULL,
    quality INTEGER DEFAULT 100, metadata VARCHAR, PRIMARY KEY (timestamp_us, sensor_id, metric_name));
CREATE INDEX idx_time_sensor ON time_series_data (timestamp_us, sensor_id);
CREATE INDEX idx_metric ON time_series_data (metric_name, timestamp_us);
CREATE TABLE storage_metadata (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL, updated_at TIMESTAMP);
"""
FILL = """
INSERT INTO time_series_data
SELECT 1700000000000000 + (i // 20) * 1000000, 'SENSOR-' || (i % 20), ['pressure', 'temperature', 'flow'][1 + i % 3],
    CASE WHEN i % 1009 = 0 THEN 'nan'::DOUBLE ELSE (hash(i) % 1000000) / 97.0 END, 100 - i % 3,
    CASE WHEN i % 5 = 0 THEN '{"batch": ' || i || '}' END
FROM range(?, ?) AS r(i)
"""
RECORDS = """
CREATE TABLE buffered_records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, record_id TEXT UNIQUE NOT NULL, source TEXT NOT NULL, data TEXT NOT NULL,
    timestamp REAL NOT NULL, retry_count INTEGER DEFAULT 0, last_retry REAL, created_at REAL NOT NULL);
CREATE INDEX idx_timestamp ON buffered_records (timestamp);
CREATE INDEX idx_source ON buffered_records (source);
CREATE INDEX idx_retry_count ON buffered_records (retry_count);
CREATE TABLE buffer_metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_SLICE = 500_000

Contents = dict[str, Any]


def make_legacy_store(folder: Path, points: int, records: int = 200) -> Path:
    """Make one; DuckDB's log is left beside its file, as after a kill, when there is anything in it."""
    import duckdb

    folder.mkdir(parents=True)
    columns = duckdb.connect(str(folder / "timeseries.duckdb"))
    columns.execute(COLUMNS)
    for start in range(0, points, _SLICE):
        columns.execute(FILL, [start, min(points, start + _SLICE)])
    columns.execute("INSERT INTO storage_metadata VALUES ('version', '1', TIMESTAMP '2024-01-01')")
    columns.execute("CHECKPOINT")
    columns.close()
    metadata = sqlite3.connect(folder / "offline_buffer.db")
    metadata.executescript(RECORDS)
    rows = [
        (f"REC-{i}", f"gw-{i % 3}", f'{{"well_name": "W{i}", "note": "n{i}"}}', 1.7e9 + i, i % 4, 1.7e9 + i)
        for i in range(records)
    ]
    metadata.executemany(
        "INSERT INTO buffered_records (record_id, source, data, timestamp, retry_count, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        rows,
    )
    metadata.execute("INSERT INTO buffer_metadata VALUES ('version', '1')")
    metadata.commit()
    metadata.close()
    return folder


def original_of(record_id: object, source: str, data: object) -> str:
    """Return the metadata in which the legacy program kept a record's data, beside its point."""
    return json.dumps({"record_id": record_id, "source": source, "original_data": data})


def add_pointer(folder: Path, record_id: str, *points: tuple[int, str], retry_count: int = 0) -> None:
    """Add a record as the legacy program kept it in DuckDB, and its points: (time in µs, metadata)."""
    add_each_pointer(folder, {record_id: points}, retry_count)


def add_each_pointer(
    folder: Path, pointers: Mapping[str, Sequence[tuple[int, str]]], retry_count: int = 0
) -> None:
    """Add several such records, by their ids."""
    import duckdb

    metadata = sqlite3.connect(folder / "offline_buffer.db")
    metadata.executemany(
        "INSERT INTO buffered_records (record_id, source, data, timestamp, retry_count, last_retry, created_at) "
        "VALUES (?, 'gw', ?, 1700000001.25, ?, 1700000002.5, 1700000003.75)",
        [
            (
                name,
                json.dumps({"storage": "duckdb", "sensor_id": f"P-{name}", "metric": "pressure"}),
                retry_count,
            )
            for name in pointers
        ],
    )
    metadata.commit()
    metadata.close()
    columns = duckdb.connect(str(folder / "timeseries.duckdb"))
    for name, points in pointers.items():
        for timestamp_us, text_ in points:
            columns.execute(
                "INSERT INTO time_series_data VALUES (?, ?, 'pressure', 1.5, 100, ?)",
                [timestamp_us, f"P-{name}", text_],
            )
    columns.execute("CHECKPOINT")
    columns.close()


def add_pointers(folder: Path, count: int) -> None:
    """Add many records as the legacy program kept them in DuckDB: R-0, R-1 ..., each of which has its number."""
    import duckdb

    pointer = json.dumps({"storage": "duckdb", "sensor_id": "many", "metric": "unknown"})
    metadata = sqlite3.connect(folder / "offline_buffer.db")
    metadata.executemany(
        "INSERT INTO buffered_records (record_id, source, data, timestamp, created_at) VALUES (?, 'gw', ?, 1, 1)",
        [(f"R-{number}", pointer) for number in range(count)],
    )
    metadata.commit()
    metadata.close()
    columns = duckdb.connect(str(folder / "timeseries.duckdb"))
    columns.execute(
        "INSERT INTO time_series_data SELECT i, 'many', 'unknown', i, 100, "
        """'{"record_id": "R-' || i || '", "source": "gw", "original_data": {"value": ' || i || '}}' """
        "FROM range(?) AS r(i)",
        [count],
    )
    columns.execute("CHECKPOINT")
    columns.close()


def contents(folder: Path) -> Contents:
    """Return what the store holds, the same at every revision, and its revisions; opens it as a store does."""
    files = StoreFiles.of(folder)
    columns = LEGACY.open(files.duckdb, files.scratch, Settings(), system_clock)
    engine = columns.open()
    try:
        found = _contents(
            engine,
            "SELECT count(*), sum(hash(timestamp_us, sensor_id, metric_name, "
            "CASE WHEN isnan(value) THEN NULL ELSE value END, quality, metadata)) FROM time_series_data",
        )
        found |= {"columns": _revision(engine), "column tables": _tables(engine)}
    finally:
        columns.close(engine)
    engine = sqlite.open_engine(files.metadata)
    try:
        with engine.connect() as connection:
            found["records"] = connection.execute(
                text(
                    "SELECT id, record_id, source, data, timestamp, retry_count, created_at FROM buffered_records"
                )
            ).all()
            found["sequence"] = connection.execute(text("SELECT name, seq FROM sqlite_sequence")).all()
        found |= {"metadata": _revision(engine), "metadata tables": _tables(engine)}
    finally:
        engine.dispose()
    return found


def wrong_seqs(folder: Path) -> int:
    """Count the points of an upgraded store, without newer ones, whose seq is not that of their rank in time."""
    files = StoreFiles.of(folder)
    columns = LEGACY.open(
        files.duckdb, files.scratch, Settings(duckdb_memory_limit_bytes=1_000_000_000), system_clock
    )
    engine = columns.open()
    try:
        with engine.connect() as connection:
            rank = "row_number() OVER (ORDER BY timestamp_us DESC, sensor_id DESC, metric_name DESC)"
            query = (
                f"SELECT count(*) FROM (SELECT seq, {rank} AS rank FROM time_series_data) WHERE seq <> -rank"
            )
            return int(connection.execute(text(query)).scalar_one())
    finally:
        columns.close(engine)


def _contents(engine: Engine, query: str) -> Contents:
    with engine.connect() as connection:
        return {"points": tuple(connection.execute(text(query)).one())}


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return version_of(connection)


def _tables(engine: Engine) -> list[str]:
    query = "SELECT DISTINCT table_name FROM duckdb_tables() ORDER BY 1"
    if engine.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1"
    with engine.connect() as connection:
        return list(connection.execute(text(query)).scalars())
