"""Adopting a store: a copy of an old one in a new folder, brought to the head there; the old one is only ever read.

The copy is made and migrated in a folder beside the new one, which takes the new name when everything in it is
durable: so the new store stands whole or not at all. What a killed run has left, the next one removes. No database
engine ever opens a file of the old store.
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
from typing import NamedTuple

from repo import durable, inuse
from repo.clock import system_clock
from repo.disk import HEADROOM_BYTES, refuse_full_disk
from repo.engines.sqlite import driver as sqlite
from repo.errors import (
    EngineMissing,
    HoldfastError,
    InvalidSettings,
    MigrationFailed,
    SchemaTooNew,
    StoreBusy,
    StoreCorrupt,
    StoreMissing,
    system_typed,
)
from repo.files import CONFIG_FILE, DUCKDB_FILE, ENGINES, METADATA_FILE, SQLITE_FILE, StoreFiles
from repo.lease import read_holder
from repo.schema import backup as backups
from repo.schema.counting import rows_of
from repo.schema.databases import DATABASES, REWRITE_FACTOR, backend_of, in_store, opened, typed
from repo.schema.upgrade import Migration, migrate_store
from repo.schema.version import HEAD
from repo.settings import Settings

__all__ = ["Adoption", "adopt_store"]

log = logging.getLogger("holdfast.adopting")

Progress = Callable[[int, int], object]

_UNFINISHED, _STORE = ".adopting", "holdfast-store"
_COMPANIONS = {"duckdb": (".wal", ".checkpoint"), "sqlite": ("-wal", "-journal")}
"""What belongs to a database file; SQLite's shared memory does not: it is made anew."""
_UNCHANGED = "the old store is unchanged, and no new one was made; fix the cause and adopt it again"
_KEPT_TABLES = ("buffered_records", "time_series_data", "storage_metadata")


@dataclass(frozen=True, slots=True)
class Adoption:
    """What an adoption did, or would do."""

    old: Path
    new: Path
    made: bool
    """Whether the new store stands; False where one only looked."""
    records: int
    points: int
    copied_bytes: int
    needed_bytes: int
    """For the copy and its migration; the least that has to be free beside the new folder."""
    free_bytes: int
    migration: Migration
    """That of the copy."""


class _File(NamedTuple):
    source: Path
    name: str


