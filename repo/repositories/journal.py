"""The journal's table, from which seqs are counted, on a connection that the caller gives; never commits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from repo.models import JournalRow, StoreState

__all__ = ["BULK", "DELETE", "KEEP", "POINTS", "VOID", "Entry", "JournalRepository"]

POINTS = "points"
"""Kind of a row whose payload is packed points."""

KEEP = "keep"
"""Kind of a row of packed points that give way to points already stored."""

DELETE = "delete"
"""Kind of a row whose payload is a selection of points to delete."""

BULK = "bulk"
"""Kind of a row that reserves the seqs of a chunk of a table, which goes straight to the columns. Met past
the watermark by anyone but its own load, it means that the load died."""

VOID = "void"
"""Kind of what such a row, or a delete that is not to be applied, becomes: its seqs were given to nothing. It stays,
as the record of that."""


_LOST = b"lost"
"""Payload of a void row whose seqs were acknowledged and got lost."""


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

    @property
    def is_lost(self) -> bool:
        """Whether it stands for seqs that were acknowledged, and whose rows got lost with the end of the journal."""
        return self.kind == VOID and self.payload == _LOST


class JournalRepository:
    """Append to, read and prune the journal. Runs in the caller's transaction, which decides durability."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection

    def last_seq(self) -> int:
        """Return the last seq that was ever given out; in an IMMEDIATE transaction, the next ones are free.

        It is the journal's own last or, once that was pruned, the one that `prune` left in `store_state`: so
        a commit writes one page, not two.
        """
        # Through the driver: this and `append` are the whole cost of an acknowledged point.
        row = self._driver.execute(
            "SELECT max(last_seq, coalesce((SELECT max(seq) FROM journal), 0)) FROM store_state WHERE id = 1"
        ).fetchone()
        return int(row[0])

    def append(self, seq: int, count: int, kind: str, payload: bytes, created_us: int) -> None:
        """Add one row whose last seq is `seq`."""
        self._driver.execute(
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

    def backlog(self) -> tuple[int, int]:
        """Return the number of rows and the seqs (points and operations) that the journal holds."""
        rows, seqs = self._connection.execute(
            select(func.count(), func.coalesce(func.sum(JournalRow.count), 0)).where(JournalRow.kind != VOID)
        ).one()
        return int(rows), int(seqs)

    def prune(self, through: int) -> int:
        """Delete the rows at or below `through`, but the void ones; their seqs are never used again.

        Returns how many.
        """
        self._connection.execute(update(StoreState).values(last_seq=func.max(StoreState.last_seq, through)))
        done = delete(JournalRow).where(JournalRow.seq <= through, JournalRow.kind != VOID)
        return self._connection.execute(done).rowcount

    def append_lost(self, first_seq: int, last_seq: int, created_us: int) -> None:
        """Add a void row for seqs that were acknowledged and are not here any more."""
        self.append(last_seq, last_seq - first_seq + 1, VOID, _LOST, created_us)

    def void(self, seqs: Sequence[int]) -> None:
        """Void rows, by their last seqs: loads that died, and deletes that are not to be applied."""
        for seq in seqs:
            voided = update(JournalRow).where(JournalRow.seq == seq, JournalRow.kind.in_((BULK, DELETE)))
            self._connection.execute(voided.values(kind=VOID))

    def renumber_past(self, floor: int, applied: int) -> int:
        """Give the rows past `applied`, and every later one, seqs past `floor`; returns the new last seq.

        For a journal older than its columns. What was applied before keeps its place: applied once more at
        the end, it would undo what came after it.
        """
        table = JournalRow
        moved = update(table).where(table.seq > applied).values(seq=table.seq + (floor - applied))
        self._connection.execute(moved)
        self._connection.execute(update(StoreState).values(last_seq=floor))
        return self.last_seq()
