"""persist-queue: its SQLite queue with acknowledgements, a row for each record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["PersistQueue"]


class PersistQueue:
    """A queue in one file. Each put, get and acknowledgement is a commit of its own, with SQLite's default sync."""

    name = "persist-queue, SQLiteAckQueue"
    settings = "SQLiteAckQueue: WAL, SQLite's default synchronous (FULL), a commit per put, get and ack"

    def __init__(self, folder: Path) -> None:
        import persistqueue

        queue: Any = persistqueue
        self._queue = queue.SQLiteAckQueue(str(folder / "persist-queue"), multithreading=True)

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot run here."""
        try:
            import persistqueue
        except ImportError:
            return "persist-queue is not installed"
        del persistqueue
        return None

    def put(self, record: dict[str, Any]) -> None:
        """Append a record; durable on return."""
        self._queue.put(record)

    def take(self) -> dict[str, Any]:
        """Return the oldest record, and confirm it."""
        got = self._queue.get(raw=True)
        self._queue.ack(id=got["pqid"])
        record: dict[str, Any] = got["data"]
        return record

    def close(self) -> None:
        """Close the file."""
        self._queue.close()
