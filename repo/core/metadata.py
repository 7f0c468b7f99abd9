"""The metadata database of an open store: its connections, its single writer at a time, and its WAL."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from repo.core.acknowledged import AcknowledgedMark
from repo.core.turnstile import Turnstile
from repo.engines.bare import BareConnection, Readers
from repo.engines.base import READ
from repo.engines.registry import METADATA
from repo.engines.sqlite import driver as sqlite
from repo.errors import HoldfastError, StoreClosed
from repo.files import StoreFiles
from repo.processes import forks
from repo.repositories.state import StateRepository
from repo.settings import Settings

__all__ = ["MetadataDatabase", "Snapshot"]

log = logging.getLogger("holdfast.metadata")

_ERRORS = (SQLAlchemyError, sqlite.DriverError)

_CHECKPOINT_AGAIN_S = 0.05
"""The shortest time between checkpoints: one that a reader blocked is repeated, but not at every commit."""

_CHECKPOINT_CHECK_S = 0.002
"""The shortest time between two checks of the WAL's size: a few single commits, or a few MB of large ones."""

_KEPT_SHARE = 15 / 16
"""The share of a full WAL that stays allocated after a checkpoint. Syncing a commit that overwrites a part of the file
takes half as long as one that extends it. It is less than the whole, because only growth shows that the WAL is full."""


class Snapshot:
    """The block of `MetadataDatabase.read`. No generator, because an interrupt could split one."""

    __slots__ = ("_path", "_reader", "_readers", "_use")

    def __init__(self, readers: Readers, path: Path) -> None:
        self._readers = readers
        self._path = path
        self._reader: BareConnection | None = None
        self._use = forks.Use()

    def __enter__(self) -> Connection:
        """Begin a transaction that only reads, and return its connection."""
        self._use.__enter__()
        try:
            self._reader = reader = self._readers.take()
            reader.driver.execute("BEGIN")
        except BaseException as error:  # including an interrupt: nothing may stay open
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return reader.connection

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the transaction; after an error, close the connection. Raises typed errors for the driver's."""
        reader, self._reader = self._reader, None
        try:
            if reader is not None and error is None:
                self._readers.give_back(reader)
            elif reader is not None:
                self._readers.discard(reader)
        except _ERRORS as failed:
            raise sqlite.typed_error(failed, self._path) from failed
        finally:
            self._use.__exit__()
        if isinstance(error, _ERRORS):
            raise sqlite.typed_error(error, self._path) from error


