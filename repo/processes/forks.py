"""Forks: tracks the database files that this process has open, and closes them before it forks.

SQLite's tables of open files and shared memory survive `fork`, but its POSIX locks do not; DuckDB's instance survives,
but its threads do not. A child that opens a file that its parent had open would corrupt it. So every connection is
closed before a fork, and parent and child reopen the files when they need them. If a running transaction keeps a file
open for longer than `WAIT_S`, the child refuses to open that file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import CodeType
from typing import Any, ParamSpec, TypeVar

from repo.errors import StoreClosed
from repo.processes import lease  # noqa: F401  its hook must run after ours: from then on no lock file can be opened

__all__ = [
    "OpenFile",
    "Use",
    "add_owner",
    "after_fork",
    "as_use",
    "close",
    "give_way",
    "is_awaited",
    "opening",
    "refuse_inherited",
    "wait_for_forks",
]

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("holdfast.forks")

WAIT_S = 3.0
"""How long a fork waits for running transactions. New ones wait for the fork."""

OWN_WAIT_S = 0.1
"""The same if the forking thread is itself inside a transaction, which then cannot end."""

_POLL_S = 0.000_5


class OpenFile:
    """An open database file, from just before it is opened until just after it is closed.

    The owner of the file keeps a reference to this object. If an interrupt drops it, the file no longer counts as open.
    """

    __slots__ = ("__weakref__", "_pid", "connection", "mark", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.connection: weakref.ref[Any] | None = None
        self.mark = weakref.ref(self, _open.discard)
        self._pid = os.getpid()

    @property
    def is_inherited(self) -> bool:
        """Whether the parent opened it, so that this process must not close it."""
        return self._pid != os.getpid()


class _Here(threading.local):
    use: weakref.ref[Use] | None = None
    may_hold = False
    interrupted = False


class Use:
    """A block that uses the databases of a store. None begins while another thread forks.

    Blocks may be nested. They are referenced weakly, so that an interrupted block no longer counts.
    """

    __slots__ = ("__weakref__",)

    def __enter__(self) -> None:
        outer = _here.use
        if outer is None or outer() is None:
            if _forking:
                _wait()
            _here.use = weakref.ref(self)

    def __exit__(self, *_: object) -> None:
        use = _here.use
        if use is not None and use() is self:
            _here.use = None


def as_use(block: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Make the block of a context manager a `Use`. Apply this decorator below `contextmanager`."""

    @wraps(block)
    def used(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with Use():
            yield from block(*args, **kwargs)

    return used


def give_way() -> None:
    """Wait while another thread forks. For calls outside of any `Use`."""
    if _forking and not _inside():
        _wait()


def is_awaited() -> bool:
    """Return whether another thread waits to fork, so that a long operation should close its files."""
    return bool(_forking) and threading.get_ident() not in _forking


def wait_for_forks() -> None:
    """Wait until all waiting threads have forked. The caller has closed its files."""
    _wait()


def opening(path: str | os.PathLike[str]) -> OpenFile:
    """Register a database file before it is opened. Pass the result to `close` once it is closed, or failed to open.

    Raises `StoreClosed` in a child if the parent had the file open at the fork.
    """
    refuse_inherited(path)
    file = OpenFile(os.path.realpath(path))
    with _lock:
        _open.add(file.mark)
    return file


def close(file: OpenFile) -> None:
    """Unregister a file that is closed. Safe to call again."""
    _open.discard(file.mark)


def add_owner(owner: Any, close_idle: Callable[[Any], None]) -> None:
    """Register `close_idle(owner)`, which is called before each fork, repeatedly until no file is open.

    It closes what is not in use at that moment, and must not wait for other threads. `owner` is referenced weakly. A
    child does not inherit the registration.
    """
    with _lock:
        _owners[owner] = close_idle


def after_fork(owner: Any, renew: Callable[[Any], None]) -> None:
    """Register `renew(owner)`, which is called in each child. It must not open files or start threads.

    `owner` is referenced weakly.
    """
    with _lock:
        _renewed[owner] = renew


def refuse_inherited(*paths: str | os.PathLike[str]) -> None:
    """Raise `StoreClosed` if the parent forked while one of these files was open and could not be closed."""
    if not _inherited:
        return
    for path in paths:
        real = os.path.realpath(path)
        if real in _inherited or _identity(real) in _inherited:
            raise StoreClosed(
                f"{real} was in use when this process was forked, and its locks belong to the parent. Fork while no "
                'call on the store is running, or use the multiprocessing start method "spawn"',
                path=Path(real),
            )


def _inside() -> bool:
    use = _here.use
    return use is not None and use() is not None


def _wait() -> None:
    # Bounded: hooks of other libraries run between ours, and may need a lock that this thread holds. It polls, because
    # an interrupt in `Event.wait` can leave the event's lock locked.
    deadline = time.monotonic() + 2 * WAIT_S
    while is_awaited() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_files() -> list[OpenFile]:
    return [file for mark in list(_open) if (file := mark()) is not None]


def _before() -> None:
    try:
        _forking.add(threading.get_ident())
        _close_all()
    except KeyboardInterrupt:
        # Python discards errors of a hook, and forks anyway. This one is raised again after the fork.
        _here.interrupted = True


def _close_all() -> None:
    inside = _inside()
    deadline = time.monotonic() + (OWN_WAIT_S if inside else WAIT_S)
    while True:
        if not inside:  # this thread's own connections must not be closed while it uses them
            _close_idle(deadline)
        _here.may_hold = True  # set first: an interrupt may come after the lock is acquired
        if _lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            if not _open:
                return  # keep the lock: no file can be opened until the fork is done
            _lock.release()
        _here.may_hold = False
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_S)
    log.warning(
        "this process forks while it is using %s; the child cannot open it",
        ", ".join(sorted({file.path for file in _open_files()})) or "a store",
    )


