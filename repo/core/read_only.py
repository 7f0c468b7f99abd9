"""The databases of a store that this process may only read: nothing is created, changed or checkpointed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NoReturn

from sqlalchemy import Connection, Engine

from repo.clock import Clock
from repo.core.active import ActiveColumns
from repo.core.columns import Columns
from repo.core.gate import Patience
from repo.core.keep_open import Watch
from repo.core.metadata import MetadataDatabase
from repo.core.overlay import OpenOverlay
from repo.core.scratch import ScratchFolder
from repo.engines.base import Backend
from repo.engines.sqlite import copies
from repo.engines.sqlite import driver as sqlite
from repo.errors import StoreReadOnly
from repo.files import StoreFiles
from repo.processes.lease import LEASE_FILE, TURN_FILE
from repo.settings import Settings

__all__ = ["ReadOnlyColumns", "ReadOnlyMetadata", "refuse_change"]

log = logging.getLogger("holdfast.columns")


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
        self._copied: ScratchFolder | None = None
        try:
            super().__init__(files, settings)
        except BaseException:  # also after an interrupt; the caller gets nothing that could be closed
            self._remove_copy()
            raise

    def _open(self, _durability: Literal["full", "normal"]) -> Engine:
        path = self.path
        if copies.needs_copy(path):
            self._copied = ScratchFolder()
            path = copies.copy_with_log(path, self._copied.path)
        return sqlite.open_engine(path, busy_timeout_s=self._settings.busy_timeout_s, read_only=True)

    def close(self) -> None:
        """Close all connections."""
        super().close()
        self._remove_copy()

    def _remove_copy(self) -> None:
        if self._copied is not None:
            self._copied.cleanup()

    def journal(
        self, _work: Callable[[Connection], object], _outcome: sqlite.CommitOutcome | None = None
    ) -> None:
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
    it does to any other process. In between they stay open, because each opening applies the journal's tail again; a
    thread hands them over while they are open.
    """

    read_only = True

    def __init__(self, files: StoreFiles, active: ActiveColumns, settings: Settings, clock: Clock) -> None:
        self._lock_files = [files.folder / f"{files.prefix}{name}" for name in (TURN_FILE, LEASE_FILE)]
        self._has_turn = self._lock_files[0].exists()
        self._is_shared = False
        super().__init__(files, active, settings, clock)
        self._watch: Watch | None = None

    def close(self) -> None:
        """Close the columns and end the thread; see `Columns.close`."""
        watch = self._watch
        super().close()
        if watch is not None:
            watch.join()

    def _take_lease(self, doing: str, patience: Patience) -> None:
        # Without lock files, as in some copies, another process would not wait, and could not be seen to wait.
        self._is_shared = self._has_turn and self._lock_files[1].exists()
        super()._take_lease(doing, patience)

    def _open_now(self) -> None:
        super()._open_now()
        if self._is_shared:
            try:
                self._watch = Watch(self)
            except RuntimeError as error:  # no thread can be started
                log.info("the columns are opened again for each use: %s", error)
        self.stays_open = self._watch is not None

    def _shut(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop.ask()
        super()._shut()

    def _open_file(self, backend: Backend) -> OpenOverlay:
        return OpenOverlay(backend)
