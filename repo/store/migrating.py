"""Migrating a store: brings the databases that it has to the head, under its lease. Never makes a database.

The one road for the command and for opening: nothing is changed before it is known that no other process has the
store open and that the disk has room, and a backup of both databases stands. A kill leaves each database at a whole
revision; running again goes on from there, and keeps the backup that was made before the first change.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, cast

from repo.clock import Clock, system_clock
from repo.engines import sqlite
from repo.engines.lease import leased
from repo.errors import (
    EngineMissing,
    HoldfastError,
    InvalidSettings,
    StoreCorrupt,
    StoreFull,
    StoreMissing,
    denied,
)
from repo.files import ENGINES, StoreFiles
from repo.repositories.pointers import PointerRepository
from repo.repositories.state import ColumnsStateRepository
from repo.schema import backup as backups
from repo.schema import migrate
from repo.schema.adopt import Restored, restore_records
from repo.schema.backup import Backup
from repo.schema.counting import rows_of
from repo.schema.targets import DATABASES, Target, in_store
from repo.schema.version import HEAD, REVISIONS, Standing, compare, too_new, version_of
from repo.settings import Settings
from repo.store.backends import Backend, SQLiteBackend
from repo.store.building import HEADROOM_BYTES, typed_errors
from repo.store.databases import REWRITE_FACTOR, backend_of, by_disk, opened, typed
from repo.store.restoring import finish_leased

__all__ = [
    "DatabaseVersion",
    "Migration",
    "PlannedStep",
    "migrate_store",
    "run",
]

log = logging.getLogger("holdfast.migrating")

Progress = Callable[[int, int], object]

_POINTER_BYTES = 1_000
"""What a record may take that gets its data back, in SQLite's log and in its file; about 300 were seen."""


class DatabaseVersion(NamedTuple):
    """One database of a store, and its revision before and after; None where no migration ever ran."""

    database: str
    engine: str
    file: str
    before: str | None
    after: str | None


