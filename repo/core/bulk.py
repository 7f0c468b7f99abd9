"""Bulk loads: writes tables straight into the columns, a chunk at a time under the lease, or through the journal.

A chunk reserves its seqs with a journal row, is merged into the columns in one transaction, and is checkpointed,
because its rows are not in the journal. The call is acknowledged after its last chunk.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from uuid import uuid4

from sqlalchemy import Connection

from repo.core.changes import BulkChange, PointsChange, Submission, without_other_kinds
from repo.core.handle import Handle
from repo.core.kinds import is_empty_series
from repo.core.reconcile import Known, digest_of
from repo.core.undisturbed import undisturbed
from repo.engines.registry import duckdb_is_installed
from repo.errors import (
    EngineMissing,
    HoldfastError,
    InvalidPoint,
    InvalidQuery,
    Refusal,
    StoreBusy,
    system_error,
)
from repo.formats.arrays.memory import KeptStream
from repo.formats.arrays.scan import SOURCE, Scan, batch_of, scan
from repo.formats.arrays.tables import Chunk, HeldPages, Lists, Table, table_of
from repo.inputs.batch import Batch
from repo.inputs.values import check_columns
from repo.repositories.apply import Applied
from repo.repositories.apply_table import Arriving, Part, merge
from repo.repositories.journal import BULK, Entry
from repo.repositories.points import Written
from repo.repositories.series import SeriesRepository

__all__ = ["Bulk"]

log = logging.getLogger("holdfast.bulk")

CHUNK_ROWS = 245_760
"""Rows per chunk: two DuckDB row groups, which are written straight to its file, in about 0.2 s under the lease. Larger
chunks exceed the default memory limit if all rows replace stored points (a million against a million do)."""

JOURNAL_ROWS = 262_144
"""Rows that are written to the journal in one commit: about 6 MB."""

PIECE_ROWS = 32_768
"""Rows that are packed and committed at a time if a scanned chunk goes through the journal: about 50 MB with texts of
1.5 kB."""

FLUSH_S = 1.0
"""How long a chunk flushes earlier writes; if that is not enough, the chunk goes through the journal."""

WAIT_S = 0.2
"""How long a chunk waits for the columns before it goes through the journal. A hand-over takes 30-80 ms, plus the time
of readers in this process that came first."""

_NO_POINTS = Written(None, None, 0)


class Bulk:
    """Implements `insert_table`. Thread-safe."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        self._scratch: Any = None

    def insert(self, given: Any, on_error: str, on_conflict: str) -> Written:
        """See `Points.insert_table`."""
        for name, choice, choices in (
            ("on_error", on_error, ("raise", "skip")),
            ("on_conflict", on_conflict, ("overwrite", "keep")),
        ):
            if choice not in choices:
                raise InvalidQuery(f"{name} = {choice!r} is not {' or '.join(map(repr, choices))}")
        self._handle.metadata.refuse_after_fork()
        scratch, spool = self._connections(given)
        try:
            table = table_of(given, CHUNK_ROWS, spool)
            load = _Load(self._handle, scratch, keep=on_conflict == "keep", skip=on_error == "skip")
            return load.run(table)
        finally:
            if scratch is not None:
                scratch.close()
                spool.close()

    def check(self, given: Any) -> tuple[Refusal, ...]:
        """Return the refusals of `insert` with `on_error="skip"`, and write nothing."""
        scratch, spool = self._connections(given)
        try:
            load = _Load(self._handle, scratch, keep=True, skip=True)
            return load.check(table_of(given, CHUNK_ROWS, spool))
        finally:
            if scratch is not None:
                scratch.close()
                spool.close()

    def packed(self, given: Any, on_error: str, on_conflict: str) -> tuple[list[PointsChange], list[Refusal]]:
        """Check a table and pack it for the journal, for a transaction, which commits it with other writes."""
        scratch, spool = self._connections(given)
        try:
            load = _Load(self._handle, scratch, keep=on_conflict == "keep", skip=on_error == "skip")
            return load.packed(table_of(given, CHUNK_ROWS, spool))
        finally:
            if scratch is not None:
                scratch.close()
                spool.close()

    def close(self) -> None:
        """Close the in-memory database in which tables are checked."""
        with self._lock:
            if self._scratch is not None:
                self._scratch.close()
                self._scratch = None

    def _connections(self, given: Any) -> tuple[Any, Any]:
        """Return two connections that scan tables; None without DuckDB, and for pages, which have connections.

        A connection cannot scan a stream that it feeds itself, so one spools and the other scans.
        """
        if isinstance(given, HeldPages):
            return None, None
        return self._opened_scratch(), self._opened_scratch()

    def _opened_scratch(self) -> Any:
        """Return a connection to an in-memory DuckDB, which scans tables; None without DuckDB."""
        folder = self._handle.files.folder
        try:
            if not duckdb_is_installed():
                return None
            from repo.engines.duckdb import driver as duckdb
        except OSError as error:  # the import needs a file descriptor
            raise system_error(error, folder, "nothing was written") from error

        with self._lock:
            if self._scratch is None:
                settings = self._handle.settings
                try:
                    self._scratch = duckdb.open_scratch(
                        memory_limit_bytes=settings.duckdb_memory_limit_bytes,
                        threads=settings.duckdb_threads,
                        temp_folder=self._handle.files.scratch,
                    )
                except duckdb.DriverError as error:
                    raise HoldfastError(
                        f"the in-memory DuckDB that checks tables could not be opened ({error}); nothing was written "
                        f"to {folder}. Try again",
                        path=folder,
                    ) from error
            return self._scratch.cursor()


