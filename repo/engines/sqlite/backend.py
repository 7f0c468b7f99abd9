"""The SQLite backend: opens, checkpoints and queries the column file of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from repo.engines.base import ONE_SELECT, BesideTable, Params, dicts_of
from repo.engines.sqlite import copies
from repo.engines.sqlite import driver as sqlite
from repo.errors import HoldfastError, InvalidQuery
from repo.settings import Settings

__all__ = ["SQLiteBackend"]


class SQLiteBackend:
    """The backend of `timeseries.sqlite`, for platforms without DuckDB."""

    name = "sqlite"
    durable_at_commit = True
    takes_tables = False
    is_log_disposable = False
    may_create = False
    errors: tuple[type[Exception], ...] = (sqlite.DriverError,)

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self._settings = settings

    def open(self) -> Engine:
        """Open the file. Its commits are durable without a checkpoint."""
        try:
            return sqlite.open_engine(
                self.path, durability="full", busy_timeout_s=self._settings.busy_timeout_s
            )
        except sqlite.DriverError as error:
            raise sqlite.typed_error(error, self.path) from error

    def open_new(self) -> Engine:
        """Create the file without a log, which takes a fifth of the time and half of the space."""
        try:
            return sqlite.open_engine(self.path, disposable=True)
        except sqlite.DriverError as error:
            raise sqlite.typed_error(error, self.path) from error

    def open_overlay(self, scratch: Path, *, attach: bool) -> Engine:
        """Open a database in `scratch`, with the file attached."""
        stored = self.path if attach else None
        if attach and copies.needs_copy(self.path):
            stored = copies.copy_with_log(self.path, scratch)
        try:
            return sqlite.open_overlay(
                scratch / self.path.name, stored, busy_timeout_s=self._settings.busy_timeout_s
            )
        except sqlite.DriverError as error:
            raise sqlite.typed_error(error, self.path) from error

    def close(self, engine: Engine) -> None:
        """Close the file."""
        sqlite.close_idle(engine)

    def checkpoint(self, engine: Engine) -> None:
        """Checkpoint and truncate the WAL; under the lease no other process can be writing."""
        try:
            sqlite.truncate_wal(engine)
        except (DBAPIError, sqlite.DriverError) as error:
            raise self.typed_error(error) from error

    def log_bytes(self) -> int:
        """Return the size of the WAL."""
        return sqlite.log_bytes(self.path)

    def free_bytes(self, connection: Connection) -> int:
        """Return the bytes of free pages in the file."""
        return sqlite.free_bytes(connection)

    def typed_error(self, error: BaseException) -> HoldfastError:
        """Translate an error of SQLite."""
        return error if isinstance(error, HoldfastError) else sqlite.typed_error(error, self.path)

    def is_fatal(self, error: BaseException) -> bool:
        """Return whether SQLite's connections may be unusable."""
        return sqlite.is_fatal(error)

    def is_out_of_memory(self, _error: BaseException) -> bool:
        """Return False, because SQLite has no memory limit."""
        return False

    def query(
        self, connection: Connection, query: str, params: Params, beside: Sequence[BesideTable] = ()
    ) -> list[dict[str, Any]]:
        """Run one SELECT; the authorizer allows only reading."""
        driver: Any = connection.connection.driver_connection
        try:
            for table in beside:
                driver.execute(table.create())
                marks = ", ".join("?" * len(table.columns))
                driver.executemany(f'INSERT INTO temp."{table.name}" VALUES ({marks})', table.rows)
            driver.set_authorizer(sqlite.only_reading)
            cursor = driver.execute(query, params)
            if cursor.description is None:
                raise InvalidQuery(ONE_SELECT)
            return dicts_of(cursor.description, cursor.fetchall())
        except (sqlite.DriverError, sqlite.DriverWarning, UnicodeError, OverflowError, TypeError) as error:
            raise InvalidQuery(f"sql: {error}") from error
        finally:
            driver.set_authorizer(None)
            for table in beside:
                driver.execute(table.drop())
