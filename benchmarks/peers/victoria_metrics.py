"""VictoriaMetrics, as installed from the distribution, over HTTP.

It keeps a number and a time in milliseconds: no quality, no metadata, no µs. It syncs its files every few seconds, not
before it answers. Its figures are therefore for less than the others do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import Readings
from benchmarks.peers.base import point
from benchmarks.servers import Http, Server, binary, free_port

__all__ = ["VictoriaMetrics"]

_WRITTEN_S = 10.0
"""Twice the time that data stays in memory only."""


class VictoriaMetrics:
    """A server of its own on loopback."""

    key = "victoria-metrics"
    name = "VictoriaMetrics"
    settings = (
        "line protocol in; times in ms, no quality and no metadata, NOT synced before the answer; "
        "-retentionPeriod=100y -search.latencyOffset=0s -search.disableCache"
    )

    def __init__(self, parent: Path, series: Sequence[tuple[str, str]]) -> None:
        self.series = list(series)
        self._server = Server(parent)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        found = binary("victoria-metrics", "victoria-metrics-prod")
        assert found is not None  # `missing` says so first
        self._http = Http(port)
        command = [
            found,
            f"-storageDataPath={self._server.folder / 'data'}",
            f"-httpListenAddr=127.0.0.1:{port}",
            "-retentionPeriod=100y",
            "-search.latencyOffset=0s",
            "-search.disableCache",  # a repeated query is computed again, as on the other sides
            "-search.maxPointsPerTimeseries=10000000",
        ]
        self._server.start(command, lambda: self._http.get("/health"))
        self._tags = [f"p,s={sensor},m={metric} v=" for sensor, metric in self.series]

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot run here."""
        found = binary("victoria-metrics", "victoria-metrics-prod")
        return None if found else "VictoriaMetrics is not installed"

    def rows(self, readings: Readings) -> list[Any]:
        """Return rows whose names are numbered; the text of the protocol is part of an insert."""
        return readings.keyed_tuples()

    def insert(self, rows: Sequence[Any]) -> None:
        """Send lines; NOT durable on return."""
        tags = self._tags
        lines = [f"{tags[number]}{value!r} {us // 1000}" for number, us, value, _, _ in rows]
        self._http.post("/write?precision=ms", "\n".join(lines).encode())

    def load(self, readings: Readings) -> None:
        """Insert readings, 10,000 a request."""
        rows = self.rows(readings)
        for start in range(0, len(rows), 10_000):
            self.insert(rows[start : start + 10_000])

    def settle(self) -> None:
        """Make what was sent visible to queries, and wait until it is in files."""
        self._http.get("/internal/force_flush")
        time.sleep(_WRITTEN_S)

    def count(self) -> int:
        """Return the number of points."""
        self._http.get("/internal/force_flush")
        lines = self._http.get("/api/v1/export", {"match[]": "p_v"}).splitlines()
        return sum(len(json.loads(line)["values"]) for line in lines)

    def size_bytes(self) -> int:
        """Return the bytes of all files."""
        return self._server.size_bytes()

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the points of one series; their quality is made up."""
        lines = self._http.get(
            "/api/v1/export",
            {
                "match[]": self._of(number),
                "start": f"{start_us / 1e6:.3f}",
                "end": f"{(end_us - 1000) / 1e6:.3f}",
            },
        ).splitlines()
        pair = self.series[number]
        return [
            point(*pair, ms * 1000, value, 100, None)
            for line in lines
            for found in (json.loads(line),)
            for ms, value in zip(found["timestamps"], found["values"], strict=True)
        ]

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        # A window is (end - width, end]; one that ends a millisecond earlier is [start, end) in milliseconds.
        width_s = (end_us - start_us) // 10**6
        end = (end_us - 1000) / 1e6
        ((_, value),) = self._values(f"avg_over_time({self._of(number)}[{width_s}s])", end)
        return value

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Return the newest point of one series."""
        return self._latest(self._of(number))[0]

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Return the newest point of each series."""
        return self._latest("p_v")

    def close(self) -> None:
        """Stop the server."""
        self._http.close()
        self._server.close()

    def _of(self, number: int) -> str:
        sensor, metric = self.series[number]
        return f'p_v{{s="{sensor}",m="{metric}"}}'

    def _latest(self, selector: str) -> list[dict[str, Any]]:
        # The end lies after all points, whose newest is at most a few days older.
        end = self._end_s
        times = dict(self._values(f"tlast_over_time({selector}[9d])", end))
        values = self._values(f"last_over_time({selector}[9d])", end)
        return [point(*pair, round(times[pair] * 1000) * 1000, value, 100, None) for pair, value in values]

    @property
    def _end_s(self) -> float:
        from benchmarks.data import START_US

        return START_US / 1e6 + 8 * 86_400

    def _values(self, query: str, at_s: float) -> list[tuple[tuple[str, str], float]]:
        answer = self._http.get("/api/v1/query", {"query": query, "time": f"{at_s:.3f}"})
        result = json.loads(answer)["data"]["result"]
        return [((row["metric"]["s"], row["metric"]["m"]), float(row["value"][1])) for row in result]
