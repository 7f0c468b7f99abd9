"""DuckDB by itself, one durable insert after the other, in autocommit mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

__all__ = ["CONFIG", "DuckDBAutocommit"]

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,  # as in the store; one row needs no more
    "memory_limit": "1GB",  # never reached here
    "checkpoint_threshold": "64MB",  # rare checkpoints: none in a short run
}


class DuckDBAutocommit:
    """A plain table on one connection that stays open; each insert is a transaction and a sync of the log."""

    name = "DuckDB autocommit"

    def __init__(self, folder: Path) -> None:
        self._connection = duckdb.connect(
            str(folder / "autocommit.duckdb"),
            config=CONFIG,
        )
        # Without a key, because one would slow each insert down.
        self._connection.execute(
            "CREATE TABLE points (series INTEGER, time_us BIGINT, value DOUBLE, quality INTEGER, metadata VARCHAR)"
        )

    def insert(self, row: Sequence[Any]) -> None:
        """Insert one row (series, µs, value, quality, metadata); durable on return."""
        # Measured: faster than a prepared statement, and than an appender that is flushed at each row.
        self._connection.execute("INSERT INTO points VALUES (?, ?, ?, ?, ?)", row)

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._connection.execute("SELECT count(*) FROM points").fetchall()[0][0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
