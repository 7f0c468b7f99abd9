"""Disk usage: how many bytes a store's files take, and how many of those are free inside them. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from repo.core.handle import Handle
from repo.engines.sqlite.driver import free_bytes

__all__ = ["Size", "measure", "sizes_of"]


class Size(NamedTuple):
    """Bytes of the files with their logs, and how many of them are free, and will be written next.

    Free blocks of the columns, and a log that needs only to be folded, count as taken unless one looked inside.
    """

    metadata_bytes: int
    metadata_free_bytes: int
    columns_bytes: int
    columns_free_bytes: int

    @property
    def used_bytes(self) -> int:
        """What is taken, in all files."""
        return self.metadata_bytes - self.metadata_free_bytes + self.columns_used_bytes

    @property
    def columns_used_bytes(self) -> int:
        """What is taken by the columns."""
        return self.columns_bytes - self.columns_free_bytes


def measure(handle: Handle, *, inside: bool) -> Size:
    """Measure the store from SQLite and the folder alone.

    `inside` also folds SQLite's log and opens the columns, under the lease; may raise `StoreBusy`.
    """
    free = folded = 0
    if inside:
        with handle.reading("measuring the columns") as (connection, _):
            free = handle.columns.backend.free_bytes(connection)
        folded = handle.metadata.checkpoint()
    with handle.metadata.read() as connection:
        metadata_free = folded + free_bytes(connection)
    metadata = sum(sizes_of(handle.files.metadata_files()).values())
    columns_bytes = sum(sizes_of(handle.files.column_files()).values())
    return Size(metadata, metadata_free, columns_bytes, free)


def sizes_of(paths: Iterable[Path], *, below: Path | None = None) -> dict[str, int]:
    """Return the size of each file that exists, by its name, or its path below a folder that it is in."""
    sizes = {}
    for path in paths:
        name = path.name if below is None else str(path.relative_to(below))
        try:
            sizes[name] = path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes
