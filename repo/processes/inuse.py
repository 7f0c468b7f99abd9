"""Checks whether a file is in use: open in this process, or locked by another. Never locks or creates a file."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from repo.errors import InvalidFile

__all__ = ["first_in_use", "is_locked", "is_open_here", "note_own", "refuse_own"]

# struct flock: type, whence, start, length, process; the order differs on macOS.
_FLOCK = struct.Struct("qqihh" if sys.platform == "darwin" else "hhqqi4x")
_GETLK = getattr(fcntl, "F_OFD_GETLK", getattr(fcntl, "F_GETLK", 0))


_own: dict[str, tuple[str, ...]] = {}


def note_own(path: str | os.PathLike[str], companions: tuple[str, ...] = ()) -> None:
    """Record a database or lock file of a store that this process opens, for `refuse_own`. Thread-safe.

    `companions` are the suffixes of the files that belong to it.
    """
    _own[os.path.realpath(path)] = companions


def refuse_own(path: str | os.PathLike[str], *, folder: int | None = None) -> None:
    """Raise `InvalidFile` if this is a file of a store that this process has opened. Call it before opening `path`.

    Even reading such a file is harmful: closing any descriptor of a file drops all POSIX locks of the process on it.
    Files are compared by identity, so links do not matter. A relative `path` is resolved in the open `folder`, if one
    is given. A file that does not exist is accepted.
    """
    try:
        wanted = os.stat(path, dir_fd=folder)
    except OSError:
        return  # opening it reports the error
    for own, companions in tuple(_own.items()):
        for companion in ("", *companions):
            try:
                found = os.stat(own + companion)
            except OSError:
                if not companion:
                    _own.pop(own, None)  # the store was removed
                    break
                continue
            if os.path.samestat(found, wanted):
                raise InvalidFile(
                    f"{os.fspath(path)} is {own + companion}, a file of a store that this process has open, and cannot "
                    "be read directly; name an exported or copied file",
                    path=os.fspath(path),
                )


def first_in_use(paths: Iterable[Path]) -> Path | None:
    """Return the first file that this process has open or another one has locked; missing files are not in use."""
    return next((path for path in paths if is_open_here(path) or is_locked(path)), None)


def is_open_here(path: str | os.PathLike[str]) -> bool:
    """Return whether this process has the file open, so that closing another descriptor would drop its lock."""
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return False
    for descriptor in os.listdir("/dev/fd"):
        try:
            found = os.fstat(int(descriptor))
        except OSError:
            continue  # closed since the listing, like the listing's own descriptor
        if os.path.samestat(found, wanted):
            return True
    return False


def is_locked(path: Path) -> bool:
    """Return whether another process holds a lock on any byte of the file; False if there is no file.

    DuckDB locks a file while it has it open. SQLite locks it while it reads or writes, and in WAL mode while it has it
    open.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        asked = (
            (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
            if sys.platform == "darwin"
            else (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        )
        found = _FLOCK.unpack(fcntl.fcntl(descriptor, _GETLK, _FLOCK.pack(*asked)))
        kind: int = found[3] if sys.platform == "darwin" else found[0]
        return kind != fcntl.F_UNLCK
    finally:
        os.close(descriptor)
