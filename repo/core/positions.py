"""Positions of other stores' sinks: the writer moves them in the commit of what they sent. Never commits."""

from __future__ import annotations

from sqlalchemy import Connection

from repo.core.changes import PointsChange, PositionChange, Submission
from repo.cursors import Cursor
from repo.errors import StoreForked
from repo.repositories.positions import Position, PositionRepository

__all__ = ["forked", "move_position"]

_NOTHING = -(2**63)
"""Below every seq: what precedes the first batch was not taken."""


def forked(connection: Connection, change: PositionChange) -> StoreForked | None:
    """Return the error for a batch that does not follow the last one of its sink; None if it does, or is that one."""
    held = PositionRepository(connection).get(change.store_id, change.epoch, change.sink)
    token = None if held is None else held.token
    if token in (change.committed, change.following):
        return None
    return StoreForked(
        f"the store {change.store_id} sent a batch that does not follow the last one of its sink {change.sink!r}"
    )


def move_position(connection: Connection, submission: Submission, now_us: int) -> None:
    """Write the position after a batch whose token fits; of a repeat, leave out all changes instead."""
    change = submission.position
    assert change is not None
    positions = PositionRepository(connection)
    held = positions.get(change.store_id, change.epoch, change.sink)
    change.repeat = held is not None and held.token == change.following
    if change.repeat:
        submission.changes = ()
        return
    taken = Cursor(_NOTHING) if held is None else held.taken
    points = 0 if held is None else held.points
    if change.seqs is not None:
        taken = taken.confirm(*change.seqs)
    for part in submission.changes:
        if isinstance(part, PointsChange):
            points += part.count
    positions.put(
        Position(change.store_id, change.epoch, change.sink, change.following, taken, points, now_us)
    )
