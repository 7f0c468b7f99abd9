"""Copies of a SQLite file, complete with what is in its WAL."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from repo.disk import durable, ownership
from repo.engines.sqlite.companions import LOG, SHARED_MEMORY
from repo.engines.sqlite.driver import RegisteredConnection, log_bytes, uri_of
from repo.errors import StoreBusy, system_typed

__all__ = ["copy_to", "copy_with_log", "needs_copy"]


def copy_to(path: Path, target: Path, progress: Callable[[int], object]) -> None:
    """Copy a database, including the content of its WAL, to a new file, durably; raises the driver's errors.

    `progress` is called with the bytes of each piece. Other connections can read and write during the copy.
    """
    source = sqlite3.connect(
        uri_of(path, "mode=rw"), uri=True, factory=RegisteredConnection, check_same_thread=False
    )
    target.touch(exist_ok=False)
    ownership.make_like(target, path)
    copy = sqlite3.connect(target, factory=RegisteredConnection, check_same_thread=False)
    left = None

    def report(_status: int, remaining: int, total: int) -> None:
        nonlocal left
        progress(max(0, (total if left is None else left) - remaining) * page_bytes)
        left = remaining

    try:
        [(page_bytes,)] = source.execute("PRAGMA page_size").fetchall()
        source.backup(copy, pages=1_000, progress=report)
        copy.execute("PRAGMA journal_mode = DELETE")  # so that the file is complete without a log
    finally:
        copy.close()
        source.close()
    durable.sync(target)


def needs_copy(path: Path) -> bool:
    """Return whether SQLite cannot read the file where it is, because it cannot create its shared memory there.

    This is the case for a file with a log but no `-shm`, such as one from a backup, in a folder that this process may
    not write to.
    """
    return log_bytes(path) > 0 and not _shared_memory(path).exists() and not os.access(path.parent, os.W_OK)


def copy_with_log(path: Path, folder: Path) -> Path:
    """Copy the file and its log into a folder, and return the copy.

    Raises `StoreBusy` if another program opens the file during the copy.
    """
    copy = folder / f"copy-{path.name}"
    with system_typed(folder, f"{path} has to be copied to be read; name a folder with more space in TMPDIR"):
        for suffix in ("", LOG):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    if _shared_memory(path).exists():
        raise StoreBusy(f"another program opened {path} while it was copied; try again", path=path)
    return copy


def _shared_memory(path: Path) -> Path:
    return path.with_name(path.name + SHARED_MEMORY)
