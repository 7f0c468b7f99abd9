"""Disk space: whether the disks have the bytes that a job may take, checked before it changes anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from repo.errors import StoreFull

__all__ = ["HEADROOM_BYTES", "Wanted", "by_disk", "refuse_full_disk"]

HEADROOM_BYTES = 16_000_000
"""What is left to the journal meanwhile, and to the few blocks of an almost empty file."""

Wanted = tuple[Path, int]
"""A folder, and how many more bytes may come into it meanwhile."""


def by_disk(wanted: Iterable[Wanted]) -> dict[Path, int]:
    """Add up the bytes that are wanted in folders, for each file system, by the first of its folders."""
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
    """Raise `StoreFull`, with the number, unless each disk has room; `then` says how things stand and what to do."""
    for folder, needed_bytes in by_disk(wanted).items():
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < needed_bytes:
            raise StoreFull(
                f"{doing} may take {needed_bytes:,} bytes in {folder}, and {free_bytes:,} are free; {then}",
                path=folder,
            )
