"""The handle of an open store: everything that a job needs. A read through it sees every earlier write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from repo.clock import Clock
from repo.core.active import ActiveColumns
from repo.core.columns import Columns, OpenColumns, SharedUse
from repo.core.flush import Flusher
from repo.core.metadata import MetadataDatabase
from repo.core.writer import Writer
from repo.errors import system_error
from repo.files import StoreFiles
from repo.queries.selection import Known, Names, Selection, Time, select_points
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository, Loss
from repo.repositories.points import Written
from repo.repositories.series import SeriesRepository
from repo.repositories.state import StateRepository
from repo.settings import Settings

__all__ = ["Handle", "Reading"]

THREAD_TURN_S = 0.1
"""How long a flush continues while other threads of this process wait."""

PROCESS_TURN_S = 0.5
"""The same for other processes; handing over closes and reopens the columns, which takes 30-80 ms."""


Reading = tuple[Connection, Known]
"""A connection to the columns, and the summaries of the series that have points in them."""


@dataclass(slots=True)
class Handle:
    """The parts of an open store. Using the columns raises `EngineMissing` if their engine is not installed."""

    files: StoreFiles
    metadata: MetadataDatabase
    writer: Writer
    settings: Settings
    clock: Clock
    active: ActiveColumns
    columns: Columns
    flusher: Flusher

    def __post_init__(self) -> None:
        self.columns.watch(self._copied_through)

    def select(self, sensor_id: Names, metric_name: Names, start: Time = None, end: Time = None) -> Selection:
        """Return the selection for the names and times of a caller; raises `InvalidQuery`.

        A text that is the name of a series selects that series, even if it has glob characters.
        """
        selection = select_points(sensor_id, metric_name, start, end)
        if not selection.has_glob:
            return selection
        with self.metadata.read() as connection:
            return selection.as_names(SeriesRepository(connection).has_name)

    def kinds_of(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str | None]:
        """Return the kinds of those of the series that are stored."""
        with self.metadata.read() as connection:
            return SeriesRepository(connection).kinds(pairs)

    def journal_end(self) -> int:
        """Return the last seq committed to the journal."""
        with self.metadata.read() as connection:
            return JournalRepository(connection).last_seq()

    def reading(self, doing: str) -> SharedUse[Known]:
        """Open the columns for reading: a `Reading` that sees every write acknowledged before.

        It first flushes, or waits for another thread or process that flushes; flushes give way to other callers. There
        is no deadline while a flush makes progress.
        """
        target = self.journal_end()

        def prepare(opened: OpenColumns) -> Known | None:
            return self.flusher.known if self.flush_slice(opened, target)[1] else None

        return self.columns.shared(doing, lambda: self.flusher.known_through(target), prepare)

    def flush(self, doing: str = "flush") -> int:
        """Apply everything acknowledged so far, and return the watermark. Gives way to other threads and processes."""
        target = self.journal_end()
        while True:
            with self.columns.alone(doing) as opened:
                if self.flush_slice(opened, target)[1]:
                    return self.flusher.watermark

    def flush_slice(
        self, opened: OpenColumns, target: int, stop: Callable[[], bool] = lambda: False
    ) -> tuple[OpenColumns, bool]:
        """Flush up to `target`. Returns earlier, after a short time, if others are waiting, or if `stop` returns True.

        Returns the open columns, and whether everything was applied.
        """
        turn = _Turn(self.columns, stop)
        opened = self.flusher.through(opened, target, turn.is_over)
        return opened, not turn.was_cut

    def checkpoint(self) -> int:
        """Flush, make the columns durable, and prune the journal; returns the watermark.

        Raises a typed error if the checkpoint fails; nothing was pruned.
        """
        target = self.journal_end()
        self.flush("checkpoint")
        with self.columns.alone("checkpoint") as opened:
            self.make_durable(self.flusher.through(opened, target))
            return self.flusher.watermark

    def make_durable(self, opened: OpenColumns) -> None:
        """Checkpoint and prune, with the columns alone; raises a typed error if the checkpoint fails."""
        try:
            self.flusher.make_durable(opened)
        except OSError as error:
            self.columns.drop()
            raise system_error(error, opened.backend.path) from error
        except BaseException:  # only the file can tell how far the checkpoint got
            self.columns.drop()
            raise

    def loss_by(self, seq: int) -> Loss | None:
        """Return the ledger entry of the delete with this seq; None if it dropped no points or is not flushed yet."""
        with self.metadata.read() as connection:
            state = StateRepository(connection).get()
            assert state is not None
            return LedgerRepository(connection).get(f"{state.store_id}:{seq}")

    def losses_by(self, written: Written) -> list[Loss]:
        """Return the ledger entries of deletes with these seqs."""
        assert written.first_seq is not None, "a delete has a seq"
        assert written.last_seq is not None
        found = (self.loss_by(seq) for seq in range(written.first_seq, written.last_seq + 1))
        return [loss for loss in found if loss is not None]

    def _copied_through(self) -> int:
        """Return the seq through which any process has flushed."""
        with self.metadata.read() as connection:
            state = StateRepository(connection).get()
        return -1 if state is None else state.copied_through


class _Turn:
    """Limits how long a flush holds the columns while others wait: see `THREAD_TURN_S`, `PROCESS_TURN_S`."""

    def __init__(self, columns: Columns, stop: Callable[[], bool]) -> None:
        self._columns = columns
        self._stop = stop
        self._since_s = time.monotonic()
        self.was_cut = False

    def is_over(self) -> bool:
        lasted_s = time.monotonic() - self._since_s
        self.was_cut = self._stop() or (
            lasted_s > THREAD_TURN_S and self._columns.is_awaited(by_processes=lasted_s > PROCESS_TURN_S)
        )
        return self.was_cut
