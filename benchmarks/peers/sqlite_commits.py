"""Raw sqlite3, one durable commit per insert: the minimum cost of an insert that survives a power loss."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["PRAGMAS", "SQLiteCommits"]

PRAGMAS = (
    "journal_mode = WAL",  # one sequential append and one sync per commit, instead of two files
    "synchronous = FULL",  # the sync that makes a commit survive a power loss
    "temp_store = MEMORY",  # nothing but the log goes to the disk
)


class SQLiteCommits:
    """An append-only table without an index except its rowid, in autocommit mode."""

    name = "raw sqlite3 commits"

    def __init__(self, folder: Path) -> None:
        # Autocommit by SQLite itself: no BEGIN and COMMIT to prepare and step for each insert.
        self._connection = sqlite3.connect(folder / "commits.sqlite", isolation_level=None)
        for pragma in PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        # A rowid table appends to its last page: each commit writes one page to the WAL.
        self._connection.execute(
            "CREATE TABLE log (seq INTEGER PRIMARY KEY, series INTEGER NOT NULL, time_us INTEGER NOT NULL, "
            "value REAL, quality INTEGER, metadata TEXT) STRICT"
        )

    def insert(self, row: Sequence[Any]) -> None:
        """Insert one row (series, µs, value, quality, metadata); durable on return."""
        # The driver keeps the statement prepared, because its text is always the same.
        self._connection.execute("INSERT INTO log VALUES (NULL, ?, ?, ?, ?, ?)", row)

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._connection.execute("SELECT count(*) FROM log").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
