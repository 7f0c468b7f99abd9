"""Positions: what this store, as a receiver, has taken from the sinks of other stores, and who may send.

On a connection that the caller provides. Never commits.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sqlalchemy import Connection

from repo.cursors import Cursor

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


# SQL text for the driver: a receiver runs these for each batch, and building them takes longer than running them.
_ALL = "SELECT store_id, epoch, sink, token, low, ranges, points, updated_us FROM positions"
_GET = f"{_ALL} WHERE store_id = ? AND epoch = ? AND sink = ?"
_OF_SINK = f"{_ALL} WHERE store_id = ? AND sink = ? ORDER BY epoch"
_PUT = "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class PositionRepository:
    """Reads and writes positions, in the transaction of the points that they stand for.

    Through the driver: the caller has begun a transaction to write.
    """

    def __init__(self, connection: Connection) -> None:
        self._driver: Any = connection.connection.driver_connection

    def get(self, store_id: str, epoch: int, sink: str) -> Position | None:
        """Return the position of a sink, if anything was taken from it."""
        row = self._driver.execute(_GET, (store_id, epoch, sink)).fetchone()
        return None if row is None else _position(*row)

    def put(self, position: Position) -> None:
        """Write a position in place of the sink's last one."""
        key, taken = (position.store_id, position.epoch, position.sink), position.taken
        facts = (position.token, taken.low, json.dumps(taken.ranges), position.points, position.updated_us)
        self._driver.execute(_PUT, (*key, *facts))

    def of_sink(self, store_id: str, sink: str) -> list[Position]:
        """Return the positions of a sink in every epoch of its store, sorted by epoch."""
        return [_position(*row) for row in self._driver.execute(_OF_SINK, (store_id, sink))]

    def list(self) -> list[Position]:
        """Return all positions, sorted by store, epoch and sink."""
        return [_position(*row) for row in self._driver.execute(f"{_ALL} ORDER BY store_id, epoch, sink")]


class SenderRepository:
    """Binds bearer tokens, which it knows by their SHA-256 only, to the stores that use them.

    Through the driver: the caller has begun a transaction to write.
    """

    def __init__(self, connection: Connection) -> None:
        self._driver: Any = connection.connection.driver_connection

    def bind(self, token_sha256: str, store_id: str, now_us: int) -> str:
        """Bind a token to a store unless it is bound, and return the store that it is bound to."""
        self._driver.execute(
            "INSERT OR IGNORE INTO senders VALUES (?, ?, ?)", (token_sha256, store_id, now_us)
        )
        owner = self.owner(token_sha256)
        assert owner is not None
        return owner

    def owner(self, token_sha256: str) -> str | None:
        """Return the store that a token is bound to, if it is bound."""
        query = "SELECT store_id FROM senders WHERE token_sha256 = ?"
        row = self._driver.execute(query, (token_sha256,)).fetchone()
        return None if row is None else str(row[0])


def _position(
    store_id: str, epoch: int, sink: str, token: str, low: int, ranges: str, points: int, updated_us: int
) -> Position:
    return Position(store_id, epoch, sink, token, Cursor.of(low, json.loads(ranges)), points, updated_us)
