"""Connections that stay open between uses, because SQLAlchemy takes long to hand one out and to find its driver's one.

Handing one out, and beginning and ending its transaction, takes SQLAlchemy longer than a short query.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sqlalchemy import Engine

from repo.engines.base import READ

__all__ = ["BareConnection", "Readers"]

_KEPT = 5
"""How many idle readers stay open."""


class BareConnection:
    """A connection, and its driver's, whose transactions its user begins and ends through the driver."""

    __slots__ = ("connection", "driver", "is_discarded")

    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect().execution_options(bare_transactions=True)
        self.driver: Any = self.connection.connection.driver_connection
        self.is_discarded = False

    def close(self) -> None:
        """Close the connection, on which nothing is begun; SQLAlchemy logs nothing, as it does of a discarded one."""
        self.is_discarded = True
        self.connection.detach()
        self.connection.close()

    def discard(self) -> None:
        """Close the connection, whatever its state."""
        self.is_discarded = True
        self.driver.close()
        self.connection.invalidate()
        self.connection.close()


class Readers:
    """Connections of one engine that only read (`READ`). The user of one begins a transaction if it needs a snapshot.

    Thread-safe. It takes no lock, so an interrupt cannot leave one locked.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(**READ)
        self._idle: deque[BareConnection] = deque()  # appending and popping are atomic
        self._is_closed = False

    def take(self) -> BareConnection:
        """Return a connection for one thread. Pass it to `give_back`, or discard it after an error."""
        while True:
            try:
                reader = self._idle.pop()
            except IndexError:
                return BareConnection(self._engine)
            if not reader.is_discarded:
                return reader

    def give_back(self, reader: BareConnection) -> None:
        """End what was begun on a connection, and keep it for the next use. If that fails, discard it."""
        if reader.connection.in_transaction():
            reader.connection.rollback()
        else:
            reader.driver.rollback()
        if self._is_closed or len(self._idle) >= _KEPT:
            reader.close()
        else:
            self._idle.append(reader)

    def close_idle(self) -> None:
        """Close the connections that nobody uses; others are opened when they are needed."""
        while True:
            try:
                idle = self._idle.pop()
            except IndexError:
                return
            idle.close()

    def close(self) -> None:
        """Close the idle connections, and the others as soon as they are given back."""
        self._is_closed = True
        self.close_idle()
