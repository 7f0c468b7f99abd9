"""Shrink: returns free blocks inside the files to the disk, by rewriting the files.

Deleting makes room inside a file, which the next rows take; the file itself stays as large as it ever was.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repo import disk, durable
from repo.core.active import building_path, remove
from repo.core.columns import OpenColumns
from repo.core.handle import Handle
from repo.disk import Wanted
from repo.engines.base import typed_errors
from repo.engines.registry import ENGINES
from repo.engines.sqlite import driver as sqlite
from repo.errors import FlushFailed, system_typed
from repo.repositories.state import ColumnsStateRepository
from repo.upkeep.rewrite import built, most_bytes
from repo.upkeep.usage import sizes_of

__all__ = ["Shrunk", "shrink"]

log = logging.getLogger("holdfast.shrinking")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Bytes on the disk, of the files with their logs."""

    columns_before_bytes: int
    columns_after_bytes: int
    metadata_before_bytes: int
    metadata_after_bytes: int
    needed_bytes: int
    """The least that had to be free meanwhile."""
    free_bytes: int
    """What was free on the disk of the store before."""

    @property
    def freed_bytes(self) -> int:
        """How much the disk got back; less than nothing if it took more."""
        before = self.columns_before_bytes + self.metadata_before_bytes
        return before - self.columns_after_bytes - self.metadata_after_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; `holdfast --json cleanup --shrink` prints it as `shrunk`."""
        return asdict(self)


def shrink(
    handle: Handle,
    *,
    dry_run: bool,
    progress: Callable[[int, int], object],
) -> Shrunk:
    """See `Store.shrink`."""
    columns_before = _bytes(handle.files.column_files())
    metadata_before = _bytes(handle.files.metadata_files())
    free_bytes = shutil.disk_usage(handle.files.folder).free
    handle.flush("giving space back")  # it gives way to others, which the rewriting itself cannot
    goal = handle.journal_end()
    with handle.columns.alone("giving space back") as opened:
        opened = handle.flusher.through(opened, goal)
        handle.flusher.make_durable(opened)
        path = opened.backend.path
        files_in_turn = {
            path: _wanted_by_columns(handle, opened),
            handle.files.metadata: _wanted_by_metadata(handle),
        }
        needed_bytes = max(sum(disk.by_disk(wanted).values()) for wanted in files_in_turn.values())
        if dry_run:
            return Shrunk(
                *(columns_before, columns_before, metadata_before, metadata_before, needed_bytes, free_bytes)
            )
        for file, wanted in files_in_turn.items():
            disk.refuse_full_disk(
                wanted, f"writing {file} anew", "it stays as it is. Free some space and try again"
            )
        target = handle.active.backend_of(opened.backend.name, building_path(path))
        remove(target.path)
        points = handle.flusher.points
        try:
            with opened.flush_connection.begin():
                state = ColumnsStateRepository(opened.flush_connection).get()
            assert state is not None
            with typed_errors(opened.backend, target):
                built(opened, target, state, handle.active.bring_to_head, lambda done: progress(done, points))
            handle.columns.reopen(lambda: _put(target.path, path))
        finally:
            remove(target.path)
    handle.metadata.vacuum()
    shrunk = Shrunk(
        columns_before,
        _bytes(handle.files.column_files()),
        metadata_before,
        _bytes(handle.files.metadata_files()),
        needed_bytes,
        free_bytes,
    )
    log.info("%d bytes were given back", shrunk.freed_bytes)
    return shrunk


def _put(new: Path, path: Path) -> None:
    """Let the new file take the place of the old one, which is closed."""
    left = [name for name, size in sizes_of(_beside(path)).items() if size]
    if left:
        raise FlushFailed(
            f"{', '.join(left)} beside {path} was not folded in, so the columns stay as they are; try again",
            path=path,
        )
    with system_typed(path, "the columns are where they were; try again"):
        for beside in _beside(path):
            beside.unlink(missing_ok=True)
        durable.replace(new, path)


def _beside(path: Path) -> list[Path]:
    """Return what may stand beside a column file and hold some of it."""
    return [engine.log_of(path) for engine in ENGINES.values()]


def _wanted_by_columns(handle: Handle, opened: OpenColumns) -> list[Wanted]:
    """What the rows take now, and half as much again: they may lie less well in the new file."""
    file_bytes = opened.backend.path.stat().st_size
    with opened.flush_connection.begin():
        free = opened.backend.free_bytes(opened.flush_connection)
    used_bytes = (file_bytes - free) * 3 // 2 + disk.HEADROOM_BYTES
    most = most_bytes(opened.backend.name, opened, handle.flusher.known)
    return [(opened.backend.path.parent, min(used_bytes, most))]


def _wanted_by_metadata(handle: Handle) -> list[Wanted]:
    """What is in it, twice: in SQLite's folder for what it writes meanwhile, and in the log."""
    with handle.metadata.read() as connection:
        used_bytes = sqlite.used_bytes(connection)
    return [
        (handle.files.metadata.parent, used_bytes + disk.HEADROOM_BYTES),
        (sqlite.temp_folder(), used_bytes),
    ]


def _bytes(paths: Iterable[Path]) -> int:
    return sum(sizes_of(paths).values())
