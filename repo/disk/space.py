"""Disk space: checks that the disks have room for a job before the job changes anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from repo.errors import StoreFull

__all__ = ["FLUSH_BYTES", "HEADROOM_BYTES", "NEW_FILE_BYTES", "Wanted", "by_disk", "refuse_full_disk"]

HEADROOM_BYTES = 16_000_000
"""Space reserved for journal growth during the job, and for the minimum size of a new file."""

NEW_FILE_BYTES = 3_000_000
"""Space for the minimum size of a new column file, 1.9 MB as measured, and for some growth of the journal. The reserve
of a store has room for it, so that a store that was emptied on a full disk can be shrunk."""

FLUSH_BYTES = 50_000_000
"""Space that a flush of the usual largest batch takes at its peak: measured, 1 to 30 MB with DuckDB and 22 to 48 MB
with SQLite, for 245,760 points with their journal rows and the checkpoint."""

Wanted = tuple[Path, int]
"""A folder, and how many bytes the job may add to it."""


def by_disk(wanted: Iterable[Wanted]) -> dict[Path, int]:
    """Return the total bytes wanted on each file system, keyed by the first of its folders."""
    disks: dict[int, Path] = {}
    needed: dict[Path, int] = {}
    for folder, size_bytes in wanted:
        place = disks.setdefault(folder.stat().st_dev, folder)
        needed[place] = needed.get(place, 0) + size_bytes
    return needed


def refuse_full_disk(
    wanted: Iterable[Wanted],
    doing: str,
    then: str = "nothing was changed. Free some space and try again",
) -> None:
    """Raise `StoreFull`, which states the bytes needed, unless every disk has room.

    `then` describes the state and the next step.
    """
    for folder, needed_bytes in by_disk(wanted).items():
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < needed_bytes:
            raise StoreFull(
                f"{doing} may need {needed_bytes:,} bytes in {folder}, where {free_bytes:,} are free; {then}",
                path=folder,
            )
