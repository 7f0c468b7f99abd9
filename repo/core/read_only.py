"""The databases of a store that this process may only read: nothing is created, changed or checkpointed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

from sqlalchemy import Connection, Engine

from repo.core.columns import Columns
from repo.core.metadata import MetadataDatabase
from repo.core.overlay import OpenOverlay
from repo.engines.base import Backend
from repo.engines.sqlite import driver as sqlite
from repo.errors import StoreReadOnly
from repo.files import StoreFiles
from repo.settings import Settings

__all__ = ["ReadOnlyColumns", "ReadOnlyMetadata", "refuse_change"]


def refuse_change(files: StoreFiles) -> NoReturn:
    """Raise `StoreReadOnly`."""
    raise StoreReadOnly(
        f"{files.path} is opened for reading only; open it without read_only, as a user who may write to it",
        path=files.path,
    )


class ReadOnlyMetadata(MetadataDatabase):
    """`offline_buffer.db`, open for reading; everything that would write raises `StoreReadOnly`."""

    def __init__(self, files: StoreFiles, settings: Settings) -> None:
        self._files = files
        self._copied: tempfile.TemporaryDirectory[str] | None = None
        try:
            super().__init__(files, settings)
        except BaseException:
            self._remove_copy()
            raise

    def _open(self, _durability: Literal["full", "normal"]) -> Engine:
        path = self.path
        if sqlite.needs_copy(path):
            self._copied = tempfile.TemporaryDirectory(prefix="holdfast-")
            path = sqlite.copy_with_log(path, Path(self._copied.name))
        return sqlite.open_engine(path, busy_timeout_s=self._settings.busy_timeout_s, read_only=True)

    def close(self) -> None:
        """Close all connections."""
        super().close()
        self._remove_copy()

    def _remove_copy(self) -> None:
        if self._copied is not None:
            self._copied.cleanup()

    def journal(self, _work: Callable[[Connection], object], _attempt: sqlite.Attempt | None = None) -> None:
        """Raise `StoreReadOnly`."""
        refuse_change(self._files)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Raise `StoreReadOnly`."""
        refuse_change(self._files)
        yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raise `StoreReadOnly`."""
        refuse_change(self._files)
        yield

    def checkpoint_if_due(self) -> None:
        """Do nothing."""

    def checkpoint(self) -> int:
        """Raise `StoreReadOnly`."""
        refuse_change(self._files)

    def note_acknowledged(self) -> None:
        """Do nothing."""

    def vacuum(self) -> None:
        """Raise `StoreReadOnly`."""
        refuse_change(self._files)


class ReadOnlyColumns(Columns):
    """The columns, open for reading under the lease; see `repo.core.overlay`.

    The locks of the lease need no permission to write, so the process that writes the store hands the columns over as
    it does to any other process.
    """

    read_only = True

    def _open_file(self, backend: Backend) -> OpenOverlay:
        return OpenOverlay(backend)
