"""The SQLite buffer of the legacy program: a JSON row for each record, found by the index on its time.

Tuned within that design: WAL, a large cache, record ids in ascending order, rows inserted in large transactions (the
legacy program committed each one). A question about one series still reads every record of the time span, because the
name of the series is inside the JSON.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import Readings
from benchmarks.peers.base import MINUTE_US, bucket, buckets, microseconds, point

__all__ = ["LegacySQLite", "LegacySQLiteFiltered"]

PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "cache_size = -64000",
    "mmap_size = 4294967296",
    "temp_store = MEMORY",
    "wal_autocheckpoint = 8000",
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS buffered_records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, record_id TEXT UNIQUE NOT NULL, source TEXT NOT NULL, data TEXT NOT NULL,
    timestamp REAL NOT NULL, retry_count INTEGER DEFAULT 0, last_retry REAL, created_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS idx_timestamp ON buffered_records (timestamp);
CREATE INDEX IF NOT EXISTS idx_source ON buffered_records (source);
CREATE INDEX IF NOT EXISTS idx_retry_count ON buffered_records (retry_count);
"""
_INSERT = (
    "INSERT INTO buffered_records (record_id, source, data, timestamp, created_at) VALUES (?, ?, ?, ?, ?)"
)
_SPAN = (
    "SELECT data, timestamp FROM buffered_records WHERE timestamp >= ? AND timestamp < ? ORDER BY timestamp"
)
_NEWEST = "SELECT data, timestamp FROM buffered_records ORDER BY timestamp DESC"

_Row = tuple[dict[str, Any], int]
"""The decoded data of a record, and its time in µs."""


