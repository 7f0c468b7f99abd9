"""Scratch folders: temporary folders that a later process removes if the process that made one was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from repo.errors import system_typed

__all__ = ["ScratchFolder"]

_PREFIX = "holdfast-"

_LOCK = "owner.lock"
"""The process that made the folder holds its `flock` until it ends."""


class ScratchFolder:
    """A new folder in the temporary folder, removed by `cleanup`, or when this object or this process ends.

    Making one also removes those that killed processes of this user left behind. Raises `StoreDenied`, `StoreFull` or
    another typed error that names the temporary folder.
    """

    def __init__(self) -> None:
        place = Path(tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108  for the message
        with system_typed(place, "a reader needs a temporary folder; set TMPDIR to one with free space"):
            self._make()

    def _make(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = -1
        try:
            lock = os.open(self.path / "new.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Under its final name only once it is locked: until then, other processes leave the folder alone.
            (self.path / "new.lock").rename(self.path / _LOCK)
        except BaseException:  # also after an interrupt; nothing else would remove the folder
            _remove(self.path, lock, os.getpid())
            raise
        self._remove = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def cleanup(self) -> None:
        """Remove the folder. Safe to call again."""
        self._remove()


def _remove(path: Path, lock: int, pid: int) -> None:
    if os.getpid() != pid:
        return  # the child of a fork: the folder is its parent's
    shutil.rmtree(path, ignore_errors=True)
    if lock >= 0:
        os.close(lock)


def _remove_abandoned(places: Path) -> None:
    for path in places.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # not ours, in use, or removed by another process just now
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
