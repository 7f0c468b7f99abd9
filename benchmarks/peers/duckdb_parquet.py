"""DuckDB's own Parquet: `COPY ... TO`, and `INSERT ... SELECT` from `read_parquet`, each one statement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

__all__ = ["CONFIG", "DuckDBParquet"]

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,  # as in the store; the machine has no more
    "memory_limit": "128MB",  # as for the store in this comparison
}

_COLUMNS = "sensor_id, metric_name, make_timestamptz(timestamp_us) AS timestamp, value, quality, metadata"


class DuckDBParquet:
    """A plain table with the store's columns, without a key, in order of arrival."""

    name = "DuckDB"

    def __init__(self, path: Path) -> None:
        self._connection = duckdb.connect(str(path), config=CONFIG)
        self._connection.execute(
            "CREATE TABLE points (sensor_id VARCHAR, metric_name VARCHAR, timestamp_us BIGINT, value DOUBLE, "
            "quality INTEGER, metadata VARCHAR)"
        )

    def insert(self, table: Any) -> None:
        """Insert an Arrow table."""
        self._connection.register("given", table)
        self._connection.execute("INSERT INTO points BY NAME SELECT * FROM given")
        self._connection.unregister("given")

    def export(self, path: Path) -> None:
        """Write all points. DuckDB does not sync the file."""
        self._connection.execute(
            f"COPY (SELECT {_COLUMNS} FROM points) TO '{path}' (FORMAT parquet, COMPRESSION zstd, PARQUET_VERSION v2)"
        )

    def import_(self, path: Path) -> None:
        """Read all points; durable on return."""
        self._connection.execute(
            "INSERT INTO points SELECT sensor_id, metric_name, epoch_us(timestamp), value, quality, metadata "
            f"FROM read_parquet('{path}')"
        )

    def count(self) -> int:
        """Return the number of points."""
        return int(self._connection.execute("SELECT count(*) FROM points").fetchall()[0][0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
