"""VictoriaMetrics on loopback, and what is stored in it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.request import urlopen

from tests.delivery.servers.process import Server, free_port, program

__all__ = ["VictoriaMetrics"]


class VictoriaMetrics(Server):
    """A single node. It keeps milliseconds and numbers only."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            program("victoria-metrics"),
            f"-storageDataPath={folder}/data",
            f"-httpListenAddr=127.0.0.1:{port}",
            "-retentionPeriod=100y",
            "-memory.allowedPercent=20",
        ]
        super().__init__(folder, command, port, self._healthy)

    def _healthy(self) -> bool:
        with urlopen(f"{self.url}/health", timeout=5) as answer:
            return bool(answer.status == 200)

    def points(self, least: int = 1) -> dict[tuple[str, str, int], float]:
        """Return the value by (sensor, metric, ms), once there are so many points: they take a second to appear."""
        limit = time.monotonic() + 300
        while len(found := self._points()) < least and time.monotonic() < limit:
            time.sleep(0.1)
        return found

    def settled(self) -> dict[tuple[str, str, int], float]:
        """Return the same, once nothing has been added for a second."""
        found = self._points()
        while True:
            time.sleep(1.1)
            if (later := self._points()) == found:
                return found
            found = later

    def samples(self) -> list[tuple[tuple[str, str, int], float]]:
        """Return every value, by (sensor, metric, ms): of a point that was overwritten, the older ones stay."""
        urlopen(f"{self.url}/internal/force_flush", timeout=60).close()
        with urlopen(f"{self.url}/api/v1/export?match[]={{__name__=~%22.*_value%22}}", timeout=60) as answer:
            lines = [json.loads(line) for line in answer]
        return [
            ((line["metric"]["sensor_id"], line["metric"]["__name__"].removesuffix("_value"), at), value)
            for line in lines
            for at, value in zip(line["timestamps"], line["values"], strict=True)
        ]

    def _points(self) -> dict[tuple[str, str, int], float]:
        return dict(self.samples())
