"""Flush: applies journal rows, in the order of their seqs, to the columns, and prunes what is durable there.

Everything here runs alone, under the lease. A crash at any point repeats or skips whole steps, because the
watermark is committed with the rows that it speaks of, and the journal keeps every row until the columns
are durable through it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import uuid4
from zlib import crc32

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from repo.clock import Clock
from repo.errors import FlushFailed, StoreCorrupt, StoreForked
from repo.repositories.applying import Applied, Row, apply
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, Entry, JournalRepository
from repo.repositories.ledger import ColumnsLedgerRepository, LedgerRepository, Loss
from repo.repositories.points import rows_of
from repo.repositories.selection import Selection
from repo.repositories.series import LatestRepository, SeriesRepository, Summary, SummaryRepository
from repo.repositories.sinks import SinkRepository
from repo.repositories.state import ColumnsState, ColumnsStateRepository, State, StateRepository
from repo.settings import Settings
from repo.store.columns import Columns, OpenColumns
from repo.store.metadata import MetadataDatabase
from repo.store.packing import unpack

__all__ = ["Flusher", "Work", "digest_of"]

log = logging.getLogger("holdfast.flush")


Known = dict[tuple[str, str], Summary]


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

    def apply(self, connection: Connection, known: Known) -> Applied:
        """Do it in the transaction of the connection; `known` are the summaries, brought up to date."""

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
        settings: Settings,
        clock: Clock,
        bring_to_head: Callable[[Engine, Path], None],
        set_aside: Callable[[str, int], None],
    ) -> None:
        self._metadata = metadata
        self._columns = columns
        self._settings = settings
        self._clock = clock
        self._bring_to_head = bring_to_head
        self._set_aside = set_aside
        self._state: ColumnsState | None = None
        self._known: Known = {}
        self._copied_losses: list[str] = []
        self._pruned_through = 0
        self._renumbered_through = 0
        self._checkpointed_s = time.monotonic()
        columns.notify(opened=self._opened, closed=self._closed)

    @property
    def watermark(self) -> int:
        """The seq up to which the open file holds everything; -1 while it is not open here."""
        return -1 if self._state is None else self._state.watermark

    @property
    def known(self) -> Mapping[tuple[str, str], Summary]:
        """The summaries of the series that have points in the open file."""
        return self._known

    @property
    def points(self) -> int:
        """How many points the open file holds."""
        return sum(summary.points for summary in self._known.values())

    def reached(self, seq: int) -> bool:
        """Say whether the open file holds everything that was in the journal when its last seq was `seq`."""
        return self.watermark >= max(seq, self._renumbered_through)

    def through(self, opened: OpenColumns, seq: int, stop: Callable[[], bool] = lambda: False) -> OpenColumns:
        """Flush until the columns hold everything up to `seq`; raises `FlushFailed` or a typed error.

        `stop` is asked after each committed batch; once it says yes this returns early, and `reached` tells
        whether anything is left. What could not be applied stays in the journal, and the next call begins
        there. Returns the open columns, which are others after an error that made it reopen the file.
        """
        while not self.reached(seq) and (work := self._take(max(seq, self._renumbered_through))) is not None:
            opened = self.checkpoint_if_due(self.commit(opened, work))
            if stop():
                break
        return opened

    def checkpoint_if_due(self, opened: OpenColumns) -> OpenColumns:
        """Checkpoint when the log is long, or when rows have waited long for it."""
        unpruned = self.watermark > self._pruned_through
        return self.checkpoint(opened) if self.checkpoint_is_due(unpruned=unpruned) else opened

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
        except Exception as error:  # noqa: BLE001  whatever the engine raised: nothing may be pruned
            log.warning("a checkpoint of %s failed and is tried later: %s", opened.backend.path, error)
            return self._columns.reopen()
        return opened

    def make_durable(self, opened: OpenColumns) -> int:
        """Checkpoint and prune, and return the seq through which the columns are durable.

        Raises a typed error where the checkpoint fails; then nothing was pruned.
        """
        try:
            opened.backend.checkpoint(opened.engine)
            durable = self._read_state(opened).watermark
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
        points = 0
        with self._metadata.read() as connection:
            for entry in JournalRepository(connection).after(self.watermark, seq):
                full = points + entry.seqs > self._settings.flush_batch_points
                if entries and (entry.kind == DELETE or full or _differ(entry, entries[-1])):
                    break
                entries.append(entry)
                points += entry.seqs
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
        where the work is not in the columns.
        """
        connection = opened.flush_connection
        losses: list[Loss] = []
        try:
            with connection.begin():
                ledger = ColumnsLedgerRepository(connection)
                ledger.remove(self._copied_losses)
                applied = work.apply(connection, self._known)
                if loss := work.loss(applied):
                    losses.append(self._loss(*loss, applied))
                    ledger.add(losses[0])
                ColumnsStateRepository(connection).set_watermark(
                    work.through, flushed_from=self.watermark, flush_digest=work.digest
                )
            self._state = self._read_state(opened)
        except Exception as error:
            # Committed or not: only the file itself can say. Reopening reads its watermark and its series.
            typed = opened.backend.typed_error(error)
            opened = self._columns.reopen()
            if self.watermark < work.through:
                raise typed from error
            log.warning("a commit reported an error and had happened all the same: %s", error)
            return opened
        if self.watermark < work.through:
            self._columns.reopen()
            raise FlushFailed(
                f"{opened.backend.path} took a commit through seq {work.through} and stands at {self.watermark}; "
                "the points are still in the journal",
                path=opened.backend.path,
            )
        self._copied_losses = []
        if not work.journalled:
            try:
                opened.backend.checkpoint(opened.engine)
            except DBAPIError as error:
                self._columns.reopen()
                raise opened.backend.typed_error(error) from error
        try:
            self._copy(applied.touched, applied.gone, losses)
        except Exception as error:  # noqa: BLE001  opening copies everything, or raises what stands in the way
            log.warning("the summaries of %s are copied once more: %s", opened.backend.path, error)
            return self._columns.reopen()
        if opened.backend.durable_at_commit:
            self._prune(self.watermark)
        return opened

    def _copy(
        self,
        touched: dict[tuple[str, str], Summary],
        gone: Iterable[tuple[str, str]],
        losses: list[Loss],
    ) -> None:
        """Copy the summaries of touched series, and ledger entries, to SQLite, where no lease is needed."""
        with self._metadata.write() as connection:
            LatestRepository(connection).replace(touched, gone)
            LedgerRepository(connection).add(losses)
            StateRepository(connection).set(copied_through=self.watermark)
        self._copied_losses += [loss.entry_id for loss in losses]
        self._metadata.fold_if_due()

    def _prune(self, durable: int) -> None:
        if durable <= self._pruned_through:
            return
        with self._metadata.write() as connection:
            StateRepository(connection).set(pruned_through=durable)
            JournalRepository(connection).prune(durable)
        self._pruned_through = durable
        self._metadata.fold_if_due()

    def _loss(self, entry: str, reason: str, detail: str, applied: Applied) -> Loss:
        assert self._state is not None
        return Loss(
            entry_id=f"{self._state.store_id}:{entry}",
            what="points",
            reason=reason,
            detail=detail,
            dropped=applied.dropped.count,
            first_us=applied.dropped.first_us,
            last_us=applied.dropped.last_us,
            recorded_us=self._clock(),
        )

    # --- each time that the file is opened ------------------------------------------------------------

    def _opened(self, opened: OpenColumns) -> None:
        """Bring the file to the present schema, and see that it and the metadata belong together."""
        self._bring_to_head(opened.engine, opened.backend.path)
        with self._metadata.read() as connection:
            facts = StateRepository(connection).get()
            cursors = SinkRepository(connection).list()
        assert facts is not None
        found = self._read_state_or_none(opened)
        if found is not None and found.store_id != facts.store_id:
            raise StoreForked(
                f"{opened.backend.path} belongs to the store {found.store_id}, not to this one "
                f"({facts.store_id}); put the file of this store back",
                path=opened.backend.path,
            )
        if found is not None and found.generation < facts.generation:
            raise StoreCorrupt(
                f"{opened.backend.path} is of generation {found.generation}, and the store is at {facts.generation}: "
                "it was set aside when the columns moved to another engine. Put the file of this generation back",
                path=opened.backend.path,
            )
        state = found or ColumnsState(facts.store_id, uuid4().hex, facts.generation, 0)
        self._set_aside(opened.backend.name, state.generation)
        loss = None
        if state.watermark < facts.pruned_through:
            loss = self._older_columns(opened, state, facts)
            state = state._replace(watermark=facts.pruned_through)
        if state != found:
            connection = opened.flush_connection
            with connection.begin():
                repository = ColumnsStateRepository(connection)
                if found is None:
                    repository.create(state)
                else:
                    repository.set_watermark(state.watermark)
                if loss is not None:
                    ColumnsLedgerRepository(connection).add(loss)
        self._state = self._read_state(opened)
        self._pruned_through = facts.pruned_through
        with opened.flush_connection.begin():
            self._known = SummaryRepository(opened.flush_connection).all()
            losses = ColumnsLedgerRepository(opened.flush_connection).all()
        floor = max(self.watermark, facts.pruned_through, *(cursor.confirmed_seq for cursor in cursors), 0)
        self._agree(opened, facts, floor, losses)

    def _agree(self, opened: OpenColumns, facts: State, floor: int, losses: list[Loss]) -> None:
        """Bring the metadata's side up to what the file says, where they differ."""
        assert self._state is not None
        own = {
            "engine": opened.backend.name,
            "file_id": self._state.file_id,
            "generation": self._state.generation,
        }
        bound = (facts.engine, facts.file_id, facts.generation) == tuple(own.values())
        if bound and facts.copied_through == self.watermark and facts.last_seq >= floor and not losses:
            return
        with self._metadata.write() as connection:
            state = StateRepository(connection)
            if facts.last_seq < floor or not self._is_what_was_flushed(connection, facts.copied_through):
                log.error(
                    "the metadata of %s is older than its columns: it gets new seqs", opened.backend.path
                )
                journal = JournalRepository(connection)
                applied = min(facts.copied_through, self.watermark)
                self._renumbered_through = journal.renumber_past(max(floor, journal.last_seq()), applied)
            latest = LatestRepository(connection)
            latest.clear()
            latest.replace(self._known)
            SeriesRepository(connection).register(
                {pair: _kind_of(summary) for pair, summary in self._known.items()}
            )
            LedgerRepository(connection).add(losses)
            state.set(copied_through=self.watermark, **own)
        self._copied_losses = [loss.entry_id for loss in losses]

    def _is_what_was_flushed(self, connection: Connection, copied: int) -> bool:
        """Say whether the journal rows past the last copy, up to the watermark, are those that were applied.

        After a crash between a flush and its copy they are; in a metadata database that was restored and
        written to since, others stand there, which must not count as applied.
        """
        assert self._state is not None
        if copied >= self.watermark or self._state.flush_digest == 0:
            return True
        entries = JournalRepository(connection).after(copied, self.watermark)
        return copied == self._state.flushed_from and digest_of(entries) == self._state.flush_digest

    def _older_columns(self, opened: OpenColumns, state: ColumnsState, facts: State) -> Loss:
        log.error(
            "%s holds points through seq %d, but %d were pruned from the journal: it was replaced or restored; "
            "see the loss ledger",
            opened.backend.path,
            state.watermark,
            facts.pruned_through,
        )
        return Loss(
            entry_id=f"{facts.store_id}:columns:{state.watermark}-{facts.pruned_through}",
            what="points",
            reason="columns-older-than-journal",
            detail=json.dumps({"first_seq": state.watermark + 1, "last_seq": facts.pruned_through}),
            dropped=None,
            first_us=None,
            last_us=None,
            recorded_us=self._clock(),
        )

    def _closed(self) -> None:
        self._state = None
        self._known = {}

    def _read_state(self, opened: OpenColumns) -> ColumnsState:
        state = self._read_state_or_none(opened)
        assert state is not None
        return state

    def _read_state_or_none(self, opened: OpenColumns) -> ColumnsState | None:
        with opened.flush_connection.begin():
            return ColumnsStateRepository(opened.flush_connection).get()


def digest_of(entries: Iterable[Entry]) -> int:
    """Return the CRC-32 of journal rows, by seq and payload; never 0, which stands for none."""
    digest = 0
    for entry in entries:
        digest = crc32(entry.payload, crc32(b"%d %d" % (entry.seq, entry.seqs), digest))
    return digest or 1


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


def _kind_of(summary: Summary) -> Any:
    if summary.last_value_text is not None:
        return "text"
    return None if summary.last_value is None else "number"
