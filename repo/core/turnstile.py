"""The turnstile of the metadata database: a fair queue of writing processes. SQLite's own lock can starve some."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

from repo.disk import ownership
from repo.errors import StoreBusy, StoreUnsupported, system_typed
from repo.files import WRITE_FILE, WRITE_TURN_FILE, StoreFiles
from repo.processes.inuse import note_own

__all__ = ["Turnstile"]

_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB

_POLL_S = 0.000_1
"""How often the first process in the queue tries the lock."""

_QUEUE_S = 0.000_5
"""How often the other processes try to become the first."""

_LONG_WAIT_S = 0.1
_LONG_POLL_S = 0.002
"""A wait longer than a few commits is for one long transaction, so polling can be slower."""


class Turnstile:
    """The right of one handle to write to the metadata database; `flock` on two files that are never deleted.

    A writer locks `turn`, then `place`, then unlocks `turn`, so a process that has just committed cannot overtake one
    that is waiting. SQLite's own lock still guards the file; this one only orders the processes that use it. The
    kernel frees the locks of a process that dies.

    Not thread-safe: the owner calls it under its own mutex. To end its turn, the owner unlocks `place` itself, by a
    single call in a `finally` that no interrupt can precede.
    """

    __slots__ = ("__weakref__", "_files", "_turn", "kept", "place")

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._turn = -1
        self.place = -1
        """The descriptor that is locked while this handle writes; negative before the first write."""
        self.kept = False
        """Whether the lock is held across transactions; `take` then does nothing."""
        _turnstiles.add(self)

    def take(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` seconds for the turn of this handle; raises `StoreBusy` after that."""
        if self.kept:
            return
        if self.place < 0 or self._turn < 0:
            self._open()
        try:
            try:
                fcntl.flock(self._turn, _TRY)
                fcntl.flock(self.place, _TRY)
            except BlockingIOError:
                self._wait(timeout_s)
            finally:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
        except OSError as error:
            raise StoreUnsupported(
                f"{self._files.folder} is on a file system without locks ({error}); use a local disk",
                path=self._files.folder,
            ) from error

    def close(self) -> None:
        """Close both descriptors, which frees the lock; the next `take` opens them again."""
        place, self.place = self.place, -1
        turn, self._turn = self._turn, -1
        self.kept = False
        for descriptor in (place, turn):
            if descriptor >= 0:
                os.close(descriptor)

    def _open(self) -> None:
        folder, prefix = self._files.folder, self._files.prefix
        with system_typed(folder):
            if self._turn < 0:
                self._turn = _open_lock(folder / f"{prefix}{WRITE_TURN_FILE}")
            if self.place < 0:
                self.place = _open_lock(folder / f"{prefix}{WRITE_FILE}")

    def _wait(self, timeout_s: float) -> None:
        began = time.monotonic()
        for descriptor, pause_s in ((self._turn, _QUEUE_S), (self.place, _POLL_S)):
            while True:
                try:
                    fcntl.flock(descriptor, _TRY)
                    break
                except BlockingIOError:
                    waited_s = time.monotonic() - began
                if waited_s > timeout_s:
                    raise StoreBusy(
                        f"another process has been writing to {self._files.metadata} for more than {timeout_s:g} s; "
                        "nothing was written. Try again, raise busy_timeout_s, or stop that process",
                        path=self._files.metadata,
                    )
                time.sleep(pause_s if waited_s < _LONG_WAIT_S else _LONG_POLL_S)


def _open_lock(path: os.PathLike[str]) -> int:
    note_own(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    ownership.give(Path(path))
    return descriptor


_turnstiles: weakref.WeakSet[Turnstile] = weakref.WeakSet()


def _close_in_child() -> None:
    # Closing, never unlocking: the lock is the parent's.
    for turnstile in list(_turnstiles):
        turnstile.close()


os.register_at_fork(after_in_child=_close_in_child)
