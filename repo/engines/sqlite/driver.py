"""The SQLite driver: opens a file, checkpoints its WAL, and translates errors. Knows nothing of the content."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from repo.disk import ownership
from repo.engines.bare import BareConnection
from repo.engines.base import READ, STORED, causes_of
from repo.engines.sqlite.companions import COMPANIONS, LOG
from repo.engines.sqlite.pool import IdlePool
from repo.engines.statements import COMPILED
from repo.errors import (
    HoldfastError,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreUnsupported,
    denied,
    system_error,
    system_typed,
)
from repo.processes import forks
from repo.processes.inuse import note_own

__all__ = [
    "CommitOutcome",
    "DriverError",
    "DriverWarning",
    "RegisteredConnection",
    "WalCheckpoint",
    "bare_transaction",
    "checkpoint_wal",
    "close_idle",
    "free_bytes",
    "has_wal_reset_bug",
    "is_begun",
    "is_fatal",
    "log_bytes",
    "only_reading",
    "open_engine",
    "open_overlay",
    "reading",
    "replaced_after_error",
    "require_version",
    "temp_folder",
    "truncate_wal",
    "typed_error",
    "uri_of",
    "used_bytes",
    "vacuum",
    "wait_until_unused",
]

DriverError = sqlite3.Error
"""The base class of the driver's own exceptions, which SQLAlchemy does not wrap."""

DriverWarning = sqlite3.Warning
"""The exception for more than one statement in Python 3.11."""

OLDEST_VERSION = (3, 37, 0)
"""The first version with STRICT tables."""

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_REPAIRED = {(3, 44, 6), (3, 50, 7)}
_CONNECTION_ERRORS = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
"""Errors after which a connection is replaced, because a new one may work."""

_LAST_AFFECTED = (3, 51, 2)

_POLL_S = 0.02
"""How often to check whether other processes have closed a file."""

_DISPOSABLE = ("journal_mode = OFF", "synchronous = OFF", "cache_size = -32000")
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}


class WalCheckpoint(NamedTuple):
    """The result of a WAL checkpoint: pages in the log, and how many of them are now in the file."""

    log_pages: int
    done_pages: int


