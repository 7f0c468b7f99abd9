"""Flush: applies journal rows to the columns in order of seq, and prunes the rows that are durable there.

Everything here runs with exclusive use of the columns, under the lease. A crash at any point repeats or skips whole
steps, because the watermark is committed together with the rows that it covers, and the journal keeps every row until
the columns are durable through it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from sqlalchemy.exc import DBAPIError

from repo.clock import Clock
from repo.core.active import ActiveColumns
from repo.core.codec import unpack
from repo.core.columns import Columns, OpenColumns
from repo.core.journal_pages import KEPT_US, MOST_BYTES, MOST_SEQS
from repo.core.metadata import MetadataDatabase
from repo.core.reconcile import FileState, Known, Reconciler, digest_of, read_order, read_state
from repo.core.work import JournalWork, Work
from repo.engines.interrupts import is_interrupt
from repo.errors import FlushFailed, HoldfastError
from repo.processes import forks
from repo.queries.order import UNSORTED, Order
from repo.queries.selection import Selection, Summary
from repo.repositories.apply import Applied
from repo.repositories.apply_table import ROW_GROUP_ROWS
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, Entry, JournalRepository
from repo.repositories.ledger import ColumnsLedgerRepository, LedgerRepository, Loss
from repo.repositories.series import LatestRepository
from repo.repositories.sinks import SinkRepository
from repo.repositories.state import ColumnsStateRepository, StateRepository
from repo.settings import Settings

__all__ = ["Flusher", "cut_to_row_groups"]

log = logging.getLogger("holdfast.flush")

BATCH_BYTES = 8_388_608
"""The largest size in bytes of the journal rows that one transaction applies, unless a single row is larger."""

MOST_ROWS = 65_536
"""The maximum number of points that one transaction applies as rows, each of which takes about 300 bytes."""

LEAST_OF_ROW_GROUP = 61_440
"""The minimum number of points in the last row group of a transaction that is cut short, if it has several."""

PRUNE_INTERVAL_S = 1.0
"""The shortest time between two searches for rows that are old enough to be pruned."""


class Flusher:
    """Moves changes from the journal to the columns."""

    def __init__(
        self,
        metadata: MetadataDatabase,
        columns: Columns,
        active: ActiveColumns,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._metadata = metadata
        self._columns = columns
        self._settings = settings
        self._clock = clock
        self._active = active
        self._reconciler = Reconciler(metadata, active, clock)
        self._file: FileState | None = None
        """None while the file is closed, and during each change, until its result was read back."""
        self._checkpointed_s = time.monotonic()
        self._pruned_s = self._checkpointed_s - PRUNE_INTERVAL_S
        columns.notify(opened=self._opened, closed=self._closed)

    @property
    def watermark(self) -> int:
        """The seq through which the open file is complete; -1 if it is not open here, or its state is unknown."""
        file = self._file
        return -1 if file is None else file.state.watermark

    @property
    def known(self) -> Mapping[tuple[str, str], Summary]:
        """The summaries of the series with points in the open file."""
        file = self._file
        return {} if file is None else file.known

    @property
    def points(self) -> int:
        """The number of points in the open file."""
        return sum(summary.points for summary in self.known.values())

    @property
    def order(self) -> Order:
        """Which spans of the open file are sorted; `UNSORTED` if it is not open here, or its state is unknown."""
        file = self._file
        return UNSORTED if file is None else file.order

    def reached(self, seq: int) -> bool:
        """Return whether the open file has everything that was in the journal when its last seq was `seq`."""
        return self.watermark >= self._goal(seq)

    def known_through(self, seq: int) -> Known | None:
        """Return the summaries of the open file, as `known`, if it has `reached` this seq; None if not."""
        file = self._file
        return None if file is None or file.state.watermark < self._goal(seq) else file.known

    def through(self, opened: OpenColumns, seq: int, stop: Callable[[], bool] = lambda: False) -> OpenColumns:
        """Flush until the columns are complete through `seq`; raises `FlushFailed` or a typed error.

        `stop` is called after each committed batch. If it returns True, flushing ends early; `reached` says whether
        anything is left. Rows that could not be applied stay in the journal, and the next call starts with them.
        Returns the open columns, a new object if an error made it reopen the file.
        """
        opened = self._certain(opened).opened
        while not self.reached(seq) and (work := self._take(self._goal(seq))) is not None:
            opened = self.checkpoint_if_due(self._commit_in_parts(opened, work))
            if forks.is_awaited():
                opened = self._columns.reopen(forks.wait_for_forks)
            if stop():
                break
        return opened

    def _goal(self, seq: int) -> int:
        return max(seq, self._reconciler.renumbered_through)

    def _certain(self, opened: OpenColumns) -> FileState:
        """Return the state of the open file. If an interrupt left it unknown, reopen the file first."""
        if self._file is None or self._file.opened is not opened:
            self._columns.reopen()
        assert self._file is not None
        return self._file

    def checkpoint_if_due(self, opened: OpenColumns) -> OpenColumns:
        """Checkpoint if the log is long, or rows have waited long for a checkpoint."""
        file = self._certain(opened)
        unpruned = file.state.watermark > file.pruned_through
        return self.checkpoint(file.opened) if self.checkpoint_is_due(unpruned=unpruned) else file.opened

    def checkpoint_is_due(self, *, unpruned: bool) -> bool:
        """Return whether the log is long, or `unpruned` rows have waited long. Opens no file."""
        waited_s = time.monotonic() - self._checkpointed_s
        return self._columns.backend.log_bytes() > self._settings.checkpoint_log_bytes or (
            unpruned and waited_s > self._settings.checkpoint_interval_s
        )

    def checkpoint(self, opened: OpenColumns) -> OpenColumns:
        """Make the columns durable, read the watermark back, and prune the journal through it.

        A failed checkpoint prunes nothing and is retried later.
        """
        try:
            self.make_durable(opened, keep_newest=True)
        except Exception as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            log.warning("a checkpoint of %s failed and will be retried: %s", opened.backend.path, error)
            return self._columns.reopen()
        return opened

    def make_durable(self, opened: OpenColumns, *, keep_newest: bool = False) -> int:
        """Checkpoint and prune, and return the seq through which the columns are durable.

        With `keep_newest`, the newest rows stay in the journal for a while if there are sinks. Raises a typed error if
        the checkpoint fails; nothing was pruned.
        """
        opened = self._certain(opened).opened
        try:
            opened.backend.checkpoint(opened.engine)
            durable = read_state(opened).watermark
        except DBAPIError as error:
            raise opened.backend.typed_error(error) from error
        finally:
            self._checkpointed_s = time.monotonic()
        self._prune(durable, keep_newest=keep_newest)
        return durable

    # --- one transaction ------------------------------------------------------------------------------

    def _take(self, seq: int) -> JournalWork | None:
        """Read the next journal rows, as many as one transaction may hold. A delete always starts a new transaction.

        A bulk row past the watermark belongs to a load that died, because a running load holds the lease.
        """
        entries: list[Entry] = []
        points = size = 0
        most = self._most_points()
        with self._metadata.read() as connection:
            for entry in JournalRepository(connection).after(self.watermark, seq):
                full = points + entry.seqs > most or size + len(entry.payload) > BATCH_BYTES
                if entries and full:
                    entries = cut_to_row_groups(entries)
                    break
                if entries and (entry.kind == DELETE or _differ(entry, entries[-1])):
                    break
                entries.append(entry)
                points += entry.seqs
                size += len(entry.payload)
        if not entries:
            return None
        self._void([entry for entry in entries if entry.kind == BULK])
        work = JournalWork(entries[-1].seq, digest_of(entries), keep=entries[-1].kind == KEEP)
        for entry in entries:
            if entry.kind == DELETE:
                work.deletion, work.deletion_seq = Selection.from_json(entry.payload), entry.seq
            elif entry.kind in (POINTS, KEEP):
                first_seq = entry.first_seq
                for batch in unpack(entry.payload):
                    work.points.add(batch, first_seq)
                    first_seq += len(batch)
        return work

    def _most_points(self) -> int:
        """Return the maximum number of points of one transaction."""
        most = self._settings.flush_batch_points
        return most if self._columns.backend.takes_tables else min(most, MOST_ROWS)

    def _void(self, dead: list[Entry]) -> None:
        if not dead:
            return
        for entry in dead:
            log.info(
                "a bulk load was never acknowledged: the seqs %d to %d are void", entry.first_seq, entry.seq
            )
        with self._metadata.write() as connection:
            JournalRepository(connection).void([entry.seq for entry in dead])

    def commit(self, opened: OpenColumns, work: Work) -> OpenColumns:
        """Commit one unit of work, verify it by the watermark that is read back, and copy what changed.

        Returns the open columns, a new object if the file had to be reopened. Raises a typed error if the work is not
        in the columns. The file's state is unknown from start to end of this call. An interrupt leaves it unknown, and
        the next use reopens the file.
        """
        file = self._certain(opened)
        self._file = None
        try:
            applied, losses = self._apply(file, work)
            state = read_state(file.opened)
        except Exception as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            # Only the file can tell whether the commit happened. Reopening reads its watermark and its series.
            typed = file.opened.backend.typed_error(error)
            opened = self._columns.reopen()
            if work.is_part or self.watermark < work.through:
                if typed is error:
                    raise
                raise typed from error
            log.warning("a commit reported an error, but had succeeded: %s", error)
            return opened if work.journalled else self._durable(opened, work)
        if not work.is_part and state.watermark < work.through:
            self._columns.reopen()
            raise FlushFailed(
                f"{file.opened.backend.path} is at seq {state.watermark} after a commit through seq {work.through}; "
                "the points are still in the journal",
                path=file.opened.backend.path,
            )
        file = replace(file, state=state, known=applied.known, copied_losses=())
        if not work.journalled:
            try:
                file.opened.backend.checkpoint(file.opened.engine)
            except DBAPIError as error:
                self._columns.reopen()
                raise file.opened.backend.typed_error(error) from error
        if work.copies:
            try:
                self._copy(state.watermark, applied, losses)
            except Exception as error:  # noqa: BLE001  reopening copies everything, or raises the cause
                log.warning(
                    "copying the summaries of %s failed and will be retried: %s",
                    file.opened.backend.path,
                    error,
                )
                return self._columns.reopen()
            file = replace(file, copied_losses=tuple(loss.entry_id for loss in losses))
        self._file = file
        # Work without journal rows was checkpointed above.
        is_durable = file.opened.backend.durable_at_commit or not work.journalled
        if is_durable and work.copies:
            self._prune(state.watermark, keep_newest=work.journalled)
        self._metadata.checkpoint_if_due()
        return file.opened

    def read_order(self, opened: OpenColumns) -> Order:
        """Read back which spans of the file are sorted, after work that changed it was committed."""
        file = self._certain(opened)
        self._file = None
        self._file = replace(file, order=read_order(file.opened))
        return self._file.order

    def _durable(self, opened: OpenColumns, work: Work) -> OpenColumns:
        """Make work durable whose points are not in the journal."""
        if self.make_durable(opened) < work.through:
            raise FlushFailed(
                f"{opened.backend.path} lost rows before they were durable; write them again",
                path=opened.backend.path,
            )
        return opened

    def _apply(self, file: FileState, work: Work) -> tuple[Applied, list[Loss]]:
        """Apply the work and move the watermark, in one transaction."""
        connection = file.opened.flush_connection
        losses: list[Loss] = []
        with connection.begin():
            ledger = ColumnsLedgerRepository(connection)
            ledger.remove(file.copied_losses)
            applied = work.apply(connection, file.known)
            if loss := work.loss(applied):
                losses.append(self._loss(file, *loss, applied))
                ledger.add(losses[0])
            if not work.is_part:
                ColumnsStateRepository(connection).set_watermark(
                    work.through, flushed_from=file.state.watermark, flush_digest=work.digest
                )
        return applied, losses

    def _commit_in_parts(self, opened: OpenColumns, work: JournalWork) -> OpenColumns:
        """Commit work in one transaction or, if that exceeds the engine's memory limit, in several.

        The last one moves the watermark. Until then, another flush, or the next one after a kill, applies all of the
        work again, which changes nothing for parts that were already applied.
        """
        try:
            return self.commit(opened, work)
        except HoldfastError as error:
            if not opened.backend.is_out_of_memory(error):
                raise
            if work.size <= 1:
                raise FlushFailed(
                    f"{opened.backend.path}: a single point or delete at seq {work.through} exceeds the memory limit "
                    "of DuckDB. It stays in the journal; raise duckdb_memory_limit_bytes and open the store again",
                    path=opened.backend.path,
                ) from error
            log.info(
                "a batch of %d points does not fit into memory and is applied in parts", len(work.points)
            )
        waiting = work.halves()
        while waiting:
            part = waiting.pop(0)
            opened = self._current()
            # A part does not copy its summaries. Instead, metadata without a file id make the next opening copy all of
            # them. This is repeated for each part, because reopening after an error sets the file id again.
            with self._metadata.write() as connection:
                StateRepository(connection).set(file_id=None)
            try:
                self.commit(opened, part)
            except HoldfastError as error:
                if not opened.backend.is_out_of_memory(error) or part.size <= 1:
                    raise
                waiting = part.halves() + waiting
        self._file = None
        return self._columns.reopen()

    def _current(self) -> OpenColumns:
        """Return the open columns, after an error that may have reopened them."""
        return self._columns.reopen() if self._file is None else self._file.opened

    def _copy(self, watermark: int, applied: Applied, losses: list[Loss]) -> None:
        """Copy the summaries of touched series, and ledger entries, to SQLite, where reading needs no lease."""
        with self._metadata.write() as connection:
            LatestRepository(connection).replace(applied.touched, applied.gone)
            LedgerRepository(connection).add(losses)
            state = StateRepository(connection)
            state.set(copied_through=watermark)
            extent = state.extent()
        if extent is not None:
            self._metadata.mark.write(extent, durably=False)

    def _prune(self, durable: int, *, keep_newest: bool) -> None:
        file = self._file
        if file is None or durable <= file.pruned_through:
            return
        if keep_newest:
            durable = self._oldest_kept(durable, file.pruned_through)
            if durable <= file.pruned_through:
                return
        with self._metadata.write() as connection:
            StateRepository(connection).set(pruned_through=durable)
            JournalRepository(connection).prune(durable)
        self._file = replace(file, pruned_through=durable)
        self._metadata.checkpoint_if_due()

    def _oldest_kept(self, durable: int, pruned: int) -> int:
        """Return the seq before the rows that deliveries may still read from the journal; see `journal_pages`.

        No cursor counts, so that a sink that is behind does not let the journal grow.
        """
        now_s = time.monotonic()
        with self._metadata.read() as connection:
            if not SinkRepository(connection).exist():
                return durable
            if now_s - self._pruned_s < PRUNE_INTERVAL_S:
                return pruned
            self._pruned_s = now_s
            since_us = self._clock() - KEPT_US
            return JournalRepository(connection).before_newest(durable, since_us, MOST_SEQS, MOST_BYTES)

    def _loss(self, file: FileState, entry: str, reason: str, detail: str, applied: Applied) -> Loss:
        return Loss(
            entry_id=f"{file.state.store_id}:{entry}",
            what="points",
            reason=reason,
            detail=detail,
            dropped=applied.dropped.count,
            first_us=applied.dropped.first_us,
            last_us=applied.dropped.last_us,
            recorded_us=self._clock(),
        )

    def _opened(self, opened: OpenColumns) -> None:
        self._file = None
        self._file = self._reconciler.agreed(opened)

    def _closed(self) -> None:
        self._file = None


def _differ(entry: Entry, last: Entry) -> bool:
    """Return whether only one of them yields to stored points, so that they cannot be applied together."""
    return (entry.kind == KEEP) != (last.kind == KEEP)


def cut_to_row_groups(entries: list[Entry]) -> list[Entry]:
    """Leave out the last rows if their points would begin a row group of DuckDB and hardly fill it.

    It would be compressed again with every checkpoint until it is full.
    """
    points = sum(entry.seqs for entry in entries)
    kept = len(entries)
    while kept and points > ROW_GROUP_ROWS and 0 < points % ROW_GROUP_ROWS < LEAST_OF_ROW_GROUP:
        kept -= 1
        points -= entries[kept].seqs
    return entries[:kept] or entries