def _close_idle(deadline: float) -> None:
    """Make the owners close what is not in use, in another thread, where no interrupt can cut it off."""
    thread = threading.Thread(target=_close_all_idle, name="holdfast-fork", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread can be started
        _close_all_idle()
    else:
        thread.join(max(0.0, deadline - time.monotonic()))


def _close_all_idle() -> None:
    with _lock:
        owners = list(_owners.items())
    for owner, close_idle in owners:
        try:
            close_idle(owner)
        except Exception as error:  # noqa: BLE001  the child refuses whatever stays open
            log.warning("a file could not be closed before a fork: %s", error)


def _after_in_parent() -> None:
    _release()
    _forking.discard(threading.get_ident())
    if _here.interrupted:
        _here.interrupted = False
        threading.Thread(target=_interrupt, args=(threading.get_ident(),), daemon=True).start()


def _interrupt(thread: int) -> None:
    """Interrupt a thread once it has left `_after_in_parent`, where Python would discard the interrupt."""
    while any(code is _after_in_parent.__code__ for code in _running(thread)):
        time.sleep(_POLL_S)
    signal.pthread_kill(thread, signal.SIGINT)


def _running(thread: int) -> Iterator[CodeType]:
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _release() -> None:
    if _here.may_hold:
        _here.may_hold = False
        with contextlib.suppress(RuntimeError):
            _lock.release()


def _after_in_child() -> None:
    global _lock, _here
    for file in _open_files():
        _inherited.add(file.path)
        identity = _identity(file.path)
        if identity is not None:
            _inherited.add(identity)
        if file.connection is not None:
            _keep(file.connection())
    _lock, _here = threading.RLock(), _Here()
    _open.clear()
    _forking.clear()
    _owners.clear()
    for owner, renew in list(_renewed.items()):
        renew(owner)


def _keep(connection: object) -> None:
    """Keep an inherited connection open, by a reference that lasts longer than the interpreter.

    Closing it would release the parent's locks on SQLite, and wait for the parent's threads on DuckDB, which crashes.
    """
    _abandoned.append(connection)
    with contextlib.suppress(ImportError):  # some interpreters are built without it
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


_lock = threading.RLock()
_here = _Here()
_open: set[weakref.ref[OpenFile]] = set()
_forking: set[int] = set()
_owners: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_renewed: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_inherited: set[object] = set()
_abandoned: list[object] = []

os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
