"""DuckDB by itself: `INSERT ... SELECT` of Arrow tables, each in its own transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

__all__ = ["CONFIG", "DuckDBInsert"]

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,  # as in the store
    "memory_limit": "1GB",  # never reached by a table of 100,000 rows
    # The checkpoint threshold is DuckDB's default, 16 MB: a lower one writes more, a higher one replays longer.
}


class DuckDBInsert:
    """A plain table of the store's columns, without a key, which would slow each insert down."""

    name = "DuckDB INSERT ... SELECT"

    def __init__(self, folder: Path) -> None:
        self._connection = duckdb.connect(str(folder / "insert.duckdb"), config=CONFIG)
        self._connection.execute(
            "CREATE TABLE points (sensor_id VARCHAR, metric_name VARCHAR, timestamp_us BIGINT, value DOUBLE, "
            "quality INTEGER, metadata VARCHAR)"
        )

    def insert(self, table: Any) -> None:
        """Insert an Arrow table, by the names of its columns; durable on return."""
        self._connection.register("given", table)
        self._connection.execute("INSERT INTO points BY NAME SELECT * FROM given")
        self._connection.unregister("given")

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._connection.execute("SELECT count(*) FROM points").fetchall()[0][0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
