"""Disk usage: measures the bytes that a store's files take, and the free bytes inside them. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from repo.core.handle import Handle
from repo.engines.sqlite.driver import free_bytes

__all__ = ["Size", "measure", "sizes_of"]


class Size(NamedTuple):
    """Bytes of the files, including their logs, and the free bytes among them, which new data will reuse.

    Without `inside` (see `measure`), free blocks of the columns and a log that is not checkpointed count as used.
    """

    metadata_bytes: int
    metadata_free_bytes: int
    columns_bytes: int
    columns_free_bytes: int

    @property
    def used_bytes(self) -> int:
        """The bytes in use, in all files."""
        return self.metadata_bytes - self.metadata_free_bytes + self.columns_used_bytes

    @property
    def columns_used_bytes(self) -> int:
        """The bytes in use in the columns."""
        # DuckDB may count free blocks that it has already cut off the end of the file.
        return max(0, self.columns_bytes - self.columns_free_bytes)


def measure(handle: Handle, *, inside: bool) -> Size:
    """Measure the store using only SQLite and the folder.

    With `inside`, also checkpoint SQLite's log and open the columns, under the lease; may raise `StoreBusy`. In a store
    that is opened for reading only, the free blocks of the columns always count as used.
    """
    free = checkpointed = 0
    if inside and not handle.columns.read_only:
        with handle.reading("measuring the columns") as (connection, _):
            free = handle.columns.backend.free_bytes(connection)
        checkpointed = handle.metadata.checkpoint()
    with handle.metadata.read() as connection:
        metadata_free = checkpointed + free_bytes(connection)
    metadata = sum(sizes_of(handle.files.metadata_files()).values())
    columns_bytes = sum(sizes_of(handle.files.column_files()).values())
    return Size(metadata, metadata_free, columns_bytes, free)


def sizes_of(paths: Iterable[Path], *, below: Path | None = None) -> dict[str, int]:
    """Return the size of each existing file by its name, or by its path relative to `below`."""
    sizes = {}
    for path in paths:
        name = path.name if below is None else str(path.relative_to(below))
        try:
            sizes[name] = path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes
