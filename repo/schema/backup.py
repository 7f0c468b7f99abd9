"""Backups made before a migration: a folder each, with both databases, that stands whole or not at all.

The caller holds the lease, has the databases closed, and DuckDB's log folded in. Never decides when one is made.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from repo.engines import sqlite
from repo.engines.torn import sync_file, sync_folder
from repo.errors import HoldfastError, StoreCorrupt, StoreFull
from repo.files import ENGINES, StoreFiles

__all__ = [
    "Backup",
    "Saved",
    "begin_restore",
    "discard_unfinished",
    "finish_restore",
    "is_restoring",
    "keep",
    "list_backups",
    "make",
]

_MANIFEST = "manifest.json"
_UNFINISHED = ".part"
_RESTORING = "restoring"
_COMPANIONS = (".wal", "-wal", "-shm", ".checkpoint")
_CHUNK_BYTES = 4_194_304


class Saved(NamedTuple):
    """One database of a backup; `revision` is None where no migration had ever run."""

    database: str
    engine: str
    name: str
    revision: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup that stands."""

    folder: Path
    made_us: int
    saved: tuple[Saved, ...]

    @property
    def size_bytes(self) -> int:
        """What its files take."""
        return sum(saved.size_bytes for saved in self.saved)

    def began(self, revisions: dict[str, str | None]) -> bool:
        """Say whether a migration that began with this backup was cut off in the middle.

        `revisions` are those of the databases now, by their names: some are another than in the backup.
        """
        kept = {saved.database: saved.revision for saved in self.saved}
        return kept.keys() <= revisions.keys() and kept != {name: revisions[name] for name in kept}


def list_backups(files: StoreFiles) -> list[Backup]:
    """Return the backups of a store, the newest first."""
    manifests = files.backups.glob(f"*/{_MANIFEST}")
    found = [_read(manifest) for manifest in manifests if manifest.parent.suffix != _UNFINISHED]
    return sorted(found, key=lambda backup: (backup.made_us, backup.folder.name), reverse=True)


def make(
    files: StoreFiles,
    databases: list[tuple[str, str, Path, str | None]],
    now_us: int,
    progress: Callable[[int], object],
) -> Backup:
    """Copy the databases (name, engine, file, revision) into a new folder, durably, and name it at last.

    `progress` is told the bytes of each piece. Raises `StoreFull` and typed errors; then nothing is left of it.
    """
    stamp = datetime.fromtimestamp(now_us // 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
    place = files.backups
    final, number = place / stamp, 1
    while final.exists():
        number += 1
        final = place / f"{stamp}-{number}"
    part = final.with_name(final.name + _UNFINISHED)
    try:
        with _typed(place):
            part.mkdir(parents=True)
            saved = []
            for database, engine, path, revision in databases:
                copy = part / path.name
                if engine == "sqlite":
                    sqlite.copy_to(path, copy, progress)
                else:
                    _copy(path, copy, progress)
                saved.append(Saved(database, engine, path.name, revision, copy.stat().st_size))
            backup = Backup(final, now_us, tuple(saved))
            manifest = part / _MANIFEST
            told = {"made_us": now_us, "databases": [kept._asdict() for kept in saved]}
            manifest.write_text(json.dumps(told, indent=2) + "\n")
            sync_file(manifest)
            sync_folder(part)
            part.rename(final)
            sync_folder(place)
            sync_folder(place.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return backup


def discard_unfinished(files: StoreFiles) -> None:
    """Remove what a backup that was cut off has left."""
    for part in files.backups.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(part)


def keep(files: StoreFiles, count: int) -> list[Path]:
    """Remove all backups but the newest `count`; returns what was removed."""
    old = [backup.folder for backup in list_backups(files)[count:]]
    for folder in old:
        # Its manifest first: without one it is no backup any more, whatever else of it stays after a kill.
        part = folder.with_name(folder.name + _UNFINISHED)
        folder.rename(part)
        shutil.rmtree(part)
    return old


def is_restoring(files: StoreFiles) -> bool:
    """Say whether a backup is being put back, or was when the process ended."""
    return (files.backups / _RESTORING).exists()


def begin_restore(files: StoreFiles, backup: Backup) -> None:
    """Note durably that this backup is to be put back: from here on it will be, whatever is killed."""
    marker = files.backups / _RESTORING
    part = marker.with_name(marker.name + _UNFINISHED + "-marker")
    part.write_text(json.dumps({"folder": backup.folder.name}))
    sync_file(part)
    part.rename(marker)
    sync_folder(marker.parent)


def finish_restore(files: StoreFiles, now_us: int, progress: Callable[[int], object]) -> Backup:
    """Put the noted backup back; may be repeated after a kill at any moment.

    Databases that were not there when it was made get other names; nothing else holds what they hold.
    """
    place = files.backups
    name = json.loads((place / _RESTORING).read_text())["folder"]
    backup = _read(place / name / _MANIFEST)
    with _typed(place):
        targets = set()
        for saved in backup.saved:
            source = place / name / saved.name
            target = files.metadata if saved.database == "metadata" else files.columns(saved.engine)
            targets.add(target)
            part = target.with_name(target.name + ".restoring")
            part.unlink(missing_ok=True)
            _copy(source, part, progress)
            for companion in _COMPANIONS:
                target.with_name(target.name + companion).unlink(missing_ok=True)
            part.replace(target)
            sync_folder(target.parent)
        for path in {files.metadata, *(files.columns(engine) for engine in ENGINES)} - targets:
            _set_aside(path, now_us)
        (place / _RESTORING).unlink()
        sync_folder(place)
    return backup


def _set_aside(path: Path, now_us: int) -> None:
    if not path.exists():
        return
    for companion in (*_COMPANIONS, ""):
        old = path.with_name(path.name + companion)
        if old.exists():
            old.rename(path.with_name(f"{path.name}.inactive-{now_us}{companion}"))
    sync_folder(path.parent)


def _read(manifest: Path) -> Backup:
    try:
        told = json.loads(manifest.read_text())
        saved = tuple(Saved(**kept) for kept in told["databases"])
        return Backup(manifest.parent, int(told["made_us"]), saved)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{manifest} cannot be read ({error}); move {manifest.parent} away to go on without that backup",
            path=manifest,
        ) from error


def _copy(source: Path, target: Path, progress: Callable[[int], object]) -> None:
    with source.open("rb") as whole, target.open("xb") as copy:
        while chunk := whole.read(_CHUNK_BYTES):
            copy.write(chunk)
            progress(len(chunk))
        copy.flush()
        os.fsync(copy.fileno())


@contextmanager
def _typed(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"no space left for a backup in {place}; the databases are as they were. Free some space, or "
                "go on without a backup: `holdfast migrate --no-backup`",
                path=place,
            ) from error
        raise HoldfastError(f"the backup in {place} failed: {error}", path=place) from error
    except sqlite.DriverError as error:
        raise sqlite.typed_error(error, place) from error
