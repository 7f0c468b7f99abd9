"""What the SQLite driver promises of its connections."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from repo.engines.sqlite import driver as sqlite
from repo.errors import HoldfastError, StoreCorrupt


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


def test_a_connection_that_can_only_read_is_replaced_after_the_first_write_that_fails(tmp_path: Path) -> None:
    """As if SQLite had no descriptor left to open the log for writing, and opened it for reading."""
    engine = sqlite.open_engine(tmp_path / "file.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a INTEGER)")
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(DBAPIError, match="readonly"), engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    engine.dispose()


def test_a_connection_is_replaced_after_an_error_that_passed_sqlalchemy_by(tmp_path: Path) -> None:
    engine = sqlite.open_engine(tmp_path / "file.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a INTEGER)")
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        sqlite.vacuum(engine)
    sqlite.vacuum(engine)
    engine.dispose()


def test_reading_a_file_names_it_in_errors_and_leaves_it_and_its_log_unchanged(tmp_path: Path) -> None:
    engine = sqlite.open_engine(tmp_path / "open.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a INTEGER)")
    # A copy with its log, as a killed process leaves it: whoever closes such a file for writing checkpoints it.
    path = tmp_path / "file.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(tmp_path / f"open.db{suffix}", f"{path}{suffix}")
    engine.dispose()
    files = [path, path.with_name("file.db-wal")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(HoldfastError, match=r"file\.db: no such table"), sqlite.reading(path) as connection:
        connection.exec_driver_sql("SELECT * FROM gone")
    with sqlite.reading(path) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one() == 0
    assert [file.read_bytes() for file in files] == before
    files[1].unlink()
    path.write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(StoreCorrupt, match=r"file\.db is damaged"), sqlite.reading(path) as connection:
        connection.exec_driver_sql("SELECT 1 FROM t")
