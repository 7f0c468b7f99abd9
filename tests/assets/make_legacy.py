"""Makes the files in `legacy`: databases as the legacy program leaves them, written by DuckDB 0.9.2 and SQLite.

    python -m venv old && old/bin/pip install duckdb==0.9.2
    old/bin/python tests/assets/make_legacy.py tests/assets/legacy

The files are made once and kept, packed by xz, because no current DuckDB writes such files. `expected.json` holds what
DuckDB 0.9.2 and SQLite read in them.
"""

from __future__ import annotations

import importlib.util
import json
import lzma
import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

COLUMNS = """
CREATE TABLE time_series_data (
    timestamp_us BIGINT, sensor_id VARCHAR, metric_name VARCHAR, value DOUBLE, quality INTEGER DEFAULT 100,
    metadata VARCHAR, PRIMARY KEY (timestamp_us, sensor_id, metric_name));
CREATE INDEX idx_time_sensor ON time_series_data (timestamp_us, sensor_id);
CREATE INDEX idx_metric ON time_series_data (metric_name, timestamp_us);
CREATE TABLE storage_metadata (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL, updated_at TIMESTAMP);
"""
RECORDS = """
CREATE TABLE buffered_records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, record_id TEXT UNIQUE NOT NULL, source TEXT NOT NULL, data TEXT NOT NULL,
    timestamp REAL NOT NULL, retry_count INTEGER DEFAULT 0, last_retry REAL, created_at REAL NOT NULL);
CREATE TABLE buffer_metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
QUERIES = {
    "time_series_data": "SELECT timestamp_us, sensor_id, metric_name, value, quality, metadata FROM time_series_data",
    "storage_metadata": "SELECT key, value, updated_at FROM storage_metadata",
    "buffered_records": "SELECT id, record_id, source, data, timestamp, retry_count, last_retry, created_at "
    "FROM buffered_records",
    "buffer_metadata": "SELECT key, value FROM buffer_metadata",
}
SPECIAL_VALUES = {
    "nan": "isnan(value)",
    "null": "value IS NULL",
    "pos_inf": "value = 'inf'::DOUBLE",
    "neg_inf": "value = '-inf'::DOUBLE",
}
ODD_TIMES = (-1, 0, -62_135_596_800_000_000, 253_402_300_800_000_000, 2**63 - 1, -(2**63))
ODD_VALUES = (
    *(
        math.nan,
        math.inf,
        -math.inf,
        None,
        0.0,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        -1.7976931348623157e308,
    ),
    *(0.1, 1 / 3),
)
SENSORS = (
    *(f"press_{n:02}" for n in range(8)),
    "ofen-ä1",
    "датчик-7",
    "sensor with space",
    "quote'\"`;--",
    "🌡",
    "",
)
METADATA = (
    None,
    "",
    "{}",
    '{"unit": "°C"}',
    "not json",
    '{"v": NaN}',
    '{"note": "line1\\nline2", "q": "\\""}',
    "[1, 2]",
)
NOTES = (
    ("schema_version", "1.0", datetime(2023, 10, 1, 12, 0, 0, 123456)),  # noqa: DTZ001  the type has no zone
    ("created_by", "legacy-writer", datetime(1970, 1, 1)),  # noqa: DTZ001
    ("site", "Werk Nürnberg", None),
)
ODD_RECORDS = (
    ("odd-blob", "opcua", b'{"v": 1}', 1.0, 0, None, 1.0),
    ("odd-malformed", "opcua", '{"v": ', 2.0, 0, None, 2.0),
    ("odd-text-time", "opcua", "{}", "2023-01-01T00:00:00", 0, None, 3.0),
    ("odd-text-retry", "opcua", "{}", 4.0, "many", "never", 4.0),
    ("odd-number-data", "opcua", "17", 5.0, 0, None, 5.0),
    ("odd-inf", "opcua", "[]", math.inf, -3, -math.inf, 6.0),
    ("123", "5", "null", 7.0, 0, 7.0, 7.0),
)
ODD_IDS = ("", " ", "ä", "датчик-7:1", "🌡", "x" * 300, "'; DROP TABLE buffered_records;--", "NULL")


def points(count: int) -> list[tuple[Any, ...]]:
    """Return points of every odd kind, and then ordinary ones."""
    rng = random.Random(count)
    odd = [
        (
            at,
            sensor,
            "température",
            rng.choice(ODD_VALUES),
            rng.choice((None, -1, 0, 100, 2**31 - 1)),
            metadata,
        )
        for at in ODD_TIMES
        for sensor in SENSORS
        for metadata in (rng.choice(METADATA),)
    ]
    ordinary = [
        (
            1_690_000_000_000_000 + n // 6 * 1_000_000,
            SENSORS[n % 6],
            "pressure",
            rng.gauss(2500, 10),
            100,
            None,
        )
        for n in range(count - len(odd))
    ]
    return (odd + ordinary)[:count]


def records(count: int) -> list[tuple[Any, ...]]:
    """Return records with data as the legacy program writes it, NaN and escapes included."""
    rng = random.Random(count)
    return [
        (
            ODD_IDS[n] if n < len(ODD_IDS) else f"REC-{n}",
            ("modbus", "mqtt", "датчик")[n % 3],
            json.dumps({"sensor_id": SENSORS[n % 13], "value": rng.choice(ODD_VALUES), "note": n}),
            1.5e-300 if n == 4 else 1_690_000_000.5 + n,
            (None, 0, 1, 99)[n % 4],
            None if n % 3 else 1_690_000_001.25 + n,
            1_690_000_000.75 + n,
        )
        for n in range(count)
    ]


def write_columns(path: Path, checkpointed: int, logged: int) -> None:
    """Write a file, in a process that then ends as by a kill where something is to stay in the log."""
    import duckdb

    connection = duckdb.connect(str(path))
    connection.execute("PRAGMA wal_autocheckpoint='1TB'")
    for statement in COLUMNS.split(";")[:-1]:
        connection.execute(statement)
    rows = points(checkpointed + logged)
    insert = "INSERT INTO time_series_data VALUES (?, ?, ?, ?, ?, ?)"
    if rows:
        connection.executemany("INSERT INTO storage_metadata VALUES (?, ?, ?)", NOTES)
    if checkpointed:
        connection.executemany(insert, rows[:checkpointed])
        connection.execute("CHECKPOINT")
    if logged:
        connection.executemany(insert, rows[checkpointed:])
        os._exit(0)
    connection.close()


def write_records(path: Path, rows: Any, *, logged: int = 0, deleted: int = 0, notes: Any = ()) -> None:
    """Write a file; the last `logged` records are in its log alone."""
    connection = sqlite3.connect(path)
    connection.executescript(RECORDS)
    insert = (
        "INSERT INTO buffered_records (record_id, source, data, timestamp, retry_count, last_retry, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)"
    )
    connection.executemany(insert, rows[: len(rows) - logged])
    connection.executemany("INSERT INTO buffer_metadata VALUES (?, ?)", notes)
    connection.execute("DELETE FROM buffered_records WHERE id > 8 AND id % 7 = 3 AND id / 7 < ?", (deleted,))
    connection.commit()
    if logged:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.executemany(insert, rows[len(rows) - logged :])
        connection.commit()
        os._exit(0)
    connection.close()


def read_columns(path: Path) -> dict[str, Any]:
    """Return what DuckDB 0.9.2 reads."""
    import duckdb

    with duckdb.connect(str(path)) as connection:
        found = {name: _checksum(connection.execute(QUERIES[name]).fetchall()) for name in list(QUERIES)[:2]}
        special = {
            name: connection.execute(f"SELECT count(*) FROM time_series_data WHERE {condition}").fetchall()[
                0
            ][0]
            for name, condition in SPECIAL_VALUES.items()
        }
    return found | {"special_values": special}


def read_records(path: Path) -> dict[str, Any]:
    """Return what SQLite reads."""
    connection = sqlite3.connect(path)
    found = {name: _checksum(connection.execute(QUERIES[name]).fetchall()) for name in list(QUERIES)[2:]}
    [(last,)] = connection.execute("SELECT seq FROM sqlite_sequence")
    connection.close()
    return found | {"sqlite_sequence": last}


def _checksum(rows: list[Any]) -> Any:
    path = Path(__file__).resolve().parents[1] / "migrations" / "checksums.py"
    spec = importlib.util.spec_from_file_location("checksums", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.checksum(rows)


COLUMN_FILES = {
    "timeseries.duckdb": (2000, 0),
    "timeseries_wal.duckdb": (1900, 100),
    "timeseries_never_checkpointed.duckdb": (0, 500),
    "timeseries_empty.duckdb": (0, 0),
}
RECORD_FILES: dict[str, dict[str, Any]] = {
    "offline_buffer.db": {
        "rows": records(500),
        "deleted": 60,
        "notes": [("last_sync", "1690000000.5"), ("version", "1"), ("site", "Werk Nürnberg")],
    },
    "offline_buffer_wal.db": {"rows": records(80), "logged": 30},
    "offline_buffer_odd.db": {"rows": ODD_RECORDS},
}


def main(target: Path) -> None:
    """Write every file in a process of its own, read copies of them, pack them."""
    target.mkdir(parents=True, exist_ok=True)
    expected = {}
    with tempfile.TemporaryDirectory() as temporary:
        made, looked_at = Path(temporary) / "made", Path(temporary) / "looked_at"
        made.mkdir()
        for name in (*COLUMN_FILES, *RECORD_FILES):
            subprocess.run([sys.executable, __file__, str(made / name), "one"], check=True)
        shutil.copytree(made, looked_at)
        for name in COLUMN_FILES:
            expected[name] = read_columns(looked_at / name)
        for name in RECORD_FILES:
            expected[name] = read_records(looked_at / name)
        for file in made.iterdir():
            if file.suffix != ".db-shm":
                (target / f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))
    (target / "expected.json").write_text(json.dumps({"files": expected}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    elif (one := Path(sys.argv[1])).name in COLUMN_FILES:
        write_columns(one, *COLUMN_FILES[one.name])
    else:
        write_records(one, **RECORD_FILES[one.name])
