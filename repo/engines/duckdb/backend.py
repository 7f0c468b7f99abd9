"""The DuckDB backend: opens, checkpoints and queries the column file of a store, and repairs torn checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from repo.clock import Clock
from repo.disk import durable
from repo.engines.base import ONE_SELECT, BesideTable, Params, dicts_of
from repo.errors import (
    HoldfastError,
    InvalidQuery,
    StoreCorrupt,
    StoreUnsupported,
    system_error,
    system_typed,
)
from repo.settings import Settings

__all__ = ["DuckDBBackend", "checkpoint_file"]

_MOST_TORN_BLOCKS = 100

log = logging.getLogger("holdfast.backends")


def checkpoint_file(engine: Engine, path: Path) -> None:
    """Checkpoint the log. A note is written first, so that opening can repair what a kill leaves."""
    from repo.engines.duckdb import checkpoint as torn
    from repo.engines.duckdb import driver as duckdb

    with torn.noted(path, duckdb.descriptor_of(engine), duckdb.unused_metadata(engine)):
        with engine.connect() as connection:
            connection.exec_driver_sql("CHECKPOINT")
        with system_typed(path):
            durable.sync(path.parent)


class DuckDBBackend:
    """The backend of `timeseries.duckdb`."""

    name = "duckdb"
    durable_at_commit = False
    takes_tables = True

    def __init__(self, path: Path, scratch: Path, settings: Settings, clock: Clock) -> None:
        if "?" in str(path):
            raise StoreUnsupported(
                f"DuckDB takes the part of {path} after the '?' for options, and loses its log; choose another path",
                path=path,
            )
        self.path = path
        self._scratch = scratch
        self._settings = settings
        self._clock = clock
        self.is_log_disposable = True
        self.may_create = False

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """The exceptions of DuckDB."""
        import duckdb

        return (duckdb.Error,)

    def open(self) -> Engine:
        """Open the file. Repairs a torn checkpoint, and sets aside a log that cannot be replayed.

        The journal still has the content of such a log.
        """
        from repo.engines.duckdb import checkpoint as torn
        from repo.engines.duckdb import driver as duckdb

        if not self.path.exists() or (self.may_create and torn.is_blank(self.path)):
            self._create()
        note = torn.read_note(self.path)
        if note is None:
            return self._open()
        for _ in range(_MOST_TORN_BLOCKS):
            try:
                engine = self._open()
            except HoldfastError as error:
                if not torn.mend(self.path, note, error):
                    raise
                log.info("a checkpoint of %s was torn by a kill, and was repaired", self.path)
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

    def _create(self) -> None:
        """Create the file under another name and rename it, so that a kill leaves no partial file."""
        from repo.engines.duckdb import driver as duckdb

        new = self.path.with_name(f"{self.path.name}.building")
        try:
            for left in (new, duckdb.log_path(new)):
                left.unlink(missing_ok=True)
            duckdb.close_engine(self._open(new))
            durable.sync(new)
            if self.path.exists():
                log.warning("%s was never completed and is empty; a new one replaces it", self.path)
            if duckdb.log_bytes(self.path):
                aside = duckdb.set_log_aside(self.path, self._clock())
                log.warning("%s was missing, and its log cannot be replayed; kept as %s", self.path, aside)
            durable.replace(new, self.path)
        except OSError as error:
            raise system_error(error, self.path, "no column file was created") from error

    def open_new(self) -> Engine:
        """Create the file in the usual way; no other way is faster."""
        return self._open()

    def _open(self, path: Path | None = None) -> Engine:
        from repo.engines.duckdb import driver as duckdb

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
                if last_try or not self.is_log_disposable or not duckdb.is_log_damage(error):
                    raise
                aside = duckdb.set_log_aside(self.path, self._clock())
                log.error(
                    "the log of %s was damaged; kept as %s, the journal is applied again", self.path, aside
                )
        raise AssertionError

    def open_overlay(self, scratch: Path, *, attach: bool) -> Engine:
        """Open an in-memory database that spills to `scratch`, with the file attached. DuckDB replays its log there."""
        from repo.engines.duckdb import checkpoint as torn
        from repo.engines.duckdb import driver as duckdb

        try:
            return duckdb.open_overlay(
                self.path if attach else None,
                memory_limit_bytes=self._settings.duckdb_memory_limit_bytes,
                threads=self._settings.duckdb_threads,
                temp_folder=scratch,
            )
        except StoreCorrupt as error:
            if not attach or torn.read_note(self.path) is None:
                raise
            raise StoreCorrupt(
                f"a kill interrupted a checkpoint of {self.path}. Open the store once where it can be written, which "
                "repairs the file",
                path=self.path,
            ) from error

    def close(self, engine: Engine) -> None:
        """Close the file without a checkpoint."""
        from repo.engines.duckdb import driver as duckdb

        duckdb.close_engine(engine)

    def checkpoint(self, engine: Engine) -> None:
        """CHECKPOINT, and sync the folder, because DuckDB creates and removes its log there without a sync."""
        checkpoint_file(engine, self.path)

    def log_bytes(self) -> int:
        """Return the size of `timeseries.duckdb.wal`."""
        from repo.engines.duckdb import driver as duckdb

        return duckdb.log_bytes(self.path)

    def free_bytes(self, connection: Connection) -> int:
        """Return the bytes of free blocks in the file, as of the last checkpoint."""
        query = "SELECT free_blocks * block_size FROM pragma_database_size()"
        return int(connection.exec_driver_sql(query).scalar_one())

    def typed_error(self, error: BaseException) -> HoldfastError:
        """Translate an error of DuckDB."""
        from repo.engines.duckdb import driver as duckdb

        return duckdb.typed_error(error, self.path)

    def is_fatal(self, error: BaseException) -> bool:
        """Return whether the DuckDB instance is no longer usable."""
        from repo.engines.duckdb import driver as duckdb

        return duckdb.is_fatal(error)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether DuckDB's memory limit was exceeded."""
        from repo.engines.duckdb import driver as duckdb

        return duckdb.is_out_of_memory(error)

    def query(
        self, connection: Connection, query: str, params: Params, beside: Sequence[BesideTable] = ()
    ) -> list[dict[str, Any]]:
        """Run one SELECT that only reads; the instance has no access to anything outside the store."""
        import duckdb

        from repo.engines.duckdb.selects import functions_beyond_reading

        driver: Any = connection.connection.driver_connection
        try:
            statements = driver.extract_statements(query)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise InvalidQuery(ONE_SELECT)
            if beyond := functions_beyond_reading(driver, query):
                raise InvalidQuery(f"sql: only reading is allowed, and {', '.join(beyond)} may do more")
            for table in beside:
                driver.execute(table.create())
                appender = driver.appender(table.name)
                appender.append_rows(table.rows)
                appender.flush()
            # A SELECT may delete: `WITH gone AS (DELETE ... RETURNING ...) SELECT ...`.
            driver.execute("BEGIN TRANSACTION READ ONLY")
            try:
                cursor = driver.execute(statements[0], params or None)
                return dicts_of(cursor.description, cursor.fetchall())
            finally:
                driver.execute("ROLLBACK")
        except (duckdb.Error, UnicodeError, TypeError) as error:
            raise InvalidQuery(f"sql: {error}") from error
        finally:
            for table in beside:
                driver.execute(table.drop())
