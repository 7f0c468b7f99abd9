"""Positions: what this store, as a receiver, has taken from the sinks of other stores, and who may send.

On a connection that the caller provides. Never commits.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from repo.cursors import Cursor
from repo.models import PositionRow, SenderRow

__all__ = ["Position", "PositionRepository", "SenderRepository"]


class Position(NamedTuple):
    """What was taken from one sink of one store in one epoch."""

    store_id: str
    epoch: int
    sink: str
    token: str
    """The token of the last batch."""
    taken: Cursor
    """The seqs that were taken."""
    points: int
    updated_us: int


_ALL = select(
    *(PositionRow.store_id, PositionRow.epoch, PositionRow.sink, PositionRow.token, PositionRow.low),
    *(PositionRow.ranges, PositionRow.points, PositionRow.updated_us),
).order_by(PositionRow.store_id, PositionRow.epoch, PositionRow.sink)


class PositionRepository:
    """Reads and writes positions, in the transaction of the points that they stand for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, store_id: str, epoch: int, sink: str) -> Position | None:
        """Return the position of a sink, if anything was taken from it."""
        row = self._connection.execute(
            _ALL.where(PositionRow.store_id == store_id, PositionRow.epoch == epoch, PositionRow.sink == sink)
        ).one_or_none()
        return None if row is None else _position(*row)

    def put(self, position: Position) -> None:
        """Write a position in place of the sink's last one."""
        key = {"store_id": position.store_id, "epoch": position.epoch, "sink": position.sink}
        facts = {
            "token": position.token,
            "low": position.taken.low,
            "ranges": json.dumps(position.taken.ranges),
            "points": position.points,
            "updated_us": position.updated_us,
        }
        self._connection.execute(
            insert(PositionRow)
            .values(**key, **facts)
            .on_conflict_do_update(index_elements=list(key), set_=facts)
        )

    def list(self) -> list[Position]:
        """Return all positions, sorted by store, epoch and sink."""
        return [_position(*row) for row in self._connection.execute(_ALL)]


class SenderRepository:
    """Binds bearer tokens, which it knows by their SHA-256 only, to the stores that use them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def bind(self, token_sha256: str, store_id: str, now_us: int) -> str:
        """Bind a token to a store unless it is bound, and return the store that it is bound to."""
        self._connection.execute(
            insert(SenderRow)
            .values(token_sha256=token_sha256, store_id=store_id, created_us=now_us)
            .on_conflict_do_nothing()
        )
        owner = self.owner(token_sha256)
        assert owner is not None
        return owner

    def owner(self, token_sha256: str) -> str | None:
        """Return the store that a token is bound to, if it is bound."""
        query = select(SenderRow.store_id).where(SenderRow.token_sha256 == token_sha256)
        return self._connection.scalar(query)


def _position(
    store_id: str, epoch: int, sink: str, token: str, low: int, ranges: str, points: int, updated_us: int
) -> Position:
    return Position(store_id, epoch, sink, token, Cursor.of(low, json.loads(ranges)), points, updated_us)
