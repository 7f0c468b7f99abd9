"""TinyFlux: a CSV file in pure Python, without a sync."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import Readings
from benchmarks.peers.base import moment, point

__all__ = ["TinyFluxFile"]


class TinyFluxFile:
    """One file with TinyFlux's index of times; sensor and metric are tags."""

    key = "tinyflux"
    name = "TinyFlux"
    settings = "insert_multiple, auto_index, compact key prefixes; NOT synced"

    def __init__(self, parent: Path, series: Sequence[tuple[str, str]]) -> None:
        import tinyflux

        self._tinyflux: Any = tinyflux
        parent.mkdir(parents=True, exist_ok=True)
        self._path = parent / "tinyflux.csv"
        self._path.unlink(missing_ok=True)
        self.series = list(series)
        self._file: Any = tinyflux.TinyFlux(self._path)

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot run here."""
        try:
            import tinyflux
        except ImportError:
            return "tinyflux is not installed"
        del tinyflux
        return None

    def rows(self, readings: Readings) -> list[Any]:
        """Return rows whose names are numbered; TinyFlux's own objects are part of an insert."""
        return readings.keyed_tuples()

    def insert(self, rows: Sequence[Any]) -> None:
        """Append points; NOT durable on return."""
        point_of, series = self._tinyflux.Point, self.series
        points = []
        for number, us, value, quality, _ in rows:
            sensor, metric = series[number]
            points.append(
                point_of(time=moment(us), tags={"s": sensor, "m": metric}, fields={"v": value, "q": quality})
            )
        self._file.insert_multiple(points, compact_key_prefixes=True)

    def load(self, readings: Readings) -> None:
        """Insert readings."""
        self.insert(self.rows(readings))

    def settle(self) -> None:
        """Sort the file by time, which its index needs."""
        self._file.reindex()

    def count(self) -> int:
        """Return the number of points."""
        return len(self._file)

    def size_bytes(self) -> int:
        """Return the bytes of the file."""
        return self._path.stat().st_size

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the points of one series."""
        return [self._dict(found) for found in self._file.search(self._span(number, start_us, end_us))]

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        values = self._file.select("fields.v", self._span(number, start_us, end_us))
        return float(sum(values) / len(values))

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Return the newest point of one series, of all that it has."""
        return self._dict(self._file.search(self._of(number))[-1])

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Return the newest point of each series, in one pass."""
        newest = {(found.tags["s"], found.tags["m"]): found for found in self._file.all()}
        return [self._dict(found) for found in newest.values()]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _of(self, number: int) -> Any:
        sensor, metric = self.series[number]
        tags = self._tinyflux.TagQuery()
        return (tags.s == sensor) & (tags.m == metric)

    def _span(self, number: int, start_us: int, end_us: int) -> Any:
        time = self._tinyflux.TimeQuery()
        return (time >= moment(start_us)) & (time < moment(end_us)) & self._of(number)

    def _dict(self, found: Any) -> dict[str, Any]:
        us = round(found.time.timestamp() * 1e6)
        return point(found.tags["s"], found.tags["m"], us, found.fields["v"], int(found.fields["q"]), None)
