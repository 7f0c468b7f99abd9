"""Transactions: points, deletes and records that are acknowledged together, in one journal commit."""

from __future__ import annotations

from repo.core.changes import Change, PointsChange, Submission
from repo.core.handle import Handle
from repo.errors import Refusal, TransactionRule
from repo.repositories.points import Written
from repo.store.points import PointWriter
from repo.store.records import RecordWriter

__all__ = ["Transaction"]


class Transaction:
    """The result of `store.transaction()`. Collects writes, and commits them when the block ends without an error.

    No lock is held inside the block. The methods check their arguments at once, and raise what those of the store
    raise. The seqs in their results are None, because the commit assigns them: see `written`. Not thread-safe.
    """

    def __init__(self, handle: Handle) -> None:
        self._changes: list[Change] = []
        self._refusals: tuple[Refusal, ...] = ()
        self._open = True
        self.points = PointWriter(handle, self._collect)
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
