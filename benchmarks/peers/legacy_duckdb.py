"""The DuckDB storage of the legacy program: a primary key, two indexes, and a connection for each call.

Tuned within that design: whole tables are loaded by one `INSERT ... SELECT` each (the legacy program inserted single
rows), parameters are bound, results are fetched as tuples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.data import Readings
from benchmarks.peers.arrow import arrow_of
from benchmarks.peers.base import MINUTE_US, bucket, buckets, point, points

__all__ = ["CONFIG", "LegacyDuckDB"]

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,  # as in the store
    "memory_limit": "8GB",  # the indexes have to fit into memory
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS time_series_data (
    timestamp_us BIGINT, sensor_id VARCHAR, metric_name VARCHAR, value DOUBLE NOT NULL, quality INTEGER DEFAULT 100,
    metadata VARCHAR, PRIMARY KEY (timestamp_us, sensor_id, metric_name));
CREATE INDEX IF NOT EXISTS idx_time_sensor ON time_series_data (timestamp_us, sensor_id);
CREATE INDEX IF NOT EXISTS idx_metric ON time_series_data (metric_name, timestamp_us);
"""
_OF_ONE = "sensor_id = ? AND metric_name = ? AND timestamp_us >= ? AND timestamp_us < ?"


class LegacyDuckDB:
    """One file, opened for each call."""

    key = "legacy-duckdb"
    name = "legacy DuckDB storage"
    settings = "PRIMARY KEY (timestamp_us, sensor_id, metric_name), two indexes, a connection per call; " + (
        ", ".join(f"{name} {value}" for name, value in CONFIG.items())
    )

    def __init__(self, path: Path, series: Sequence[tuple[str, str]]) -> None:
        self.path = path
        self.series = list(series)
        with self._opened() as connection:
            connection.execute(_SCHEMA)

    def load(self, readings: Readings) -> None:
        """Insert all readings by one statement."""
        with self._opened() as connection:
            connection.register("given", arrow_of(readings))
            connection.execute("INSERT INTO time_series_data BY NAME SELECT * FROM given")

    def import_parquet(self, path: Path) -> None:
        """Read a file of the store by one statement."""
        with self._opened() as connection:
            connection.execute(
                "INSERT INTO time_series_data SELECT epoch_us(timestamp), sensor_id, metric_name, value, quality, "
                f"metadata FROM read_parquet('{path}')"
            )

    def settle(self) -> None:
        """Closing the connection has already written a checkpoint."""

    def count(self) -> int:
        """Return the number of points."""
        return int(self._rows("SELECT count(*) FROM time_series_data")[0][0])

    def size_bytes(self) -> int:
        """Return the bytes of the file."""
        return self.path.stat().st_size

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the points of one series."""
        pair = self.series[number]
        rows = self._rows(
            f"SELECT timestamp_us, value, quality, metadata FROM time_series_data WHERE {_OF_ONE} ORDER BY 1",
            (*pair, start_us, end_us),
        )
        return points(*pair, rows)

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        statement = f"SELECT avg(value) FROM time_series_data WHERE {_OF_ONE}"
        return float(self._rows(statement, (*self.series[number], start_us, end_us))[0][0])

    def minutes_of_one(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of one series."""
        pair = self.series[number]
        rows = self._rows(
            f"SELECT timestamp_us // {MINUTE_US}, avg(value) FROM time_series_data WHERE {_OF_ONE} GROUP BY 1",
            (*pair, start_us, end_us),
        )
        return buckets(*pair, rows)

    def minutes_of_all(self, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of all series."""
        rows = self._rows(
            f"SELECT sensor_id, metric_name, timestamp_us // {MINUTE_US}, avg(value) FROM time_series_data "
            "WHERE timestamp_us >= ? AND timestamp_us < ? GROUP BY ALL",
            (start_us, end_us),
        )
        return [bucket(*row) for row in rows]

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Return the newest point of one series."""
        pair = self.series[number]
        rows = self._rows(
            "SELECT timestamp_us, value, quality, metadata FROM time_series_data "
            "WHERE sensor_id = ? AND metric_name = ? ORDER BY timestamp_us DESC LIMIT 1",
            pair,
        )
        return point(*pair, *rows[0])

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Return the newest point of each series."""
        rows = self._rows(
            "SELECT sensor_id, metric_name, max(timestamp_us), arg_max(value, timestamp_us), "
            "arg_max(quality, timestamp_us), arg_max_null(metadata, timestamp_us) FROM time_series_data GROUP BY ALL"
        )
        return [point(*row) for row in rows]

    def close(self) -> None:
        """Nothing is open between calls."""

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._opened() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _opened(self) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = duckdb.connect(str(self.path), config=CONFIG)
        try:
            yield connection
        finally:
            connection.close()
