"""The lease: lets one process at a time open the time-series database. Owns the two lock files, and nothing else."""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import io
import json
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from repo.disk import ownership
from repo.errors import HoldfastError, StoreBusy, StoreUnsupported, system_error, system_typed
from repo.processes.inuse import note_own

__all__ = ["LEASE_FILE", "TURN_FILE", "Holder", "Lease", "leased", "read_holder"]

LEASE_FILE, TURN_FILE = "lease.lock", "turn.lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of the lease: its process id, since when (µs), and what it is doing, in its own words."""

    pid: int
    since_us: int
    doing: str


def read_holder(folder: Path, prefix: str = "") -> Holder | None:
    """Return the current holder of this store's lease, or None. Never blocks others for long."""
    try:
        with _no_fork:
            file = _LockFile(folder / f"{prefix}{LEASE_FILE}", "r")
            _lock_files.add(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise system_error(error, folder) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(os.pread(file.fileno(), 4096, 0))
        return None


class Lease:
    """The right of this process to open the time-series database of one store.

    It is a `flock` on a separate file, so that closing a database file cannot drop the lock. A second file is the
    turnstile: a waiting process locks `turn`, then `lease`, then unlocks `turn`. So the holder sees by `wanted` that
    another process waits, and processes are served in order. The files of a database are never deleted. Both file names
    begin with `prefix`, for folders with several stores. With `read_only` neither file is created or changed; a file
    that does not exist counts as free, because whoever opens the database creates it first.

    Not thread-safe: the owner serializes the calls. After an exception from any method, including KeyboardInterrupt,
    `held` says whether the lease is held.
    """

    def __init__(
        self, folder: Path, now_us: Callable[[], int], *, prefix: str = "", read_only: bool = False
    ) -> None:
        self._folder = folder
        self._prefix = prefix
        self._read_only = read_only
        self._now_us = now_us
        self._place: _Place | None = None
        self._probe = _open_lock(folder / f"{prefix}{TURN_FILE}", read_only=read_only)
        self.held_since_s = 0.0
        _leases.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the lease."""
        place = self._place
        return place is not None and place.granted

    def acquire(self, timeout_s: float, doing: str, more: Callable[[], float] = lambda: 0.0) -> None:
        """Take the lease, waiting at most `timeout_s` seconds; raises `StoreBusy`, which names the holder.

        After the timeout, `more` returns how many seconds to keep waiting, without losing the place in the queue.

        A call that reaches its deadline leaves its place in the queue to the next call of this process; with a timeout
        of 0 it takes no place. Raises `HoldfastError` if the process has no descriptor or thread left.
        """
        if self.held:
            return
        if self._place is None:
            self._place = _Place(self._folder, self._prefix, self._read_only)
        place = self._place
        try:
            if not place.take_up():
                place = self._place = _Place(self._folder, self._prefix, self._read_only)
                place.take_up()
            began_s = time.monotonic()
            while not place.wait(timeout_s):
                timeout_s = more() if timeout_s > 0 else 0.0
                if timeout_s > 0:
                    continue
                waited_s = time.monotonic() - began_s
                raise self._busy(waited_s)  # noqa: TRY301  `give_up` runs below
            self.held_since_s = time.monotonic()
            note = json.dumps({"pid": os.getpid(), "since_us": self._now_us(), "doing": doing}).encode()
            place.write(note)
        except BaseException:  # no exception, including an interrupt, may leave a lease without an owner
            try:
                place.give_up()
            except BaseException:  # an interrupt that arrives right here
                place.give_up()
                raise
            raise

    def wanted(self) -> bool:
        """Return whether another process waits for the lease."""
        try:
            fcntl.flock(self._probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            fcntl.flock(self._probe, fcntl.LOCK_UN)
        return False

    def release(self) -> None:
        """Release the lease; does nothing if it is not held."""
        if self._place is not None and self._place.granted:
            self._place.give_up()

    def is_current(self) -> bool:
        """Return whether the lock that is held is the one that others would wait for: its file was not removed."""
        return self._place is not None and self._place.is_current()

    def remove(self) -> None:
        """Remove both files, while the lease is held. Whoever opened them before must ask `is_current`."""
        for name in (LEASE_FILE, TURN_FILE):
            (self._folder / f"{self._prefix}{name}").unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lease, leave the turnstile, and close both files."""
        if self._place is not None:
            self._place.leave()
        self._probe.close()

    def after_fork(self) -> None:
        """Forget the parent's state in the child. Its descriptors are already closed, see `_in_child`."""
        self._place = None

    def _busy(self, timeout_s: float) -> StoreBusy:
        holder = read_holder(self._folder, self._prefix)
        if holder is None:
            owner = "another process"
        else:
            held_s = max(0.0, (self._now_us() - holder.since_us) / 1e6)
            owner = f"process {holder.pid}, for {held_s:.1f} s, doing: {holder.doing}"
        return StoreBusy(
            f"the columns of {self._folder} were not handed over within {timeout_s:.1f} s; they are held by {owner}. "
            "Try again, raise lease_timeout_s, or stop that process",
            path=self._folder,
            holder=None if holder is None else holder.pid,
        )


@contextlib.contextmanager
def leased(
    folder: Path, timeout_s: float, now_us: Callable[[], int], doing: str, *, prefix: str = ""
) -> Iterator[None]:
    """Hold the lease of a store for the block; raises `StoreBusy` as `Lease.acquire` does."""
    lease = Lease(folder, now_us, prefix=prefix)
    try:
        lease.acquire(timeout_s, doing)
        yield
    finally:
        lease.close()


class _Place:
    """A place in the queue for the lease: new, queued, granted or over. It owns its two descriptors throughout.

    flock has no timeout, so a thread blocks in it on behalf of the waiting call. While it blocks, only that thread may
    close the descriptors. A lock that it gets while no call waits is released at once, and the place is over.
    """

    def __init__(self, folder: Path, prefix: str, read_only: bool) -> None:
        self._folder = folder
        self._read_only = read_only
        self._paths = (folder / f"{prefix}{TURN_FILE}", folder / f"{prefix}{LEASE_FILE}")
        self._files: list[_LockFile] = []
        # `with` acquires and releases an interpreter lock without a gap for an interrupt; a Condition has such a gap.
        self._mutex = _thread.allocate_lock()
        self._settled = _thread.allocate_lock()
        self._settled.acquire()
        self._awaited = False
        self._left = False
        self._queued = False
        self._error: OSError | None = None
        self._over = False
        self.granted = False

    def take_up(self) -> bool:
        """Start a call that waits here; False if the place is over. After that, call `wait` or `give_up`."""
        with self._mutex:
            self._awaited = not self._over
            return self._awaited

    def wait(self, timeout_s: float) -> bool:
        """Return whether the lease was granted within `timeout_s`. After False or an exception, call `give_up`."""
        if not self._files:
            try:
                if self._at_once():
                    return True
            except OSError as error:
                raise self._unsupported(error) from error
            if timeout_s <= 0:
                return False
            self._start()
        if self._settled.acquire(timeout=max(0.0, min(timeout_s, threading.TIMEOUT_MAX))):
            self._settled.release()
        if self._error is not None:
            raise self._unsupported(self._error) from self._error
        return self.granted

    def give_up(self) -> None:
        """Stop waiting, or release the lease if it was granted. Can be repeated."""
        with self._mutex:
            self._awaited = False
            if not self._queued:
                self._over = True
                self._close()
                self.granted = False  # last, so that an interrupted release can be repeated

    def leave(self) -> None:
        """Give up, and leave the queue as soon as possible; no call will use this place again."""
        self._left = True
        self.give_up()

    def is_current(self) -> bool:
        """Return whether the file of the lease still has its name."""
        try:
            return os.path.samestat(os.fstat(self._files[-1].fileno()), os.stat(self._paths[-1]))
        except FileNotFoundError:
            return False

    def write(self, note: bytes) -> None:
        """Write a note into the lease file, from which others read the holder."""
        # The note is only informative, so a full disk must not prevent taking the lease.
        with contextlib.suppress(OSError):
            descriptor = self._files[-1].fileno()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note, 0)

    def _at_once(self) -> bool:
        for path in self._paths:
            self._files.append(_open_lock(path, read_only=self._read_only))
        turn, lease = self._files
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(turn, fcntl.LOCK_UN)
            return False
        turn.close()
        self.granted = True
        return True

    def _start(self) -> None:
        try:
            with self._mutex:
                self._queued = True
                _thread.start_new_thread(self._block, ())
        except RuntimeError as error:
            self._queued = False
            raise HoldfastError(
                f"the thread that waits for the columns of {self._folder} could not be started ({error}); raise the "
                "limit of threads, or end some, and try again",
                path=self._folder,
            ) from error

    def _block(self) -> None:
        turn, lease = self._files
        error: OSError | None = None
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not self._left:
                fcntl.flock(lease, fcntl.LOCK_EX)
        except OSError as failed:
            error = failed
        with self._mutex:
            self._queued = False
            self._error = error
            if error is None and self._awaited:
                turn.close()
                self.granted = True
            else:
                self._over = True
                self._close()
        self._settled.release()

    def _unsupported(self, error: OSError) -> StoreUnsupported:
        return StoreUnsupported(
            f"{self._folder} is on a file system without locks ({error}); use a local disk", path=self._folder
        )

    def _close(self) -> None:
        for file in self._files:
            file.close()


