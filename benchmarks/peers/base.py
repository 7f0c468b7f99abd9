"""What a peer that is queried has to offer, and the form of its answers, which is the store's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any, Protocol

from benchmarks.data import Readings

__all__ = [
    "MINUTE_US",
    "Database",
    "bucket",
    "buckets",
    "microseconds",
    "minutes",
    "moment",
    "point",
    "points",
]

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


def points(sensor: str, metric: str, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return rows (µs, value, quality, metadata) of one series as dicts, without a call for each row."""
    moments = map(datetime.fromtimestamp, [row[0] / 1e6 for row in rows], repeat(UTC))
    return [
        {
            "sensor_id": sensor,
            "metric_name": metric,
            "timestamp": at,
            "timestamp_us": us,
            "value": value,
            "quality": quality,
            "metadata": None if metadata is None else json.loads(metadata),
        }
        for at, (us, value, quality, metadata) in zip(moments, rows, strict=True)
    ]


def bucket(sensor: str, metric: str, minute: int, average: float) -> dict[str, Any]:
    """Return the average of a minute, counted since 1970, as the store's dict."""
    at = datetime.fromtimestamp(minute * 60, UTC)
    return {"sensor_id": sensor, "metric_name": metric, "bucket": at, "avg": average}


def buckets(sensor: str, metric: str, rows: Iterable[tuple[int, float]]) -> list[dict[str, Any]]:
    """Return rows (minute, average) of one series as dicts."""
    start = datetime.fromtimestamp
    return [
        {"sensor_id": sensor, "metric_name": metric, "bucket": start(minute * 60, UTC), "avg": average}
        for minute, average in rows
    ]


def minutes(
    series: Sequence[tuple[str, str]], rows: Iterable[tuple[int, int, float]]
) -> list[dict[str, Any]]:
    """Return rows (number of the series, minute, average) as dicts."""
    start = datetime.fromtimestamp
    return [
        {"sensor_id": sensor, "metric_name": metric, "bucket": start(minute * 60, UTC), "avg": average}
        for number, minute, average in rows
        for sensor, metric in (series[number],)
    ]
