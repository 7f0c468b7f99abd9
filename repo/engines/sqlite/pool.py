"""The pool of a SQLite file's connections: it takes no lock, so that an interrupt can leave none behind.

The pools of SQLAlchemy wait on a `threading.Condition`. Ctrl-C in the main thread can come between the moment when
its lock is taken and the block that releases it; from then on, every other thread would wait for ever.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, Pool

__all__ = ["IdlePool"]

KEPT = 5
"""How many idle connections stay open, as in SQLAlchemy's own pool."""


class IdlePool(Pool):
    """Keeps the connections that were used last; there is no limit on how many are in use. Thread-safe."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._idle: deque[ConnectionPoolEntry] = deque()  # appending and popping are atomic

    def has_idle(self) -> bool:
        """Say whether a connection is open that nobody uses."""
        return bool(self._idle)

    def dispose(self) -> None:
        """Close the idle connections; those in use are closed or kept when they are returned."""
        while True:
            try:
                idle = self._idle.pop()
            except IndexError:
                return
            idle.close()

    def recreate(self) -> IdlePool:
        """Return an empty pool with the same settings."""
        return type(self)(
            self._creator,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def status(self) -> str:
        """Say how many connections are idle."""
        return f"{len(self._idle)} idle connections"

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._idle.pop()
        except IndexError:
            return self._create_connection()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if len(self._idle) < KEPT:
            self._idle.append(record)
        else:
            record.close()
