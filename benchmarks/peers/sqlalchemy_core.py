"""SQLAlchemy Core into the tuned SQLite: what an application writes that does not want raw SQL."""

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
    """The table, key and pragmas of `TunedSQLite`; the rows go by one `insert()` with a list of dicts."""

    name = "SQLAlchemy Core, tuned SQLite"

    def __init__(self, path: Path, series: Sequence[tuple[str, str]]) -> None:
        self._tuned = TunedSQLite(path, series)

        def standing() -> sqlite3.Connection:
            return self._tuned.connection

        # The connection that is tuned already, for ever: no pool work, no pragmas again.
        self._engine = create_engine("sqlite://", creator=standing, poolclass=StaticPool)
        # A standing statement object: its SQL is compiled once and then found in the cache.
        self._insert = insert(_points).prefix_with("OR REPLACE")
        self._connection = self._engine.connect()

    def insert_many(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert dicts with the columns' names in one transaction; durable on return."""
        # isolation_level is None underneath, so the transaction is begun here, and by hand.
        self._connection.exec_driver_sql("BEGIN IMMEDIATE")
        self._connection.execute(self._insert, rows)
        self._connection.exec_driver_sql("COMMIT")
        self._connection.commit()

    def count(self) -> int:
        """Return how many points there are."""
        return self._tuned.count()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._engine.dispose()
        self._tuned.close()
