"""Adopting a store: copies an old store into a new folder and upgrades the copy. The old store is only read.

The copy is made and migrated in a temporary folder next to the new one. It is renamed once everything in it is durable,
so the new store appears complete or not at all. The next run removes what a killed one left. No database engine opens a
file of the old store.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from repo.clock import system_clock
from repo.disk import durable
from repo.disk.space import HEADROOM_BYTES, refuse_full_disk
from repo.engines.base import READ
from repo.engines.registry import ENGINES, LEGACY, METADATA, traits_of
from repo.errors import (
    EngineMissing,
    HoldfastError,
    InvalidSettings,
    MigrationFailed,
    SchemaTooNew,
    StoreBusy,
    StoreCorrupt,
    StoreMissing,
    counted,
    system_typed,
)
from repo.files import METADATA_FILE, StoreFiles
from repo.processes import inuse
from repo.processes.lease import read_holder
from repo.schema.counting import rows_of
from repo.schema.databases import DATABASES, backend_of, in_store, opened, typed
from repo.schema.restore_files import is_restoring
from repo.schema.upgrade import Migration, migrate_store
from repo.schema.version import HEAD
from repo.settings import CONFIG_FILE, Settings

__all__ = ["Adoption", "adopt_store"]

log = logging.getLogger("holdfast.adopting")

Progress = Callable[[int, int], object]

_UNFINISHED, _STORE = ".adopting", "holdfast-store"
_UNCHANGED = "the old store is unchanged, and no new one was made; fix the cause and adopt it again"
_OF_THE_MIGRATION = (
    "databases",
    "steps",
    "nan_points",
    "outside_points",
    "records_restored",
    "records_without_original",
    "records_waiting",
)
_KEPT_TABLES = ("buffered_records", "time_series_data", "storage_metadata")


@dataclass(frozen=True, slots=True)
class Adoption:
    """What an adoption did, or would do."""

    old: Path
    new: Path
    made: bool
    """Whether the new store was created; False for a dry run."""
    records: int
    points: int
    copied_bytes: int
    needed_bytes: int
    """Bytes for the copy and its migration, which must be free on the disk of the new folder."""
    free_bytes: int
    migration: Migration
    """The migration of the copy."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json adopt`."""
        migration = self.migration.as_dict()
        return {
            "old": str(self.old),
            "new": str(self.new),
            "made": self.made,
            "records": self.records,
            "points": self.points,
            "copied_bytes": self.copied_bytes,
            "needed_bytes": self.needed_bytes,
            "free_bytes": self.free_bytes,
            **{name: migration[name] for name in _OF_THE_MIGRATION},
        }


class _File(NamedTuple):
    source: Path
    name: str
    growth: float
    """The bytes that its migration may take in addition to the copy, as a multiple of its size."""


