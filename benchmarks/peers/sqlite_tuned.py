"""Tuned SQLite: how an expert would store time series in SQLite.

A small table numbers the names, so that the key of a point is two integers. The points are one clustered b-tree in the
order of the queries.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import Readings
from benchmarks.peers.base import MINUTE_US, buckets, point, points

__all__ = ["INSERT", "PRAGMAS", "TunedSQLite"]

INSERT = "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)"
"""A point with the same identity is overwritten, as in the store."""

PRAGMAS = (
    "page_size = 4096",  # a batch changes one page per series: larger ones only lengthen the WAL (measured: 1-8 KiB)
    "journal_mode = WAL",  # concurrent readers, one sync per commit
    "synchronous = FULL",  # acknowledged means on the disk, as in the store
    "cache_size = -64000",  # 64 MB, as the store's limit for DuckDB
    "mmap_size = 1073741824",  # reads come from the page cache without a copy
    "temp_store = MEMORY",  # GROUP BY and ORDER BY never use the disk
    "wal_autocheckpoint = 8000",  # 32 MB: each hot page is written back once, not once per batch
)


class TunedSQLite:
    """One file, one connection. Times are µs; a series is identified by its number."""

    key = "tuned-sqlite"
    name = "tuned SQLite"
    settings = "WITHOUT ROWID, key (series, time), numbers for names; " + ", ".join(PRAGMAS)

    def __init__(self, path: Path, series: Sequence[tuple[str, str]]) -> None:
        self.path = path
        self.series = list(series)
        self.numbers: Mapping[tuple[str, str], int] = {pair: number for number, pair in enumerate(series)}
        # The driver caches 128 prepared statements; there are far fewer here.
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in PRAGMAS:
            self.connection.execute(f"PRAGMA {pragma}")
        # WITHOUT ROWID keeps the rows in the key's own b-tree: no second look-up, no second index.
        self.connection.executescript(
            """
            CREATE TABLE IF NOT EXISTS series (
                number INTEGER PRIMARY KEY, sensor_id TEXT NOT NULL, metric_name TEXT NOT NULL,
                UNIQUE (sensor_id, metric_name)) STRICT;
            CREATE TABLE IF NOT EXISTS points (
                series INTEGER NOT NULL, time_us INTEGER NOT NULL, value REAL, quality INTEGER NOT NULL DEFAULT 100,
                metadata TEXT, PRIMARY KEY (series, time_us)) STRICT, WITHOUT ROWID;
            """
        )
        self.connection.executemany(
            "INSERT OR IGNORE INTO series VALUES (?, ?, ?)", [(n, *pair) for n, pair in enumerate(series)]
        )

    # --- writing --------------------------------------------------------------------------------------

    def insert_many(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows (series, µs, value, quality, metadata) in one transaction; durable on return."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(INSERT, rows)
        self.connection.execute("COMMIT")

    def insert_named(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert an application's rows (sensor, metric, Unix seconds, value), after looking up the series numbers."""
        numbers = self.numbers
        self.insert_many([(numbers[s, m], round(at * 1e6), value, 100, None) for s, m, at, value in rows])

    def load(self, readings: Readings) -> None:
        """Insert readings in one transaction."""
        self.insert_many(readings.keyed_tuples())

    def settle(self) -> None:
        """Write the log back, and gather statistics."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.connection.execute("ANALYZE")

    # --- reading --------------------------------------------------------------------------------------

    def count(self) -> int:
        """Return the number of points."""
        return int(self.connection.execute("SELECT count(*) FROM points").fetchone()[0])

    def size_bytes(self) -> int:
        """Return the bytes of the file; the log is empty after `settle`."""
        return self.path.stat().st_size

    def range_tuples(self, number: int, start_us: int, end_us: int) -> list[tuple[Any, ...]]:
        """Return (µs, value, quality, metadata) of one series in order of time."""
        return self.connection.execute(
            "SELECT time_us, value, quality, metadata FROM points "
            "WHERE series = ? AND time_us >= ? AND time_us < ? ORDER BY time_us",
            (number, start_us, end_us),
        ).fetchall()

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the same as dicts, like the store."""
        sensor, metric = self.series[number]
        return points(sensor, metric, self.range_tuples(number, start_us, end_us))

    def range_arrow(self, number: int, start_us: int, end_us: int) -> Any:
        """Return the same as an Arrow table with the columns of the store."""
        import pyarrow

        pa: Any = pyarrow
        times, values, qualities, metadata = zip(*self.range_tuples(number, start_us, end_us), strict=True)
        sensor, metric = self.series[number]
        rows = len(times)
        return pa.table(
            {
                "sensor_id": pa.repeat(sensor, rows).dictionary_encode(),
                "metric_name": pa.repeat(metric, rows).dictionary_encode(),
                "timestamp": pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
                "value": pa.array(values, pa.float64()),
                "value_text": pa.nulls(rows, pa.string()),
                "quality": pa.array(qualities, pa.int32()),
                "metadata": pa.array(metadata, pa.string()),
            }
        )

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        row = self.connection.execute(
            "SELECT avg(value) FROM points WHERE series = ? AND time_us >= ? AND time_us < ?",
            (number, start_us, end_us),
        ).fetchone()
        return float(row[0])

    def minutes_of_one(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of one series."""
        sensor, metric = self.series[number]
        # The key gives the rows in order of time, so that GROUP BY needs no sorter.
        rows = self.connection.execute(
            f"SELECT time_us / {MINUTE_US}, avg(value) FROM points "
            "WHERE series = ? AND time_us >= ? AND time_us < ? GROUP BY 1",
            (number, start_us, end_us),
        )
        return buckets(sensor, metric, rows)

    def minutes_of_all(self, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of every series."""
        # A query a series keeps each in the order of the key; one GROUP BY over all would sort ten million rows.
        return [
            row for number in range(len(self.series)) for row in self.minutes_of_one(number, start_us, end_us)
        ]

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Return the newest point of one series: one descent of the b-tree."""
        row = self.connection.execute(
            "SELECT time_us, value, quality, metadata FROM points WHERE series = ? ORDER BY time_us DESC LIMIT 1",
            (number,),
        ).fetchone()
        return point(*self.series[number], *row)

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Return the newest point of each series: one descent each, in one statement."""
        rows = self.connection.execute(
            "SELECT s.sensor_id, s.metric_name, p.time_us, p.value, p.quality, p.metadata "
            "FROM series AS s CROSS JOIN points AS p ON p.series = s.number "
            "AND p.time_us = (SELECT max(time_us) FROM points WHERE series = s.number) ORDER BY 1, 2"
        )
        return [point(*row) for row in rows]

    def drain(self, page_rows: int) -> Iterator[list[tuple[Any, ...]]]:
        """Yield all points in pages, in the order of the key, which costs SQLite least."""
        cursor = self.connection.execute("SELECT series, time_us, value, quality, metadata FROM points")
        cursor.arraysize = page_rows
        while page := cursor.fetchmany():
            yield page

    def drain_dicts(self, page_rows: int) -> Iterator[list[dict[str, Any]]]:
        """Yield the same pages as dicts, like the store."""
        series = self.series
        for page in self.drain(page_rows):
            yield [point(*series[number], *rest) for number, *rest in page]

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
