"""Restoring a store: puts back the newest backup of a migration, under the lease. Never makes a backup.

The files are copied next to those that they replace, and compared with the backup's manifest, before anything is
replaced. A marker in the backup folder then records that the restore has begun; if it is interrupted, the next process
that opens the store completes it.

The seqs of a restored store were given to other points before. So a restore raises the store's epoch, when the store is
opened next: what it delivers is new to every receiver. The store keeps the id that it had before the restore: a backup
may be older than a `rekey`, and have the id of the store that this one is a copy of.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from repo.clock import Clock, system_clock
from repo.disk.space import refuse_full_disk
from repo.engines.base import READ
from repo.engines.registry import ENGINES, METADATA
from repo.engines.sqlite import driver as sqlite
from repo.errors import StoreBusy, StoreCorrupt, StoreMissing
from repo.files import StoreFiles
from repo.models import StoreState
from repo.processes import inuse
from repo.processes.lease import leased
from repo.schema import restore_files
from repo.schema.backup import Backup, list_backups
from repo.schema.databases import in_pieces
from repo.schema.restore_files import Kept
from repo.settings import Settings

__all__ = ["Restoration", "finish_leased", "finish_restore", "restore_store"]

log = logging.getLogger("holdfast.migrating")

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Restoration:
    """A backup that was put back."""

    path: str
    """The store."""
    backup: Backup

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json migrate --restore`."""
        return {
            "path": self.path,
            "restored": str(self.backup.folder),
            "made_us": self.backup.made_us,
            "databases": [saved._asdict() for saved in self.backup.saved],
        }


def restore_store(
    path: str | os.PathLike[str] | StoreFiles, *, progress: Progress = lambda _done, _total: None
) -> Restoration:
    """Restore the newest backup. Everything written since then is lost.

    Raises `StoreMissing` without a backup, `StoreCorrupt` for a damaged one, `StoreBusy` and `StoreFull`; nothing was
    changed then. The next opening completes a restore that was killed. `path` is the same as for `migrate_store`.
    """
    files = path if isinstance(path, StoreFiles) else StoreFiles.of(os.path.realpath(path))
    if not files.folder.is_dir():
        raise StoreMissing(f"there is no store in {files.folder}", path=files.folder)
    settings = Settings.load(files.folder)
    with leased(
        files.folder, settings.lease_timeout_s, system_clock, "restoring a backup", prefix=files.prefix
    ):
        if not restore_files.is_restoring(files):
            existing = list_backups(files)
            if not existing:
                raise StoreMissing(f"there is no backup of the store in {files.folder}", path=files.folder)
            _refuse_full_disk(files, existing[0])
            _refuse_open(files, settings)
            restore_files.prepare_restore(files, existing[0], in_pieces(existing[0].size_bytes, progress))
            restore_files.begin_restore(files, existing[0], _identity_of(files))
        return Restoration(str(files.path), finish_leased(files, system_clock))


def finish_restore(files: StoreFiles, settings: Settings, clock: Clock) -> None:
    """Complete an interrupted restore, if there is one."""
    if restore_files.is_restoring(files):
        with leased(files.folder, settings.lease_timeout_s, clock, "restoring a backup", prefix=files.prefix):
            if restore_files.is_restoring(files):
                finish_leased(files, clock)


def finish_leased(files: StoreFiles, clock: Clock) -> Backup:
    """Complete a restore that has begun; the caller holds the lease."""
    restored = restore_files.replace_files(files, clock())
    log.warning("the backup %s was restored; everything written after it is lost", restored.folder)
    return restored


def _identity_of(files: StoreFiles) -> Kept:
    """Return the identity of the store before a restore; epoch 1 if it has none, or its metadata cannot be read."""
    if not files.metadata.exists():
        return Kept(1)
    engine = sqlite.open_engine(files.metadata, read_only=True)
    try:
        with engine.execution_options(**READ).connect() as connection:
            found = connection.execute(select(StoreState.epoch, StoreState.store_id)).first()
            return Kept(1) if found is None else Kept(int(found.epoch), str(found.store_id))
    except (SQLAlchemyError, sqlite.DriverError) as error:
        log.info("the epoch of %s is unknown, and 1 is assumed: %s", files.metadata, error)
        return Kept(1)
    finally:
        engine.dispose()


def _refuse_open(files: StoreFiles, settings: Settings) -> None:
    """Raise `StoreBusy` if another program has a database open: its writes would be lost with the old file."""
    if files.metadata.exists():
        try:
            sqlite.wait_until_unused(files.metadata, settings.lease_timeout_s)
        except StoreCorrupt:
            log.info("%s is damaged and will be replaced", files.metadata)
    metadata = (files.metadata, *METADATA.beside(files.metadata))
    path = inuse.first_in_use((*metadata, *map(files.columns, ENGINES)))
    if path is not None:
        raise StoreBusy(
            f"{path} is open in a running program; nothing was changed. Stop it and try again", path=path
        )


def _refuse_full_disk(files: StoreFiles, backup: Backup) -> None:
    """Raise `StoreFull` unless each disk has space for the copies; the old files stay until they are complete."""
    wanted = [(restore_files.restored_file(files, saved).parent, saved.size_bytes) for saved in backup.saved]
    refuse_full_disk(wanted, f"restoring {backup.folder}")
