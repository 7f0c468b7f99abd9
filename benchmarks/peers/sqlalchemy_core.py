"""SQLAlchemy Core into tuned SQLite: what an application without raw SQL would use."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, String, Table, create_engine
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.pool import StaticPool

from benchmarks.peers.sqlite_tuned import TunedSQLite

__all__ = ["SQLAlchemyCore"]

_points = Table(
    "points",
    MetaData(),
    Column("series", Integer, primary_key=True),
    Column("time_us", BigInteger, primary_key=True),
    Column("value", Double),
    Column("quality", Integer),
    Column("metadata", String),
)


class SQLAlchemyCore:
    """The table, key and pragmas of `TunedSQLite`; rows are inserted by one `insert()` with a list of dicts."""

    name = "SQLAlchemy Core, tuned SQLite"

    def __init__(self, path: Path, series: Sequence[tuple[str, str]]) -> None:
        self._tuned = TunedSQLite(path, series)

        def standing() -> sqlite3.Connection:
            return self._tuned.connection

        # Always the tuned connection: no work for a pool, no repeated pragmas.
        self._engine = create_engine("sqlite://", creator=standing, poolclass=StaticPool)
        # One statement object: its SQL is compiled once and then cached.
        self._insert = insert(_points).prefix_with("OR REPLACE")
        self._connection = self._engine.connect()

    def insert_many(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert dicts with the columns' names in one transaction; durable on return."""
        # The driver's isolation_level is None, so the transaction is started explicitly.
        self._connection.exec_driver_sql("BEGIN IMMEDIATE")
        self._connection.execute(self._insert, rows)
        self._connection.exec_driver_sql("COMMIT")
        self._connection.commit()

    def count(self) -> int:
        """Return the number of points."""
        return self._tuned.count()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._engine.dispose()
        self._tuned.close()
