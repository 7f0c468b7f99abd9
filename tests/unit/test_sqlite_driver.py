"""What the SQLite driver promises of its connections."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from repo.engines.sqlite import driver as sqlite


def test_a_connection_that_is_closed_in_a_transaction_with_an_open_statement_releases_its_lock(
    tmp_path: Path,
) -> None:
    engine = sqlite.open_engine(tmp_path / "a.db")
    raw = engine.raw_connection()
    connection = raw.driver_connection
    assert isinstance(connection, sqlite3.Connection)
    connection.execute("CREATE TABLE t (a)")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t VALUES (1), (2)")
    rows = connection.execute("SELECT a FROM t")
    assert next(rows) == (1,)
    connection.close()
    other = sqlite3.connect(tmp_path / "a.db", timeout=0, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.close()
    raw.invalidate()
    engine.dispose()