def adopt_store(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    columns: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Adoption:
    """Make a store at the head in the folder `new` from a copy of the one in `old`, which stays as it is.

    `old` is a store of the legacy program or of any older revision; `columns` is its time-series file where that
    lies elsewhere and no link in the folder says so. `new` is not there yet, or is an empty folder. With `dry_run`
    only the copy is made, looked at, and removed again. This process must not have the old store open.

    Raises `StoreMissing`; `InvalidSettings` for places that do not fit; `StoreBusy` if another process has a file of
    the old store locked or changes it meanwhile; `StoreFull` beforehand unless there is room, or with `force` when
    the disk is full; and what the migration raises. Then `new` is as it was. `progress` is told how many of how many
    bytes are done.
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
            "nothing was done. Free some space, name a folder on another disk, or try it all the same with --force",
        )

    def tell(done: int, total: int, part: int) -> None:
        # The copy is the first half, the migration the second.
        whole = max(1, copied_bytes)
        progress(whole * part + whole * done // max(1, total), 2 * whole)

    with _named_after(sources, folder, target):
        _copy(files, sources, folder, lambda done: tell(done, copied_bytes, 0))
        before = _rows(folder)
        planned = migrate_store(folder, check=True, backup=False)
        if all(one.before == HEAD for one in planned.databases):
            raise InvalidSettings(
                f"{files.folder} is at {HEAD} already, so there is nothing to adopt: use it where it is, or move it",
                path=files.folder,
            )
        if planned.records_waiting and not planned.restores:
            raise StoreMissing(
                f"{planned.records_waiting:,} records of {files.folder} were kept with a point only, and there is no "
                "time-series file in it that has their data; name it with --timeseries",
                path=files.folder,
            )
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
            folder, backup=False, force=True, progress=lambda done, total: tell(done, total, 1)
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
    standing = [files.columns(engine) for engine in ENGINES if files.columns(engine).exists()]
    if not named.is_file():
        raise StoreMissing(f"there is no time-series file {named}", path=named)
    if standing and named != files.duckdb:
        raise InvalidSettings(
            f"{files.folder} has its points in {standing[0]}, not in {named}; leave --timeseries and "
            "DUCKDB_STORAGE_PATH out, or move the one that is not its own away",
            path=named,
        )
    return replace(files, duckdb=named)


def _sources(files: StoreFiles) -> list[_File]:
    databases = [
        (files.metadata, METADATA_FILE, "sqlite"),
        (files.duckdb, DUCKDB_FILE, "duckdb"),
        (files.sqlite, SQLITE_FILE, "sqlite"),
    ]
    found = [
        _File(source.with_name(source.name + companion), name + companion)
        for source, name, engine in databases
        for companion in ("", *_COMPANIONS[engine])
    ]
    found.append(_File(files.folder / CONFIG_FILE, CONFIG_FILE))
    return [file for file in found if file.source.exists()]


def _refuse_places(files: StoreFiles, sources: list[_File], target: Path) -> None:
    folders = {files.folder, *(file.source.parent for file in sources)}
    if any(target == folder or folder in target.parents or target in folder.parents for folder in folders):
        raise InvalidSettings(
            f"{target} lies in the old store, or the old store in it; choose a folder beside it", path=target
        )
    if not target.parent.is_dir():
        raise InvalidSettings(f"there is no folder {target.parent}; make it first", path=target.parent)
    if backups.is_restoring(files):
        raise StoreBusy(
            f"a backup is being put back in {files.folder}; `{files.command('migrate --restore -y')}` completes it",
            path=files.folder,
        )


def _refuse_taken(target: Path) -> None:
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise InvalidSettings(
            f"{target} is there already, and is no empty folder; nothing in it was changed. Choose another",
            path=target,
        )
    if target.is_dir() and os.path.ismount(target):
        raise InvalidSettings(
            f"{target} is where a disk is mounted, and cannot be replaced by a folder; choose one in it",
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
    shared = files.metadata.with_name(files.metadata.name + "-shm")
    path = inuse.first_in_use((*(file.source for file in sources), shared))
    if path is not None:
        raise StoreBusy(
            f"{path} is open in a running program; nothing was done. Stop it and try again", path=path
        )


def _needed(sources: list[_File], copied_bytes: int) -> int:
    growth = 0.0
    for file in sources:
        if file.name.startswith("timeseries."):
            growth += (
                file.source.stat().st_size * REWRITE_FACTOR["duckdb" if "duckdb" in file.name else "sqlite"]
            )
        elif file.name != CONFIG_FILE:
            growth += file.source.stat().st_size  # what records get back from their points
    return copied_bytes + int(growth) + HEADROOM_BYTES


# --- the copy ----------------------------------------------------------------------------------------------


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """A folder of this run's own, on the disk of the target; removed at the end unless it was renamed.

    It lies in a folder beside the target, which carries the lock: that goes with the process, and shows what a
    killed run has left.
    """
    place = target.with_name(f".{target.name}{_UNFINISHED}")
    with system_typed(target, _UNCHANGED):
        descriptor = _locked(place, target)
        try:
            folder = place / _STORE
            if any(entry != folder for entry in place.iterdir()):
                raise InvalidSettings(f"{place} holds what is not of an adoption; move it away", path=place)
            if folder.exists():
                log.info("what an adoption that was stopped had left in %s is removed", place)
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
    """Make the folder if need be, and lock it; returns the descriptor that holds the lock."""
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
        os.close(descriptor)  # the one that held it has removed the folder


def _copy(files: StoreFiles, sources: list[_File], folder: Path, progress: Callable[[int], object]) -> None:
    """Copy the files, durably; raises `StoreBusy` if they were changed meanwhile."""
    before = [_stamp(file.source) for file in sources]
    done = 0

    def copied(piece: int) -> None:
        nonlocal done
        done += piece
        progress(done)

    for file in sources:
        durable.copy(file.source, folder / file.name, copied, keep_mode=True)
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


# --- what became of it -------------------------------------------------------------------------------------


def _rows(folder: Path) -> dict[str, int]:
    """Count the rows of all tables of the copy, and see that SQLite's file is sound."""
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
            engine.connect().execution_options(**sqlite.READ) as connection,
        ):
            if target.engine == "sqlite":
                sound = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
                if sound != "ok":
                    raise MigrationFailed(f"{target.path} is damaged: {sound}", path=target.path)
            found |= rows_of(connection)
    return found


def _check(folder: Path, before: dict[str, int]) -> None:
    after = _rows(folder)
    for table in _KEPT_TABLES:
        if after.get(table, 0) != before.get(table, 0):
            raise MigrationFailed(
                f"{after.get(table, 0):,} rows came of {before.get(table, 0):,} in {table}; the new store was not "
                "made. Keep the old one and report this",
                path=folder,
            )


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            durable.sync(path)
    durable.sync(folder)


@contextmanager
def _named_after(sources: list[_File], folder: Path, target: Path) -> Iterator[None]:
    """Let errors about the copy, which is gone by then, name the file that it is a copy of, or the new store."""
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
