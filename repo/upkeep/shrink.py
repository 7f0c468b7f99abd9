"""Shrink: returns free blocks inside the files to the disk, by rewriting the files.

Deleting only frees blocks inside a file, which new rows reuse; the file itself never gets smaller.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repo.core.active import building_path, remove
from repo.core.columns import OpenColumns
from repo.core.handle import Handle
from repo.core.reserve import Reserve
from repo.disk import durable, space
from repo.disk.space import Wanted
from repo.engines.base import typed_errors
from repo.engines.registry import ENGINES
from repo.engines.sqlite import driver as sqlite
from repo.errors import FlushFailed, system_typed
from repo.repositories.state import ColumnsStateRepository
from repo.upkeep.rewrite import built, most_bytes, refuse_foreign_objects
from repo.upkeep.usage import sizes_of

__all__ = ["Shrunk", "shrink"]

log = logging.getLogger("holdfast.shrinking")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The sizes of the files, including their logs."""

    columns_before_bytes: int
    columns_after_bytes: int
    metadata_before_bytes: int
    metadata_after_bytes: int
    needed_bytes: int
    """The free disk space that the job requires."""
    free_bytes: int
    """The free space on the store's disk before the job."""

    @property
    def freed_bytes(self) -> int:
        """The number of bytes returned to the disk; negative if the files grew."""
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
    with Reserve(handle.files, read_only=handle.columns.read_only).released():
        return _shrunk(handle, dry_run=dry_run, progress=progress)


def _shrunk(
    handle: Handle,
    *,
    dry_run: bool,
    progress: Callable[[int, int], object],
) -> Shrunk:
    columns_before = _bytes(handle.files.column_files())
    metadata_before = _bytes(handle.files.metadata_files())
    free_bytes = shutil.disk_usage(handle.files.folder).free
    handle.flush("shrinking")  # yields to other processes, which the rewrite itself cannot
    goal = handle.journal_end()
    with handle.columns.alone("shrinking") as opened:
        opened = handle.flusher.through(opened, goal)
        refuse_foreign_objects(opened)
        handle.flusher.make_durable(opened)
        needs = {
            opened.backend.path: _needed_for_columns(handle, opened),
            handle.files.metadata: _needed_for_metadata(handle),
        }
        # The files are rewritten one after the other.
        needed_bytes = max(sum(space.by_disk(wanted).values()) for wanted in needs.values())
        if dry_run:
            return Shrunk(
                *(columns_before, columns_before, metadata_before, metadata_before, needed_bytes, free_bytes)
            )
        for file, wanted in needs.items():
            space.refuse_full_disk(
                wanted, f"rewriting {file}", "the file is unchanged. Free some space and try again"
            )
        _rewrite_columns(handle, opened, progress)
    handle.metadata.vacuum()
    shrunk = Shrunk(
        columns_before,
        _bytes(handle.files.column_files()),
        metadata_before,
        _bytes(handle.files.metadata_files()),
        needed_bytes,
        free_bytes,
    )
    log.info("%d bytes were returned to the disk", shrunk.freed_bytes)
    return shrunk


def _rewrite_columns(handle: Handle, opened: OpenColumns, progress: Callable[[int, int], object]) -> None:
    """Replace the column file with a copy of itself, with the columns alone."""
    path = opened.backend.path
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


def _put(new: Path, path: Path) -> None:
    """Replace the old file, which is closed, with the new one."""
    left = [name for name, size in sizes_of(_beside(path)).items() if size]
    if left:
        raise FlushFailed(
            f"{', '.join(left)} was not checkpointed into {path}, so the columns were not rewritten; try again",
            path=path,
        )
    with system_typed(path, "the old column file stays in use; try again"):
        for beside in _beside(path):
            beside.unlink(missing_ok=True)
        durable.replace(new, path)


def _beside(path: Path) -> list[Path]:
    """Return the write-ahead logs that a column file may have."""
    return [engine.log_of(path) for engine in ENGINES.values()]


def _needed_for_columns(handle: Handle, opened: OpenColumns) -> list[Wanted]:
    """Return 1.5 times the size of the rows, as they may be packed less densely in the new file."""
    file_bytes = opened.backend.path.stat().st_size
    with opened.flush_connection.begin():
        free = opened.backend.free_bytes(opened.flush_connection)
    used_bytes = (file_bytes - free) * 3 // 2 + space.NEW_FILE_BYTES
    most = most_bytes(opened.backend.name, opened, handle.flusher.known)
    return [(opened.backend.path.parent, min(used_bytes, most))]


def _needed_for_metadata(handle: Handle) -> list[Wanted]:
    """Return the size of the content twice: for SQLite's temporary file, and for the log."""
    with handle.metadata.read() as connection:
        used_bytes = sqlite.used_bytes(connection)
    return [
        (handle.files.metadata.parent, used_bytes + space.NEW_FILE_BYTES),
        (sqlite.temp_folder(), used_bytes),
    ]


def _bytes(paths: Iterable[Path]) -> int:
    return sum(sizes_of(paths).values())
