"""Kinds: a series holds numbers or texts, fixed by its first point; it is free again when it holds no point."""

from __future__ import annotations

from sqlalchemy import Connection

from repo.core.codec import unpack
from repo.queries.selection import Selection
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, JournalRepository
from repo.repositories.series import LatestRepository
from repo.repositories.state import StateRepository

__all__ = ["holds_no_point"]

TAIL_BYTES = 16_777_216
"""The longest journal tail, in bytes, that is read for the answer; past it a series counts as holding points."""


def holds_no_point(connection: Connection, pair: tuple[str, str]) -> bool:
    """Say whether a series holds no point, by the copy of the summaries and the journal rows that came since.

    The answer holds until the transaction ends if it may write, and only for its moment if it reads. Where only the
    columns could tell, it is False.
    """
    state = StateRepository(connection).get()
    assert state is not None
    holds = pair in LatestRepository(connection).of(pair)
    size = 0
    for entry in JournalRepository(connection).after(state.copied_through):
        size += len(entry.payload)
        if size > TAIL_BYTES or entry.kind == BULK:
            return False
        if entry.kind == DELETE:
            holds = holds and not _takes_all(Selection.from_json(entry.payload), pair)
        elif entry.kind in (POINTS, KEEP) and not holds:
            holds = any(pair in batch.series for batch in unpack(entry.payload))
    return not holds


def _takes_all(deletion: Selection, pair: tuple[str, str]) -> bool:
    return deletion.start_us is None and deletion.end_us is None and deletion.names(*pair)
