"""The newest point of each series, kept in memory, and right against every other thread and process.

Owns what is remembered and how it is brought up to date; never flushes. SQLite says by one cheap question
(`PRAGMA data_version`) whether anybody committed anything since the last call. If so, the journal rows that
came since are laid over what is known. Memory starts from the copy of the summaries that flush keeps, and does
so again where the journal no longer tells all: after deletes, drops, and loads that pass the journal by.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from repo import forks
from repo.core.codec import unpack
from repo.core.metadata import MetadataDatabase
from repo.engines.sqlite import driver as sqlite
from repo.queries.rows import PointDict, parsed_metadata, point_dicts
from repo.queries.selection import Selection
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, VOID, JournalRepository
from repo.repositories.ledger import LedgerRepository
from repo.repositories.series import LatestRepository
from repo.repositories.state import StateRepository
from repo.values import Batch

__all__ = ["Newest"]

TAIL_BYTES = 16_777_216
"""The longest journal tail that is read (a tenth of a second); past it the columns are flushed first."""

_Pair = tuple[str, str]
_Row = tuple[Any, ...]
"""All columns of the points table; the seq is not known, and None."""


class _Copied(NamedTuple):
    """Of which file the copy tells, and the last drop that is known of; others mean: read it anew."""

    engine: str | None
    file_id: str | None
    generation: int
    last_loss: int


class Newest:
    """Answers `latest` from memory. Thread-safe; a few hundred bytes a series.

    `StoreClosed` after the store was closed, and in a child of the process that opened it. No transaction
    outlives a call.
    """

    def __init__(self, metadata: MetadataDatabase) -> None:
        self._metadata = metadata
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._cursor: Any = None
        self._rows: dict[_Pair, _Row] = {}
        self._ordered: list[_Pair] | None = None
        self._ready: dict[_Pair, PointDict] = {}
        self._version: int | None = None
        self._forget()
        forks.add_owner(self, Newest._let_go)

    def at_hand(self, pair: _Pair) -> list[PointDict] | None:
        """Return the newest point of a series that was asked for before; None: ask `points`."""
        self._metadata.refuse_after_fork()
        forks.give_way()
        with self._lock:
            point = self._ready.get(pair) if self._is_current() else None
        return None if point is None else [_fresh(point)]

    def points(self, selection: Selection) -> list[PointDict] | None:
        """Return the newest point of each selected series, in order of names.

        None where only the columns can tell: a delete, a load of a table, or more than `TAIL_BYTES` waits there.
        """
        self._metadata.refuse_after_fork()  # before the lock, which a thread of the parent may have held
        forks.give_way()
        with self._lock:
            if not self._is_current():
                return None
            if selection.exact is not None:
                # Only names that can be meant as they are come to be at hand: no globs.
                pairs = [selection.exact] if selection.exact in self._rows else []
            else:
                if self._ordered is None:
                    self._ordered = sorted(self._rows)
                pairs = self._ordered
                if selection.sensor_id is not None or selection.metric_name is not None:
                    pairs = [pair for pair in pairs if selection.names(*pair)]
            points = point_dicts([self._rows[pair] for pair in pairs])
            if selection.exact is not None and points:
                self._ready[selection.exact] = {**points[0], "metadata": self._rows[selection.exact][6]}
            return points

    def close(self) -> None:
        """Close the connection; a call that runs is finished first."""
        with self._lock:
            self._forget()
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _let_go(self) -> None:
        """Close the connection, unless a call uses it; what is known stays, and is followed on by another."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            connection, self._connection = self._connection, None
            self._version = None  # each connection has a count of its own
            if connection is not None:
                connection.close()
        finally:
            self._lock.release()

    def _forget(self) -> None:
        self._version = None
        self._copied: _Copied | None = None
        self._copied_through = 0
        self._through = 0
        self._told_by_journal = False
        self._answers = False
        self._rows = {}
        self._ordered = None
        self._ready.clear()

    def _is_current(self) -> bool:
        """Bring memory to the present; False where only the columns can tell."""
        # Unknown until the end: SQLAlchemy closes a connection in which an interrupt came.
        connection, self._connection = self._connection, None
        try:
            if connection is None:
                connection = self._metadata.standing_reader(self.close)
                driver: Any = connection.connection.driver_connection
                self._cursor = driver.cursor()
            ((version,),) = self._cursor.execute("PRAGMA data_version")
            if version != self._version:
                with connection.begin():
                    self._answers = self._follow(connection)
                # Asked for before the snapshot began: what was committed between the two is read twice.
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
        """Lay what was committed since over what is known, or begin anew from the copy."""
        state = StateRepository(connection).get()
        assert state is not None
        last_loss = LedgerRepository(connection).last_entry()
        copied = _Copied(state.engine, state.file_id, state.generation, last_loss)
        self._ordered = None
        self._ready.clear()
        if (
            copied == self._copied
            and self._told_by_journal
            and self._copied_through <= state.copied_through <= self._through
        ):
            self._copied_through = state.copied_through
            if self._overlay(connection) and self._told_by_journal:
                return True
        self._rows = {
            pair: (*pair, summary.last_us, *summary[3:7], None)
            for pair, summary in LatestRepository(connection).all().items()
        }
        self._copied, self._copied_through = copied, state.copied_through
        self._through = state.copied_through
        self._told_by_journal = True
        return self._overlay(connection)

    def _overlay(self, connection: Connection) -> bool:
        """Read the journal past what is known; False at a delete or a load under way, or when there is too much."""
        size = 0
        for entry in JournalRepository(connection).after(self._through):
            size += len(entry.payload)
            if entry.kind in (DELETE, BULK) or size > TAIL_BYTES:
                self._told_by_journal = False
                return False
            if entry.kind in (POINTS, KEEP):
                for batch in unpack(entry.payload):
                    _lay_over(self._rows, batch, keep=entry.kind == KEEP)
            elif entry.kind != VOID:
                # Its points are in no journal row: they come with the copy, when their load is done.
                self._told_by_journal = False
            self._through = entry.seq
        return True


def _fresh(ready: PointDict) -> PointDict:
    """Return a point that the caller may change."""
    point = ready.copy()
    if point["metadata"] is not None:
        point["metadata"] = parsed_metadata(point["metadata"])
    return point


def _lay_over(rows: dict[_Pair, _Row], batch: Batch, *, keep: bool) -> None:
    """Put the points of a later batch over what is known, where they are newer or, without `keep`, as new."""
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
