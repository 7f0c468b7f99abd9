"""Backends: what an open store has to know of the engine that holds its columns, one class an engine."""

from __future__ import annotations

import importlib.util
import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from repo.clock import Clock
from repo.engines import sqlite
from repo.errors import EngineMissing, HoldfastError, InvalidQuery, StoreUnsupported, system_error
from repo.files import StoreFiles
from repo.settings import Settings

__all__ = [
    "Backend",
    "DuckDBBackend",
    "SQLiteBackend",
    "backend_for",
    "duckdb_is_installed",
    "why_no_duckdb",
]

log = logging.getLogger("holdfast.backends")

Params = Sequence[Any] | Mapping[str, Any]

_MOST_TORN_BLOCKS = 100

_ONE_SELECT = "sql: exactly one SELECT is allowed"


class Backend(Protocol):
    """One engine under the columns."""

    name: str
    path: Path
    durable_at_commit: bool
    """Whether a committed flush is durable without a checkpoint."""
    takes_tables: bool
    """Whether a table can be merged as it is; otherwise it goes through the journal, as packed rows."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What its driver raises, bare."""

    def open(self) -> Engine:
        """Open the file, making it if need be; the caller holds the lease. Raises typed errors."""

    def open_new(self) -> Engine:
        """Make the file, to be filled by one connection, quickly, and thrown away if anything fails meanwhile.

        It is whole after a checkpoint and a close, and durable when it was synced then. Raises typed errors.
        """

    def close(self, engine: Engine) -> None:
        """Close the file."""

    def checkpoint(self, engine: Engine) -> None:
        """Make everything committed durable in the file itself; nobody else uses it meanwhile."""

    def log_bytes(self) -> int:
        """Return the size of the log that a checkpoint would fold in."""

    def free_bytes(self, connection: Connection) -> int:
        """Return how many bytes of the file are free blocks."""

    def typed_error(self, error: BaseException) -> HoldfastError:
        """Translate an error of the engine."""

    def is_fatal(self, error: BaseException) -> bool:
        """Say whether the file has to be closed and opened again after this error; see the engines' `is_fatal`."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Say whether the engine's memory limit was too small for a statement: a smaller one may fit."""

    def query(self, connection: Connection, query: str, params: Params) -> list[dict[str, Any]]:
        """Run one SELECT that can neither write nor leave the store; `InvalidQuery` for anything else."""


