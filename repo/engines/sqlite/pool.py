"""The connection pool of a SQLite file. It takes no lock, so an interrupt cannot leave one locked.

The pools of SQLAlchemy wait on a `threading.Condition`. Ctrl-C in the main thread can arrive after its lock is taken
and before the block that releases it; every other thread would then wait forever.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, Pool

from repo.engines.bare import close_all

__all__ = ["IdlePool"]

KEPT = 5
"""How many idle connections stay open, as in SQLAlchemy's own pool."""


class IdlePool(Pool):
    """Keeps the most recently used connections. The number of connections in use is not limited. Thread-safe."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._idle: deque[ConnectionPoolEntry] = deque()  # appending and popping are atomic

    def dispose(self) -> None:
        """Close the idle connections. Those in use are kept or closed when they are returned."""
        close_all(self._idle)

    def recreate(self) -> IdlePool:
        """Return an empty pool with the same settings."""
        return type(self)(
            self._creator,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def status(self) -> str:
        """Return how many connections are idle."""
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