def require_version(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> None:
    """Raise `StoreUnsupported` unless this SQLite is new enough for STRICT tables."""
    if version < OLDEST_VERSION:
        found, wanted = (".".join(map(str, v)) for v in (version, OLDEST_VERSION))
        raise StoreUnsupported(
            f"SQLite {found} is too old; {wanted} or newer is required: use a newer Python build"
        )


def has_wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Return whether this SQLite can lose commits if a checkpoint races a WAL reset (sqlite.org/wal.html).

    `checkpoint_wal` prevents the race, so a store is safe with these versions, too. Other programs that open the same
    file may not be.
    """
    return (3, 7, 0) <= version <= _LAST_AFFECTED and version not in _REPAIRED


def open_engine(
    path: Path,
    *,
    durability: Literal["full", "normal"] = "full",
    busy_timeout_s: float = 30.0,
    disposable: bool = False,
    read_only: bool = False,
    log_limit_bytes: int = -1,
) -> Engine:
    """Create an engine on a SQLite file in WAL mode; creates the file if it does not exist.

    A `disposable` file has no log and is not synced: writing is fast, but any failure destroys it. A file opened for
    `read_only` must exist; its journal mode and its log, and so every byte of both files, stay unchanged. The first
    commit after a checkpoint truncates the log to `log_limit_bytes`; if negative, it keeps its size.

    Transactions begin IMMEDIATE, unless the connection has the execution options `READ`. Connections never checkpoint
    automatically: see `checkpoint_wal`. Foreign keys stay off, so that batch migrations cannot cascade.
    """
    require_version()
    note_own(path, COMPANIONS)
    uri = uri_of(path, _reading_mode(path) if read_only else "mode=rwc")
    if not read_only:
        with system_typed(path):
            ownership.create(path)
    engine = create_engine(
        URL.create("sqlite", database=uri, query={"uri": "true"}),
        poolclass=IdlePool,
        connect_args={
            "timeout": busy_timeout_s,
            "isolation_level": None,
            "check_same_thread": False,
            "factory": RegisteredConnection,
        },
        execution_options={"compiled_cache": COMPILED},
    )
    forks.add_owner(engine, close_idle)

    durable = () if read_only else ("journal_mode = WAL", f"synchronous = {_SYNCHRONOUS[durability]}")

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _record: object) -> None:
        try:
            for pragma in (
                *(_DISPOSABLE if disposable else durable),
                "wal_autocheckpoint = 0",
                f"journal_size_limit = {log_limit_bytes:d}",
                "foreign_keys = OFF",
                "temp_store = MEMORY",
                "trusted_schema = OFF",
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException as error:
            # SQLAlchemy neither wraps this exception nor closes the connection, which may hold a lock.
            connection.close()
            if isinstance(error, DriverError):
                raise typed_error(error, path) from error
            raise

    @event.listens_for(engine, "handle_error")
    def _give_up(context: ExceptionContext) -> None:
        # After an interrupt, SQLAlchemy closes the connection but not the cursor, which stays in a reference cycle. Its
        # statement would keep the file open, and block checkpoints until the next garbage collection.
        cursor = getattr(context.execution_context, "cursor", None)
        if cursor is not None and not isinstance(context.original_exception, Exception):
            cursor.close()
        # If SQLite cannot open the log for writing, it opens it for reading, and the connection stays read-only.
        code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
        if not read_only and code in _CONNECTION_ERRORS:
            context.is_disconnect = True

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("bare_transactions"):
            connection.exec_driver_sql("BEGIN DEFERRED" if options.get("only_reads") else "BEGIN IMMEDIATE")

    return engine


def open_overlay(scratch: Path, stored: Path | None, *, busy_timeout_s: float) -> Engine:
    """Create an engine on a new file, `scratch`, that is never synced, with `stored` attached as `STORED`.

    The attached file is only read: it stays unchanged, and so does its log.
    """
    engine = open_engine(scratch, durability="normal", busy_timeout_s=busy_timeout_s)
    attached = None if stored is None else (stored, uri_of(stored, _reading_mode(stored)))

    @event.listens_for(engine, "connect")
    def _attach(connection: sqlite3.Connection, _record: object) -> None:
        path = scratch
        try:
            connection.execute("PRAGMA synchronous = OFF")
            if attached is not None:
                path, uri = attached
                connection.execute(f"ATTACH ? AS {STORED}", (uri,))
        except BaseException as error:  # as in `_set_up`, nobody else would close the connection
            connection.close()
            if isinstance(error, DriverError):
                raise typed_error(error, path) from error
            raise

    return engine


class RegisteredConnection(sqlite3.Connection):
    """A connection that is registered as an open file of this process until it is closed: see `forks`."""

    _pid = -1
    """The process that opened it; -1 if opening failed, so that there is nothing to close."""

    _is_closed = False

    def __init__(self, database: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        self._file = forks.opening(_path_of(os.fspath(database)))
        try:
            super().__init__(database, *args, **options)
        except BaseException:  # also after an interrupt, a file that is not open must not be registered
            forks.close(self._file)
            raise
        self._pid = os.getpid()
        self._file.connection = weakref.ref(self)

    def close(self) -> None:
        """Close the connection, rolling back an open transaction. Safe to call again."""
        try:
            # A statement that an interrupt left open would keep the connection alive, with its transaction and lock.
            if not self._is_closed and self.in_transaction:
                self.rollback()
        finally:
            self._is_closed = True
            super().close()
            forks.close(self._file)

    def __del__(self) -> None:
        if os.getpid() == self._pid and not self._is_closed:
            self.close()


def close_idle(engine: Engine) -> None:
    """Close the connections that nobody uses; others are opened on demand.

    This also closes an engine for good: `Engine.dispose` would make a new pool, which takes as long as closing.
    """
    engine.pool.dispose()


@contextmanager
def reading(path: Path, *, busy_timeout_s: float = 30.0) -> Iterator[Connection]:
    """Open a file for the block, in which a transaction may only read. Both the file and its log stay unchanged.

    Raises the errors of `typed_error`, also for what the block executes.
    """
    engine = open_engine(path, busy_timeout_s=busy_timeout_s, read_only=True)
    try:
        with engine.connect().execution_options(**READ) as connection:
            yield connection
    except (SQLAlchemyError, DriverError) as error:
        raise typed_error(error, path) from error
    finally:
        close_idle(engine)


@dataclass(slots=True)
class CommitOutcome:
    """One transaction of `bare_transaction`; `committed` matches the file after any exit."""

    ending: bool = False
    committed: bool = False


def bare_transaction(
    bare: BareConnection, outcome: CommitOutcome, work: Callable[[Connection], object]
) -> None:
    """Run `work` in an IMMEDIATE transaction through the driver.

    SQLAlchemy's begin and commit would add a quarter to the time of a durable commit. Any exception, including Ctrl-C
    at any time, rolls back what was not committed; `outcome` says whether it was. The start and end use no generators
    or methods, because an interrupt between them would leave the transaction open.
    """
    connection, driver = bare.connection, bare.driver
    try:
        driver.execute("BEGIN IMMEDIATE")
        work(connection)
        outcome.ending = True
        driver.execute("COMMIT")  # unlike `driver.commit()`, the driver keeps this statement prepared
        outcome.committed = True
    except DriverError:
        driver.rollback()
        raise
    except BaseException:  # an interrupt, or an error of `work`, which is the caller's and may be any
        # The commit itself cannot be interrupted: unless it raised an error, it has ended the transaction.
        outcome.committed = outcome.ending and not driver.in_transaction
        driver.rollback()
        raise
    finally:
        if connection.in_transaction():
            connection.rollback()  # SQLAlchemy recorded a transaction for the statements that it executed


@contextmanager
def replaced_after_error(connection: Connection) -> Iterator[None]:
    """Close the connection for good if the block ends in an error of the driver: see `_CONNECTION_ERRORS`.

    SQLAlchemy sees only the errors of statements that it executes itself.
    """
    try:
        yield
    except DriverError:
        connection.invalidate()
        raise


def checkpoint_wal(engine: Engine) -> WalCheckpoint:
    """Copy the WAL into the file while no commit is possible.

    A second connection holds the write lock, which prevents the WAL-reset bug of older SQLite versions. Waits for other
    writers for up to the engine's busy timeout.
    """
    with engine.connect() as guard, guard.begin() as held:
        checkpointed = _checkpoint(engine, "PASSIVE")
        held.rollback()
    return checkpointed


def truncate_wal(engine: Engine) -> WalCheckpoint:
    """Copy the WAL into the file and truncate it. The caller makes sure that nobody else reads or writes."""
    return _checkpoint(engine, "TRUNCATE")


def vacuum(engine: Engine) -> None:
    """Rewrite the file without its free pages, through the WAL, and truncate the WAL to almost nothing.

    Needs space for two copies of the content: one in SQLite's temporary folder, one in the WAL. Waits for other writers
    for up to the engine's busy timeout. Open readers are not disturbed, but the WAL then stays long until the next
    checkpoint.
    """
    with engine.connect() as worker, replaced_after_error(worker):
        driver: Any = worker.connection.driver_connection
        limit = -1
        driver.execute("PRAGMA temp_store = FILE")  # the copy may be larger than the memory
        try:
            driver.execute("VACUUM")
            checkpoint_wal(engine)
            [(version,)] = driver.execute("PRAGMA user_version").fetchall()
            [(limit,)] = driver.execute("PRAGMA journal_size_limit").fetchall()
            # The first commit after a checkpoint restarts the log, and truncates it to this limit.
            driver.execute("PRAGMA journal_size_limit = 0")
            driver.execute(f"PRAGMA user_version = {version:d}")
        finally:
            driver.execute(f"PRAGMA journal_size_limit = {limit:d}")
            driver.execute("PRAGMA temp_store = MEMORY")


def temp_folder() -> Path:
    """Return the folder of SQLite's temporary files: the first writable folder on its list."""
    named = (os.environ.get(name) for name in ("SQLITE_TMPDIR", "TMPDIR"))
    fixed = ("/var/tmp", "/usr/tmp", "/tmp")  # noqa: S108  SQLite's own list; nothing is written here
    places = [Path(place) for place in (*named, *fixed) if place]
    return next((place for place in places if place.is_dir() and os.access(place, os.W_OK | os.X_OK)), Path())


def used_bytes(connection: Connection) -> int:
    """Return the size of the file with the content of its WAL, but without its free pages."""
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    return int(pages * connection.exec_driver_sql("PRAGMA page_size").scalar_one()) - free_bytes(connection)


def wait_until_unused(path: Path, timeout_s: float) -> None:
    """Return once no other connection has the file open; raises `StoreBusy` at the deadline.

    In WAL mode this includes idle connections. Another process may open the file again right after that.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        connection = sqlite3.connect(
            uri_of(path, "mode=rw"),
            uri=True,
            timeout=0.0,
            isolation_level=None,
            factory=RegisteredConnection,
        )
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
        except DriverError as error:
            typed = typed_error(error, path)
            if not isinstance(typed, StoreBusy):
                raise typed from error
            if time.monotonic() > deadline:
                raise StoreBusy(
                    f"{path} is open in another process, which did not close it within {timeout_s:g} s; nothing was "
                    "changed. Stop that process and try again",
                    path=path,
                ) from error
        else:
            return
        finally:
            connection.close()
        time.sleep(_POLL_S)


def is_begun(path: Path) -> bool:
    """Return whether anything was written to the file; False if it does not exist."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False


def log_bytes(path: Path) -> int:
    """Return the size of the file's WAL; 0 if there is none."""
    try:
        return os.stat(f"{path}{LOG}").st_size
    except FileNotFoundError:
        return 0


def free_bytes(connection: Connection) -> int:
    """Return the bytes of free pages in the file, which are reused before it grows."""
    free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
    return int(free * connection.exec_driver_sql("PRAGMA page_size").scalar_one())


def only_reading(action: int, *_: object) -> int:
    """Allow only reads; for `set_authorizer`."""
    return sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY


_FATAL = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN")


def is_fatal(error: BaseException) -> bool:
    """Return whether the error, or a cause of it, may leave connections unusable: close them and reopen the file.

    Accepts errors of the driver, wrapped by SQLAlchemy or not, and typed errors that were raised from them.
    """
    names = (getattr(cause, "sqlite_errorname", "") or "" for cause in causes_of(error))
    return any(name.startswith(_FATAL) for name in names)


def typed_error(error: BaseException, path: Path) -> HoldfastError:
    """Translate an error of the driver, wrapped by SQLAlchemy or not, into an error of this library.

    The caller raises the result `from` the original.
    """
    if isinstance(error, HoldfastError):
        return error
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, OSError):
        return system_error(original, path)
    name = getattr(original, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreBusy(f"{path} is locked by another writer; try again, or stop that process", path=path)
    # On a full disk SQLite cannot create the shared memory of the WAL, and reports an I/O error.
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_SHM")):
        return StoreFull(f"no space left for {path}; free some space and try again", path=path)
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreCorrupt(f"{path} is damaged ({original}); keep the file and restore a backup", path=path)
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return denied(path, str(original))
    return HoldfastError(f"SQLite failed on {path}: {original}", path=path)


def _checkpoint(engine: Engine, mode: str) -> WalCheckpoint:
    # Through the driver, because SQLAlchemy would begin a transaction, in which a checkpoint cannot run.
    with engine.connect() as worker:
        driver: Any = worker.connection.driver_connection
        try:
            busy, log, done = driver.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except DriverError as error:
            [file] = [row[2] for row in driver.execute("PRAGMA database_list") if row[1] == "main"]
            worker.invalidate()  # see `replaced_after_error`
            raise typed_error(error, Path(file)) from error
    if busy:
        raise StoreBusy("a WAL checkpoint was blocked by another reader or writer; it is retried later")
    return WalCheckpoint(log, done)


def uri_of(path: Path, mode: str) -> str:
    """Return a SQLite URI. With a URI and a mode, SQLite takes the path literally."""
    text = os.path.realpath(path)
    return f"file:{text.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?{mode}"


def _reading_mode(path: Path) -> str:
    """Return how to open a file that must stay unchanged, with its log."""
    if log_bytes(path):  # the last connection to close would checkpoint it, unless it is read-only
        return "mode=ro"
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return "mode=rw"  # `ro` would leave an empty log behind
    if path.with_name(path.name + LOG).exists():  # a process may have the file open
        return "mode=ro"
    # Without a log, SQLite would have to create one. No process has the file open, so it does not change.
    return "mode=ro&immutable=1"


def _path_of(database: str) -> str:
    """Return the path in a URI of `uri_of`, or the path itself."""
    if not database.startswith("file:"):
        return database
    path = database.removeprefix("file:").partition("?")[0]
    return path.replace("%23", "#").replace("%3f", "?").replace("%25", "%")