class DuckDBBackend:
    """`timeseries.duckdb`."""

    name = "duckdb"
    durable_at_commit = False
    takes_tables = True

    def __init__(self, path: Path, scratch: Path, settings: Settings, clock: Clock) -> None:
        if "?" in str(path):
            raise StoreUnsupported(
                f"DuckDB takes what follows a '?' in {path} for options and loses its log; choose another path",
                path=path,
            )
        self.path = path
        self._scratch = scratch
        self._settings = settings
        self._clock = clock
        self.log_is_spare = True
        """Whether the journal has all that the log holds, so that a damaged one may be set aside."""
        self.may_begin = False
        """Whether the store has never had a column file, so that one that is no database yet may be replaced."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What DuckDB raises."""
        import duckdb

        return (duckdb.Error,)

    def open(self) -> Engine:
        """Open the file; a torn checkpoint is mended, and a log that cannot be replayed is set aside.

        The journal still has what such a log held.
        """
        from repo.engines import duckdb, torn

        if not self.path.exists() or (self.may_begin and torn.is_blank(self.path)):
            self._begin()
        note = torn.read_note(self.path)
        if note is None:
            return self._open()
        for _ in range(_MOST_TORN_BLOCKS):
            try:
                engine = self._open()
            except HoldfastError as error:
                if not torn.mend(self.path, note, error):
                    raise
                log.info("a checkpoint of %s was torn by a kill, and is mended", self.path)
            else:
                try:
                    blocks = list(duckdb.unused_metadata(engine))
                except self.errors as error:
                    raise self.typed_error(error) from error
                finally:
                    duckdb.close_engine(engine)
                mended = [block for block in blocks if torn.mend_block(self.path, note, block)]
                if not mended:
                    break
        engine = self._open()
        torn.forget(self.path)
        return engine

    def _begin(self) -> None:
        """Make the file: whole under another name, then renamed, so that a kill leaves no stump."""
        from repo.engines import duckdb, torn

        new = self.path.with_name(f"{self.path.name}.building")
        try:
            for left in (new, duckdb.log_path(new)):
                left.unlink(missing_ok=True)
            duckdb.close_engine(self._open(new))
            torn.sync_file(new)
            if self.path.exists():
                log.warning("%s was never finished and has nothing in it; a new one is made", self.path)
            if duckdb.log_bytes(self.path):
                aside = duckdb.set_log_aside(self.path, self._clock())
                log.warning("%s was missing, and its log cannot be replayed; kept as %s", self.path, aside)
            new.replace(self.path)
            torn.sync_folder(self.path.parent)
        except OSError as error:
            raise system_error(error, self.path, "no column file was made") from error

    def open_new(self) -> Engine:
        """Make the file: nothing is quicker than what is done always."""
        return self._open()

    def _open(self, path: Path | None = None) -> Engine:
        from repo.engines import duckdb

        for last_try in (False, True):
            try:
                return duckdb.open_engine(
                    path or self.path,
                    memory_limit_bytes=self._settings.duckdb_memory_limit_bytes,
                    threads=self._settings.duckdb_threads,
                    temp_folder=self._scratch,
                    compress=self._settings.compress,
                )
            except HoldfastError as error:
                if last_try or not self.log_is_spare or not duckdb.is_log_damage(error):
                    raise
                aside = duckdb.set_log_aside(self.path, self._clock())
                log.error(
                    "the log of %s was damaged; kept as %s, applying the journal again", self.path, aside
                )
        raise AssertionError

    def close(self, engine: Engine) -> None:
        """Close the file without a checkpoint."""
        from repo.engines import duckdb

        duckdb.close_engine(engine)

    def checkpoint(self, engine: Engine) -> None:
        """CHECKPOINT, and sync the folder: DuckDB makes and removes its log there without doing so."""
        from repo.engines import duckdb, torn

        with torn.noted(self.path, duckdb.descriptor_of(engine), duckdb.unused_metadata(engine)):
            with engine.connect() as connection:
                connection.exec_driver_sql("CHECKPOINT")
            torn.sync_folder(self.path.parent)

    def log_bytes(self) -> int:
        """Return the size of `timeseries.duckdb.wal`."""
        from repo.engines import duckdb

        return duckdb.log_bytes(self.path)

    def free_bytes(self, connection: Connection) -> int:
        """Return how many bytes of the file are free blocks, as of the last checkpoint."""
        query = "SELECT free_blocks * block_size FROM pragma_database_size()"
        return int(connection.exec_driver_sql(query).scalar_one())

    def typed_error(self, error: BaseException) -> HoldfastError:
        """Translate an error of DuckDB."""
        from repo.engines import duckdb

        return duckdb.typed_error(error, self.path)

    def is_fatal(self, error: BaseException) -> bool:
        """Say whether DuckDB's instance is of no use any more."""
        from repo.engines import duckdb

        return duckdb.is_fatal(error)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Say whether DuckDB's memory limit was too small."""
        from repo.engines import duckdb

        return duckdb.is_out_of_memory(error)

    def query(self, connection: Connection, query: str, params: Params) -> list[dict[str, Any]]:
        """Run one SELECT that only reads; the instance itself has no access outside."""
        import duckdb

        from repo.engines.selects import functions_beyond_reading

        driver: Any = connection.connection.driver_connection
        try:
            statements = driver.extract_statements(query)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise InvalidQuery(_ONE_SELECT)
            if beyond := functions_beyond_reading(driver, query):
                raise InvalidQuery(f"sql: only reading is allowed, and {', '.join(beyond)} may do more")
            # A SELECT may delete: `WITH gone AS (DELETE ... RETURNING ...) SELECT ...`.
            driver.rollback()
            driver.execute("BEGIN TRANSACTION READ ONLY")
            cursor = driver.execute(statements[0], params or None)
            return _dicts(cursor.description, cursor.fetchall())
        except (duckdb.Error, UnicodeError, TypeError) as error:
            raise InvalidQuery(f"sql: {error}") from error


