"""The time-series database of an open store: when this process may have it open, and who may use it then.

Owns the lease, the engine, and the gate through which threads come; never what is read or written there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from repo.clock import Clock
from repo.engines.lease import Lease
from repo.errors import SchemaOutdated, StoreBusy, StoreClosed
from repo.files import StoreFiles
from repo.settings import Settings
from repo.store.backends import Backend

__all__ = ["Columns", "OpenColumns"]

log = logging.getLogger("holdfast.columns")

SLICE_S = 0.05
"""How long a holder with work keeps the lease although others wait: a hand-over costs 30-80 ms."""


class OpenColumns:
    """The database while this process has it open, with one connection that flush keeps for itself."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.engine: Engine = backend.open()
        try:
            self.flush_connection: Connection = self.engine.connect()
        except DBAPIError as error:
            backend.close(self.engine)
            raise backend.typed_error(error) from error

    def close(self) -> None:
        """Close the connection and the file."""
        try:
            self.flush_connection.close()
        finally:
            self.backend.close(self.engine)


class Columns:
    """Gate and lease in one. Thread-safe.

    `alone` gives a thread the database by itself (flush, checkpoint); `shared` lets many read at once. Both
    take the lease and open the file as needed. The last to leave lets go when another process waits; `tend`
    does so while nobody uses it. Which engine is active is asked anew, under the lease, at each opening: `choose`
    says it, told whether the lease is held, or raises `EngineMissing`, as then do `alone` and `shared`. `migrate` is
    called when the file turns out to have an old schema; it is closed then, and the lease held.
    """

    def __init__(
        self,
        files: StoreFiles,
        choose: Callable[[bool], Backend],
        settings: Settings,
        clock: Clock,
        migrate: Callable[[], object],
    ) -> None:
        self._choose = choose
        self._migrate = migrate
        self._backend: Backend | None = None
        self._settings = settings
        self._folder = files.folder
        self._lease = Lease(files.folder, clock, prefix=files.prefix)
        self._changed = threading.Condition()
        self._readers = 0
        self._alone = False
        self._queue: deque[object] = deque()
        self._open: OpenColumns | None = None
        self._left_s = 0.0
        self._closed = False
        self.is_tended = settings.background
        """Whether somebody calls `tend` now and then; if not, the last to leave lets go at once."""
        self._on_open: Callable[[OpenColumns], None] = lambda _: None
        self._on_close: Callable[[], None] = lambda: None

    def notify(self, *, opened: Callable[[OpenColumns], None], closed: Callable[[], None]) -> None:
        """Set what is called, alone, after each opening and before each closing."""
        self._on_open, self._on_close = opened, closed

    @property
    def backend(self) -> Backend:
        """The engine that was active when it was last asked; raises `EngineMissing` if it cannot be used here."""
        backend = self._backend  # another thread may be opening, and asks anew
        if backend is None:
            self._backend = backend = self._choose(False)
        return backend

    @property
    def is_open(self) -> bool:
        """Whether this process has the file open now."""
        return self._open is not None

    @contextmanager
    def shared(
        self, doing: str, ready: Callable[[], bool], prepare: Callable[[OpenColumns], object]
    ) -> Iterator[Connection]:
        """A connection to read on, beside other readers, in a transaction of its own.

        Where `ready` says no, `prepare` is first called alone. Fetch everything inside the block: a
        checkpoint has to wait for it.
        """
        deadline = time.monotonic() + self._settings.lease_timeout_s
        self._enter(doing, deadline, alone=False)
        if self._open is None or not ready():
            self._leave(alone=False)
            self._enter(doing, deadline, alone=True)
            try:
                prepare(self._opened(doing, deadline))
            except BaseException:  # whatever it was, the next thread's turn must come
                self._leave(alone=True)
                raise
            self._step_down()
        try:
            assert self._open is not None
            with self._open.engine.begin() as connection:
                yield connection
        finally:
            self._leave(alone=False)

    @contextmanager
    def alone(self, doing: str, timeout_s: float | None = None) -> Iterator[OpenColumns]:
        """The database for this thread by itself."""
        wait_s = self._settings.lease_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + wait_s
        self._enter(doing, deadline, alone=True)
        try:
            yield self._opened(doing, deadline)
        finally:
            self._leave(alone=True)

    def reopen(self, between: Callable[[], object] = lambda: None) -> OpenColumns:
        """Close and open the file again, after an error that made it unusable; only inside `alone`.

        `between` is called while it is closed, and the lease still held.
        """
        self._shut()
        between()
        return self._opened("reopening after an error", time.monotonic() + self._settings.lease_timeout_s)

    def tend(self, *, at_once: bool = False) -> None:
        """Let go while nobody uses it, if another process waits or it has been idle for long, or `at_once`."""
        with self._changed:
            if self._open is None or self._readers or self._alone or self._queue:
                return
            idle_s = time.monotonic() - self._left_s
            if not at_once and idle_s < self._settings.lease_idle_s and not self._lease.wanted():
                return
            self._alone = True
        self._let_go()

    def close(self) -> None:
        """Close the file and give the lease back, when all who use it have left."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.wait_for(lambda: not self._readers and not self._alone)
            self._alone = True
        self._let_go()
        self._lease.close()

    # --- the gate: one alone, or many shared; in the order in which they came -------------------------

    def _enter(self, doing: str, deadline: float, *, alone: bool) -> None:
        ticket = object()

        def free() -> bool:
            return self._queue[0] is ticket and not self._alone and not (alone and self._readers)

        with self._changed:
            self._queue.append(ticket)
            try:
                entered = self._changed.wait_for(free, max(0.0, deadline - time.monotonic()))
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
            if self._closed:
                raise StoreClosed(f"the store {self._folder} is closed", path=self._folder)
            if not entered:
                raise StoreBusy(
                    f"another thread of this process used the columns of {self._folder} until the deadline; "
                    f"wanted for: {doing}. Try again, or raise lease_timeout_s",
                    path=self._folder,
                    holder=os.getpid(),
                )
            if alone:
                self._alone = True
            else:
                self._readers += 1

    def _step_down(self) -> None:
        with self._changed:
            self._alone = False
            self._readers += 1
            self._changed.notify_all()

    def _leave(self, *, alone: bool) -> None:
        with self._changed:
            if alone:
                self._alone = False
            else:
                self._readers -= 1
            self._left_s = time.monotonic()
            last = not self._readers and not self._alone
            if not (last and self._should_let_go()):
                self._changed.notify_all()
                return
            self._alone = True
        self._let_go()

    def _should_let_go(self) -> bool:
        if self._open is None:
            return self._lease.held
        if not self.is_tended:
            return True
        return time.monotonic() - self._lease.held_since_s > SLICE_S and self._lease.wanted()

    # --- opening and closing, always alone ------------------------------------------------------------

    def _opened(self, doing: str, deadline: float) -> OpenColumns:
        if self._open is None:
            self._backend = None
            _ = self.backend  # where its engine is missing, nobody needs to wait for the lease
            self._lease.acquire(max(0.0, deadline - time.monotonic()), doing)
            self._backend = self._choose(True)
            try:
                self._open = self._looked_at(OpenColumns(self._backend))
            except SchemaOutdated:
                if not self._settings.auto_migrate:
                    raise
                self._migrate()
                self._open = self._looked_at(OpenColumns(self._backend))
        return self._open

    def _looked_at(self, opened: OpenColumns) -> OpenColumns:
        try:
            self._on_open(opened)
        except BaseException as error:
            opened.close()
            if isinstance(error, DBAPIError):
                raise opened.backend.typed_error(error) from error
            raise
        return opened

    def _shut(self) -> None:
        if self._open is not None:
            opened, self._open = self._open, None
            self._on_close()
            opened.close()

    def _let_go(self) -> None:
        try:
            self._shut()
        finally:
            self._lease.release()
            with self._changed:
                self._alone = False
                self._changed.notify_all()
