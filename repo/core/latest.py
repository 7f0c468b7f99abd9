"""The newest point of each series, kept in memory and consistent with all threads and processes.

Never flushes. A cheap query (`PRAGMA data_version`) shows whether anything was committed since the last call. If so,
the journal rows since then are applied to the points in memory. Memory is loaded from the copy of the summaries that
flush maintains, and again when the journal is not sufficient: after deletes, drops, and loads that bypass the journal.
The series of a small store are loaded together. Those of a larger one are loaded one by one as they are requested or
written, so the first call is fast there, too; a call that selects more than one series loads all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from repo.core.codec import unpack
from repo.core.metadata import MetadataDatabase
from repo.engines.sqlite import driver as sqlite
from repo.inputs.batch import Batch
from repo.processes import forks
from repo.queries.rows import PointDict, dicts_of_rows, parsed_metadata
from repo.queries.selection import Selection, Summary
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, VOID, JournalRepository
from repo.repositories.ledger import LedgerRepository
from repo.repositories.series import LatestRepository
from repo.repositories.state import StateRepository

__all__ = ["Newest"]

TAIL_BYTES = 16_777_216
"""The longest journal tail in bytes that is read, in about 0.1 s; past it the columns are flushed first."""

FEW = 500
"""A store with up to this many series is small: loading them all takes about a millisecond, as long as loading 20 one
by one."""

MOST_SINGLE = 50
"""The maximum number of series in a batch that are loaded one by one."""

MOST_READY = 10_000
"""The maximum number of series that one call keeps as dicts for the next call."""

_Pair = tuple[str, str]
_Row = tuple[Any, ...]
"""All columns of the points table; the seq, which no point returns, is None."""


class _Copied(NamedTuple):
    """The file whose summaries were copied, and the last known ledger entry. If they change, the copy is read again."""

    engine: str | None
    file_id: str | None
    generation: int
    last_loss: int


class Newest:
    """Answers `latest` from memory. Thread-safe; takes a few hundred bytes per series.

    Raises `StoreClosed` if the store is closed, or in a child of the process that opened it. No transaction outlives a
    call.
    """

    def __init__(self, metadata: MetadataDatabase) -> None:
        self._metadata = metadata
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._cursor: Any = None
        self._rows: dict[_Pair, _Row] = {}
        self._is_large = False
        """Whether the store is known to have more than `FEW` series."""
        self._ordered: list[_Pair] | None = None
        self._ready: dict[_Pair, PointDict] = {}
        self._version: int | None = None
        self._forget()
        forks.add_owner(self, Newest._close_idle)

    def cached(self, pair: _Pair) -> list[PointDict] | None:
        """Return the newest point of a series that was requested before; None means: call `points`."""
        self._metadata.refuse_after_fork()
        forks.give_way()
        with self._lock:
            points = None
            if self._is_current() and pair in self._rows:
                points = [_fresh(self._ready.get(pair) or self._made_ready([pair])[0])]
        return points

    def points(self, selection: Selection) -> list[PointDict] | None:
        """Return the newest point of each selected series, sorted by name.

        None if only the columns can tell, because the journal tail has a delete, a load of a table, or more than
        `TAIL_BYTES`.
        """
        self._metadata.refuse_after_fork()  # before the lock, which a thread of the parent may have held
        forks.give_way()
        exact = selection.exact
        with self._lock:
            if not self._is_current(None if exact is None else [exact]):
                return None
            if exact is not None:
                pairs = [exact] if exact in self._rows else []
            else:
                if self._ordered is None:
                    self._ordered = sorted(self._rows)
                pairs = self._ordered
                if selection.sensor_id is not None or selection.metric_name is not None:
                    pairs = [pair for pair in pairs if selection.names(*pair)]
            if len(pairs) > MOST_READY:
                points = dicts_of_rows([self._rows[pair] for pair in pairs])
            else:
                self._made_ready([pair for pair in pairs if pair not in self._ready])
                points = [_fresh(self._ready[pair]) for pair in pairs]
        # Not returned inside the block: an interrupt just after the last call could then leave the lock locked.
        return points

    def _made_ready(self, pairs: Sequence[_Pair]) -> list[PointDict]:
        """Keep the points of these series as dicts; their metadata are parsed for each caller."""
        points = dicts_of_rows([(*self._rows[pair][:6], None, None) for pair in pairs])
        for pair, point in zip(pairs, points, strict=True):
            point["metadata"] = self._rows[pair][6]
            self._ready[pair] = point
        return points

    def close(self) -> None:
        """Close the connection, after waiting for a running call."""
        with self._lock:
            self._forget()
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _close_idle(self) -> None:
        """Close the connection unless a call is using it. The points stay in memory, for the next connection."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            connection, self._connection = self._connection, None
            self._version = None  # each connection has its own data version
            if connection is not None:
                connection.close()
        finally:
            self._lock.release()

    def _forget(self) -> None:
        self._version = None
        self._copied: _Copied | None = None
        self._copied_through = 0
        self._through = 0
        self._is_journal_complete = False
        self._answers = False
        self._rows = {}
        self._has_all = self._is_large = False
        self._ordered = None
        self._ready.clear()

    def _is_current(self, wanted: Sequence[_Pair] | None = ()) -> bool:
        """Bring memory up to date, with the `wanted` series (None: all); False if only the columns can tell."""
        # The connection counts as unusable until the end: SQLAlchemy closes it if an interrupt arrives.
        connection, self._connection = self._connection, None
        try:
            if connection is None:
                connection = self._metadata.open_reader(self.close)
                driver: Any = connection.connection.driver_connection
                self._cursor = driver.cursor()
            ((version,),) = self._cursor.execute("PRAGMA data_version")
            if version != self._version or (self._answers and not self._has(wanted)):
                with connection.begin():
                    self._answers = self._follow(connection)
                    if self._answers:
                        self._load(connection, wanted)
                # Read before the snapshot began: a commit between the two is read twice, and never missed.
                self._version = version
            self._connection = connection
        except BaseException as error:
            self._forget()
            if connection is not None:
                connection.invalidate()
                connection.close()
            if isinstance(error, (SQLAlchemyError, sqlite.DriverError)):
                raise sqlite.typed_error(error, self._metadata.path) from error
            raise
        return self._answers

    def _follow(self, connection: Connection) -> bool:
        """Apply what was committed since the last call, or start again from the copy."""
        state = StateRepository(connection).get()
        assert state is not None
        last_loss = LedgerRepository(connection).last_entry()
        copied = _Copied(state.engine, state.file_id, state.generation, last_loss)
        self._ordered = None
        self._ready.clear()
        if (
            copied == self._copied
            and self._is_journal_complete
            and self._copied_through <= state.copied_through <= self._through
        ):
            self._copied_through = state.copied_through
            if self._overlay(connection) and self._is_journal_complete:
                return True
        self._rows = {}
        self._has_all = self._is_large = False
        self._copied, self._copied_through = copied, state.copied_through
        self._through = state.copied_through
        self._is_journal_complete = True
        return self._overlay(connection)

    def _has(self, wanted: Sequence[_Pair] | None) -> bool:
        return self._has_all or (wanted is not None and all(pair in self._rows for pair in wanted))

    def _load(self, connection: Connection, wanted: Sequence[_Pair] | None) -> None:
        """Load the copy of these series, or of all.

        A series in memory has every point through `_through`. One that is not has none after the copy, at most through
        `_through`, so the copy has the same.
        """
        if self._has_all:
            return
        latest = LatestRepository(connection)
        missing = None if wanted is None else [pair for pair in wanted if pair not in self._rows]
        if missing is not None and not missing:
            return
        if not self._is_large:
            few = latest.all(FEW + 1)
            self._is_large = len(few) > FEW
            if not self._is_large:
                self._rows = _rows_of(few) | self._rows
                self._has_all = True
                return
        if missing is not None and len(missing) <= MOST_SINGLE:
            self._rows.update(_rows_of(latest.of(missing)))
        else:
            self._rows = _rows_of(latest.all()) | self._rows
            self._has_all = True

    def _overlay(self, connection: Connection) -> bool:
        """Apply the journal tail; False if it has a delete or a running load, or is too long."""
        size = 0
        for entry in JournalRepository(connection).after(self._through):
            size += len(entry.payload)
            if entry.kind in (DELETE, BULK) or size > TAIL_BYTES:
                self._is_journal_complete = False
                return False
            if entry.kind in (POINTS, KEEP):
                for batch in unpack(entry.payload):
                    self._load(connection, batch.series)
                    _lay_over(self._rows, batch, keep=entry.kind == KEEP)
            elif entry.kind != VOID:
                # Its points are in no journal row; the copy has them once the load is complete.
                self._is_journal_complete = False
            self._through = entry.seq
        return True


def _rows_of(summaries: Mapping[_Pair, Summary]) -> dict[_Pair, _Row]:
    return {pair: (*pair, summary.last_us, *summary[3:7], None) for pair, summary in summaries.items()}


def _fresh(ready: PointDict) -> PointDict:
    """Return a point that the caller may change."""
    point = ready.copy()
    if point["metadata"] is not None:
        point["metadata"] = parsed_metadata(point["metadata"])
    return point


def _lay_over(rows: dict[_Pair, _Row], batch: Batch, *, keep: bool) -> None:
    """Replace points in memory by those of a later batch that are newer or, without `keep`, of the same time."""
    times = batch.timestamps_us
    newest: dict[int, int] = {}
    for row, code in enumerate(batch.codes):
        if code not in newest or times[newest[code]] <= times[row]:
            newest[code] = row
    for code, row in newest.items():
        pair = batch.series[code]
        if pair in rows and (rows[pair][2] > times[row] or (keep and rows[pair][2] == times[row])):
            continue
        value = batch.values[row]
        rows[pair] = (
            *pair,
            times[row],
            None if value != value else value,
            batch.texts.get(row),
            batch.qualities if isinstance(batch.qualities, int) else batch.qualities[row],
            batch.metadata.get(row),
            None,
        )
