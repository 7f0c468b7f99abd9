"""The lease: one process at a time may open the time-series database. Owns the two lock files, nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from repo.engines.inuse import note_own
from repo.errors import StoreBusy, StoreUnsupported, system_error
from repo.files import LEASE_FILE, TURN_FILE, StoreFiles

__all__ = ["Holder", "Lease", "leased", "read_holder"]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lease: process id, since when (µs), and what it said it was doing."""

    pid: int
    since_us: int
    doing: str


def read_holder(folder: Path, prefix: str = "") -> Holder | None:
    """Return who holds the lease of this store now, or None. Takes nothing that anyone could wait for long."""
    try:
        descriptor = os.open(folder / f"{prefix}{LEASE_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise system_error(error, folder) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(os.pread(descriptor, 4096, 0))
        return None
    finally:
        os.close(descriptor)


class Lease:
    """The right of this process to open the time-series database of one store.

    `flock` on files of their own, never deleted, so that closing a database file cannot drop it. A second
    file is the turnstile: a waiter takes `turn`, then `lease`, then lets `turn` go; so the holder sees by
    `wanted` that somebody waits, and waiters are served in order. Thread-safe only as its owner makes it so.
    `prefix` begins the names of both, where a folder holds several stores.
    """

    def __init__(self, folder: Path, now_us: Callable[[], int], *, prefix: str = "") -> None:
        self._folder = folder
        self._prefix = prefix
        self._now_us = now_us
        self._descriptor: int | None = None
        self._waiter: _Waiter | None = None
        self._probe = _open_lock(folder / f"{prefix}{TURN_FILE}")
        self.held_since_s = 0.0
        _leases.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the lease."""
        return self._descriptor is not None

    def acquire(self, timeout_s: float, doing: str) -> None:
        """Take the lease, waiting at most `timeout_s` seconds; raises `StoreBusy` naming the holder."""
        if self._descriptor is not None:
            return
        if self._waiter is None or self._waiter.spent:
            self._waiter = _Waiter(self._folder, self._prefix)
        self._descriptor = self._waiter.wait(timeout_s)
        if self._descriptor is None:
            # Its thread still stands in the queue; a call that comes before its turn takes the place over.
            raise self._busy(timeout_s)
        self._waiter = None
        self.held_since_s = time.monotonic()
        note = json.dumps({"pid": os.getpid(), "since_us": self._now_us(), "doing": doing}).encode()
        # The note only helps others to name the holder: a full disk must not keep anybody from the lease.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, note, 0)

    def wanted(self) -> bool:
        """Say whether another process waits for the lease."""
        try:
            fcntl.flock(self._probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._probe, fcntl.LOCK_UN)
        return False

    def release(self) -> None:
        """Give the lease back; does nothing if it is not held."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def close(self) -> None:
        """Release the lease and the turnstile for good."""
        self.release()
        self._waiter = None
        if self._probe >= 0:
            os.close(self._probe)
            self._probe = -1

    def after_fork(self) -> None:
        """Drop what the child inherited, by closing, never by unlocking: the lock is the parent's."""
        for descriptor in (self._descriptor, self._probe):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._descriptor, self._probe, self._waiter = None, -1, None

    def _busy(self, timeout_s: float) -> StoreBusy:
        holder = read_holder(self._folder, self._prefix)
        if holder is None:
            told = "another process"
        else:
            held_s = max(0.0, (self._now_us() - holder.since_us) / 1e6)
            told = f"process {holder.pid}, for {held_s:.1f} s, doing: {holder.doing}"
        return StoreBusy(
            f"the columns of {self._folder} were not handed over within {timeout_s:g} s; held by {told}. "
            "Try again, raise lease_timeout_s, or stop that process",
            path=self._folder,
            holder=None if holder is None else holder.pid,
        )


@contextlib.contextmanager
def leased(files: StoreFiles, timeout_s: float, now_us: Callable[[], int], doing: str) -> Iterator[None]:
    """Hold the lease of a store for the block; raises `StoreBusy` as `Lease.acquire` does."""
    lease = Lease(files.folder, now_us, prefix=files.prefix)
    try:
        lease.acquire(timeout_s, doing)
        yield
    finally:
        lease.close()


class _Waiter:
    """One place in the queue for the lease. flock knows no deadline, so a thread blocks in our stead.

    A lock that comes when no call waits for it is given straight back, and the place is spent.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._turn, self._lease = folder / f"{prefix}{TURN_FILE}", folder / f"{prefix}{LEASE_FILE}"
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._descriptor: int | None = None
        self._error: OSError | None = None
        self._awaited = False
        self._started = False
        self.spent = False

    def wait(self, timeout_s: float) -> int | None:
        """Return the locked descriptor of the lease file, or None after `timeout_s`."""
        with self._lock:
            self._awaited = True
        if not self._started:
            self._started = True
            descriptor = self._at_once()
            if descriptor is not None:
                return descriptor
            threading.Thread(target=self._block, name="holdfast-lease", daemon=True).start()
        self._settled.wait(timeout_s)
        with self._lock:
            self._awaited = False
            if self._error is not None:
                raise StoreUnsupported(
                    f"{self._folder} is on a file system without locks ({self._error}); use a local disk",
                    path=self._folder,
                ) from self._error
            descriptor, self._descriptor = self._descriptor, None
            return descriptor

    def _at_once(self) -> int | None:
        turn = _open_lock(self._turn)
        lease = _open_lock(self._lease)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lease)
            return None
        finally:
            os.close(turn)
        return lease

    def _block(self) -> None:
        turn = _open_lock(self._turn)
        lease = _open_lock(self._lease)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(lease, fcntl.LOCK_EX)
        except OSError as error:
            self._error = error
            os.close(lease)
        else:
            with self._lock:
                if self._awaited:
                    self._descriptor = lease
                else:
                    self.spent = True
                    os.close(lease)
        finally:
            os.close(turn)
            self._settled.set()


def _open_lock(path: Path) -> int:
    note_own(path)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise system_error(error, path.parent) from error


def _parse(note: bytes) -> Holder | None:
    try:
        fields = json.loads(note)
        return Holder(int(fields["pid"]), int(fields["since_us"]), str(fields["doing"]))
    except (ValueError, KeyError, TypeError):
        return None  # the holder is just writing it


_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lease in list(_leases):
        lease.after_fork()


os.register_at_fork(after_in_child=_forget_in_child)
