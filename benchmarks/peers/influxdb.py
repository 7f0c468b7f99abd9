"""InfluxDB 1.6, as installed from the distribution, over HTTP: line protocol in, InfluxQL out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import Readings
from benchmarks.peers.base import point
from benchmarks.servers import Http, Server, binary, free_port

__all__ = ["InfluxDB"]

_CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  index-version = "inmem"
  wal-fsync-delay = "0s"
  query-log-enabled = false
[http]
  bind-address = "127.0.0.1:{http}"
  log-enabled = false
  max-row-limit = 0
[monitor]
  store-enabled = false
[retention]
  enabled = false
[continuous_queries]
  enabled = false
"""


class InfluxDB:
    """A server of its own on loopback; a measurement with two tags and two fields."""

    key = "influxdb"
    name = "InfluxDB 1.6"
    settings = "tags s and m, fields v and q, times in µs, wal-fsync-delay 0s (synced before the answer), inmem index"

    def __init__(self, parent: Path, series: Sequence[tuple[str, str]]) -> None:
        self.series = list(series)
        self._server = Server(parent)
        port = free_port()
        config = self._server.folder / "influxdb.conf"
        config.write_text(_CONFIG.format(folder=self._server.folder, rpc=free_port(), http=port))
        config.chmod(0o644)
        found = binary("influxd")
        assert found is not None  # `missing` says so first
        self._http = Http(port)
        self._server.start([found, "-config", str(config)], lambda: self._http.get("/ping"))
        self._http.post("/query?q=CREATE+DATABASE+b", b"")
        self._tags = [f"p,s={sensor},m={metric} v=" for sensor, metric in self.series]

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot run here."""
        return None if binary("influxd") else "InfluxDB is not installed"

    def rows(self, readings: Readings) -> list[Any]:
        """Return rows whose names are numbered; the text of the protocol is part of an insert."""
        return readings.keyed_tuples()

    def insert(self, rows: Sequence[Any]) -> None:
        """Send lines; durable on return."""
        tags = self._tags
        lines = [f"{tags[number]}{value!r},q={quality}i {us}" for number, us, value, quality, _ in rows]
        self._http.post("/write?db=b&precision=u", "\n".join(lines).encode())

    def load(self, readings: Readings) -> None:
        """Insert readings, 10,000 a request."""
        rows = self.rows(readings)
        for start in range(0, len(rows), 10_000):
            self.insert(rows[start : start + 10_000])

    def settle(self) -> None:
        """Nothing to wait for: it compacts when nothing was written for hours."""

    def count(self) -> int:
        """Return the number of points."""
        found = self._rows("SELECT count(v) FROM p")
        return int(found[0][1][1]) if found else 0

    def size_bytes(self) -> int:
        """Return the bytes of all files, with the log."""
        return self._server.size_bytes()

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the points of one series."""
        pair = self.series[number]
        found = self._rows(f"SELECT v, q FROM p WHERE {self._of(number)} AND {_span(start_us, end_us)}")
        return [point(*pair, us, value, quality, None) for _, (us, value, quality) in found]

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        found = self._rows(f"SELECT mean(v) FROM p WHERE {self._of(number)} AND {_span(start_us, end_us)}")
        return float(found[0][1][1])

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Return the newest point of one series."""
        ((_, (us, value, quality)),) = self._rows(f"SELECT last(v), q FROM p WHERE {self._of(number)}")
        return point(*self.series[number], us, value, quality, None)

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Return the newest point of each series."""
        found = self._rows("SELECT last(v), q FROM p GROUP BY s, m")
        return [point(tags["s"], tags["m"], us, value, quality, None) for tags, (us, value, quality) in found]

    def close(self) -> None:
        """Stop the server."""
        self._http.close()
        self._server.close()

    def _of(self, number: int) -> str:
        sensor, metric = self.series[number]
        return f"s = '{sensor}' AND m = '{metric}'"

    def _rows(self, query: str) -> list[tuple[dict[str, str], list[Any]]]:
        """Return the tags and the values of each row."""
        answer = json.loads(self._http.get("/query", {"db": "b", "epoch": "u", "q": query}))
        (result,) = answer["results"]
        if "error" in result:
            raise RuntimeError(f"{query}: {result['error']}")
        return [
            (series.get("tags", {}), row) for series in result.get("series", []) for row in series["values"]
        ]


def _span(start_us: int, end_us: int) -> str:
    return f"time >= {start_us}u AND time < {end_us}u"