class MetadataDatabase:
    """`offline_buffer.db`, open. Thread-safe.

    Writers of this process queue here for one connection; writers of different processes queue at the turnstile.
    """

    def __init__(self, files: StoreFiles, settings: Settings) -> None:
        path = files.metadata
        self.path = path
        METADATA.traits()  # imported now, because an import takes a descriptor, and later none may be left
        self._settings = settings
        self._checkpoint_bytes = settings.wal_checkpoint_bytes
        self.engine = self._open(settings.durability)
        # Identities, cursors and policies always commit with full durability, whatever the journal's setting is.
        self._careful = self.engine if settings.durability == "full" else self._open("full")
        self._reader = self.engine.execution_options(**READ)
        self._readers = Readers(self.engine, (sqlite.DriverError,))
        self._lock = threading.RLock()
        self._turnstile = Turnstile(files)
        self.mark = AcknowledgedMark(files)
        self._busy_timeout_s = settings.busy_timeout_s
        self._writer: BareConnection | None = None
        self._writer_known = True
        """Whether the last transaction on the writer's connection ended normally, so its state is known."""
        self.is_prepared = False
        """Whether the database belongs to a store; set while the store opens."""
        self._before_close: list[Callable[[], None]] = []
        self._checkpoint_not_before_s = 0.0
        self._pid = os.getpid()
        self._closed = False
        forks.add_owner(self, MetadataDatabase._release_idle)

    def _open(self, durability: Literal["full", "normal"]) -> Engine:
        return sqlite.open_engine(
            self.path,
            durability=durability,
            busy_timeout_s=self._settings.busy_timeout_s,
            log_limit_bytes=int(self._checkpoint_bytes * _KEPT_SHARE),
        )

    def journal(
        self, work: Callable[[Connection], object], outcome: sqlite.CommitOutcome | None = None
    ) -> None:
        """Run `work` in a transaction that appends to the journal, and commit it with the configured durability.

        Only the writer may call it, because it takes all commits of this connection for its own. No exception,
        including an interrupt, leaves a transaction open; `outcome` says whether it was committed. The caller must call
        `refuse_after_fork` before it takes a lock of its own.
        """
        forks.give_way()
        # An interrupt cannot split a `with` on a lock, or a single call in a `finally`. It can split a generator.
        with self._lock:
            if self._closed:
                self._usable()
            try:
                self._turnstile.take(self._busy_timeout_s)
                if self._writer is None or not self._writer_known:
                    self._replace_writer()
                assert self._writer is not None
                self._writer_known = False
                sqlite.bare_transaction(self._writer, outcome or sqlite.CommitOutcome(), work)
                self._writer_known = True
            except _ERRORS as error:
                raise sqlite.typed_error(error, self.path) from error
            finally:
                if self._turnstile.place >= 0 and not self._turnstile.kept:
                    fcntl.flock(self._turnstile.place, fcntl.LOCK_UN)

    def _replace_writer(self) -> None:
        """Open the writer's connection, after closing one whose last transaction was interrupted."""
        self._close_writer()
        self._writer = BareConnection(self.engine)

    def _close_writer(self) -> None:
        """Close the writer's connection, whatever its state."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction for everything else, which commits with full durability at the end of the block."""
        self.refuse_after_fork()
        with forks.Use(), self._lock:
            self._usable()
            try:
                self._turnstile.take(self._busy_timeout_s)
                with (
                    self._typed(),
                    self._careful.begin() as connection,
                    sqlite.replaced_after_error(connection),
                ):
                    yield connection
            finally:
                if self._turnstile.place >= 0 and not self._turnstile.kept:
                    fcntl.flock(self._turnstile.place, fcntl.LOCK_UN)
        self.checkpoint_if_due()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep writers of other processes out during the block, in which this thread may write. Used for opening."""
        with self._lock:
            self._usable()
            try:
                self._turnstile.take(self._busy_timeout_s)
                self._turnstile.kept = True
                yield
            finally:
                self._turnstile.kept = False
                if self._turnstile.place >= 0:
                    fcntl.flock(self._turnstile.place, fcntl.LOCK_UN)

    def read(self) -> Snapshot:
        """Open a snapshot for reading. Keep it short: the WAL cannot be checkpointed past it."""
        self._usable()
        return Snapshot(self._readers, self.path)

    def open_reader(self, before_close: Callable[[], None]) -> Connection:
        """Open a long-lived connection for reading, for one thread at a time; its owner closes it.

        No transaction on it may outlive a call: the WAL cannot be checkpointed past it. `before_close` is called when
        this database closes, and must close the connection.
        """
        self.refuse_after_fork()
        with self._lock:
            self._usable()
            with self._typed():
                connection = self._reader.connect()
            if before_close not in self._before_close:
                self._before_close.append(before_close)
        return connection

    def checkpoint_if_due(self) -> None:
        """Checkpoint the WAL if it is large, whichever process wrote it.

        It runs after a commit and never fails that commit: a failed checkpoint is logged and retried later.
        """
        now_s = time.monotonic()
        if self._closed or now_s < self._checkpoint_not_before_s:
            return
        self._checkpoint_not_before_s = now_s + _CHECKPOINT_CHECK_S
        try:
            if sqlite.log_bytes(self.path) >= self._checkpoint_bytes:
                self.checkpoint()
        except (HoldfastError, OSError) as error:
            log.warning("the WAL of %s could not be checkpointed and keeps growing: %s", self.path, error)

    def checkpoint(self) -> int:
        """Checkpoint the WAL now; returns how many bytes of it the next commits can reuse."""
        with forks.Use(), self._lock:
            self._usable()
            try:
                self._turnstile.take(self._busy_timeout_s)
                with self._typed():
                    checkpointed = sqlite.checkpoint_wal(self._careful)
            finally:
                if self._turnstile.place >= 0 and not self._turnstile.kept:
                    fcntl.flock(self._turnstile.place, fcntl.LOCK_UN)
                self._checkpoint_not_before_s = time.monotonic() + _CHECKPOINT_AGAIN_S
        self.note_acknowledged()
        return sqlite.log_bytes(self.path) if checkpointed.done_pages == checkpointed.log_pages else 0

    def note_acknowledged(self) -> None:
        """Write the last committed seq and record id to the mark, durably; see `repo.core.acknowledged`."""
        if not self.is_prepared:
            return  # there may be no tables yet
        with self.read() as connection:
            extent = StateRepository(connection).extent()
        if extent is not None:
            self.mark.write(extent, durably=True)

    def vacuum(self) -> None:
        """Rewrite the file without its free pages, and truncate its WAL; raises `StoreBusy`, `StoreFull`.

        Writers of all processes wait for it. An error or a kill leaves the file unchanged.
        """
        with forks.Use(), self._lock:
            self._usable()
            try:
                self._turnstile.take(self._busy_timeout_s)
                with self._typed():
                    sqlite.vacuum(self._careful)
            finally:
                if self._turnstile.place >= 0 and not self._turnstile.kept:
                    fcntl.flock(self._turnstile.place, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close all connections; does nothing in a child of the process that opened them."""
        if os.getpid() != self._pid:
            return
        try:
            if not self._closed:
                self.note_acknowledged()
        except HoldfastError as error:
            # Closing must continue. The mark may lag behind the database: then it only detects less.
            log.warning("the acknowledged mark of %s could not be updated at close: %s", self.path, error)
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for close in self._before_close:  # not under the lock, for which their owners may be waiting
            close()
        with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.connection.close()
            self._readers.close()
            sqlite.close_idle(self.engine)
            sqlite.close_idle(self._careful)
            self._turnstile.close()

    def _release_idle(self) -> None:
        """Close the connections that no thread is using; the next calls open others."""
        self._readers.close_idle()
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._close_writer()
        finally:
            self._lock.release()

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            raise sqlite.typed_error(error, self.path) from error

    def refuse_after_fork(self) -> None:
        """Raise `StoreClosed` in a child of the process that opened it. Takes no lock.

        A thread of the parent may have held any lock at the fork, and in the child nothing releases it.
        """
        if os.getpid() != self._pid:
            raise StoreClosed(
                f"the store {self.path.parent} was opened before fork(); open it again in this process",
                path=self.path.parent,
            )

    def _usable(self) -> None:
        self.refuse_after_fork()
        if self._closed:
            raise StoreClosed(f"the store {self.path.parent} is closed", path=self.path.parent)
