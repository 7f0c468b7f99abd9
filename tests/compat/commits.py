"""A measure for the speed of this machine: what a commit of plain SQLite takes, so that no bound is in seconds."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

__all__ = ["MOST_COMMITS", "cpu_s_of_a_commit"]

MOST_COMMITS = 150
"""The most that adding or settling a record may take, in commits of plain SQLite. Measured: 4 to 8."""

_COMMITS = 300


def cpu_s_of_a_commit(file: Path) -> float:
    """Return the CPU time of one durable commit of a small row."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE t (i INTEGER PRIMARY KEY, text TEXT)")
        started_s = time.process_time()
        for _ in range(_COMMITS):
            database.execute("INSERT INTO t (text) VALUES ('a small row')")
        return (time.process_time() - started_s) / _COMMITS
