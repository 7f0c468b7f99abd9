"""Flush: applies journal rows, in the order of their seqs, to the columns, and prunes what is durable there.

Everything here runs alone, under the lease. A crash at any point repeats or skips whole steps, because the
watermark is committed with the rows that it speaks of, and the journal keeps every row until the columns
are durable through it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from repo import forks
from repo.clock import Clock
from repo.core.active import ActiveColumns
from repo.core.codec import unpack
from repo.core.columns import Columns, OpenColumns
from repo.core.metadata import MetadataDatabase
from repo.core.reconcile import Held, Known, Reconciler, digest_of, read_state
from repo.engines.interrupts import is_interrupt
from repo.errors import FlushFailed, HoldfastError
from repo.queries.rows import Row, rows_of
from repo.queries.selection import Selection, Summary
from repo.repositories.apply import Applied, apply
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, Entry, JournalRepository
from repo.repositories.ledger import ColumnsLedgerRepository, LedgerRepository, Loss
from repo.repositories.series import LatestRepository
from repo.repositories.state import ColumnsStateRepository, StateRepository
from repo.settings import Settings

__all__ = ["Flusher", "Work"]

log = logging.getLogger("holdfast.flush")

BATCH_BYTES = 8_388_608
"""The most bytes of journal rows that one transaction applies, unless one row alone is larger."""


class Work(Protocol):
    """What one transaction applies: journal rows through a seq, with the digest of these rows."""

    @property
    def through(self) -> int:
        """The last seq of the journal rows."""

    @property
    def digest(self) -> int:
        """Their `digest_of`."""

    @property
    def journalled(self) -> bool:
        """Whether the journal rows hold the points; if not, nothing may tell of them before they are durable."""

    @property
    def is_part(self) -> bool:
        """Whether more of the same journal rows follows: then the watermark stays."""

    @property
    def copies(self) -> bool:
        """Whether what it touched is copied to the metadata afterwards."""

    def apply(self, connection: Connection, known: Known) -> Applied:
        """Do it in the transaction of the connection; `known` are the summaries before it."""

    def loss(self, applied: Applied) -> tuple[str, str, str] | None:
        """Return what stands in the ledger of what was dropped: id, reason, detail; None if nothing was."""


@dataclass(slots=True)
class _JournalWork:
    """At most one delete, before everything else, and rows unique by identity."""

    journalled: ClassVar[bool] = True
    through: int
    digest: int
    deletion: Selection | None = None
    deletion_seq: int = 0
    keep: bool = False
    rows: dict[tuple[str, str, int], Row] = field(default_factory=dict)
    is_part: bool = False
    copies: bool = True

    @property
    def size(self) -> int:
        """How many parts it can be cut into."""
        return len(self.rows) + (self.deletion is not None)

    def halves(self) -> list[_JournalWork]:
        """Cut it in two: the delete from the rows, or else the earlier rows from the later."""
        if self.deletion is not None:
            first = replace(self, rows={}, is_part=True, copies=False)
            return [first, replace(self, deletion=None, copies=False)]
        rows = sorted(self.rows.items(), key=lambda item: item[0][2])
        half = len(rows) // 2
        first = replace(self, rows=dict(rows[:half]), is_part=True, copies=False)
        return [first, replace(self, rows=dict(rows[half:]), copies=False)]

    def apply(self, connection: Connection, known: Known) -> Applied:
        return apply(connection, list(self.rows.values()), self.deletion, known, keep=self.keep)

    def loss(self, applied: Applied) -> tuple[str, str, str] | None:
        if self.deletion is None or not applied.dropped.count:
            return None
        return str(self.deletion_seq), "delete", self.deletion.to_json().decode()


class Flusher:
    """Moves the store's changes from the journal to the columns."""

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
        self._reconciler = Reconciler(metadata, active, clock)
        self._held: Held | None = None
        """None while the file is closed, and from the beginning of each change until it was read back."""
        self._checkpointed_s = time.monotonic()
        columns.notify(opened=self._opened, closed=self._closed)

    @property
    def watermark(self) -> int:
        """The seq up to which the open file holds everything; -1 while it is not open here, or not known."""
        held = self._held
        return -1 if held is None else held.state.watermark

    @property
    def known(self) -> Mapping[tuple[str, str], Summary]:
        """The summaries of the series that have points in the open file."""
        held = self._held
        return {} if held is None else held.known

    @property
    def points(self) -> int:
        """How many points the open file holds."""
        return sum(summary.points for summary in self.known.values())

    def reached(self, seq: int) -> bool:
        """Say whether the open file holds everything that was in the journal when its last seq was `seq`."""
        return self.watermark >= self._goal(seq)

    def through(self, opened: OpenColumns, seq: int, stop: Callable[[], bool] = lambda: False) -> OpenColumns:
        """Flush until the columns hold everything up to `seq`; raises `FlushFailed` or a typed error.

        `stop` is asked after each committed batch; once it says yes this returns early, and `reached` tells
        whether anything is left. What could not be applied stays in the journal, and the next call begins
        there. Returns the open columns, which are others after an error that made it reopen the file.
        """
        opened = self._certain(opened).opened
        while not self.reached(seq) and (work := self._take(self._goal(seq))) is not None:
            opened = self.checkpoint_if_due(self._commit_in_parts(opened, work))
            if forks.is_awaited():
                opened = self._columns.reopen(forks.let_pass)
            if stop():
                break
        return opened

    def _goal(self, seq: int) -> int:
        return max(seq, self._reconciler.renumbered_through)

    def _certain(self, opened: OpenColumns) -> Held:
        """Return what is known of the open file; where an interrupt left that unknown, the file is reopened."""
        if self._held is None or self._held.opened is not opened:
            self._columns.reopen()
        assert self._held is not None
        return self._held

    def checkpoint_if_due(self, opened: OpenColumns) -> OpenColumns:
        """Checkpoint when the log is long, or when rows have waited long for it."""
        held = self._certain(opened)
        unpruned = held.state.watermark > held.pruned_through
        return self.checkpoint(held.opened) if self.checkpoint_is_due(unpruned=unpruned) else held.opened

    def checkpoint_is_due(self, *, unpruned: bool) -> bool:
        """Say whether the log is long, or rows that are `unpruned` have waited long; opens nothing."""
        waited_s = time.monotonic() - self._checkpointed_s
        return self._columns.backend.log_bytes() > self._settings.checkpoint_log_bytes or (
            unpruned and waited_s > self._settings.checkpoint_interval_s
        )

    def checkpoint(self, opened: OpenColumns) -> OpenColumns:
        """Make the columns durable through the watermark, read it back, and prune the journal up to there.

        One that fails is tried later and prunes nothing.
        """
        try:
            self.make_durable(opened)
        except Exception as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            log.warning("a checkpoint of %s failed and is tried later: %s", opened.backend.path, error)
            return self._columns.reopen()
        return opened

    def make_durable(self, opened: OpenColumns) -> int:
        """Checkpoint and prune, and return the seq through which the columns are durable.

        Raises a typed error where the checkpoint fails; then nothing was pruned.
        """
        opened = self._certain(opened).opened
        try:
            opened.backend.checkpoint(opened.engine)
            durable = read_state(opened).watermark
        except DBAPIError as error:
            raise opened.backend.typed_error(error) from error
        finally:
            self._checkpointed_s = time.monotonic()
        self._prune(durable)
        return durable

    # --- one transaction ------------------------------------------------------------------------------

    def _take(self, seq: int) -> _JournalWork | None:
        """Read the next journal rows, as many as one transaction may hold. A delete always begins one.

        A bulk row past the watermark is one whose load died, for a load that lives keeps the lease.
        """
        entries: list[Entry] = []
        points = size = 0
        with self._metadata.read() as connection:
            for entry in JournalRepository(connection).after(self.watermark, seq):
                full = (
                    points + entry.seqs > self._settings.flush_batch_points
                    or size + len(entry.payload) > BATCH_BYTES
                )
                if entries and (entry.kind == DELETE or full or _differ(entry, entries[-1])):
                    break
                entries.append(entry)
                points += entry.seqs
                size += len(entry.payload)
        if not entries:
            return None
        self._void([entry for entry in entries if entry.kind == BULK])
        work = _JournalWork(entries[-1].seq, digest_of(entries), keep=entries[-1].kind == KEEP)
        for entry in entries:
            if entry.kind == DELETE:
                work.deletion, work.deletion_seq = Selection.from_json(entry.payload), entry.seq
            elif entry.kind in (POINTS, KEEP):
                _net(work.rows, entry, keep=work.keep)
        return work

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
        """Commit one piece of work, believe only the watermark that is read back, and copy what changed.

        Returns the open columns, which are others if the file had to be opened anew. Raises a typed error
        where the work is not in the columns. From its beginning to its end nothing is known of the file; an
        interrupt leaves it so, and whoever uses the file next opens it anew.
        """
        held = self._certain(opened)
        self._held = None
        try:
            applied, losses = self._apply(held, work)
            state = read_state(held.opened)
        except Exception as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            # Committed or not: only the file itself can say. Reopening reads its watermark and its series.
            typed = held.opened.backend.typed_error(error)
            opened = self._columns.reopen()
            if work.is_part or self.watermark < work.through:
                raise typed from error
            log.warning("a commit reported an error and had happened all the same: %s", error)
            return opened if work.journalled else self._durable(opened, work)
        if not work.is_part and state.watermark < work.through:
            self._columns.reopen()
            raise FlushFailed(
                f"{held.opened.backend.path} took a commit through seq {work.through} and stands at {state.watermark}; "
                "the points are still in the journal",
                path=held.opened.backend.path,
            )
        held = replace(held, state=state, known=applied.known, copied_losses=())
        if not work.journalled:
            try:
                held.opened.backend.checkpoint(held.opened.engine)
            except DBAPIError as error:
                self._columns.reopen()
                raise held.opened.backend.typed_error(error) from error
        if work.copies:
            try:
                self._copy(state.watermark, applied, losses)
            except Exception as error:  # noqa: BLE001  opening copies everything, or raises what stands in the way
                log.warning("the summaries of %s are copied once more: %s", held.opened.backend.path, error)
                return self._columns.reopen()
            held = replace(held, copied_losses=tuple(loss.entry_id for loss in losses))
        self._held = held
        # What stands in no journal was checkpointed above.
        is_durable = held.opened.backend.durable_at_commit or not work.journalled
        if is_durable and work.copies:
            self._prune(state.watermark)
        self._metadata.fold_if_due()
        return held.opened

    def _durable(self, opened: OpenColumns, work: Work) -> OpenColumns:
        """Make work durable that stands in no journal."""
        if self.make_durable(opened) < work.through:
            raise FlushFailed(
                f"{opened.backend.path} lost rows before they were durable; write them again",
                path=opened.backend.path,
            )
        return opened

    def _apply(self, held: Held, work: Work) -> tuple[Applied, list[Loss]]:
        """Apply the work and move the watermark, in one transaction."""
        connection = held.opened.flush_connection
        losses: list[Loss] = []
        with connection.begin():
            ledger = ColumnsLedgerRepository(connection)
            ledger.remove(held.copied_losses)
            applied = work.apply(connection, held.known)
            if loss := work.loss(applied):
                losses.append(self._loss(held, *loss, applied))
                ledger.add(losses[0])
            if not work.is_part:
                ColumnsStateRepository(connection).set_watermark(
                    work.through, flushed_from=held.state.watermark, flush_digest=work.digest
                )
        return applied, losses

    def _commit_in_parts(self, opened: OpenColumns, work: _JournalWork) -> OpenColumns:
        """Commit work in one transaction or, where that needs more memory than the engine may use, in several.

        The watermark moves with the last. Until then a reader, or this process after a kill, applies all of it
        again, which changes nothing where a part was applied before.
        """
        try:
            return self.commit(opened, work)
        except HoldfastError as error:
            if not opened.backend.is_out_of_memory(error):
                raise
            if work.size <= 1:
                raise FlushFailed(
                    f"{opened.backend.path}: one point, or one delete, at seq {work.through} needs more memory than "
                    "DuckDB may use. It stays in the journal; raise duckdb_memory_limit_bytes and open the store again",
                    path=opened.backend.path,
                ) from error
            log.info("a batch of %d points does not fit into memory and is applied in parts", len(work.rows))
        waiting = work.halves()
        while waiting:
            part = waiting.pop(0)
            opened = self._current()
            # Opening copies all summaries to metadata that are bound to no file: a part does not copy its own. Each
            # time, for reopening after an error binds them again.
            with self._metadata.write() as connection:
                StateRepository(connection).set(file_id=None)
            try:
                self.commit(opened, part)
            except HoldfastError as error:
                if not opened.backend.is_out_of_memory(error) or part.size <= 1:
                    raise
                waiting = part.halves() + waiting
        self._held = None
        return self._columns.reopen()

    def _current(self) -> OpenColumns:
        """Return the open columns after an error in which they were reopened."""
        return self._columns.reopen() if self._held is None else self._held.opened

    def _copy(self, watermark: int, applied: Applied, losses: list[Loss]) -> None:
        """Copy the summaries of touched series, and ledger entries, to SQLite, where no lease is needed."""
        with self._metadata.write() as connection:
            LatestRepository(connection).replace(applied.touched, applied.gone)
            LedgerRepository(connection).add(losses)
            state = StateRepository(connection)
            state.set(copied_through=watermark)
            extent = state.extent()
        if extent is not None:
            self._metadata.mark.write(extent, durably=False)

    def _prune(self, durable: int) -> None:
        held = self._held
        if held is None or durable <= held.pruned_through:
            return
        with self._metadata.write() as connection:
            StateRepository(connection).set(pruned_through=durable)
            JournalRepository(connection).prune(durable)
        self._held = replace(held, pruned_through=durable)
        self._metadata.fold_if_due()

    def _loss(self, held: Held, entry: str, reason: str, detail: str, applied: Applied) -> Loss:
        return Loss(
            entry_id=f"{held.state.store_id}:{entry}",
            what="points",
            reason=reason,
            detail=detail,
            dropped=applied.dropped.count,
            first_us=applied.dropped.first_us,
            last_us=applied.dropped.last_us,
            recorded_us=self._clock(),
        )

    def _opened(self, opened: OpenColumns) -> None:
        self._held = None
        self._held = self._reconciler.agreed(opened)

    def _closed(self) -> None:
        self._held = None


def _differ(entry: Entry, last: Entry) -> bool:
    """Say whether one gives way to stored points and the other does not: they cannot be applied together."""
    return (entry.kind == KEEP) != (last.kind == KEEP)


def _net(rows: dict[tuple[str, str, int], Row], entry: Entry, *, keep: bool) -> None:
    """Add the points of a journal row: of equal identity the last wins, but one that changes nothing.

    With `keep` the first wins, as it would if it had been in the columns already.
    """
    seq = entry.first_seq
    for batch in unpack(entry.payload):
        new = list(rows_of(batch, seq))
        seq += len(batch)
        keys = [row[:3] for row in new]
        if len(set(keys)) == len(keys) and rows.keys().isdisjoint(keys):
            rows.update(zip(keys, new, strict=True))
            continue
        for key, row in zip(keys, new, strict=True):
            before = rows.get(key)
            if before is None or not (keep or before[3:7] == row[3:7]):
                rows[key] = row
