"""The files beside a SQLite database file, as suffixes of its name."""

from __future__ import annotations

__all__ = ["COMPANIONS", "LOG", "SHARED_MEMORY"]

LOG = "-wal"
SHARED_MEMORY = "-shm"
COMPANIONS = (LOG, SHARED_MEMORY, "-journal")
