"""InfluxDB 1 on loopback, and what is stored in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from tests.delivery.servers.process import Server, free_port, program

__all__ = ["InfluxDB"]

CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  auth-enabled = {auth}
  log-enabled = false
[monitor]
  store-enabled = false
"""


_SELECT = 'SELECT "value", "value_text", "quality", "metadata" FROM "{}" GROUP BY "sensor_id"'
"""For one measurement: of several at once, fields that differ in their types would be left out."""


class InfluxDB(Server):
    """A server with the database `site`; with `auth`, only the user `admin` with the password `s3cret` is served."""

    def __init__(self, folder: Path, *, auth: bool = False) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._auth = auth
        config = folder / "influxdb.conf"
        config.write_text(
            CONFIG.format(folder=folder, port=port, rpc=free_port(), auth="true" if auth else "false")
        )
        command = [program("influxd"), "run", "-config", str(config)]
        super().__init__(folder, command, port, self._ping)

    def _ping(self) -> bool:
        with urlopen(f"{self.url}/ping", timeout=5) as answer:
            return bool(answer.status == 204)

    def start(self) -> None:
        fresh = not (self.folder / "meta").exists()
        super().start()
        try:
            if fresh and self._auth:
                self.query(
                    "CREATE USER admin WITH PASSWORD 's3cret' WITH ALL PRIVILEGES", database="", user={}
                )
            if fresh:
                self.query("CREATE DATABASE site", database="")
        except BaseException:
            self.kill()
            raise

    def query(
        self, text: str, database: str = "site", user: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the series of an answer."""
        if user is None:
            user = {"u": "admin", "p": "s3cret"} if self._auth else {}
        where = urlencode({"db": database, "epoch": "u", **user})
        request = Request(f"{self.url}/query?{where}", urlencode({"q": text}).encode(), method="POST")
        with urlopen(request, timeout=60) as answer:
            results = json.loads(answer.read())["results"]
        assert not [one for one in results if "error" in one], results
        return [series for one in results for series in one.get("series", [])]

    def write(self, lines: str, database: str = "site") -> None:
        """Write line protocol with microseconds."""
        url = f"{self.url}/write?{urlencode({'db': database, 'precision': 'u'})}"
        urlopen(Request(url, lines.encode(), method="POST"), timeout=60).close()

    def points(self, database: str = "site") -> dict[tuple[str, str, int], tuple[Any, Any, Any, Any]]:
        """Return (value, value_text, quality, metadata) by (sensor, metric, µs)."""
        named = self.query("SHOW MEASUREMENTS", database)
        names = [row[0] for row in named[0]["values"]] if named else []
        query = ";".join(_SELECT.format(name.replace("\\", "\\\\").replace('"', '\\"')) for name in names)
        return {
            (one["tags"]["sensor_id"], one["name"], row[0]): tuple(row[1:])
            for one in (self.query(query, database) if names else [])
            for row in one["values"]
        }
