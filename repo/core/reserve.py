"""The reserve: a placeholder file whose space is released on a full disk, so that deleting has room to work in."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repo.disk import ownership
from repo.files import StoreFiles
from repo.processes.inuse import note_own

__all__ = ["Reserve", "size_of"]

log = logging.getLogger("holdfast.reserve")

RESERVE_BYTES = 8_388_608
"""The largest reserve. A delete is applied in parts that fit into it; measured, DuckDB's checkpoint of one part needs
2.4 MB."""

_LEAST_BYTES = 131_072
"""Enough to open a store, which needs 32 KiB of shared memory, and to delete records."""

_SHARE = 2
"""The reserve of a small store is half of its size, because deleting needs less there."""

_SPARE = 4
"""The reserve is created only if the disk has this many times its size free, so it never fills a disk."""

_LEFT_SHARE = 8
"""This share of the reserve is left free after its use, so that the store can still be read and written."""

_CHUNK = bytes(65_536)


class Reserve:
    """The reserve of one store.

    It is a safeguard, so no call fails if it cannot be created. Processes may use it at the same time: it holds
    nothing, and the next opening creates it again.
    """

    def __init__(self, files: StoreFiles, *, read_only: bool = False) -> None:
        self._read_only = read_only
        self._files = files
        self._path = files.reserve

    def renew(self) -> None:
        """Make the reserve, or make it larger if the store has grown, unless the disk has too little room."""
        wanted = min(RESERVE_BYTES, max(_LEAST_BYTES, self._store_bytes() // _SHARE))
        if size_of(self._path) * 2 > wanted:  # not at every small growth of the store
            note_own(self._path)
            return
        if self._free() >= _SPARE * wanted:
            self._allocate(wanted)
            note_own(self._path)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release the reserve for the block, if the disk is almost full, and then create it again.

        The new reserve is smaller if the block has used some of the room; `renew` makes it complete again when the disk
        has room.
        """
        had = 0 if self._read_only else size_of(self._path)
        if self._free() >= 2 * RESERVE_BYTES:
            yield
            return
        if had:
            try:
                os.truncate(self._path, 0)
            except OSError as error:
                log.warning("the reserve %s could not be released: %s", self._path, error)
        try:
            yield
        finally:
            if had:
                self._allocate(max(0, min(had, self._free() - had // _LEFT_SHARE)))

    def room(self) -> int:
        """Return the free bytes of the disk that has the columns or the metadata, whichever has less."""
        return min(shutil.disk_usage(place).free for place in self._files.folders())

    def _free(self) -> int:
        return shutil.disk_usage(self._files.folder).free

    def _store_bytes(self) -> int:
        return sum(map(size_of, (*self._files.metadata_files(), *self._files.column_files())))

    def _allocate(self, size: int) -> None:
        """Allocate the file with this size on the disk, without holes."""
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o644)
            try:
                ownership.give(self._path)
                os.ftruncate(descriptor, 0)
                if size:
                    _fill(descriptor, size)
            except OSError:
                os.ftruncate(descriptor, 0)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            log.info("the reserve %s could not be created: %s", self._path, error)


def size_of(path: Path) -> int:
    """Return the size of a file, 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _fill(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    while size > 0:  # macOS
        size -= os.write(descriptor, _CHUNK[:size])
