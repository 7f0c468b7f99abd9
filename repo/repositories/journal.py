"""The journal's table, which assigns seqs, on a connection that the caller provides. Never commits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, delete, func, select, update

from repo.inputs.arguments import LARGEST
from repo.models import JournalRow, StoreState

__all__ = ["BULK", "DELETE", "KEEP", "POINTS", "VOID", "Entry", "JournalRepository"]

POINTS = "points"
"""Kind of a row whose payload is packed points."""

KEEP = "keep"
"""Kind of a row of packed points that do not overwrite stored points."""

DELETE = "delete"
"""Kind of a row whose payload is a selection of points to delete."""

BULK = "bulk"
"""Kind of a row that reserves the seqs of a chunk of a table, which goes straight to the columns. If anyone but
its own load finds it above the watermark, the load died."""

VOID = "void"
"""Kind that such a row, or a delete that must not be applied, is changed to: its seqs belong to nothing. The row stays
to record that."""


_LOST = b"lost"
"""Payload of a void row whose seqs were acknowledged and then lost."""


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
        """Whether it represents acknowledged seqs whose rows were lost with the end of the journal."""
        return self.kind == VOID and self.payload == _LOST


class JournalRepository:
    """Appends to, reads and prunes the journal in the caller's transaction, which decides durability."""

    def __init__(self, connection: Connection) -> None:
        self.connection = self._connection = connection
        self._driver: Any = connection.connection.driver_connection

    def data_version(self) -> int:
        """Return a number that changes when another connection, of any process, commits to the database.

        Commits of this connection do not change it.
        """
        return int(self._driver.execute("PRAGMA data_version").fetchone()[0])

    def written_us(self, seq: int) -> int | None:
        """Return when the row with a seq was written; None if it is pruned or does not exist."""
        query = select(JournalRow.created_us, JournalRow.seq, JournalRow.count).where(JournalRow.seq >= seq)
        row = self._connection.execute(query.order_by(JournalRow.seq).limit(1)).one_or_none()
        return None if row is None or seq <= row.seq - row.count else int(row.created_us)

    def last_seq(self) -> int:
        """Return the last seq ever assigned. In an IMMEDIATE transaction, the next ones are free.

        It is the last seq in the journal or, after a prune, the one that `prune` left in `store_state`. A commit
        therefore writes one page, not two.
        """
        # Through the driver: this and `append` are the entire cost of an acknowledged point.
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
        """Yield the rows after `seq` in order, up to `through`. Consume it before the transaction ends."""
        # Through the driver, because every small flush, and every `latest` after a write, begins with this query.
        rows = self._driver.execute(
            "SELECT seq, count, kind, payload FROM journal WHERE seq > ? AND seq <= ? ORDER BY seq",
            (seq, LARGEST if through is None else through),
        )
        try:
            yield from map(Entry._make, rows)
        finally:
            rows.close()

    def backlog(self) -> tuple[int, int]:
        """Return the number of rows and the seqs (points and operations) that the journal holds."""
        rows, seqs = self._connection.execute(
            select(func.count(), func.coalesce(func.sum(JournalRow.count), 0)).where(JournalRow.kind != VOID)
        ).one()
        return int(rows), int(seqs)

    def waiting(self, after_seq: int) -> tuple[int, int]:
        """Return the number of points, and of deletions, in the rows after `after_seq`.

        A table that is being loaded, or whose load died, does not count: its points were never acknowledged.
        """
        kind, count = JournalRow.kind, JournalRow.count
        points, deletions = self._connection.execute(
            select(
                func.coalesce(func.sum(case((kind.in_((POINTS, KEEP)), count), else_=0)), 0),
                func.coalesce(func.sum(case((kind == DELETE, count), else_=0)), 0),
            ).where(JournalRow.seq > after_seq)
        ).one()
        return int(points), int(deletions)

    def may_have_deleted_after(self, seq: int) -> bool:
        """Return whether a change after `seq` deletes points; also True if a row after it was pruned already."""
        [found] = self._driver.execute(
            "SELECT pruned_through > ? OR EXISTS (SELECT 1 FROM journal WHERE seq > ? AND kind = ?) FROM store_state",
            (seq, seq, DELETE),
        ).fetchone()
        return bool(found)

    def before_newest(self, through: int, since_us: int, most_seqs: int, most_bytes: int) -> int:
        """Return the seq before the rows, of those up to `through`, that were written at or after a time.

        These are at most about `most_seqs` seqs and `most_bytes` bytes. 0 if all rows are that new.
        """
        rows = self._driver.execute(
            "SELECT seq, count, created_us, length(payload) FROM journal WHERE seq <= ? ORDER BY seq DESC",
            (through,),
        )
        try:
            for seq, count, created_us, size in rows:
                most_seqs -= count
                most_bytes -= size
                if created_us < since_us or most_seqs < 0 or most_bytes < 0:
                    return int(seq)
        finally:
            rows.close()
        return 0

    def prune(self, through: int) -> int:
        """Delete the rows at or below `through`, except void ones; their seqs are never used again.

        Returns how many were deleted.
        """
        self._connection.execute(update(StoreState).values(last_seq=func.max(StoreState.last_seq, through)))
        done = delete(JournalRow).where(JournalRow.seq <= through, JournalRow.kind != VOID)
        return self._connection.execute(done).rowcount

    def append_lost(self, first_seq: int, last_seq: int, created_us: int) -> None:
        """Add a void row for acknowledged seqs that are no longer in the journal."""
        self.append(last_seq, last_seq - first_seq + 1, VOID, _LOST, created_us)

    def void(self, seqs: Sequence[int]) -> None:
        """Void rows, given by their last seqs: loads that died, and deletes that must not be applied."""
        for seq in seqs:
            voided = update(JournalRow).where(JournalRow.seq == seq, JournalRow.kind.in_((BULK, DELETE)))
            self._connection.execute(voided.values(kind=VOID))

    def renumber_past(self, floor: int, applied: int) -> int:
        """Renumber the rows after `applied`, so that they and every later row have seqs above `floor`.

        Returns the new last seq. This is for a journal older than its columns. Rows that were applied before keep
        their seqs: applied again at the end, they would undo later changes.
        """
        table = JournalRow
        moved = update(table).where(table.seq > applied).values(seq=table.seq + (floor - applied))
        self._connection.execute(moved)
        self._connection.execute(update(StoreState).values(last_seq=floor))
        return self.last_seq()
