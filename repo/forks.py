"""Forks: which database files this process has open, and how they are closed before it forks.

SQLite's tables of open files and shared memory survive `fork`, its POSIX locks do not; DuckDB's instance survives, its
threads do not. A child that opens a file which its parent had open corrupts it. So before a fork every connection is
closed; parent and child open the files anew when they need them. What cannot be closed in `WAIT_S`, because a
transaction goes on, is remembered, and the child refuses to open it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from repo import lease  # noqa: F401  its hook comes after ours: it keeps lock files from being opened
from repo.errors import StoreClosed

__all__ = [
    "OpenFile",
    "Use",
    "add_owner",
    "after_fork",
    "as_use",
    "close",
    "give_way",
    "is_awaited",
    "let_pass",
    "opening",
    "refuse_inherited",
]

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("holdfast.forks")

WAIT_S = 3.0
"""How long a fork waits for running transactions to end. New ones begin after it."""

OWN_WAIT_S = 0.1
"""The same where the forking thread is itself inside of one, which cannot end meanwhile."""

_LOOK_S = 0.000_5


class OpenFile:
    """One opening of a database file: from just before it until just after it is closed.

    Whoever has the file open keeps this object as long; what is lost in an interrupt counts no more.
    """

    __slots__ = ("__weakref__", "connection", "mark", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.connection: weakref.ref[Any] | None = None
        self.mark = weakref.ref(self, _open.discard)


class _Here(threading.local):
    use: weakref.ref[Use] | None = None
    may_hold = False
    interrupted = False


class Use:
    """A block that uses the databases of a store; while another thread forks, no new one begins.

    Blocks may be nested. It is known by a weak reference, so that one that an interrupt cut off counts no more.
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
    """Make a block of `contextmanager`, which this decorator comes under, a `Use`."""

    @wraps(block)
    def used(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with Use():
            yield from block(*args, **kwargs)

    return used


def give_way() -> None:
    """Wait while another thread forks; for a call that is in no `Use` and nests nothing."""
    if _forking and not _inside():
        _wait()


def is_awaited() -> bool:
    """Say whether another thread waits to fork, so that a long piece of work should close what it has open."""
    return bool(_forking) and threading.get_ident() not in _forking


def let_pass() -> None:
    """Wait until the threads that wait to fork have done so; the caller has closed what it had open."""
    _wait()


def opening(path: str | os.PathLike[str]) -> OpenFile:
    """Note that a database file is about to be opened; `close` takes the result when it is closed, or was not opened.

    Raises `StoreClosed` in a child of a process that had it open at the fork.
    """
    refuse_inherited(path)
    file = OpenFile(os.path.realpath(path))
    with _lock:
        _open.add(file.mark)
    return file


def close(file: OpenFile) -> None:
    """Note that the file is closed. Safe to call again."""
    _open.discard(file.mark)


def add_owner(owner: Any, let_go: Callable[[Any], None]) -> None:
    """Have `let_go(owner)` called before each fork, again and again until no file is open, as long as `owner` lives.

    It closes what nobody uses at that moment, and must not wait for other threads. It is not called in a child.
    """
    with _lock:
        _owners[owner] = let_go


def after_fork(owner: Any, renew: Callable[[Any], None]) -> None:
    """Have `renew(owner)` called in each child, as long as `owner` lives. It opens nothing and starts no thread."""
    with _lock:
        _renewed[owner] = renew


def refuse_inherited(*paths: str | os.PathLike[str]) -> None:
    """Raise `StoreClosed` where one of these files was open in the parent when it forked, and could not be closed."""
    if not _inherited:
        return
    for path in paths:
        real = os.path.realpath(path)
        if real in _inherited or _identity(real) in _inherited:
            raise StoreClosed(
                f"{real} was in use at the moment when this process was forked, and its locks belong to the parent. "
                'Fork while no call on the store runs, or start the process with multiprocessing\'s "spawn"',
                path=Path(real),
            )


def _inside() -> bool:
    use = _here.use
    return use is not None and use() is not None


def _wait() -> None:
    # Bounded: another library's hooks run between ours, and may need what we have. No event is waited for: an interrupt
    # can leave the lock inside of it locked.
    deadline = time.monotonic() + 2 * WAIT_S
    while is_awaited() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


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
        # An error in a hook does not stop the fork and goes nowhere; this one is raised after it.
        _here.interrupted = True


def _close_all() -> None:
    inside = _inside()
    deadline = time.monotonic() + (OWN_WAIT_S if inside else WAIT_S)
    while True:
        if not inside:  # what this thread uses must not be closed under it
            _let_go(deadline)
        _here.may_hold = True  # before it is true, for an interrupt may come in between
        if _lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            if not _open:
                return  # and the lock is kept: nothing is opened until the fork is done
            _lock.release()
        _here.may_hold = False
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_S)
    log.warning(
        "this process forks while it uses %s; a child cannot open that",
        ", ".join(sorted({file.path for file in _open_files()})) or "a store",
    )


def _let_go(deadline: float) -> None:
    """Let the owners close what nobody uses: in another thread, where no interrupt can leave that half done."""
    thread = threading.Thread(target=_let_go_of_all, name="holdfast-fork", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread is to be had
        _let_go_of_all()
    else:
        thread.join(max(0.0, deadline - time.monotonic()))


def _let_go_of_all() -> None:
    with _lock:
        owners = list(_owners.items())
    for owner, let_go in owners:
        try:
            let_go(owner)
        except Exception as error:  # noqa: BLE001  what stays open is refused in the child
            log.warning("not everything could be closed before a fork: %s", error)


def _after_in_parent() -> None:
    _release()
    _forking.discard(threading.get_ident())
    if _here.interrupted:
        _here.interrupted = False
        timer = threading.Timer(0.01, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        timer.daemon = True
        timer.start()


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
        # Never closed here: closing would act on files of the parent.
        _abandoned.append(None if file.connection is None else file.connection())
    _lock, _here = threading.RLock(), _Here()
    _open.clear()
    _forking.clear()
    _owners.clear()
    for owner, renew in list(_renewed.items()):
        renew(owner)


_lock = threading.RLock()
_here = _Here()
_open: set[weakref.ref[OpenFile]] = set()
_forking: set[int] = set()
_owners: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_renewed: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_inherited: set[object] = set()
_abandoned: list[object] = []

os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