class SQLiteBackend:
    """`timeseries.sqlite`, where DuckDB does not exist."""

    name = "sqlite"
    durable_at_commit = True
    takes_tables = False
    errors: tuple[type[Exception], ...] = (sqlite.DriverError,)

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self._settings = settings

    def open(self) -> Engine:
        """Open the file; its commits are durable by themselves."""
        try:
            return sqlite.open_engine(
                self.path, durability="full", busy_timeout_s=self._settings.busy_timeout_s
            )
        except sqlite.DriverError as error:
            raise sqlite.typed_error(error, self.path) from error

    def open_new(self) -> Engine:
        """Make the file, without a log: a fifth of the time, and half of the space."""
        try:
            return sqlite.open_engine(self.path, disposable=True)
        except sqlite.DriverError as error:
            raise sqlite.typed_error(error, self.path) from error

    def close(self, engine: Engine) -> None:
        """Close the file."""
        engine.dispose()

    def checkpoint(self, engine: Engine) -> None:
        """Fold the WAL into the file and empty it; under the lease nobody else can be writing."""
        try:
            sqlite.empty_wal(engine)
        except (DBAPIError, sqlite.DriverError) as error:
            raise self.typed_error(error) from error

    def log_bytes(self) -> int:
        """Return the size of the WAL."""
        return sqlite.log_bytes(self.path)

    def free_bytes(self, connection: Connection) -> int:
        """Return how many bytes of the file are free pages."""
        return sqlite.free_bytes(connection)

    def typed_error(self, error: BaseException) -> HoldfastError:
        """Translate an error of SQLite."""
        return error if isinstance(error, HoldfastError) else sqlite.typed_error(error, self.path)

    def is_fatal(self, error: BaseException) -> bool:
        """Say whether SQLite's connections are in doubt."""
        return sqlite.is_fatal(error)

    def is_out_of_memory(self, _error: BaseException) -> bool:
        """SQLite has no memory limit."""
        return False

    def query(self, connection: Connection, query: str, params: Params) -> list[dict[str, Any]]:
        """Run one SELECT; the authorizer lets nothing but reading through."""
        driver: Any = connection.connection.driver_connection
        driver.set_authorizer(sqlite.only_reading)
        try:
            cursor = driver.execute(query, params)
            if cursor.description is None:
                raise InvalidQuery(_ONE_SELECT)
            return _dicts(cursor.description, cursor.fetchall())
        except (sqlite.DriverError, sqlite.DriverWarning, UnicodeError, OverflowError, TypeError) as error:
            raise InvalidQuery(f"sql: {error}") from error
        finally:
            driver.set_authorizer(None)


def why_no_duckdb() -> str | None:
    """Say why DuckDB cannot be used here; None where it can."""
    for name in ("duckdb", "duckdb_engine"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    try:
        import duckdb
    except ImportError as error:
        return f"duckdb cannot be imported ({error})"
    if not duckdb.__version__.startswith("2.0."):
        return f"duckdb {duckdb.__version__} is another than this version of Holdfast needs"
    if duckdb.__version__ == "2.0.0":
        return "duckdb 2.0.0 can double rows, which 2.0.1 does not"
    return None


def duckdb_is_installed() -> bool:
    """Say whether DuckDB, in a version that keeps our promises, and its dialect can be imported."""
    return why_no_duckdb() is None


def backend_for(
    engine: str, files: StoreFiles, settings: Settings, clock: Clock, *, path: Path | None = None
) -> Backend:
    """Return the backend of an engine, for its column file or another `path`.

    Raises `EngineMissing` where it cannot be used here.
    """
    own = files.columns(engine)
    if engine == "sqlite":
        return SQLiteBackend(path or own, settings)
    if why := why_no_duckdb():
        raise EngineMissing(
            f"{own} needs DuckDB, which cannot be used here ({platform.machine()}): {why}. Install duckdb 2.0.1 and "
            "duckdb-engine 0.17.0; or `holdfast demote`, where DuckDB is installed, moves the columns to SQLite. "
            "Writing and records go on without it",
            path=own,
        )
    return DuckDBBackend(path or own, files.scratch, settings, clock)


def _dicts(description: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    names = [column[0] for column in description]
    return [dict(zip(names, row, strict=True)) for row in rows]