class PlannedStep(NamedTuple):
    """One revision on one database: how many rows it touches, and how many more bytes it may take meanwhile."""

    database: str
    revision: str
    title: str
    rows: int
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did, or would do."""

    databases: tuple[DatabaseVersion, ...]
    steps: tuple[PlannedStep, ...] = ()
    backup: Path | None = None
    """The folder of the backup that was made before the first change, now or by a run that was cut off."""
    needed_bytes: int = 0
    """For the backup and the steps together, beside what the store takes; the least that has to be free."""
    free_bytes: int = 0
    nan_points: int = 0
    """Points in which the legacy program had stored NaN, and that have no reading (NULL) now."""
    records_restored: int = 0
    """Records of the legacy program that were kept with a point only, and have their data back now."""
    records_without_original: int = 0
    """Those of them whose data no point has; they stay as they are."""
    records_waiting: int = 0
    """Those that are still to be restored, because nothing was to be changed, or the columns cannot be read yet."""

    @property
    def restores(self) -> bool:
        """Whether a run would restore records; without any columns there is nothing to restore them from."""
        return bool(self.records_waiting) and any(one.database == "timeseries" for one in self.databases)


@dataclass(slots=True)
class _Found:
    target: Target
    backend: Backend | None
    before: str | None
    is_new: bool
    """Whether nothing is in it, not even tables: there is nothing to lose."""
    size_bytes: int
    steps: list[PlannedStep] = field(default_factory=list)
    noted: bool = False
    """Whether it is noted that pointers stand."""
    nan_points: int = 0
    owned: bool = False
    """Whether a store has taken these columns, so that its metadata cannot be new."""
    pointers: int = 0
    """How many records look like pointers; counted where they are noted, or may be by a step."""

    @property
    def database(self) -> migrate.Database:
        return cast("migrate.Database", self.target.database)

    @property
    def backup_bytes(self) -> int:
        return 0 if self.is_new else self.size_bytes


def migrate_store(
    path: str | os.PathLike[str] | StoreFiles,
    *,
    to: str = HEAD,
    check: bool = False,
    backup: bool = True,
    force: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Migration:
    """Bring the databases of the store to the revision `to`; with `check` only say what that would do.

    `path` means the store as `Store` has it; where its files were found already, it is those.

    No other process can have the columns open meanwhile: `StoreBusy` if one does not hand them over, or has the
    metadata open. A file that is not there yet is made, at the head, when it is first needed. Raises `StoreFull`
    with nothing changed unless the disk has room, or with `force` when it is full; `StoreMissing`, `SchemaTooNew`,
    `MigrationFailed` or the engine's typed error: each database is then at the last revision that was completed.
    `progress` is told how many of how many bytes are done.
    """
    if to not in REVISIONS:
        raise InvalidSettings(f"there is no revision {to}; there are {', '.join(REVISIONS)}")
    files = path if isinstance(path, StoreFiles) else StoreFiles.of(os.path.realpath(path))
    columns = [file for file in map(files.columns, ENGINES) if file.exists()]
    if not files.metadata.exists() and not (columns and files.apart):
        alone = f"; if {columns[0].name} is the legacy program's, name it: --store FILE" if columns else ""
        raise StoreMissing(
            f"there is no store in {files.folder}; `holdfast init` makes one{alone}", path=files.folder
        )
    settings = Settings.load(files.folder)
    with leased(files, settings.lease_timeout_s, system_clock, "migrating the store"):
        return run(
            files, settings, system_clock, to=to, check=check, backup=backup, force=force, progress=progress
        )


def run(
    files: StoreFiles,
    settings: Settings,
    clock: Clock,
    *,
    to: str = HEAD,
    check: bool = False,
    backup: bool = True,
    force: bool = False,
    without_columns: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Migration:
    """Do what `migrate_store` does; the caller holds the lease, and has both databases closed.

    `without_columns` goes on without them where their engine is missing: they follow when it is there.
    """
    if backups.is_restoring(files):
        finish_leased(files, clock)
    return _Run(files, settings, clock, to).go(check, backup, force, without_columns, progress)


class _Run:
    def __init__(self, files: StoreFiles, settings: Settings, clock: Clock, to: str) -> None:
        self._files = files
        self._settings = settings
        self._clock = clock
        self._to = to

    def go(
        self, check: bool, backup: bool, force: bool, without_columns: bool, progress: Progress
    ) -> Migration:
        found = self._look(without_columns)
        if any(one.owned for one in found) and any(
            one.is_new and one.database == "metadata" for one in found
        ):
            raise StoreCorrupt(
                f"{self._files.metadata} is empty, and {self._files.folder} has the columns of a store, whose "
                "journal it held: this is a damaged store, not a new one. Put the file back, or a backup of both: "
                f"`{self._files.command('migrate --restore')}`",
                path=self._files.metadata,
            )
        due = [one for one in found if one.steps]
        standing = backups.list_backups(self._files) if due else []
        # Of a run that was cut off: what is there now is between two schemas, and worth no backup.
        begun = standing[0] if standing and standing[0].began({f.database: f.before for f in found}) else None
        wanted = backup and begun is None and self._settings.migration_backups > 0
        wanted = wanted and any(not one.is_new for one in due)
        needed = self._needed(found, wanted) if due else {}
        metadata = next((one for one in found if one.database == "metadata"), None)
        report = Migration(
            tuple(self._version(one, one.before) for one in found),
            tuple(step for one in due for step in one.steps),
            needed_bytes=sum(needed.values()),
            free_bytes=shutil.disk_usage(self._files.folder).free,
            records_waiting=metadata.pointers if metadata is not None and self._to == HEAD else 0,
        )
        adopts = report.restores or any(one.noted for one in found)
        if check or not (due or adopts):
            return report
        if due and any(not one.is_new for one in found):
            _refuse_read_only(due)
            if any(one.database == "metadata" and not one.is_new for one in due):
                sqlite.wait_until_unused(self._files.metadata, self._settings.lease_timeout_s)
            backups.discard_unfinished(self._files)
            if not force:
                self._refuse_full_disk(needed)
        total = sum(one.size_bytes for one in due for _ in one.steps)
        total += sum(one.backup_bytes for one in found) if wanted else 0
        total += self._columns_bytes(found) if adopts else 0
        done = 0

        def tell(piece: int) -> None:
            nonlocal done
            done = min(total, done + piece)
            progress(done, total)

        if wanted:
            begun = self._back_up([one for one in found if not one.is_new], tell)
        try:
            databases = tuple(self._version(one, self._upgrade(one, tell)) for one in found)
        except HoldfastError as error:
            if begun is not None:
                error.add_note(
                    f"each database is at a whole revision; the backup from before is {begun.folder}, and "
                    f"`{self._files.command('migrate --restore')}` puts it back"
                )
            raise
        report = replace(
            report,
            databases=databases,
            backup=begun.folder if begun is not None and due else None,
            nan_points=sum(one.nan_points for one in found),
        )
        if adopts:
            report = self._adopted(report, found, tell, lenient=without_columns)
        progress(total, total)
        return report

    # --- looking ------------------------------------------------------------------------------------------

    def _look(self, without_columns: bool) -> list[_Found]:
        found = []
        for database in DATABASES:
            target = in_store(database, self._files)
            if not target.path.exists():
                continue
            try:
                found.append(self._looked_at(target))
            except EngineMissing as missing:
                if not without_columns:
                    raise
                log.warning("the columns stay at their schema: %s", missing)
        return found

    def _looked_at(self, target: Target) -> _Found:
        backend = backend_of(target, self._files, self._settings, self._clock)
        with (
            opened(target, backend, self._settings, looking=True) as engine,
            typed(target, backend),
            engine.connect().execution_options(**sqlite.READ) as connection,
        ):
            before = version_of(connection, target.path)
            if compare(before) is Standing.TOO_NEW:
                raise too_new(before, target.path)
            rows = {} if before == self._to else rows_of(connection)
            if rows and before is None:
                migrate.require_legacy_shape(connection, target.path)
            noted, pointers = False, 0
            owned = target.database == "timeseries" and ColumnsStateRepository(connection).owner() is not None
            if target.database == "metadata" and (before == HEAD or "buffered_records" in rows):
                found_pointers = PointerRepository(connection)
                noted = before == HEAD and found_pointers.noted()
                pointers = found_pointers.count() if noted or before != HEAD else 0
        size_bytes = target.path.stat().st_size + (
            sqlite.log_bytes(target.path) if backend is None else backend.log_bytes()
        )
        found = _Found(target, backend, before, before is None and not rows, size_bytes)
        found.noted, found.pointers, found.owned = noted, pointers, owned
        if before is not None and REVISIONS.index(before) > REVISIONS.index(self._to):
            raise InvalidSettings(
                f"{target.path} is at {before} already, and a migration goes up to a revision; `alembic downgrade "
                f"{self._to}` takes one back, `{self._files.command('migrate --restore')}` puts the backup back",
                path=target.path,
            )
        if before != self._to:
            for step in migrate.steps(found.database, before, self._to):
                touched = sum(
                    rows.values() if step.rewrites is None else [rows.get(t, 0) for t in step.rewrites]
                )
                rewrites = step.rewrites is None or bool(step.rewrites)
                needed = int(size_bytes * REWRITE_FACTOR[target.engine]) if rewrites else 0
                found.steps.append(PlannedStep(found.database, step.revision, step.title, touched, needed))
        return found

    def _needed(self, found: list[_Found], backup: bool) -> dict[Path, int]:
        """Say how many bytes each file system must have free, by a folder that is on it."""
        wanted = [(self._files.folder, HEADROOM_BYTES)]
        for one in found:
            if backup:
                wanted.append((self._files.folder, one.backup_bytes))
            if one.database == "metadata" and one.steps:
                wanted.append((one.target.path.parent, one.pointers * _POINTER_BYTES))
            # Blocks that one step has let go of, the next one uses.
            wanted.append((one.target.path.parent, max((s.needed_bytes for s in one.steps), default=0)))
        return by_disk(wanted)

    def _refuse_full_disk(self, needed: dict[Path, int]) -> None:
        for folder, needed_bytes in needed.items():
            free_bytes = shutil.disk_usage(folder).free
            if free_bytes < needed_bytes:
                raise StoreFull(
                    f"migrating the store may take {needed_bytes:,} bytes in {folder}, and {free_bytes:,} are free; "
                    "nothing was changed. Free some space and try again; "
                    f"`{self._files.command('migrate --no-backup')}` needs less, `--force` tries it all the same",
                    path=folder,
                )

    # --- doing --------------------------------------------------------------------------------------------

    def _back_up(self, found: list[_Found], tell: Callable[[int], object]) -> Backup:
        for one in found:
            if one.backend is not None and one.target.engine == "duckdb" and one.backend.log_bytes():
                with (
                    opened(one.target, one.backend, self._settings) as engine,
                    typed(one.target, one.backend),
                ):
                    one.backend.checkpoint(engine)
        made = backups.make(
            self._files,
            [(one.database, one.target.engine, one.target.path, one.before) for one in found],
            self._to,
            self._clock(),
            tell,
        )
        backups.keep(self._files, self._settings.migration_backups)
        log.info("a backup of both databases stands in %s", made.folder)
        return made

    def _upgrade(self, one: _Found, tell: Callable[[int], object]) -> str | None:
        at = one.before
        # A new database goes up at one go: there is nothing to be given back between.
        for step in one.steps[-1:] if one.is_new else one.steps:
            log.info(
                "revision %s on %s: %s rows (%s)",
                step.revision,
                one.target.path,
                f"{step.rows:,}",
                step.title,
            )
            # Closed after each: what a revision has let go of is given back before the next one begins.
            with opened(one.target, one.backend, self._settings) as engine:
                told: dict[str, int] = {}
                at = migrate.upgrade(
                    engine, one.database, step.revision, path=one.target.path, told=told
                ).after
                one.nan_points += told.get("nan_points", 0)
                if one.target.engine == "sqlite":
                    sqlite.fold_wal(engine)
            tell(one.size_bytes)
        return at

    # --- records of the legacy program ------------------------------------------------------------------------

    def _adopted(
        self, report: Migration, found: list[_Found], tell: Callable[[int], object], *, lenient: bool
    ) -> Migration:
        """Restore the records that were kept with a point only, and say how many; where `lenient`, later will do."""
        by_name = {one.database: one for one in found}
        if "timeseries" not in by_name:
            return report
        size_bytes = by_name["timeseries"].size_bytes
        told = 0

        def tell_points(done: int, total: int) -> None:
            nonlocal told
            now = size_bytes * done // max(1, total)
            tell(now - told)
            told = now

        try:
            restored = self._restore(by_name["metadata"], by_name["timeseries"], tell_points)
        except HoldfastError as error:
            if not lenient:
                raise
            log.warning("records of the legacy program wait until their data is restored: %s", error)
            return report
        if restored.orphans:
            log.warning(
                "%s records of %s were kept with a point only, and no point has their data; they stay as they are",
                f"{restored.orphans:,}",
                self._files.metadata,
            )
        if restored.records:
            log.info("%s records have their data back from their points", f"{restored.records:,}")
        return replace(
            report,
            records_restored=restored.records,
            records_without_original=restored.orphans,
            records_waiting=0,
        )

    def _restore(self, metadata: _Found, columns: _Found, progress: Callable[[int, int], object]) -> Restored:
        assert columns.backend is not None
        with (
            opened(columns.target, columns.backend, self._settings) as points,
            opened(metadata.target, None, self._settings) as records,
            typed_errors(columns.backend, SQLiteBackend(metadata.target.path, self._settings)),
            points.connect().execution_options(**sqlite.READ) as read,
        ):
            with records.begin() as changed:
                # Another process may have been quicker.
                noted = PointerRepository(changed).noted()
                restored = restore_records(changed, read, progress) if noted else Restored(0, 0)
            sqlite.fold_wal(records)
        return restored

    def _columns_bytes(self, found: list[_Found]) -> int:
        return sum(one.size_bytes for one in found if one.database == "timeseries")

    def _version(self, one: _Found, after: str | None) -> DatabaseVersion:
        return DatabaseVersion(
            one.target.database, one.target.engine, str(one.target.path), one.before, after
        )


def _refuse_read_only(due: list[_Found]) -> None:
    """Raise before the first change if one of the files cannot be changed: the other would be at the head alone."""
    for one in due:
        if not os.access(one.target.path, os.W_OK):
            raise denied(one.target.path, "it is not writable here", "nothing was changed")
