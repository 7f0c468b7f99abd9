"""The time-series database of an open store: opens and closes it under the lease, and coordinates its users.

Owns the lease and the engine, not the data. A change to either first marks the open file as unknown, or cannot be
interrupted. So an exception at any point, including Ctrl-C, leaves the gate usable and the file closed or known.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import ClassVar, Generic, NoReturn, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from repo.clock import Clock
from repo.core.active import ActiveColumns
from repo.core.gate import Gate, Patience, Ticket
from repo.core.undisturbed import undisturbed
from repo.engines.bare import BareConnection, Readers
from repo.engines.base import READ, Backend
from repo.engines.interrupts import is_interrupt
from repo.errors import SchemaOutdated, StoreBusy, StoreClosed, system_error
from repo.files import StoreFiles
from repo.processes import forks
from repo.processes.lease import Lease
from repo.settings import Settings

__all__ = ["Columns", "OpenColumns", "SharedUse"]

log = logging.getLogger("holdfast.columns")

SLICE_S = 0.05
"""How long a busy holder keeps the lease while others wait; a hand-over costs 30-80 ms."""

Held = TypeVar("Held")


class OpenColumns:
    """The database while this process has it open, with a connection for flush, and others for readers."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.engine: Engine = self._open()
        self.readers: Engine = self.engine.execution_options(**READ)
        """For reading only: on SQLite its transactions take no lock that would block other readers."""
        try:
            self.flush_connection: Connection = self.engine.connect()
        except DBAPIError as error:
            backend.close(self.engine)
            raise backend.typed_error(error) from error
        self._idle = Readers(self.engine, backend.errors)

    def _open(self) -> Engine:
        return self.backend.open()

    def take_reader(self) -> BareConnection:
        """Return a connection for one reader. It needs no transaction, because nothing is written while it reads."""
        return self._idle.take()

    def give_back(self, reader: BareConnection) -> None:
        """End what a reader has begun, and keep its connection for the next one; see `Readers.give_back`."""
        self._idle.give_back(reader)

    def discard(self, reader: BareConnection) -> None:
        """Close the connection of a reader that failed, with whatever it has begun."""
        self._idle.discard(reader)

    def close(self) -> None:
        """Close the connections and the file."""
        with ExitStack() as rest:
            rest.callback(self.backend.close, self.engine)
            rest.callback(self.flush_connection.close)
            self._idle.close()


