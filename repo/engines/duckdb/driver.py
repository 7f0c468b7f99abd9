"""The DuckDB driver: opens, checkpoints and closes a file, and translates errors. Never knows what is stored."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from repo import durable, forks
from repo.engines.duckdb.dialect import ConnectionWrapper, Dialect
from repo.engines.duckdb.record import DUCKDB
from repo.errors import (
    HoldfastError,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    denied,
    system_error,
    system_typed,
)
from repo.inuse import note_own

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
    "open_sandbox",
    "open_scratch",
    "sandbox_path",
    "set_log_aside",
    "typed_error",
    "unused_metadata",
]

DriverError = duckdb.Error
"""The root of what the driver raises by itself, past SQLAlchemy."""

_DENIED = ("Permission denied", "Read-only file system", "Operation not permitted")

_DAMAGE = (
    "checksum",
    "Corrupt",
    "corrupted",
    "not a valid DuckDB database",
    "Could not read enough bytes",
    "replaying WAL",
)


def open_engine(
    path: Path, *, memory_limit_bytes: int, threads: int, temp_folder: Path, compress: bool = True
) -> Engine:
    """Open a DuckDB file for this process and make an engine on it; the caller holds the lease.

    One instance, and a cursor of it for each connection of the engine: so each thread that takes a
    connection has a transaction and results of its own. Nothing outside the file and `temp_folder` can be
    reached through it. Raises the typed errors of `typed_error`, and `StoreClosed` in a child of a process that
    forked while the file was in use; then nothing stays open.
    """
    note_own(path, DUCKDB.companions)
    config = _config(memory_limit_bytes, threads, temp_folder)
    # Flush alone decides when to checkpoint: the engine's own would come in a commit, and is not noted (`checkpoint`).
    config["wal_autocheckpoint"] = "1TB"
    config["force_compression"] = "auto" if compress else "uncompressed"
    dialect = Dialect()
    file = forks.opening(path)
    base: Any = None
    try:
        base = dialect.connect(os.path.realpath(path), config=config)
        for statement in (
            "PRAGMA disable_checkpoint_on_shutdown",
            "SET enable_external_access = false",
            "SET allowed_configs = ['threads']",  # loads of tables are better off with one
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
        return ConnectionWrapper(cursor)

    engine = create_engine(
        "duckdb+holdfast://",
        # The wrapper hides the driver's connection; what it gives as a cursor passes `cursor` through to it.
        creator=connect,
        poolclass=NullPool,
        # Closing a cursor ends its transaction; a ROLLBACK before that fails, loudly, after a fatal error.
        pool_reset_on_return=None,
    )
    _bases[id(engine.pool)] = (file, base, descriptor, cursors)
    return engine


def _close_quietly(base: Any) -> None:
    """Close an instance or a cursor whose work is over; after a fatal error closing fails, too, and has closed it."""
    if base is not None:
        with suppress(duckdb.Error):
            base.close()


def open_scratch(*, memory_limit_bytes: int, threads: int, temp_folder: Path) -> Any:
    """Open a DuckDB in memory, to look at objects of this process with; it reaches no file but in `temp_folder`."""
    base = duckdb.connect(":memory:", config=_config(memory_limit_bytes, threads, temp_folder))
    base.execute("SET enable_external_access = false")
    base.execute("SET lock_configuration = true")
    return base


@contextmanager
def open_sandbox(descriptors: Iterable[int], *, memory_limit_bytes: int) -> Iterator[Any]:
    """Open a DuckDB in memory, for the block, that can read and write these open files and nothing else.

    They are named as `sandbox_path` says. One thread, so that rows keep their order without a buffer for each;
    nothing is spilled to disk: what does not fit into the memory limit raises.
    """
    base = duckdb.connect(":memory:", config=_config(memory_limit_bytes, 1, Path()) | {"temp_directory": ""})
    try:
        allowed = ", ".join(f"'{sandbox_path(descriptor)}'" for descriptor in descriptors)
        base.execute(f"SET allowed_paths = [{allowed}]")
        base.execute("SET parquet_metadata_cache = true")
        # What a file says of its own columns is not believed; and DuckDB 2.0.1 holds that a TRY_CAST of a column
        # without NULLs has none.
        base.execute("SET disabled_optimizers = 'statistics_propagation'")
        base.execute("SET enable_external_access = false")
        base.execute("SET lock_configuration = true")
        yield base
    finally:
        base.close()


def sandbox_path(descriptor: int) -> str:
    """Return the name of an open file, in SQL too: it has no sign that could mean something else."""
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
    """Close the file, without a checkpoint; the log stays beside it and is replayed at the next open."""
    file, base, descriptor, cursors = _bases.pop(id(engine.pool))
    try:
        engine.dispose()
        # One that an error left open would keep the instance alive, and its locked configuration refuses to be opened.
        for cursor in tuple(cursors):
            _close_quietly(cursor)
    finally:
        _close_quietly(base)
        os.close(descriptor)
        forks.close(file)


def unused_metadata(engine: Engine) -> dict[int, list[int]]:
    """Return, by metadata block, the sub-blocks that the next checkpoint may write; see `checkpoint`."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT block_id, free_list FROM pragma_metadata_info()")
        return {int(block): [int(number) for number in numbers] for block, numbers in found}