class LegacySQLite:
    """One file and one connection; what SQL cannot see is decoded and filtered in Python."""

    key = "legacy-sqlite"
    name = "legacy SQLite buffer"
    settings = "a JSON row per record, queried by its index on time and decoded in Python; " + ", ".join(
        PRAGMAS
    )

    def __init__(self, path: Path, series: Sequence[tuple[str, str]]) -> None:
        self.path = path
        self.series = list(series)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)
        self._next = self.count()

    def load(self, readings: Readings) -> None:
        """Insert a record for each reading, in one transaction."""
        qualities = readings.qualities or [100] * len(readings)
        self.insert_columns(
            [readings.series[code] for code in readings.codes],
            readings.times_us,
            readings.values,
            qualities,
            [readings.metadata.get(row) for row in range(len(readings))],
        )

    def insert_columns(
        self, pairs: Any, times_us: Any, values: Any, qualities: Any, metadata: Sequence[str | None]
    ) -> None:
        """Insert a record for each row of the columns, in one transaction; durable on return."""
        dumps, first = json.dumps, self._next

        def rows() -> Iterator[tuple[Any, ...]]:
            for number, ((sensor, metric), us, value, quality, extra) in enumerate(
                zip(pairs, times_us, values, qualities, metadata, strict=True), first
            ):
                data = {"sensor_id": sensor, "metric_name": metric, "value": value, "quality": quality}
                if extra is not None:
                    data["metadata"] = json.loads(extra)
                seconds = us / 1e6
                yield f"REC-{number:010}", "gateway", dumps(data), seconds, seconds

        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_INSERT, rows())
        self._connection.execute("COMMIT")
        self._next = first + len(times_us)

    def import_parquet(self, path: Path) -> None:
        """Read a file of the store through pyarrow."""
        import pyarrow.parquet

        pa: Any = pyarrow
        for batch in pa.parquet.ParquetFile(path).iter_batches(batch_size=122_880):
            sensors, metrics, times, values, qualities, metadata = (
                column.to_pylist()
                for column in (
                    batch["sensor_id"],
                    batch["metric_name"],
                    batch["timestamp"].cast(pa.int64()),
                    batch["value"],
                    batch["quality"],
                    batch["metadata"],
                )
            )
            self.insert_columns(zip(sensors, metrics, strict=True), times, values, qualities, metadata)

    def settle(self) -> None:
        """Write the log back, and gather statistics."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.execute("ANALYZE")

    def count(self) -> int:
        """Return the number of records."""
        return int(self._connection.execute("SELECT count(*) FROM buffered_records").fetchone()[0])

    def size_bytes(self) -> int:
        """Return the bytes of the file; the log is empty after `settle`."""
        return self.path.stat().st_size

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the points of one series."""
        return [_dict(data, us) for data, us in self._rows_of(number, start_us, end_us)]

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        values = [data["value"] for data, _ in self._rows_of(number, start_us, end_us)]
        return float(sum(values) / len(values))

    def minutes_of_one(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of one series."""
        return _minutes(self._rows_of(number, start_us, end_us))

    def minutes_of_all(self, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of all series, in one pass."""
        return _minutes(self._rows(start_us, end_us))

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Go back in time until there is a record of the series."""
        sensor, metric = self.series[number]
        for data, us in self._newest():
            if data["sensor_id"] == sensor and data["metric_name"] == metric:
                return _dict(data, us)
        raise LookupError(f"no record of {sensor} {metric}")

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Go back in time until there is a record of each series."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for data, us in self._newest():
            pair = data["sensor_id"], data["metric_name"]
            if pair not in found:
                found[pair] = _dict(data, us)
                if len(found) == len(self.series):
                    break
        return list(found.values())

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _rows(self, start_us: int, end_us: int) -> Iterator[_Row]:
        loads = json.loads
        for data, seconds in self._connection.execute(_SPAN, (start_us / 1e6, end_us / 1e6)):
            yield loads(data), microseconds(seconds)

    def _rows_of(self, number: int, start_us: int, end_us: int) -> Iterator[_Row]:
        sensor, metric = self.series[number]
        loads = json.loads
        # Written out, not over _rows: this loop is what the peer spends its time on.
        for text, seconds in self._connection.execute(_SPAN, (start_us / 1e6, end_us / 1e6)):
            data = loads(text)
            if data["sensor_id"] == sensor and data["metric_name"] == metric:
                yield data, microseconds(seconds)

    def _newest(self) -> Iterator[_Row]:
        cursor = self._connection.execute(_NEWEST)
        try:
            for data, seconds in cursor:
                yield json.loads(data), microseconds(seconds)
        finally:
            cursor.close()


class LegacySQLiteFiltered(LegacySQLite):
    """The same file, asked as the legacy program did not: SQL selects the series by a piece of the JSON."""

    key = "legacy-sqlite-filtered"
    name = "legacy SQLite buffer, filtered in SQL"
    settings = (
        "the same file; SQL selects the records of a series by instr(data, ...), and json_extract the values"
    )

    _OF_ONE = "FROM buffered_records WHERE timestamp >= ? AND timestamp < ? AND instr(data, ?) > 0"

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        statement = f"SELECT avg(json_extract(data, '$.value')) {self._OF_ONE}"
        return float(self._connection.execute(statement, self._bound(number, start_us, end_us)).fetchone()[0])

    def minutes_of_one(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of one series."""
        minute = "CAST(timestamp AS INTEGER) / 60"
        statement = f"SELECT {minute}, avg(json_extract(data, '$.value')) {self._OF_ONE} GROUP BY 1"
        rows = self._connection.execute(statement, self._bound(number, start_us, end_us))
        return buckets(*self.series[number], rows)

    def _rows_of(self, number: int, start_us: int, end_us: int) -> Iterator[_Row]:
        statement = f"SELECT data, timestamp {self._OF_ONE} ORDER BY timestamp"
        for text, seconds in self._connection.execute(statement, self._bound(number, start_us, end_us)):
            yield json.loads(text), microseconds(seconds)

    def _bound(self, number: int, start_us: int, end_us: int) -> tuple[Any, ...]:
        sensor, metric = self.series[number]
        # As json.dumps wrote it. A text inside the JSON cannot look like this, because its quotes are escaped.
        piece = json.dumps({"sensor_id": sensor, "metric_name": metric})[1:-1]
        return start_us / 1e6, end_us / 1e6, piece


def _dict(data: dict[str, Any], us: int) -> dict[str, Any]:
    extra = data.get("metadata")
    text = None if extra is None else json.dumps(extra)
    return point(data["sensor_id"], data["metric_name"], us, data["value"], data["quality"], text)


def _minutes(rows: Iterator[_Row]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str, int], list[float]] = {}
    for data, us in rows:
        key = data["sensor_id"], data["metric_name"], us // MINUTE_US
        entry = sums.get(key)
        if entry is None:
            sums[key] = [data["value"], 1]
        else:
            entry[0] += data["value"]
            entry[1] += 1
    return [bucket(*key, total / count) for key, (total, count) in sums.items()]
