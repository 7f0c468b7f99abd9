"""Connections that stay open between uses, with direct access to the driver's connection.

With SQLAlchemy alone, checking out a connection, and beginning and ending its transaction, take longer than a short
query.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.pool import ConnectionPoolEntry

from repo.engines.base import READ

__all__ = ["BareConnection", "Readers", "close_all"]

_KEPT = 5
"""How many idle readers stay open."""


class BareConnection:
    """SQLAlchemy's connection and the driver's below it, through which its user begins and ends transactions."""

    __slots__ = ("connection", "driver")

    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect().execution_options(bare_transactions=True)
        self.driver: Any = self.connection.connection.driver_connection

    def close(self) -> None:
        """Close the connection, which has no open transaction. Unlike `discard`, this logs nothing."""
        self.connection.detach()
        self.connection.close()

    def discard(self) -> None:
        """Close the connection, whatever its state."""
        self.driver.close()
        self.connection.invalidate()
        self.connection.close()


class Readers:
    """Connections of one engine that only read (`READ`). The user of one begins a transaction if it needs a snapshot.

    `errors` are those of the driver. Thread-safe. It takes no lock, so an interrupt cannot leave one locked.
    """

    def __init__(self, engine: Engine, errors: tuple[type[Exception], ...]) -> None:
        self._engine = engine.execution_options(**READ)
        self._errors = errors
        self._idle: deque[BareConnection] = deque()  # appending and popping are atomic
        self._is_closed = False

    def take(self) -> BareConnection:
        """Return a connection for one thread, which passes it to `give_back` or, after an error, to `discard`."""
        try:
            return self._idle.pop()
        except IndexError:
            return BareConnection(self._engine)

    def give_back(self, reader: BareConnection) -> None:
        """End what was begun on a connection, and keep it for the next use. If that fails, it is closed.

        Afterwards the caller must not use it, even after an exception: another thread may have it.
        """
        try:
            if reader.connection.in_transaction():
                reader.connection.rollback()
            else:
                reader.driver.rollback()
        except BaseException:  # including an interrupt: its state is unknown
            self.discard(reader)
            raise
        if self._is_closed or len(self._idle) >= _KEPT:
            reader.close()
        else:
            self._idle.append(reader)

    def discard(self, reader: BareConnection) -> None:
        """Close a connection, whatever its state."""
        with suppress(*self._errors):  # after a fatal error DuckDB closes it, but raises
            reader.discard()

    def close_idle(self) -> None:
        """Close the connections that nobody uses; others are opened when they are needed."""
        close_all(self._idle)

    def close(self) -> None:
        """Close the idle connections, and the others as soon as they are given back."""
        self._is_closed = True
        self.close_idle()


def close_all(idle: deque[BareConnection] | deque[ConnectionPoolEntry]) -> None:
    """Close the connections in `idle` and remove them; other threads may add and take some during the call."""
    while True:
        try:
            connection = idle.pop()
        except IndexError:
            return
        connection.close()
