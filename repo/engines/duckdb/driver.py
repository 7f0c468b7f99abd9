"""The DuckDB driver: opens and closes a file, and translates errors. Knows nothing of the content."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from repo.disk import durable
from repo.engines.base import STORED, causes_of
from repo.engines.duckdb.companions import COMPANIONS, LOG
from repo.engines.duckdb.connections import InstanceConnection
from repo.engines.duckdb.dialect import Dialect, guarded
from repo.engines.statements import COMPILED
from repo.errors import (
    HoldfastError,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    denied,
    system_error,
    system_typed,
)
from repo.processes import forks
from repo.processes.inuse import note_own

__all__ = [
    "DriverError",
    "close_engine",
    "descriptor_of",
    "is_fatal",
    "is_log_damage",
    "is_out_of_memory",
    "log_bytes",
    "log_path",
    "open_engine",
    "open_overlay",
    "open_sandbox",
    "open_scratch",
    "sandbox_path",
    "set_log_aside",
    "typed_error",
    "unused_metadata",
]

DriverError = duckdb.Error
"""The base class of the driver's own exceptions, which SQLAlchemy does not wrap."""

_DENIED = ("Permission denied", "Read-only file system", "Operation not permitted")

_DAMAGE = (
    "checksum",
    "Corrupt",
    "corrupted",
    "not a valid DuckDB database",
    "Could not read enough bytes",
    "replaying WAL",
)

_ENDING_S = 1.0
"""How long the opening of a file waits for DuckDB's lock. The caller has the lease, but the kernel takes the locks of a
process that ends one after the other, so the former holder may lose the lease before it loses DuckDB's lock."""

_POLL_S = 0.005


def open_engine(
    path: Path, *, memory_limit_bytes: int, threads: int, temp_folder: Path, compress: bool = True
) -> Engine:
    """Open a DuckDB file for this process, and create an engine on it. The caller holds the lease.

    There is one instance, and each connection of the engine is a cursor of it, so each thread has its own transaction
    and results. Nothing outside the file and `temp_folder` is accessible. Raises the errors of `typed_error`, and
    `StoreClosed` in a child of a process that forked while the file was in use; nothing stays open.
    """
    note_own(path, COMPANIONS)
    config = _config(memory_limit_bytes, threads, temp_folder)
    # Only flush checkpoints: an automatic checkpoint would run inside a commit, without a note (see `checkpoint`).
    config["wal_autocheckpoint"] = "1TB"
    config["force_compression"] = "auto" if compress else "uncompressed"
    return _engine_on(
        path,
        lambda: Dialect().connect(os.path.realpath(path), config=config),
        "PRAGMA disable_checkpoint_on_shutdown",
    )


def open_overlay(stored: Path | None, *, memory_limit_bytes: int, threads: int, temp_folder: Path) -> Engine:
    """Open an in-memory database and attach the file `stored`, as `STORED`, for reading only.

    The file and its log stay unchanged: DuckDB replays the log in memory. Otherwise like `open_engine`.
    """
    config = _config(memory_limit_bytes, threads, temp_folder)
    if stored is None:
        return _engine_on(temp_folder, lambda: Dialect().connect(":memory:", config=config))
    note_own(stored, COMPANIONS)
    quoted = os.path.realpath(stored).replace("'", "''")

    def attached() -> Any:
        base = Dialect().connect(":memory:", config=config)
        try:
            with guarded(os.path.realpath(stored)):
                base.execute(f"ATTACH '{quoted}' AS {STORED} (READ_ONLY)")
        except BaseException:  # also after an interrupt; the instance has no other owner yet
            _close_quietly(base)
            raise
        return base

    return _engine_on(stored, attached)


