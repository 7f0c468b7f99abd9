"""Kinds: a series holds numbers or texts. Its first reading sets the kind; an empty series may take another one."""

from __future__ import annotations

from sqlalchemy import Connection

from repo.core.codec import unpack
from repo.queries.selection import Selection
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, JournalRepository
from repo.repositories.series import LatestRepository
from repo.repositories.state import StateRepository

__all__ = ["is_empty_series"]

TAIL_BYTES = 16_777_216
"""The longest journal tail, in bytes, that is searched; past it a series counts as non-empty."""


def is_empty_series(connection: Connection, pair: tuple[str, str]) -> bool:
    """Return whether a series has no points, from the copied summaries and the journal rows after them.

    In a write transaction the answer is valid until the transaction ends; in a read transaction it may be outdated at
    once. If only the columns could tell, it is False.
    """
    state = StateRepository(connection).get()
    assert state is not None
    holds = pair in LatestRepository(connection).of([pair])
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
    limits = (deletion.start_us, deletion.end_us, deletion.through_seq)
    return limits == (None, None, None) and deletion.names(*pair)
