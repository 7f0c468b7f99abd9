"""Transactions: points, deletes and records that are acknowledged together, in one journal commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from repo.core.bulk import Bulk
from repo.core.changes import Change, PointsChange, Submission
from repo.core.handle import Handle
from repo.errors import Refusal, TransactionRule
from repo.inputs.arguments import check_choice
from repo.repositories.points import Written
from repo.store.points import PointWriter
from repo.store.records import RecordWriter

__all__ = ["Transaction"]


class TransactionPoints(PointWriter):
    """`points` of a transaction."""

    def __init__(self, handle: Handle, bulk: Bulk, send: Callable[[Submission], Written]) -> None:
        super().__init__(handle, send)
        self._bulk = bulk

    def insert_table(
        self,
        table: Any,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        on_conflict: Literal["overwrite", "keep"] = "overwrite",
    ) -> Written:
        """Add a table of points to the transaction; `Points.insert_table` describes tables and arguments.

        Unlike there, all of it is written or nothing, whatever its size, so the packed rows (about 20 bytes a point,
        plus texts) stay in memory until the commit, and go through the journal.
        """
        check_choice(on_error, "on_error", ("raise", "skip"))
        check_choice(on_conflict, "on_conflict", ("overwrite", "keep"))
        changes, refusals = self._bulk.packed(table, on_error, on_conflict)
        return self._send(Submission(changes, refusals=tuple(refusals)))


class Transaction:
    """The result of `store.transaction()`. Collects writes, and commits them when the block ends without an error.

    No lock is held inside the block. The methods check their arguments at once, and raise what those of the store
    raise. The seqs in their results are None, because the commit assigns them: see `written`. Not thread-safe.
    """

    def __init__(self, handle: Handle, bulk: Bulk) -> None:
        self._changes: list[Change] = []
        self._refusals: tuple[Refusal, ...] = ()
        self._open = True
        self.points = TransactionPoints(handle, bulk, self._collect)
        self.records = RecordWriter(handle, self._collect)
        self.written: Written | None = None
        """The result of the commit, for all changes together; None before the commit."""

    def _collect(self, submission: Submission) -> Written:
        if not self._open:
            raise TransactionRule("this transaction has ended; begin another with store.transaction()")
        self._changes += submission.changes
        self._refusals += submission.refusals
        accepted = sum(c.count for c in submission.changes if isinstance(c, PointsChange))
        return Written(None, None, accepted, len(submission.refusals), submission.refusals)

    def end(self) -> Submission:
        """Return what was collected, and refuse further writes."""
        self._open = False
        return Submission(self._changes, refusals=self._refusals)
