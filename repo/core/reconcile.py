"""Reconciling: makes the column file and the metadata database consistent each time the file is opened.

Repairs mismatches: a file older than the journal, metadata older than the file, counts that do not match the points.
Runs with exclusive use of the columns, under the lease. Never applies journal rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4
from zlib import crc32

from sqlalchemy import Connection

from repo.clock import Clock
from repo.core.acknowledged import LOST_END
from repo.core.active import ActiveColumns
from repo.core.columns import OpenColumns
from repo.core.metadata import MetadataDatabase
from repo.errors import StoreCorrupt, StoreForked
from repo.queries.order import Order
from repo.queries.selection import Selection, Summary
from repo.repositories.journal import DELETE, Entry, JournalRepository
from repo.repositories.ledger import ColumnsLedgerRepository, LedgerRepository, Loss
from repo.repositories.series import LatestRepository, SeriesRepository, SummaryRepository
from repo.repositories.sinks import SinkRepository
from repo.repositories.slices import SliceRepository
from repo.repositories.state import ColumnsState, ColumnsStateRepository, State, StateRepository
from repo.repositories.verification import VerificationRepository, corrections

__all__ = [
    "FileState",
    "Known",
    "Reconciler",
    "digest_of",
    "is_what_was_flushed",
    "read_order",
    "read_state",
    "refuse_foreign",
]

log = logging.getLogger("holdfast.flush")

Known = Mapping[tuple[str, str], Summary]


@dataclass(frozen=True, slots=True)
class FileState:
    """The known state of the open file. It is replaced as a whole by what was read back, or dropped."""

    opened: OpenColumns
    state: ColumnsState
    known: Known
    """The summaries of the series with points in the file."""
    copied_losses: tuple[str, ...]
    """Ledger entries in the file that are also in the metadata; the next flush removes them from the file."""
    pruned_through: int
    order: Order
    """Which spans of seqs in the file are sorted."""


class Reconciler:
    """Makes a newly opened file and the metadata consistent."""

    def __init__(self, metadata: MetadataDatabase, active: ActiveColumns, clock: Clock) -> None:
        self._metadata = metadata
        self._active = active
        self._clock = clock
        self.renumbered_through = 0
        """The last seq that a renumbering assigned. A reader's target from before it refers to the old numbers."""

    def agreed(self, opened: OpenColumns) -> FileState:
        """Upgrade the file's schema, make it consistent with the metadata, and return its state.

        Raises `StoreForked`, `StoreCorrupt`, or what the engines raise. Safe to call again.
        """
        self._active.bring_to_head(opened.engine, opened.backend.path)
        with self._metadata.read() as connection:
            facts = StateRepository(connection).get()
            delivered = SinkRepository(connection).highest()
        assert facts is not None
        state = self._own_state(opened, facts)
        is_verified = self._verified(opened)
        with opened.flush_connection.begin():
            known = SummaryRepository(opened.flush_connection).all()
            losses = ColumnsLedgerRepository(opened.flush_connection).all()
            order = SliceRepository(opened.flush_connection).order()
        floor = max(state.watermark, facts.pruned_through, delivered, 0)
        own = {"engine": opened.backend.name, "file_id": state.file_id, "generation": state.generation}
        bound = (facts.engine, facts.file_id, facts.generation) == tuple(own.values())
        copied = bound and facts.copied_through == state.watermark and facts.last_seq >= floor
        if not copied or losses or not is_verified:
            with self._metadata.write() as connection:
                if facts.last_seq < floor or not is_what_was_flushed(connection, state, facts):
                    self._renumber(connection, opened.backend.path, state, facts, floor)
                latest = LatestRepository(connection)
                latest.clear()
                latest.replace(known)
                SeriesRepository(connection).register({pair: summary.kind for pair, summary in known.items()})
                LedgerRepository(connection).add(losses)
                StateRepository(connection).set(copied_through=state.watermark, **own)
        if not is_verified:
            # Last, because it also states that the copy in the metadata was made from correct counts.
            with opened.flush_connection.begin():
                VerificationRepository(opened.flush_connection).note()
        copied_losses = tuple(loss.entry_id for loss in losses)
        return FileState(opened, state, known, copied_losses, facts.pruned_through, order)

    def _own_state(self, opened: OpenColumns, facts: State) -> ColumnsState:
        """Tie the file to this store, raise its watermark to `pruned_through`, and return its state."""
        connection = opened.flush_connection
        with connection.begin():
            found = ColumnsStateRepository(connection).get()
        if found is not None:
            refuse_foreign(found, facts, opened.backend.path)
        state = found or ColumnsState(facts.store_id, uuid4().hex, facts.generation, 0)
        state = state._replace(store_id=facts.store_id)  # a change of the id was interrupted
        self._active.set_others_aside(opened.backend.name, state.generation)
        loss = None
        if state.watermark < facts.pruned_through:
            loss = self._older_columns(opened, state, facts)
            state = state._replace(watermark=facts.pruned_through)
        if state == found:
            return found
        with connection.begin():
            repository = ColumnsStateRepository(connection)
            if found is None:
                repository.create(state)
            else:
                if state.store_id != found.store_id:
                    repository.set_store_id(state.store_id)
                if state.watermark != found.watermark:
                    repository.set_watermark(state.watermark)
            if loss is not None:
                ColumnsLedgerRepository(connection).add(loss)
        return read_state(opened)

    def _verified(self, opened: OpenColumns) -> bool:
        """Return whether the counts of this file were already verified; if not, correct any wrong counts.

        In earlier versions an interrupt during a flush could make them wrong.
        """
        connection = opened.flush_connection
        with connection.begin():
            if VerificationRepository(connection).is_noted():
                return True
        with connection.begin():
            found, gone = corrections(connection)
            if found or gone:
                SummaryRepository(connection).replace(found, gone)
        if found or gone:
            log.warning(
                "the counts of %d series in %s did not match their points, and were corrected",
                len(found) + len(gone),
                opened.backend.path,
            )
        return False

    def _renumber(
        self, connection: Connection, path: Path, state: ColumnsState, facts: State, floor: int
    ) -> None:
        """Give the unapplied rows of an older journal new seqs, and void its deletes.

        With a new seq, a delete would also remove points that were written after it.
        """
        log.error("the metadata of %s is older than its columns: unapplied journal rows get new seqs", path)
        journal = JournalRepository(connection)
        if facts.last_seq < floor:
            LedgerRepository(connection).add([self._older_metadata(facts, floor)])
        applied = min(facts.copied_through, state.watermark)
        self.renumbered_through = journal.renumber_past(max(floor, journal.last_seq()), applied)
        deletes = [entry for entry in journal.after(max(floor, applied)) if entry.kind == DELETE]
        if not deletes:
            return
        journal.void([entry.seq for entry in deletes])
        LedgerRepository(connection).add([self._not_applied(entry, facts) for entry in deletes])
        for entry in deletes:
            log.error(
                "a delete in the older metadata of %s was not applied, because points may have been written after it: "
                "%s; see the loss ledger, and repeat the delete if it is still wanted",
                path,
                Selection.from_json(entry.payload),
            )

    def _older_metadata(self, facts: State, floor: int) -> Loss:
        # The points up to there are in the columns. The number of lost records is unknown.
        return Loss(
            entry_id=f"{facts.store_id}:lost-end:records:{facts.last_seq}-{floor}",
            what="records",
            reason=LOST_END,
            detail=json.dumps({"last_seq": facts.last_seq, "last_seq_of_columns": floor}),
            dropped=None,
            first_us=None,
            last_us=None,
            recorded_us=self._clock(),
        )

    def _not_applied(self, entry: Entry, facts: State) -> Loss:
        return Loss(
            entry_id=f"{facts.store_id}:{entry.seq}:not-applied",
            what="points",
            reason="delete-not-applied",
            detail=entry.payload.decode(),
            dropped=0,
            first_us=None,
            last_us=None,
            recorded_us=self._clock(),
        )

    def _older_columns(self, opened: OpenColumns, state: ColumnsState, facts: State) -> Loss:
        log.error(
            "%s was replaced by an older or empty file: it has the points through seq %d, but those through seq %d are "
            "no longer in the journal. The points between may be missing; `holdfast losses` lists them",
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


def refuse_foreign(found: ColumnsState, facts: State, path: Path) -> None:
    """Raise `StoreForked` or `StoreCorrupt` for a file of another store, or of an earlier generation of this one."""
    if not facts.owns(found.store_id):
        raise StoreForked(
            f"{path} belongs to the store {found.store_id}, not to this one ({facts.store_id}); restore the file of "
            "this store",
            path=path,
        )
    if found.generation < facts.generation:
        raise StoreCorrupt(
            f"{path} is of generation {found.generation}, but the store is at {facts.generation}: it was retired when "
            "the columns moved to another engine. Restore the file of the current generation",
            path=path,
        )


def read_state(opened: OpenColumns) -> ColumnsState:
    """Read the state of a file that belongs to a store."""
    with opened.flush_connection.begin():
        state = ColumnsStateRepository(opened.flush_connection).get()
    assert state is not None
    return state


def read_order(opened: OpenColumns) -> Order:
    """Read which spans of the file are sorted."""
    with opened.flush_connection.begin():
        return SliceRepository(opened.flush_connection).order()


def digest_of(entries: Iterable[Entry]) -> int:
    """Return the CRC-32 of journal rows, by seq and payload; never 0, which means no digest."""
    digest = 0
    for entry in entries:
        digest = crc32(entry.payload, crc32(b"%d %d" % (entry.seq, entry.seqs), digest))
    return digest or 1


def is_what_was_flushed(connection: Connection, state: ColumnsState, facts: State) -> bool:
    """Return whether the journal rows from the last copy up to the watermark are the ones that were applied.

    They are after a crash between a flush and its copy. A metadata database that was restored and written to since has
    other rows there, which must not count as applied.
    """
    copied = facts.copied_through
    if copied >= state.watermark or state.flush_digest == 0:
        return True
    for entry in JournalRepository(connection).after(copied):
        if entry.is_lost and entry.first_seq <= state.watermark <= entry.seq:
            return True  # the file has the rows that the journal lost, and so all rows before them
        if entry.seq >= state.watermark:
            break
    entries = JournalRepository(connection).after(copied, state.watermark)
    return copied == state.flushed_from and digest_of(entries) == state.flush_digest