def descriptor_of(engine: Engine) -> int:
    """Return a descriptor of the file to read from; the engine owns it, for closing it would drop DuckDB's lock."""
    return _bases[id(engine.pool)][2]


def log_path(path: Path) -> Path:
    """Return where DuckDB keeps the log of this file."""
    return DUCKDB.log_of(path)


def log_bytes(path: Path) -> int:
    """Return the size of the file's log; 0 when there is none."""
    try:
        return log_path(path).stat().st_size
    except FileNotFoundError:
        return 0


def set_log_aside(path: Path, now_us: int) -> Path:
    """Rename a log that cannot be replayed; what it held is still in the journal. Returns its new name."""
    stamp = datetime.fromtimestamp(now_us // 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
    log = log_path(path)
    aside = log.with_name(f"{log.name}.corrupt-{stamp}")
    with system_typed(path):
        durable.replace(log, aside)
    return aside


def is_log_damage(error: BaseException) -> bool:
    """Say whether an open failed because the log could not be replayed."""
    cause = error.__cause__ if isinstance(error, HoldfastError) else error
    return isinstance(cause, duckdb.Error) and "replaying WAL" in str(cause)


_MOST_CAUSES = 20


def is_fatal(error: BaseException) -> bool:
    """Say whether the error, or a cause of it, ended the instance: each later statement fails until it is reopened.

    Takes errors of the driver, bare or wrapped by SQLAlchemy, and typed ones that were raised from them.
    """
    seen: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if seen is None:
            return False
        original = seen.orig if isinstance(seen, DBAPIError) else seen
        if isinstance(original, (duckdb.FatalException, duckdb.InternalException)):
            return True
        if isinstance(original, duckdb.Error) and "has been invalidated" in str(original):
            return True
        seen = seen.__cause__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether the error, or a cause of it, is that a statement needs more than the memory limit."""
    seen: BaseException | None = error
    while seen is not None:
        original = seen.orig if isinstance(seen, DBAPIError) else seen
        if isinstance(original, duckdb.OutOfMemoryException):
            return True
        seen = seen.__cause__
    return False


def typed_error(error: BaseException, path: Path) -> HoldfastError:
    """Translate an error of the driver, bare or wrapped by SQLAlchemy, into the library's own.

    The caller raises the result `from` the original. The lock, the full disk and damage are told by their
    words, because DuckDB gives them no classes of their own.
    """
    if isinstance(error, HoldfastError):
        return error
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = str(original)
    if isinstance(original, duckdb.IOException) and "Could not set lock" in text:
        return StoreBusy(
            f"{path} is open in a program that does not go through Holdfast ({text}); stop it", path=path
        )
    if isinstance(original, OSError):
        return system_error(original, path)
    if "No space left on device" in text:
        return StoreFull(f"no space left for {path}; free some space and try again", path=path)
    if isinstance(original, duckdb.IOException) and (why := next((w for w in _DENIED if w in text), None)):
        return denied(path, why)
    if any(word in text for word in _DAMAGE):
        return StoreCorrupt(
            f"{path} is damaged: {text}. It is left as it is; acknowledged points that are not in it stay in "
            "the journal. Keep the file, and restore a backup",
            path=path,
        )
    return HoldfastError(
        f"work on {path} failed: {type(original).__name__}: {text}. Acknowledged points that are not in it stay "
        "in the journal; try again",
        path=path,
    )


_bases: dict[int, tuple[forks.OpenFile, Any, int, weakref.WeakSet[Any]]] = {}
"""By the engine's pool, which its copies with other execution options share."""