def adopt_store(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    columns: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Adoption:
    """Create a store at the head in the folder `new` from a copy of the store in `old`, which stays unchanged.

    `old` is a store of the legacy program or of any older revision. `columns` is its time-series file, if that is in
    another folder and no link leads there. `new` must not exist, or be an empty folder. With `dry_run` the copy is
    only made, inspected and removed. This process must not have the old store open.

    Raises `StoreMissing`; `InvalidSettings` for unsuitable folders; `StoreBusy` if another process has locked a file
    of the old store, or changes one during the copy; `StoreFull` if disk space is short (with `force`, only when the
    disk is full); and what the migration raises. `new` is then unchanged. `progress` receives the bytes done and the
    bytes in total.
    """
    files = _files(old, columns)
    target = Path(os.path.realpath(new))
    sources = _sources(files)
    _refuse_places(files, sources, target)
    with _unfinished(target) as folder:
        return _adopt(files, sources, target, folder, dry_run=dry_run, force=force, progress=progress)


def _adopt(
    files: StoreFiles,
    sources: list[_File],
    target: Path,
    folder: Path,
    *,
    dry_run: bool,
    force: bool,
    progress: Progress,
) -> Adoption:
    _refuse_taken(target)
    Settings.load(files.folder)
    _refuse_busy(files, sources)
    copied_bytes = sum(file.source.stat().st_size for file in sources)
    needed_bytes = _needed(sources, copied_bytes)
    wanted_bytes = copied_bytes + HEADROOM_BYTES if dry_run else needed_bytes
    free_bytes = shutil.disk_usage(target.parent).free
    if not force:
        refuse_full_disk(
            [(target.parent, wanted_bytes)],
            f"adopting {files.folder}",
            "nothing was done. Free some space, name a folder on another disk, or try anyway with --force",
        )

    def report_part(done: int, total: int, part: int) -> None:
        # The copy is the first half, the migration the second.
        whole = max(1, copied_bytes)
        progress(whole * part + whole * done // max(1, total), 2 * whole)

    with _named_after(sources, folder, target):
        _copy(files, sources, folder, lambda done: report_part(done, copied_bytes, 0))
        before = _rows(folder)
        planned = migrate_store(folder, check=True, backup=False)
        _refuse_unfit(files, planned)
        made = Adoption(
            files.folder,
            target,
            made=not dry_run,
            records=before.get("buffered_records", 0),
            points=before.get("time_series_data", 0),
            copied_bytes=copied_bytes,
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
            migration=planned,
        )
        if dry_run:
            progress(1, 1)
            return made
        done = migrate_store(
            folder, backup=False, force=True, progress=lambda done, total: report_part(done, total, 1)
        )
        _check(folder, before)
        _sync(folder)
        durable.replace(folder, target)
    log.info("%s was adopted as %s", files.folder, target)
    return replace(made, migration=done)


# --- before anything is done -------------------------------------------------------------------------------


def _files(old: str | os.PathLike[str], columns: str | os.PathLike[str] | None) -> StoreFiles:
    files = StoreFiles.of(os.path.realpath(old))
    if not any(path.exists() and path.stat().st_size for path in files.metadata_files()):
        raise StoreMissing(
            f"there is no store in {files.folder}: no {files.metadata.name}", path=files.folder
        )
    if columns is None:
        return files
    named = Path(os.path.realpath(columns))
    existing = [files.columns(engine) for engine in ENGINES if files.columns(engine).exists()]
    if not named.is_file():
        raise StoreMissing(f"there is no time-series file {named}", path=named)
    if existing and named != files.duckdb:
        raise InvalidSettings(
            f"{files.folder} has its points in {existing[0]}, not in {named}; omit --timeseries and "
            "DUCKDB_STORAGE_PATH, or move away the file that does not belong to it",
            path=named,
        )
    return files.with_columns(LEGACY.name, named)


def _sources(files: StoreFiles) -> list[_File]:
    databases = [
        (files.metadata, METADATA_FILE, METADATA, 1.0),  # for the data restored from points
        *(
            (files.columns(name), engine.file_name, engine, engine.rewrite_factor)
            for name, engine in ENGINES.items()
        ),
    ]
    found = [
        _File(source.with_name(source.name + companion), name + companion, growth)
        for source, name, engine, growth in databases
        for companion in ("", *engine.companions)
        if companion not in engine.disposable
    ]
    found.append(_File(files.folder / CONFIG_FILE, CONFIG_FILE, 0.0))
    return [file for file in found if file.source.exists()]


def _refuse_places(files: StoreFiles, sources: list[_File], target: Path) -> None:
    folders = {files.folder, *(file.source.parent for file in sources)}
    if any(target == folder or folder in target.parents or target in folder.parents for folder in folders):
        raise InvalidSettings(
            f"{target} is inside the old store, or contains it; choose a folder next to it", path=target
        )
    if not target.parent.is_dir():
        raise InvalidSettings(f"there is no folder {target.parent}; create it first", path=target.parent)
    if is_restoring(files):
        raise StoreBusy(
            f"a restore of {files.folder} is incomplete; `{files.command('migrate --restore -y')}` completes it",
            path=files.folder,
        )


def _refuse_taken(target: Path) -> None:
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise InvalidSettings(
            f"{target} exists and is not an empty folder; nothing in it was changed. Choose another folder",
            path=target,
        )
    if target.is_dir() and os.path.ismount(target):
        raise InvalidSettings(
            f"{target} is a mount point, which cannot be replaced; choose a folder inside it",
            path=target,
        )


def _refuse_busy(files: StoreFiles, sources: list[_File]) -> None:
    holder = read_holder(files.folder, files.prefix)
    if holder is not None:
        raise StoreBusy(
            f"{files.folder} is in use by process {holder.pid}, doing: {holder.doing}; stop it and try again",
            path=files.folder,
            holder=holder.pid,
        )
    path = inuse.first_in_use((*(file.source for file in sources), *METADATA.beside(files.metadata)))
    if path is not None:
        raise StoreBusy(
            f"{path} is open in a running program; nothing was done. Stop it and try again", path=path
        )


def _needed(sources: list[_File], copied_bytes: int) -> int:
    growth = sum(file.source.stat().st_size * file.growth for file in sources)
    return copied_bytes + int(growth) + HEADROOM_BYTES


# --- the copy ----------------------------------------------------------------------------------------------


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Create a temporary folder on the disk of the target; it is removed at the end unless it was renamed.

    It lies in a folder next to the target. That folder carries the lock, which ends with the process, and identifies
    what a killed run left.
    """
    place = target.with_name(f".{target.name}{_UNFINISHED}")
    with system_typed(target, _UNCHANGED):
        descriptor = _locked(place, target)
        try:
            folder = place / _STORE
            if any(entry != folder for entry in place.iterdir()):
                raise InvalidSettings(
                    f"{place} contains files that are not from an adoption; move it away", path=place
                )
            if folder.exists():
                log.info("removing what an interrupted adoption left in %s", place)
                shutil.rmtree(folder)
            folder.mkdir()
            try:
                yield folder
            finally:
                if folder.exists():
                    shutil.rmtree(folder)
                place.rmdir()
        finally:
            os.close(descriptor)


def _locked(place: Path, target: Path) -> int:
    """Create the folder if necessary and lock it; returns the descriptor that holds the lock."""
    while True:
        place.mkdir(exist_ok=True)
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if place.exists() and os.path.samestat(place.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise StoreBusy(
                f"another process is adopting a store as {target}; wait for it", path=target
            ) from error
        os.close(descriptor)  # the process that held it has removed the folder


def _copy(files: StoreFiles, sources: list[_File], folder: Path, progress: Callable[[int], object]) -> None:
    """Copy the files durably; raises `StoreBusy` if they changed during the copy."""
    before = [_stamp(file.source) for file in sources]
    done = 0

    def copied(piece: int) -> None:
        nonlocal done
        done += piece
        progress(done)

    for file in sources:
        durable.copy(file.source, folder / file.name, copied)
    _refuse_busy(files, sources)
    now = [_stamp(file.source) for file in _sources(files)]
    if now != before:
        raise StoreBusy(
            f"{files.folder} was changed while it was copied; stop what writes to it and try again",
            path=files.folder,
        )


def _stamp(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns


# --- checks of the copy ------------------------------------------------------------------------------------


def _refuse_unfit(files: StoreFiles, planned: Migration) -> None:
    """Refuse a store that needs no upgrade, and one whose records are in a file that was not named."""
    if all(one.before == HEAD for one in planned.databases):
        raise InvalidSettings(
            f"{files.folder} is already at {HEAD}, so there is nothing to adopt: use it where it is, or move it",
            path=files.folder,
        )
    if planned.records_waiting and not planned.restores:
        raise StoreMissing(
            f"{files.folder} has {counted(planned.records_waiting, 'record')} stored only as a pointer, and no "
            "time-series file with the data; name that file with --timeseries",
            path=files.folder,
        )


def _rows(folder: Path) -> dict[str, int]:
    """Count the rows of all tables of the copy; raises `MigrationFailed` for a file that its engine finds damaged."""
    files, settings = StoreFiles.of(folder), Settings.load(folder)
    found: dict[str, int] = {}
    for database in DATABASES:
        target = in_store(database, files)
        if not target.path.exists():
            continue
        backend = backend_of(target, settings, system_clock)
        with (
            opened(target, backend, settings) as engine,
            typed(target, backend),
            engine.connect().execution_options(**READ) as connection,
        ):
            if damage := traits_of(connection).damage(connection):
                raise MigrationFailed(f"{target.path} is damaged: {damage}", path=target.path)
            found |= rows_of(connection)
    return found


def _check(folder: Path, before: dict[str, int]) -> None:
    after = _rows(folder)
    for table in _KEPT_TABLES:
        if after.get(table, 0) != before.get(table, 0):
            raise MigrationFailed(
                f"{table} had {before.get(table, 0):,} rows and would have {after.get(table, 0):,}; the new store "
                "was not created. Keep the old one and report this",
                path=folder,
            )


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            durable.sync(path)
    durable.sync(folder)


@contextmanager
def _named_after(sources: list[_File], folder: Path, target: Path) -> Iterator[None]:
    """Make errors about the removed copy name the original file, or the new store."""
    try:
        yield
    except HoldfastError as error:
        names = [(folder, target)]
        if isinstance(error, (StoreCorrupt, SchemaTooNew, InvalidSettings, EngineMissing)):
            copies = sorted(sources, key=lambda file: len(file.name), reverse=True)
            names = [(folder / file.name, file.source) for file in copies] + names
        text = str(error)
        for copy, own in names:
            text = text.replace(str(copy), str(own))
            if error.path == copy:
                error.path = own
        error.args = (text,)
        raise
