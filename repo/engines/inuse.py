"""Whether a file is in use: open in this process, or locked by another. Looks only; never locks or creates anything."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["first_in_use", "is_locked", "is_open_here"]

# struct flock: type, whence, start, length, process; macOS has another order.
_FLOCK = struct.Struct("qqihh" if sys.platform == "darwin" else "hhqqi4x")
_LOOK = getattr(fcntl, "F_OFD_GETLK", getattr(fcntl, "F_GETLK", 0))


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