def _engine_on(path: Path, connected: Callable[[], Any], *statements: str) -> Engine:
    """Create an engine on an instance, after these statements, that can open no other file."""
    file = forks.opening(path)
    base: Any = None
    try:
        base = _once_unlocked(connected)
        file.connection = weakref.ref(base)
        for statement in (
            *statements,
            "SET enable_external_access = false",
            "SET allowed_configs = ['threads']",  # loads of tables set it to one
            "SET lock_configuration = true",
        ):
            base.execute(statement)
        descriptor = os.open(os.path.realpath(path), os.O_RDONLY | os.O_CLOEXEC)
    except BaseException as error:
        _close_quietly(base)
        forks.close(file)
        if isinstance(error, duckdb.Error):
            raise typed_error(error, path) from error
        if isinstance(error, OSError):
            raise system_error(error, path) from error
        raise
    cursors: weakref.WeakSet[Any] = weakref.WeakSet()

    def connect() -> Any:
        cursor = base.cursor().cursor()
        cursors.add(cursor)
        return InstanceConnection(cursor)

    engine = create_engine(
        "duckdb+holdfast://",
        # The wrapper hides the driver's connection, but its cursors pass `cursor` through to it.
        creator=connect,
        poolclass=NullPool,
        # Closing a cursor ends its transaction; after a fatal error, a ROLLBACK before that would raise.
        pool_reset_on_return=None,
        execution_options={"compiled_cache": COMPILED},
    )
    _bases[id(engine.pool)] = (file, base, descriptor, cursors)

    @event.listens_for(engine, "engine_connect")
    @event.listens_for(engine, "begin")
    def _note(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.only_reads = connection.get_execution_options().get("only_reads", False)

    return engine


def _once_unlocked(connected: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + _ENDING_S
    while True:
        try:
            return connected()
        except duckdb.IOException as error:
            if not _is_locked(error) or time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)


def _is_locked(error: object) -> bool:
    return isinstance(error, duckdb.IOException) and "Could not set lock" in str(error)


def _close_quietly(base: Any) -> None:
    """Close an instance or a cursor. After a fatal error, closing raises, but has closed it anyway."""
    if base is not None:
        with suppress(duckdb.Error):
            base.close()


def open_scratch(*, memory_limit_bytes: int, threads: int, temp_folder: Path) -> Any:
    """Open an in-memory DuckDB for scanning objects of this process. It can access files only in `temp_folder`."""
    base = duckdb.connect(":memory:", config=_config(memory_limit_bytes, threads, temp_folder))
    base.execute("SET enable_external_access = false")
    base.execute("SET lock_configuration = true")
    return base


@contextmanager
def open_sandbox(descriptors: Iterable[int], *, memory_limit_bytes: int) -> Iterator[Any]:
    """Open an in-memory DuckDB for the block. It can access only these open files, by their `sandbox_path`.

    It has one thread, so that rows keep their order without a buffer per thread, and spills nothing to disk: exceeding
    the memory limit raises.
    """
    base = duckdb.connect(":memory:", config=_config(memory_limit_bytes, 1, Path()) | {"temp_directory": ""})
    try:
        allowed = ", ".join(f"'{sandbox_path(descriptor)}'" for descriptor in descriptors)
        base.execute(f"SET allowed_paths = [{allowed}]")
        base.execute("SET parquet_metadata_cache = true")
        # The statistics in a file are not trusted, and DuckDB 2.0.1 assumes that a TRY_CAST of a column without NULLs
        # has none.
        base.execute("SET disabled_optimizers = 'statistics_propagation'")
        base.execute("SET enable_external_access = false")
        base.execute("SET lock_configuration = true")
        yield base
    finally:
        base.close()


def sandbox_path(descriptor: int) -> str:
    """Return the path of an open file. It needs no quoting in SQL."""
    return f"/dev/fd/{descriptor:d}"


def _config(memory_limit_bytes: int, threads: int, temp_folder: Path) -> dict[str, Any]:
    return {
        "memory_limit": f"{memory_limit_bytes}B",
        "threads": threads,
        "temp_directory": str(temp_folder),
        "max_temp_directory_size": "1GB",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": True,
    }


def close_engine(engine: Engine) -> None:
    """Close the file without a checkpoint. The log stays next to it and is replayed at the next opening.

    Does nothing in a child of a fork: closing waits for the threads of the instance, which only the parent has.
    """
    if _bases[id(engine.pool)][0].is_inherited:
        return
    file, base, descriptor, cursors = _bases.pop(id(engine.pool))
    try:
        engine.dispose()
        # A cursor that an error left open would keep the instance alive, which then cannot be opened again, because its
        # configuration is locked.
        for cursor in tuple(cursors):
            _close_quietly(cursor)
    finally:
        _close_quietly(base)
        os.close(descriptor)
        forks.close(file)


def unused_metadata(engine: Engine) -> dict[int, list[int]]:
    """Return, by metadata block, the sub-blocks to which the next checkpoint may write; see `checkpoint`."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT block_id, free_list FROM pragma_metadata_info()")
        return {int(block): [int(number) for number in numbers] for block, numbers in found}


def descriptor_of(engine: Engine) -> int:
    """Return a descriptor for reading the file. The engine owns it, because closing it would drop DuckDB's lock."""
    return _bases[id(engine.pool)][2]


def log_path(path: Path) -> Path:
    """Return the path of DuckDB's log of this file."""
    return path.with_name(path.name + LOG)


def log_bytes(path: Path) -> int:
    """Return the size of the file's log; 0 if there is none."""
    try:
        return log_path(path).stat().st_size
    except FileNotFoundError:
        return 0


def set_log_aside(path: Path, now_us: int) -> Path:
    """Rename a log that cannot be replayed, and return its new name. Its content is still in the journal."""
    stamp = datetime.fromtimestamp(now_us // 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
    log = log_path(path)
    aside = log.with_name(f"{log.name}.corrupt-{stamp}")
    with system_typed(path):
        durable.replace(log, aside)
    return aside


def is_log_damage(error: BaseException) -> bool:
    """Return whether opening failed because the log could not be replayed."""
    cause = error.__cause__ if isinstance(error, HoldfastError) else error
    return isinstance(cause, duckdb.Error) and "replaying WAL" in str(cause)


def is_fatal(error: BaseException) -> bool:
    """Return whether the error, or a cause of it, invalidated the instance: statements fail until it is reopened.

    Accepts errors of the driver, wrapped by SQLAlchemy or not, and typed errors that were raised from them.
    """
    return any(
        isinstance(cause, (duckdb.FatalException, duckdb.InternalException))
        or (isinstance(cause, duckdb.Error) and "has been invalidated" in str(cause))
        for cause in causes_of(error)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error, or a cause of it, is that a statement exceeded the memory limit."""
    return any(isinstance(cause, duckdb.OutOfMemoryException) for cause in causes_of(error))


def typed_error(error: BaseException, path: Path) -> HoldfastError:
    """Translate an error of the driver, wrapped by SQLAlchemy or not, into an error of this library.

    The caller raises the result `from` the original. A held lock, a full disk and damage are recognized by the message,
    because DuckDB has no exception classes for them.
    """
    if isinstance(error, HoldfastError):
        return error
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = str(original)
    if _is_locked(original):
        return StoreBusy(
            f"{path} is open in a program that does not use Holdfast ({text}); stop that program", path=path
        )
    if isinstance(original, OSError):
        return system_error(original, path)
    if "No space left on device" in text:
        return StoreFull(f"no space left for {path}; free some space and try again", path=path)
    if isinstance(original, duckdb.IOException) and (why := next((w for w in _DENIED if w in text), None)):
        return denied(path, why)
    if any(word in text for word in _DAMAGE):
        return StoreCorrupt(
            f"{path} is damaged: {text}. It was not changed; acknowledged points that are not in it are still in the "
            "journal. Keep the file, and restore a backup",
            path=path,
        )
    return HoldfastError(
        f"DuckDB failed on {path}: {type(original).__name__}: {text}. Acknowledged points that are not in it are still "
        "in the journal; try again",
        path=path,
    )


_bases: dict[int, tuple[forks.OpenFile, Any, int, weakref.WeakSet[Any]]] = {}
"""Keyed by the engine's pool, which is shared by its copies with other execution options."""