@dataclass(slots=True)
class _CheckedChunk:
    """A checked chunk: scanned by DuckDB, or else checked row by row and packed."""

    chunk: Chunk
    scan: Scan | None
    changes: Sequence[PointsChange] = ()
    refusals: tuple[Refusal, ...] = ()


class _Load:
    """One call of `insert_table`."""

    def __init__(self, handle: Handle, scratch: Any, *, keep: bool, skip: bool) -> None:
        self._handle = handle
        self._scratch = scratch
        self._keep = keep
        self._skip = skip
        self._kinds: dict[tuple[str, str], str] = {}
        self._written: list[Written] = []
        self._asked: set[tuple[str, str]] = set()
        self._stored_kinds: set[tuple[str, str]] = set()
        """Series whose kind comes from the store, and of which this table has had no reading so far."""
        self._goes_straight = False

    def run(self, table: Table) -> Written:
        """Check the table, completely if it can be read twice, and write it; each chunk is durable when written."""
        checked = self._checked_chunks(table.chunks)
        refusals: list[Refusal] = []
        try:
            for one in list(checked) if table.repeatable else checked:
                refusals += one.refusals
                self._write(one)
        except Exception as error:  # may also come from the caller's stream
            if done := sum(written.accepted for written in self._written):
                error.add_note(
                    f"{done:,} rows of this table were already written, and may stay; writing the whole table again "
                    "is harmless"
                )
            raise
        written = self._written or [_NO_POINTS]
        return Written(
            written[0].first_seq,
            written[-1].last_seq,
            sum(one.accepted for one in written),
            len(refusals),
            tuple(refusals),
        )

    def check(self, table: Table) -> tuple[Refusal, ...]:
        """Check the table, and write nothing."""
        return tuple(
            refusal for checked in self._checked_chunks(table.chunks) for refusal in checked.refusals
        )

    def packed(self, table: Table) -> tuple[list[PointsChange], list[Refusal]]:
        """Check every row, and pack the good ones, in memory."""
        changes: list[PointsChange] = []
        refusals: list[Refusal] = []
        first_row = 0
        for chunk in table.chunks:
            if chunk.rows:
                more, refused = self._packed(chunk, first_row)
                changes += more
                refusals += refused
            first_row += chunk.rows
        if refusals and not self._skip:
            raise InvalidPoint(refusals)
        return changes, refusals

    # --- checking -------------------------------------------------------------------------------------

    def _checked_chunks(self, chunks: Iterable[Chunk]) -> Iterator[_CheckedChunk]:
        first_row = 0
        for chunk in chunks:
            if chunk.rows:
                yield self._checked(chunk, first_row)
            first_row += chunk.rows

    def _checked(self, chunk: Chunk, first_row: int) -> _CheckedChunk:
        source = None if self._scratch is None else chunk.source
        if chunk.home is not None:
            found = chunk.scan or scan(chunk.home, source, chunk.place)
        else:
            found = None if source is None else scan(self._scratch, source)
        if found is not None:
            self._learn_stored(group.pair for group in found.groups)
        if found is not None and all(self._is_kind(group.pair, group.kind) for group in found.groups):
            return _CheckedChunk(chunk, found)
        checked = _CheckedChunk(chunk, None, *self._packed(chunk, first_row))
        if checked.refusals and not self._skip:
            raise InvalidPoint(checked.refusals)
        return checked

    def _packed(self, chunk: Chunk, first_row: int) -> tuple[list[PointsChange], tuple[Refusal, ...]]:
        """Check a chunk row by row, and pack the good rows."""
        changes: list[PointsChange] = []
        refusals: list[Refusal] = []
        for start in range(0, chunk.rows, JOURNAL_ROWS):
            change, refused = self._packed_piece(chunk, start, JOURNAL_ROWS, first_row)
            refusals += refused
            if change is not None:
                changes.append(change)
        return changes, tuple(refusals)

    def _packed_piece(
        self, chunk: Chunk, start: int, rows: int, first_row: int
    ) -> tuple[PointsChange | None, list[Refusal]]:
        columns = _plain(chunk.lists(start, rows))
        batch, refused = check_columns(columns, accept_bool=self._handle.settings.accept_bool, skip=True)
        self._learn_stored(batch.series)
        known = {
            pair: self._kinds[pair]
            for pair, kind in zip(batch.series, batch.kinds, strict=True)
            if not self._is_kind(pair, kind)
        }
        refusals = list(refused)
        if known:
            gone = {refusal.row for refusal in refused}
            given = [row for row in range(len(batch) + len(gone)) if row not in gone]
            batch, more = without_other_kinds(batch, known, given)
            refusals = sorted([*refusals, *more], key=lambda refusal: refusal.row or 0)
        refusals = [replace(one, row=(one.row or 0) + start + first_row) for one in refusals]
        if not len(batch):
            return None, refusals
        return self._change(batch), refusals

    def _is_kind(self, pair: tuple[str, str], kind: str | None) -> bool:
        """Return whether readings of this kind fit their series. A series without kind or points takes the kind."""
        if kind is None:
            return True
        known = self._kinds.setdefault(pair, kind)
        if known != kind and pair in self._stored_kinds:
            with self._handle.metadata.read() as connection:
                if is_empty_series(connection, pair):
                    self._kinds[pair] = known = kind
        if known == kind:
            self._stored_kinds.discard(pair)  # now this table has readings of the kind, too
        return known == kind

    def _learn_stored(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Look up the stored kinds of these series."""
        unknown = [pair for pair in pairs if pair not in self._asked]
        if not unknown:
            return
        with self._handle.metadata.read() as connection:
            stored = SeriesRepository(connection).kinds(unknown)
        for pair, kind in stored.items():
            if kind is not None and pair not in self._kinds:
                self._kinds[pair] = kind
                self._stored_kinds.add(pair)
        self._asked.update(unknown)

    # --- writing --------------------------------------------------------------------------------------

    def _write(self, checked: _CheckedChunk) -> None:
        """Write a chunk: to the columns if it is large and they are available, otherwise to the journal."""
        found = checked.scan
        if found is None:
            for change in checked.changes:
                self._journal(change)
            return
        large = found.rows >= self._handle.settings.bulk_rows or self._goes_straight
        if large and self._straight(checked.chunk, found):
            return
        batch = self._batch(checked.chunk, found)
        if batch is not None:
            self._journal(self._change(batch))
            return
        # With `keep`, the last point of an identity in the table counts, so all rows are packed together.
        rows = JOURNAL_ROWS if self._keep else PIECE_ROWS
        for start in range(0, checked.chunk.rows, rows):
            piece, _ = self._packed_piece(checked.chunk, start, rows, 0)
            if piece is not None:
                self._journal(piece)

    def _batch(self, chunk: Chunk, found: Scan) -> Batch | None:
        if chunk.home is not None:
            return batch_of(chunk.home, None, chunk.place, found)
        return batch_of(self._scratch, chunk.source, None, found)

    def _change(self, batch: Batch) -> PointsChange:
        kept = _last_of_each(batch) if self._keep else batch
        return replace(PointsChange.of(kept, keep=self._keep), count=len(batch))

    def _journal(self, change: PointsChange) -> None:
        self._written.append(self._handle.writer.commit(Submission((change,))))

    def _straight(self, chunk: Chunk, found: Scan) -> bool:
        """Merge a chunk into the columns, durably.

        False if the columns are not available at once, cannot merge tables, or have too little memory, or if the
        unflushed journal is so long that others would wait too long for the columns.
        """
        columns, flusher = self._handle.columns, self._handle.flusher
        try:
            with columns.alone("bulk load", timeout_s=WAIT_S) as opened:
                if not opened.backend.takes_tables:
                    return False
                end, began_s = self._handle.journal_end(), time.monotonic()
                opened = flusher.through(opened, end, lambda: time.monotonic() - began_s > FLUSH_S)
                if not flusher.reached(end):
                    return False
                kinds = {group.pair: group.kind for group in found.groups}
                change = BulkChange(kinds, found.rows, uuid4().bytes)
                reserved = self._handle.writer.commit(Submission((change,)))
                assert reserved.first_seq is not None
                assert reserved.last_seq is not None
                entry = Entry(reserved.last_seq, found.rows, BULK, change.token)
                opened = flusher.through(opened, entry.first_seq - 1)
                try:
                    flusher.commit(opened, _Merge.of(entry, chunk.source, found, keep=self._keep))
                except HoldfastError as error:
                    if not opened.backend.is_out_of_memory(error):
                        raise
                    log.info(
                        "a chunk of a table exceeds the memory limit of DuckDB; it goes through the journal"
                    )
                    return False
        except (StoreBusy, EngineMissing):
            return False
        self._goes_straight = True
        self._written.append(Written(entry.first_seq, entry.seq, found.rows))
        return True


@dataclass(frozen=True, slots=True)
class _Merge:
    """A chunk, as work for flush."""

    journalled: ClassVar[bool] = False
    is_part: ClassVar[bool] = False
    copies: ClassVar[bool] = True
    through: int
    digest: int
    source: Any
    scan: Scan
    first_seq: int
    keep: bool

    @classmethod
    def of(cls, entry: Entry, source: Any, found: Scan, *, keep: bool) -> _Merge:
        return cls(entry.seq, digest_of([entry]), source, found, entry.first_seq, keep)

    def apply(self, connection: Connection, known: Known) -> Applied:
        if not isinstance(self.source, KeptStream):
            return self._merged(connection, known)
        applied: list[Applied] = []
        undisturbed(lambda: applied.append(self._merged(connection, known)))  # it calls back into Python
        return applied[0]

    def _merged(self, connection: Connection, known: Known) -> Applied:
        parts = {
            group.pair: Part(
                group.rows, group.first_us, group.last_us, (*group.newest, self.first_seq + group.place)
            )
            for group in self.scan.groups
        }
        select = f"SELECT *, {self.first_seq:d} - 1 + row_number() OVER () AS seq FROM ({self.scan.select})"
        arriving = Arriving(SOURCE, self.source, select, self.scan.rows, parts, self.scan.unique)
        return merge(connection, arriving, None, known, keep=self.keep)

    def loss(self, _applied: Applied) -> None:
        return None


def _last_of_each(batch: Batch) -> Batch:
    """Return the last row of each identity, because with `keep` flush would take the first one."""
    last = {identity: row for row, identity in enumerate(zip(batch.codes, batch.timestamps_us, strict=True))}
    if len(last) == len(batch):
        return batch
    return batch.rows(sorted(last.values()))


class NoTime:
    """Marks a missing time in a table. A row without a time means now; a table needs a time in each row."""


def _plain(lists: Lists) -> dict[str, Sequence[Any]]:
    """Return the columns of a table in the form of columns of rows."""
    columns = dict(lists)
    for name in ("timestamp", "timestamp_us"):
        if name in columns and None in columns[name]:
            columns[name] = [NoTime() if time is None else time for time in columns[name]]
    if "value_text" in columns:
        texts = columns.pop("value_text")
        numbers = columns.get("value", [None] * len(texts))
        columns["value"] = [_either(number, text) for number, text in zip(numbers, texts, strict=True)]
    if "metadata" in columns:
        columns["metadata"] = [_mapping(metadata) for metadata in columns["metadata"]]
    return columns


def _either(number: Any, text: Any) -> Any:
    if text is None:
        return number
    return text if number is None or number != number else (number, text)  # both are refused


def _mapping(metadata: Any) -> Any:
    """Return metadata given as JSON text as a mapping; anything else is returned unchanged, and refused later."""
    if not isinstance(metadata, str):
        return metadata
    try:
        parsed = json.loads(metadata)
    except (ValueError, RecursionError):
        return metadata
    return parsed if isinstance(parsed, Mapping) else metadata
