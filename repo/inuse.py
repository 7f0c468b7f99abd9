"""Whether a file is in use: open in this process, or locked by another. Looks only; never locks or creates anything."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from repo.errors import InvalidFile

__all__ = ["first_in_use", "is_locked", "is_open_here", "note_own", "refuse_own"]

# struct flock: type, whence, start, length, process; macOS has another order.
_FLOCK = struct.Struct("qqihh" if sys.platform == "darwin" else "hhqqi4x")
_LOOK = getattr(fcntl, "F_OFD_GETLK", getattr(fcntl, "F_GETLK", 0))


_own: dict[str, tuple[str, ...]] = {}


def note_own(path: str | os.PathLike[str], companions: tuple[str, ...] = ()) -> None:
    """Note a database or lock file of a store, which this process opens, for `refuse_own`. Thread-safe.

    `companions` are the suffixes of the files that belong to it.
    """
    _own[os.path.realpath(path)] = companions


def refuse_own(path: str | os.PathLike[str], *, folder: int | None = None) -> None:
    """Raise `InvalidFile` if this is a file of a store that this process has opened; call it before opening `path`.

    Reading such a file is not harmless: POSIX drops all locks that a process has on a file when it closes any
    descriptor of it. Files are compared by identity, so that links are seen through; a relative `path` is looked
    up in the open `folder`, if there is one. What cannot be found is no file of a store.
    """
    try:
        wanted = os.stat(path, dir_fd=folder)
    except OSError:
        return  # opening it will say why
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
                    f"{os.fspath(path)} is {own + companion}, a file of a store that is in use here. It cannot "
                    "be read as anything else; name a file that was exported or copied",
                    path=os.fspath(path),
                )


def first_in_use(paths: Iterable[Path]) -> Path | None:
    """Return the first of the files that this process has open or another has locked; those not there are not."""
    return next((path for path in paths if is_open_here(path) or is_locked(path)), None)


def is_open_here(path: str | os.PathLike[str]) -> bool:
    """Say whether this process has the file open: closing another descriptor would then drop its lock."""
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return False
    for descriptor in os.listdir("/dev/fd"):
        try:
            found = os.fstat(int(descriptor))
        except OSError:
            continue  # closed meanwhile, as the listing's own descriptor is
        if os.path.samestat(found, wanted):
            return True
    return False


def is_locked(path: Path) -> bool:
    """Say whether another process holds a lock on any byte of the file, as DuckDB and SQLite do; False without one.

    SQLite locks while it reads or writes, and in WAL mode as long as it has the file open.
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
        found = _FLOCK.unpack(fcntl.fcntl(descriptor, _LOOK, _FLOCK.pack(*asked)))
        kind: int = found[3] if sys.platform == "darwin" else found[0]
        return kind != fcntl.F_UNLCK
    finally:
        os.close(descriptor)
