"""What a peer that is queried has to offer, and the form of its answers, which is the store's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from benchmarks.data import Readings

__all__ = ["MINUTE_US", "Database", "bucket", "microseconds", "minutes", "moment", "point"]

MINUTE_US = 60_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Database(Protocol):
    """A database with the readings of a stream. A series is given by its number in that stream, times in µs."""

    key: str
    """Names the peer in targets.toml."""

    name: str
    settings: str
    """Design and tuning, for the report."""

    def load(self, readings: Readings) -> None:
        """Insert readings in the fastest way of the peer; durable on return if the peer can do that."""

    def settle(self) -> None:
        """Finish what the peer does in the background after a load: merges, checkpoints, statistics."""

    def count(self) -> int:
        """Return the number of points."""

    def size_bytes(self) -> int:
        """Return the bytes of its files."""

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the points of a series in [start, end) in order of time, as the store's dicts."""

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of a series in [start, end)."""

    def minutes_of_one(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the 1-minute averages of a series."""

    def minutes_of_all(self, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the 1-minute averages of every series."""

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Return the newest point of a series."""

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Return the newest point of each series."""

    def close(self) -> None:
        """Let go of the files, and stop what was started."""


def moment(us: int) -> datetime:
    """Return µs since 1970 as a datetime."""
    return _EPOCH + timedelta(microseconds=us)


def microseconds(seconds: float) -> int:
    """Return Unix seconds as µs."""
    return round(seconds * 1e6)


def point(
    sensor: str, metric: str, us: int, value: float | None, quality: int, metadata: str | None
) -> dict[str, Any]:
    """Return a point as the store's dict; metadata is JSON text."""
    return {
        "sensor_id": sensor,
        "metric_name": metric,
        "timestamp": moment(us),
        "timestamp_us": us,
        "value": value,
        "quality": quality,
        "metadata": None if metadata is None else json.loads(metadata),
    }


def bucket(sensor: str, metric: str, minute: int, average: float) -> dict[str, Any]:
    """Return the average of a minute, counted since 1970, as the store's dict."""
    return {"sensor_id": sensor, "metric_name": metric, "bucket": moment(minute * MINUTE_US), "avg": average}


def minutes(
    series: Sequence[tuple[str, str]], rows: Iterable[tuple[int, int, float]]
) -> list[dict[str, Any]]:
    """Return rows (number of the series, minute, average) as dicts."""
    return [bucket(*series[number], minute, average) for number, minute, average in rows]
