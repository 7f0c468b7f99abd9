"""Access: how the rooms of an open store reach its two databases, so that a read sees every earlier write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from repo.clock import Clock
from repo.files import StoreFiles
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository, Loss
from repo.repositories.series import Summary
from repo.repositories.state import StateRepository
from repo.settings import Settings
from repo.store.columns import Columns
from repo.store.flush import Flusher
from repo.store.metadata import MetadataDatabase
from repo.store.writer import Writer

__all__ = ["Access", "Reading"]


class Reading(NamedTuple):
    """A connection to the columns, and the summaries of the series that have points there."""

    connection: Connection
    known: Mapping[tuple[str, str], Summary]


@dataclass(slots=True)
class Access:
    """The parts of an open store. Using the columns raises `EngineMissing` where their engine is not installed."""

    files: StoreFiles
    metadata: MetadataDatabase
    writer: Writer
    settings: Settings
    clock: Clock
    columns: Columns
    flusher: Flusher

    def journal_end(self) -> int:
        """Return the last seq that is committed to the journal."""
        with self.metadata.read() as connection:
            return JournalRepository(connection).last_seq()

    def loss_by(self, seq: int) -> Loss | None:
        """Return the ledger entry of the delete with this seq; None if it dropped no point or was not flushed."""
        with self.metadata.read() as connection:
            state = StateRepository(connection).get()
            assert state is not None
            return LedgerRepository(connection).get(f"{state.store_id}:{seq}")

    @contextmanager
    def reading(self, doing: str) -> Iterator[Reading]:
        """A transaction on the columns that sees every write acknowledged before."""
        columns, flusher = self.columns, self.flusher
        target = self.journal_end()
        with columns.shared(
            doing, lambda: flusher.reached(target), lambda opened: flusher.through(opened, target)
        ) as connection:
            kinds: tuple[type[Exception], ...] = (DBAPIError, *columns.backend.errors)
            try:
                yield Reading(connection, flusher.known)
            except kinds as error:
                raise columns.backend.typed_error(error) from error

    def flush(self, doing: str = "flush") -> int:
        """Apply everything acknowledged so far; returns the watermark."""
        target = self.journal_end()
        with self.columns.alone(doing) as opened:
            self.flusher.through(opened, target)
            return self.flusher.watermark

    def checkpoint(self) -> int:
        """Flush, make the columns durable, and prune the journal; returns the watermark."""
        target = self.journal_end()
        with self.columns.alone("checkpoint") as opened:
            self.flusher.checkpoint(self.flusher.through(opened, target))
            return self.flusher.watermark