class _LockFile(io.FileIO):
    """A descriptor that the child of a fork closes, and that records in the same step that it is closed."""

    # An interrupt may drop it before it has an owner, without a ResourceWarning. In C, so nothing interrupts it.
    __del__ = io.FileIO.close


def _open_lock(path: Path, *, read_only: bool = False) -> _LockFile:
    note_own(path)
    with system_typed(path.parent), _no_fork:
        try:
            file = _LockFile(path, "r" if read_only else "r+")
        except FileNotFoundError:
            if read_only:
                return _open_private_lock()
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
            ownership.give(path)
            file = _LockFile(path, "r+")
        _lock_files.add(file)
        return file


def _open_private_lock() -> _LockFile:
    """Open a file without a name, whose lock is always free. The caller holds `_no_fork`."""
    with tempfile.TemporaryFile() as unnamed:
        file = _LockFile(os.dup(unnamed.fileno()), "r+")
    _lock_files.add(file)
    return file


def _parse(note: bytes) -> Holder | None:
    try:
        fields = json.loads(note)
        return Holder(int(fields["pid"]), int(fields["since_us"]), str(fields["doing"]))
    except (ValueError, KeyError, TypeError):
        return None  # the holder is writing it right now


_leases: weakref.WeakSet[Lease] = weakref.WeakSet()
_lock_files: weakref.WeakSet[_LockFile] = weakref.WeakSet()
_no_fork = _thread.allocate_lock()
"""Held while a lock file is opened, and during a fork, so that a child knows every inherited descriptor."""


def _in_child() -> None:
    """Close every inherited lock file. It is closed, never unlocked, because the locks belong to the parent."""
    _no_fork.release()
    for file in list(_lock_files):
        file.close()
    for lease in list(_leases):
        lease.after_fork()


os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_in_child)
