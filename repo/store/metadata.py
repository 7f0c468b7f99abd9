"""The metadata database of an open store: its connections, its one writer at a time, and its WAL."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from repo.engines import sqlite
from repo.errors import HoldfastError, StoreClosed
from repo.settings import Settings

__all__ = ["MetadataDatabase"]

log = logging.getLogger("holdfast.metadata")

_COMMIT_BYTES = 16_384
"""What a small commit adds to the WAL: about four pages."""


class MetadataDatabase:
    """`offline_buffer.db`, open. Thread-safe.

    Writers of this process queue here, on one connection, instead of in SQLite, whose waiting is a sleep.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.engine = sqlite.open_engine(
            path, durability=settings.durability, busy_timeout_s=settings.busy_timeout_s
        )
        # Identities, cursors and policies commit in full whatever the journal's durability is.
        self._careful = (
            self.engine
            if settings.durability == "full"
            else sqlite.open_engine(path, durability="full", busy_timeout_s=settings.busy_timeout_s)
        )
        self._reader = self.engine.execution_options(**sqlite.READ)
        self._lock = threading.RLock()
        self._writer: Connection | None = None
        self._before_close: list[Callable[[], None]] = []
        self._fold_bytes = settings.wal_checkpoint_bytes
        self._unfolded_bytes = 0
        self._pid = os.getpid()
        self._closed = False

    @contextmanager
    def journal_write(self, payload_bytes: int = 0) -> Iterator[Connection]:
        """A transaction that appends to the journal: committed at the end of the block, as durably as set."""
        self.refuse_after_fork()
        with self._lock:
            self._usable()
            if self._writer is None:
                self._writer = self.engine.connect().execution_options(**sqlite.BARE)
            try:
                with sqlite.bare_transaction(self._writer):
                    yield self._writer
            except (SQLAlchemyError, sqlite.DriverError) as error:
                raise sqlite.typed_error(error, self.path) from error
            self._unfolded_bytes += payload_bytes + _COMMIT_BYTES

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction on anything else: committed in full at the end of the block."""
        self.refuse_after_fork()
        with self._lock:
            self._usable()
            with self._typed(), self._careful.begin() as connection:
                yield connection
            self._unfolded_bytes += _COMMIT_BYTES

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A snapshot to read from. Keep it short: the WAL cannot be folded past it."""
        self._usable()
        with self._typed(), self._reader.begin() as connection:
            yield connection

    def standing_reader(self, before_close: Callable[[], None]) -> Connection:
        """Open a connection that only reads and stays, for one thread at a time; its owner closes it.

        No transaction on it may outlive a call: the WAL cannot be folded past it. `before_close` is called when
        this database closes, and has to close it.
        """
        self.refuse_after_fork()
        with self._lock:
            self._usable()
            with self._typed():
                connection = self._reader.connect()
            self._before_close.append(before_close)
        return connection

    def fold_if_due(self) -> None:
        """Fold the WAL into the file when enough was written since the last time.

        It comes after a commit and never fails it: what did not work now is tried again later.
        """
        if self._unfolded_bytes < self._fold_bytes:
            return
        try:
            self.fold()
        except HoldfastError as error:
            log.warning("the WAL of %s was not folded and goes on growing: %s", self.path, error)

    def fold(self) -> int:
        """Fold the WAL into the file now; returns how many bytes of it the next commits use again."""
        with self._lock:
            self._usable()
            self._unfolded_bytes = 0
            with self._typed():
                folded = sqlite.fold_wal(self._careful)
            return sqlite.log_bytes(self.path) if folded.done_pages == folded.log_pages else 0

    def vacuum(self) -> None:
        """Write the file anew without its free pages, and cut its WAL; raises `StoreBusy`, `StoreFull`.

        Writers, of every process, wait meanwhile. An error, or a kill, leaves it as it was.
        """
        with self._lock:
            self._usable()
            with self._typed():
                sqlite.vacuum(self._careful)
            self._unfolded_bytes = 0

    def close(self) -> None:
        """Close all connections; does nothing in a child of the process that opened them."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for close in self._before_close:  # not under the lock: their owners may be waiting for it
            close()
        with self._lock:
            if self._writer is not None:
                self._writer.close()
            self.engine.dispose()
            self._careful.dispose()

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise sqlite.typed_error(error, self.path) from error
        except sqlite.DriverError as error:
            raise sqlite.typed_error(error, self.path) from error

    def refuse_after_fork(self) -> None:
        """Raise `StoreClosed` in a child of the process that opened it; takes no lock.

        A thread of the parent may have held any lock at the moment of the fork, and in the child nobody ever
        lets go of it.
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
