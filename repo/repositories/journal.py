"""The journal's table and the counter of seqs, on a connection that the caller gives; never commits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from repo.models import JournalRow, StoreState

__all__ = ["DELETE", "POINTS", "Entry", "JournalRepository"]

POINTS = "points"
"""Kind of a row whose payload is packed points."""

DELETE = "delete"
"""Kind of a row whose payload is a selection of points to delete."""


class Entry(NamedTuple):
    """One journal row; `seq` is the last of its `seqs` seqs."""

    seq: int
    seqs: int
    kind: str
    payload: bytes

    @property
    def first_seq(self) -> int:
        """The first seq of the row."""
        return self.seq - self.seqs + 1


class JournalRepository:
    """Append to, read and prune the journal. Runs in the caller's transaction, which decides durability."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def reserve(self, count: int) -> int:
        """Advance the counter by `count` and return the last seq; the caller's transaction is IMMEDIATE."""
        # One statement through the driver: this and `append` are the whole cost of an acknowledged point.
        driver = self._connection.connection.driver_connection
        assert driver is not None
        row = driver.execute(
            "UPDATE store_state SET last_seq = last_seq + ? WHERE id = 1 RETURNING last_seq", (count,)
        ).fetchone()
        return int(row[0])

    def append(self, seq: int, count: int, kind: str, payload: bytes, created_us: int) -> None:
        """Add one row whose last seq is `seq`."""
        driver = self._connection.connection.driver_connection
        assert driver is not None
        driver.execute(
            "INSERT INTO journal (seq, count, kind, payload, created_us) VALUES (?, ?, ?, ?, ?)",
            (seq, count, kind, payload, created_us),
        )

    def after(self, seq: int, through: int | None = None) -> Iterator[Entry]:
        """Yield the rows past `seq` in order, up to `through`; consume it before the transaction ends."""
        table = JournalRow
        query = select(table.seq, table.count, table.kind, table.payload).where(table.seq > seq)
        if through is not None:
            query = query.where(table.seq <= through)
        for row in self._connection.execute(query.order_by(table.seq).execution_options(yield_per=1)):
            yield Entry(*row)

    def last_seq(self) -> int:
        """Return the last seq that was committed to the journal or, if it is empty, 0."""
        return int(self._connection.scalar(select(func.max(JournalRow.seq))) or 0)

    def backlog(self) -> tuple[int, int]:
        """Return the number of rows and the seqs (points and operations) that the journal holds."""
        rows, seqs = self._connection.execute(
            select(func.count(), func.coalesce(func.sum(JournalRow.count), 0)).select_from(JournalRow)
        ).one()
        return int(rows), int(seqs)

    def prune(self, through: int) -> int:
        """Delete the rows at or below `through`; returns how many."""
        return self._connection.execute(delete(JournalRow).where(JournalRow.seq <= through)).rowcount

    def renumber_past(self, floor: int) -> None:
        """Give every row, and the counter, seqs past `floor`; for a journal older than what was made of it."""
        self._connection.execute(update(JournalRow).values(seq=JournalRow.seq + floor))
        self._connection.execute(update(StoreState).values(last_seq=StoreState.last_seq + floor))
