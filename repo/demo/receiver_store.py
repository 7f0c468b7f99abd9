"""The receiver's store: a SQLite file of its own, with points, keys and a position. Knows no HTTP."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from repo.delivery.batch import BatchKey, checksum_of

__all__ = ["Keeping", "Taken", "stored_points"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS points (
    sensor_id TEXT NOT NULL, metric_name TEXT NOT NULL, timestamp_us INTEGER NOT NULL,
    value, quality INTEGER, metadata TEXT, seq INTEGER NOT NULL, arrival INTEGER NOT NULL,
    PRIMARY KEY (sensor_id, metric_name, timestamp_us)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (key TEXT PRIMARY KEY, repeats INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (store_id TEXT PRIMARY KEY, last_seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (
    id INTEGER PRIMARY KEY, arrivals INTEGER NOT NULL, dropped_by_seq INTEGER NOT NULL, holes INTEGER NOT NULL);
INSERT OR IGNORE INTO counters VALUES (1, 0, 0, 0);
"""

_TAKE = """
INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET value = excluded.value, quality = excluded.quality, metadata = excluded.metadata,
    seq = excluded.seq, arrival = excluded.arrival
"""


class Taken(NamedTuple):
    """The outcome for a batch. `expected`, the next seq, is set if the batch was refused for starting above it."""

    points: int
    dropped: int
    repeat: bool
    expected: int | None = None


class Keeping:
    """The receiver's database. Thread-safe; each batch is one transaction, durable when `take` returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)

    def take(self, key: BatchKey, body: bytes) -> Taken:
        """Store the new points of a batch: none if its key is known, otherwise those above the position."""
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            if self._database.execute(
                "UPDATE batches SET repeats = repeats + 1 WHERE key = ?", [str(key)]
            ).rowcount:
                return Taken(0, key.points, repeat=True)
            position = self._one("SELECT last_seq FROM positions WHERE store_id = ?", key.store_id) or 0
            if key.first_seq > position + 1:
                self._database.execute("UPDATE counters SET holes = holes + 1")
                return Taken(0, 0, repeat=False, expected=position + 1)
            points = [json.loads(line) for line in body.splitlines()]
            new = [point for point in points if point["seq"] > position]
            arrivals = self._one("SELECT arrivals FROM counters")
            self._database.executemany(
                _TAKE, (_row(point, arrival) for arrival, point in enumerate(new, arrivals + 1))
            )
            self._database.execute(
                "UPDATE counters SET arrivals = arrivals + ?, dropped_by_seq = dropped_by_seq + ?",
                [len(new), len(points) - len(new)],
            )
            self._database.execute("INSERT INTO batches (key) VALUES (?)", [str(key)])
            self._database.execute(
                "INSERT INTO positions VALUES (?, ?)"
                " ON CONFLICT DO UPDATE SET last_seq = max(last_seq, excluded.last_seq)",
                [key.store_id, key.last_seq],
            )
            return Taken(len(new), len(points) - len(new), repeat=False)

    def report(self) -> dict[str, Any]:
        """Count the content, check the order of arrival, and compute the checksum in order of seq."""
        with self._lock:
            return {
                "points": self._one("SELECT count(*) FROM points"),
                "batches": self._one("SELECT count(*) FROM batches"),
                "repeated_keys": [
                    row[0] for row in self._database.execute("SELECT key FROM batches WHERE repeats > 0")
                ],
                "repeated_batches": self._one("SELECT coalesce(sum(repeats), 0) FROM batches"),
                "dropped_by_seq": self._one("SELECT dropped_by_seq FROM counters"),
                "holes": self._one("SELECT holes FROM counters"),
                "out_of_order": self._one(
                    "SELECT count(*) FROM (SELECT seq, lag(seq) OVER (ORDER BY arrival) AS before FROM points)"
                    " WHERE seq <= before"
                ),
                "sha256": checksum_of(stored_points(self._database, "seq")),
            }

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _one(self, query: str, *values: Any) -> Any:
        row = self._database.execute(query, values).fetchone()
        return None if row is None else row[0]


def stored_points(database: sqlite3.Connection, order: str) -> Iterator[dict[str, Any]]:
    """Yield the points of a receiver's file in the order of `seq` or of `timestamp_us`."""
    assert order in ("seq", "timestamp_us")
    for sensor_id, metric_name, timestamp_us, value, quality, metadata, seq in database.execute(
        f"SELECT sensor_id, metric_name, timestamp_us, value, quality, metadata, seq FROM points ORDER BY {order}"
    ):
        yield {
            "seq": seq,
            "sensor_id": sensor_id,
            "metric_name": metric_name,
            "timestamp_us": timestamp_us,
            "value": value,
            "quality": quality,
            "metadata": None if metadata is None else json.loads(metadata),
        }


def _row(point: dict[str, Any], arrival: int) -> tuple[Any, ...]:
    metadata = point["metadata"]
    return (
        point["sensor_id"],
        point["metric_name"],
        point["timestamp_us"],
        point["value"],
        point["quality"],
        None if metadata is None else json.dumps(metadata, ensure_ascii=False),
        point["seq"],
        arrival,
    )