class SharedUse(Generic[Held]):
    """The block of `Columns.shared`. No generator, because an interrupt could split one."""

    __slots__ = ("_columns", "_doing", "_opened", "_prepare", "_reader", "_ready", "_ticket", "_use")

    def __init__(
        self,
        columns: Columns,
        doing: str,
        ready: Callable[[], Held | None],
        prepare: Callable[[OpenColumns], Held | None],
    ) -> None:
        self._columns = columns
        self._doing = doing
        self._ready = ready
        self._prepare = prepare
        self._use = forks.Use()
        self._ticket = Ticket()
        self._opened: OpenColumns | None = None
        self._reader: BareConnection | None = None

    def __enter__(self) -> tuple[Connection, Held]:
        """Begin to share the columns, and return a connection for reading, with what `ready` returned."""
        self._use.__enter__()
        try:
            self._opened, held = self._columns._enter_shared(
                self._ticket, self._doing, self._ready, self._prepare
            )
            self._reader = reader = self._opened.take_reader()
        except BaseException as error:  # including an interrupt: nobody may stay inside
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return reader.connection, held

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End it. Raises the typed error for one of the engine."""
        try:
            if error is None:
                self._give_back()
            else:
                self._discard(error)
        finally:
            try:
                self._columns._leave(self._ticket)
            except BaseException:  # an interrupt that comes just here
                self._columns._leave(self._ticket)
                raise
            finally:
                self._use.__exit__()

    def _give_back(self) -> None:
        assert self._opened is not None
        assert self._reader is not None
        reader, self._reader = self._reader, None
        try:
            self._opened.give_back(reader)
        except BaseException as error:  # including an interrupt: the file may have to be reopened
            self._columns._raise_other(error)
            raise

    def _discard(self, error: BaseException) -> None:
        try:
            self._columns._raise_other(error)
        finally:
            if self._opened is not None and self._reader is not None:
                self._opened.discard(self._reader)


class Columns:
    """Combines gate and lease. Thread-safe.

    `alone` gives one thread exclusive use of the database (flush, checkpoint); `shared` lets many threads read at once.
    Both take the lease and open the file as needed. While another process waits, new readers wait, too, and the last
    one to leave closes the file and releases the lease; `release_if_due` does the same for an unused file. Each opening
    determines the active engine under the lease; if it is not installed, `alone` and `shared` raise `EngineMissing`.
    An outdated schema is migrated at opening, with the file closed, under the lease.

    Errors of the engine are raised as typed errors. After an error that invalidated the engine's instance, and after an
    interrupt, the file is closed and reopened before its next use.
    """

    read_only: ClassVar[bool] = False
    """Whether neither the file nor the lock files may be changed; see `repo.core.read_only`."""

    def __init__(
        self,
        files: StoreFiles,
        active: ActiveColumns,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._active = active
        self._backend: Backend | None = None
        self._settings = settings
        self._folder = files.folder
        self._lease = Lease(files.folder, clock, prefix=files.prefix, read_only=self.read_only)
        self._gate = Gate(self._is_overdue)
        self._open: OpenColumns | None = None
        self._doubtful = False
        self._left_s = 0.0
        self._closed = False
        self.stays_open = settings.background
        """Whether a thread calls `release_if_due` regularly; if not, the last user closes the file at once."""
        self._on_open: Callable[[OpenColumns], None] = lambda _: None
        self._on_close: Callable[[], None] = lambda: None
        self._progress: Callable[[], object] | None = None
        forks.add_owner(self, Columns._release_at_once)

    def notify(self, *, opened: Callable[[OpenColumns], None], closed: Callable[[], None]) -> None:
        """Set the callbacks that run, with exclusive use, after each opening and before each closing."""
        self._on_open, self._on_close = opened, closed

    def watch(self, progress: Callable[[], object]) -> None:
        """Set the function whose result changes while any process flushes; callers then wait longer."""
        self._progress = progress

    @property
    def backend(self) -> Backend:
        """The engine that was active at the last check; raises `EngineMissing` if it cannot be used here."""
        backend = self._backend  # another thread may be opening the file, and reset it
        if backend is None:
            self._backend = backend = self._active.choose(leased=False)
        return backend

    @property
    def is_open(self) -> bool:
        """Whether this process has the file open now."""
        return self._open is not None

    def is_awaited(self, *, by_processes: bool) -> bool:
        """Return whether another thread waits for the columns, or, with `by_processes`, another process."""
        return self._gate.is_awaited() or (by_processes and self._gate.asking(self._lease.wanted))

    def shared(
        self,
        doing: str,
        ready: Callable[[], Held | None],
        prepare: Callable[[OpenColumns], Held | None],
    ) -> SharedUse[Held]:
        """Open a connection for reading, shared with other readers; the block gets it with what `ready` returns.

        If `ready` returns None, `prepare` is called with exclusive use, repeatedly, with turns for others in between,
        until it returns something. Fetch everything inside the block, because a checkpoint waits for it. May be nested.
        """
        return SharedUse(self, doing, ready, prepare)

    @contextmanager
    @forks.as_use
    def alone(self, doing: str, timeout_s: float | None = None) -> Iterator[OpenColumns]:
        """Give this thread exclusive use of the database.

        With `timeout_s` it waits no longer than that. Without, it waits for `lease_timeout_s`, and longer while others
        make progress with a flush.
        """
        ticket = Ticket()
        patience = self._patience() if timeout_s is None else Patience(timeout_s)
        try:
            self._enter(ticket, doing, patience, alone=True)
            yield self._opened(doing, patience)
        except BaseException as error:
            self._raise_other(error, alone=True)
            raise
        finally:
            try:
                self._leave(ticket)
            except BaseException:  # an interrupt that comes just here
                self._leave(ticket)
                raise

    def reopen(self, between: Callable[[], object] = lambda: None) -> OpenColumns:
        """Close and reopen the file, after an error that made it unusable; only inside `alone`.

        `between` is called while the file is closed and the lease is still held.
        """
        self._doubtful = True
        undisturbed(self._shut)
        between()
        return self._opened("reopening after an error", Patience(self._settings.lease_timeout_s))

    def drop(self) -> None:
        """Close the file after an error that left its state unknown; only inside `alone`. The next use opens it."""
        self._doubtful = True
        undisturbed(self._discard)

    def release_if_due(self, *, at_once: bool = False) -> None:
        """Close an unused file and release the lease, if another process waits, it was idle for long, or `at_once`."""

        def is_due() -> bool:
            if self._open is None:
                return self._lease.held
            idle_s = time.monotonic() - self._left_s
            return at_once or idle_s >= self._settings.lease_idle_s or self._lease.wanted()

        ticket = Ticket()
        try:
            if self._gate.enter_idle(ticket, is_due):
                undisturbed(self._release)
        finally:
            self._gate.leave(ticket)

    def _release_at_once(self) -> None:
        self.release_if_due(at_once=True)

    def close(self) -> None:
        """Close the file and release the lease, once all users have left. Safe to call again."""
        self._closed = True
        ticket = Ticket()
        try:
            self._gate.enter(ticket, Patience(float("inf")), alone=True)
            if self._open is not None or self._lease.held:
                undisturbed(self._release)
            self._lease.close()
        finally:
            self._gate.leave(ticket)

    # --- the gate -------------------------------------------------------------------------------------

    def _patience(self) -> Patience:
        return Patience(self._settings.lease_timeout_s, self._progress)

    def _enter_shared(
        self,
        ticket: Ticket,
        doing: str,
        ready: Callable[[], Held | None],
        prepare: Callable[[OpenColumns], Held | None],
    ) -> tuple[OpenColumns, Held]:
        """Share the gate, with the file open and prepared; returns it, and what `ready` or `prepare` returned."""
        patience = self._patience()
        while True:
            if not self._gate.join(ticket):
                self._enter(ticket, doing, patience, alone=False)
            if self._open is not None and not self._doubtful and (held := ready()) is not None:
                return self._open, held
            self._gate.leave(ticket)
            self._enter(ticket, doing, patience, alone=True)
            held = prepare(self._opened(doing, patience))
            if held is None:
                held = ready()
            if held is not None:
                self._gate.step_down(ticket)
                assert self._open is not None
                return self._open, held
            self._leave(ticket)
            patience.renew()

    def _enter(self, ticket: Ticket, doing: str, patience: Patience, *, alone: bool) -> None:
        entered = self._gate.enter(ticket, patience, alone=alone)
        if self._closed:
            raise StoreClosed(f"the store {self._folder} is closed", path=self._folder)
        if not entered:
            raise StoreBusy(
                f"another thread of this process used the columns of {self._folder} until the deadline of this call "
                f"({doing}). Try again, or raise lease_timeout_s",
                path=self._folder,
                holder=os.getpid(),
            )

    def _leave(self, ticket: Ticket) -> None:
        """Leave the gate, and close the file and release the lease if that is due; can be repeated."""
        if self._gate.leave(ticket, self._should_release):
            try:
                undisturbed(self._release)
            finally:
                self._gate.leave(ticket)

    def _should_release(self) -> bool:
        self._left_s = time.monotonic()
        if self._open is None:
            return self._lease.held
        return not self.stays_open or self._is_overdue()

    def _is_overdue(self) -> bool:
        """Return whether another process waits and this one has used up its time. The caller holds the gate's lock."""
        if self._open is None or time.monotonic() - self._lease.held_since_s <= SLICE_S:
            return False
        return self._lease.wanted()

    def _raise_other(self, error: BaseException, *, alone: bool = False) -> None:
        """Raise the exception for an error during use, unless it is this one. May mark the file as doubtful."""
        if not isinstance(error, Exception):
            self._doubtful = True
            return
        backend = self._backend
        if backend is None:
            return
        is_bare = _is_of_engine(backend, error)
        if backend.is_fatal(error) or (alone and is_bare):
            self._doubtful = True
        if is_interrupt(error):
            self._doubtful = True
            raise KeyboardInterrupt from error
        if is_bare:
            raise backend.typed_error(error) from error

    # --- opening and closing, always with exclusive use -----------------------------------------------

    def _opened(self, doing: str, patience: Patience) -> OpenColumns:
        if self._open is not None and self._doubtful:
            undisturbed(self._discard)
        if self._open is None:
            self._backend = None
            _ = self.backend  # a missing engine is reported without waiting for the lease
            self._take_lease(doing, patience)
            try:
                undisturbed(self._open_now)
            except SchemaOutdated:
                if not self._settings.auto_migrate:
                    raise
                self._active.migrate()
                undisturbed(self._open_now)
        assert self._open is not None
        return self._open

    def _take_lease(self, doing: str, patience: Patience) -> None:
        def more() -> float:
            patience.check()
            return min(patience.left_s, patience.check_after_s)

        self._lease.acquire(min(patience.left_s, patience.check_after_s), doing, more)

    def _open_now(self) -> None:
        self._backend = backend = self._active.choose(leased=True)
        try:
            opened = self._open_file(backend)
            try:
                self._on_open(opened)
            except BaseException:  # including an interrupt: no open file may be left without an owner
                opened.close()
                raise
        except Exception as error:  # noqa: BLE001  it is raised, typed
            _raise_typed(backend, error)
        self._doubtful = False
        self._open = opened

    def _open_file(self, backend: Backend) -> OpenColumns:
        return OpenColumns(backend)

    def _shut(self) -> None:
        if self._open is not None:
            opened, self._open = self._open, None
            try:
                self._on_close()
                opened.close()
            except Exception as error:  # noqa: BLE001  it is raised, typed
                _raise_typed(opened.backend, error)

    def _discard(self) -> None:
        """Close a file whose state is unknown, so errors of the closing do not matter."""
        try:
            self._shut()
        except Exception as error:  # noqa: BLE001  reopening reports the cause, if it persists
            log.warning("the columns of %s did not close cleanly: %s", self._folder, error)

    def _release(self) -> None:
        try:
            if self._doubtful:
                self._discard()
            else:
                self._shut()
        finally:
            self._lease.release()


def _is_of_engine(backend: Backend, error: BaseException) -> bool:
    return isinstance(error, (SQLAlchemyError, *backend.errors))


def _raise_typed(backend: Backend, error: Exception) -> NoReturn:
    """Raise the typed error for an error of opening or closing."""
    if isinstance(error, OSError):
        raise system_error(error, backend.path) from error
    if _is_of_engine(backend, error):
        raise backend.typed_error(error) from error
    raise error
