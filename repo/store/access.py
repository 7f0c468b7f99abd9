"""Access: how the rooms of an open store reach its two databases, so that a read sees every earlier write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from repo.clock import Clock
from repo.errors import EngineMissing
from repo.repositories.journal import JournalRepository
from repo.repositories.series import Summary
from repo.settings import Settings
from repo.store.columns import Columns
from repo.store.flush import Flusher
from repo.store.metadata import MetadataDatabase
from repo.store.writer import Writer

__all__ = ["Access", "Reading"]


class Reading(NamedTuple):
    """A connection to the columns, and the series that have points there, with what is known of each."""

    connection: Connection
    known: Mapping[tuple[str, str], Summary]


@dataclass(slots=True)
class Access:
    """The parts of an open store. `columns` and `flusher` are None where its engine is not installed."""

    metadata: MetadataDatabase
    writer: Writer
    settings: Settings
    clock: Clock
    columns: Columns | None
    flusher: Flusher | None
    missing: EngineMissing | None = None

    def journal_end(self) -> int:
        """Return the last seq that is committed to the journal."""
        with self.metadata.read() as connection:
            return JournalRepository(connection).last_seq()

    @contextmanager
    def reading(self, doing: str) -> Iterator[Reading]:
        """A transaction on the columns that sees every write acknowledged before."""
        columns, flusher = self.parts()
        target = self.journal_end()
        with columns.shared(
            doing, lambda: flusher.reached(target), lambda opened: flusher.through(opened, target)
        ) as connection:
            try:
                yield Reading(connection, flusher.known)
            except DBAPIError as error:
                raise columns.backend.typed_error(error) from error

    def flush(self, doing: str = "flush") -> int:
        """Apply everything acknowledged so far; returns the watermark."""
        columns, flusher = self.parts()
        target = self.journal_end()
        with columns.alone(doing) as opened:
            flusher.through(opened, target)
            return flusher.watermark

    def checkpoint(self) -> int:
        """Flush, make the columns durable, and prune the journal; returns the watermark."""
        columns, flusher = self.parts()
        target = self.journal_end()
        with columns.alone("checkpoint") as opened:
            flusher.checkpoint(flusher.through(opened, target))
            return flusher.watermark

    def parts(self) -> tuple[Columns, Flusher]:
        """Return columns and flusher; raises `EngineMissing` where the engine cannot be used."""
        if self.columns is None or self.flusher is None:
            assert self.missing is not None
            raise self.missing
        return self.columns, self.flusher
