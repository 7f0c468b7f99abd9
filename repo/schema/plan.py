"""Planning a migration: the revisions of a store's databases, the steps that are due, and the disk space they need.

Planning reads only; it changes nothing.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection

from repo.clock import Clock
from repo.disk.space import HEADROOM_BYTES, Wanted, by_disk
from repo.engines.base import READ, Backend
from repo.engines.registry import engine_named
from repo.engines.sqlite import driver as sqlite
from repo.errors import EngineMissing, InvalidSettings, StoreCorrupt
from repo.files import StoreFiles
from repo.repositories.pointers import NOTING, PointerRepository
from repo.repositories.state import ColumnsStateRepository
from repo.schema import backup as backups
from repo.schema import runner
from repo.schema.backup import Backup
from repo.schema.counting import rows_of
from repo.schema.databases import DATABASES, Target, backend_of, in_store, opened, typed
from repo.schema.version import HEAD, REVISIONS, VersionStatus, compare, too_new, version_of
from repo.settings import Settings

__all__ = ["DatabaseVersion", "Found", "Migration", "PlannedStep", "UpgradePlan", "UpgradePlanner"]

log = logging.getLogger("holdfast.migrating")

_POINTER_BYTES = 1_000
"""The bytes that restoring a record may take, in SQLite's WAL and file; about 300 were measured."""


class DatabaseVersion(NamedTuple):
    """One database of a store, and its revision before and after; None if no migration has run."""

    database: str
    engine: str
    file: str
    before: str | None
    after: str | None


class PlannedStep(NamedTuple):
    """One revision on one database: the rows that it touches, and the extra bytes that it may need while it runs."""

    database: str
    revision: str
    title: str
    rows: int
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did, or would do."""

    path: str
    """The store."""
    databases: tuple[DatabaseVersion, ...]
    steps: tuple[PlannedStep, ...] = ()
    backup: Path | None = None
    """The folder of the backup made before the first change, by this run or by an interrupted one."""
    needed_bytes: int = 0
    """The bytes that must be free for the backup and the steps together."""
    free_bytes: int = 0
    nan_points: int = 0
    """Points in which the legacy program had stored NaN, and that now have no reading (NULL)."""
    outside_points: int = 0
    """Points whose times are outside the years 1678 to 2261, usually because of a wrong unit; they are kept."""
    records_restored: int = 0
    """Records of the legacy program that were stored only as pointers, and whose data is restored now."""
    records_without_original: int = 0
    """Records whose data no point has; they stay unchanged."""
    records_waiting: int = 0
    """Records still to be restored, because this was a check only, or the columns cannot be read yet."""

    @property
    def restores(self) -> bool:
        """Whether a run would restore records; that needs columns to restore them from."""
        return bool(self.records_waiting) and any(one.database == "timeseries" for one in self.databases)

    @property
    def outdated(self) -> bool:
        """Whether something is still due."""
        return self.restores or any(one.after != HEAD for one in self.databases)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json migrate`."""
        return {
            "path": self.path,
            "head": HEAD,
            "outdated": self.outdated,
            **asdict(self),
            "databases": [one._asdict() for one in self.databases],
            "steps": [one._asdict() for one in self.steps],
            "backup": None if self.backup is None else str(self.backup),
        }


@dataclass(slots=True)
class Found:
    """One database of the store in its current state, and its steps."""

    target: Target
    backend: Backend | None
    before: str | None
    is_new: bool
    """Whether it is empty, without even tables, so that there is nothing to lose."""
    size_bytes: int = 0
    """The size of its file and its log."""
    steps: list[PlannedStep] = field(default_factory=list)
    noted: bool = False
    """Whether there is a note that pointers remain."""
    nan_points: int = 0
    outside_points: int = 0
    owned: bool = False
    """Whether these columns belong to a store already, so that its metadata cannot be new."""
    pointers: int = 0
    """How many records look like pointers; counted if the note exists or a step may write it."""

    @property
    def database(self) -> runner.Database:
        """Which one it is."""
        return cast("runner.Database", self.target.database)

    def version(self, after: str | None) -> DatabaseVersion:
        """Return its entry in the report; `after` is its revision now."""
        return DatabaseVersion(
            self.target.database, self.target.engine, str(self.target.path), self.before, after
        )

    @property
    def backup_bytes(self) -> int:
        """The size of a backup of it."""
        return 0 if self.is_new else self.size_bytes


@dataclass(frozen=True, slots=True)
class UpgradePlan:
    """The steps for the databases of a store."""

    found: list[Found]
    begun: Backup | None
    """The backup of an interrupted run, which serves for this one too."""
    backs_up: bool
    wanted: list[Wanted]
    """The disk space for backup and steps."""
    report: Migration
    """The report if nothing is done."""

    @property
    def due(self) -> list[Found]:
        """Return the databases with pending steps."""
        return [one for one in self.found if one.steps]

    @property
    def restores_records(self) -> bool:
        """Whether data of legacy records is to be restored, or the note about them removed."""
        return self.report.restores or any(one.noted for one in self.found)

    @property
    def is_new(self) -> bool:
        """Whether there is no data yet that could be lost."""
        return all(one.is_new for one in self.found)

    @property
    def columns_bytes(self) -> int:
        """The size of the columns."""
        return sum(one.size_bytes for one in self.found if one.database == "timeseries")

    @property
    def total_bytes(self) -> int:
        """The bytes that a run processes, for the progress."""
        total = sum(one.size_bytes for one in self.due for _ in one.steps)
        total += sum(one.backup_bytes for one in self.found) if self.backs_up else 0
        return total + (self.columns_bytes if self.restores_records else 0)


class UpgradePlanner:
    """Inspects the databases of one store, which no process has open; the caller holds the lease."""

    def __init__(self, files: StoreFiles, settings: Settings, clock: Clock, to: str) -> None:
        self._files = files
        self._settings = settings
        self._clock = clock
        self._to = to

    def plan(self, *, backup: bool, without_columns: bool) -> UpgradePlan:
        """Plan the upgrade to the target revision; raises whatever prevents it, before anything is changed."""
        found = self._found(without_columns)
        self._refuse_damage(found)
        due = [one for one in found if one.steps]
        existing = backups.list_backups(self._files) if due else []
        # From an interrupted run. The current state is between two schemas and not worth a backup.
        begun = existing[0] if existing and existing[0].began({f.database: f.before for f in found}) else None
        backs_up = backup and begun is None and self._settings.migration_backups > 0
        backs_up = backs_up and any(not one.is_new for one in due)
        wanted = self._wanted(found, backs_up) if due else []
        pointers = sum(one.pointers for one in found if one.database == "metadata")
        report = Migration(
            str(self._files.path),
            tuple(one.version(one.before) for one in found),
            tuple(step for one in due for step in one.steps),
            needed_bytes=sum(by_disk(wanted).values()),
            free_bytes=shutil.disk_usage(self._files.folder).free,
            records_waiting=pointers if self._to == HEAD else 0,
        )
        return UpgradePlan(found, begun, backs_up, wanted, report)

    def _found(self, without_columns: bool) -> list[Found]:
        found = []
        for database in DATABASES:
            target = in_store(database, self._files)
            if not target.path.exists():
                continue
            try:
                found.append(self._inspected(target))
            except EngineMissing as missing:
                if not without_columns:
                    raise
                log.warning("the columns keep their schema version: %s", missing)
        return found

    def _inspected(self, target: Target) -> Found:
        backend = backend_of(target, self._settings, self._clock)
        with (
            opened(target, backend, self._settings, read_only=True) as engine,
            typed(target, backend),
            engine.connect().execution_options(**READ) as connection,
        ):
            found, rows, due = self._read(connection, target, backend)
        found.size_bytes = target.path.stat().st_size + (
            sqlite.log_bytes(target.path) if backend is None else backend.log_bytes()
        )
        before = found.before
        if before is not None and REVISIONS.index(before) > REVISIONS.index(self._to):
            raise InvalidSettings(
                f"{target.path} is already at {before}, and migrations only upgrade; `alembic downgrade {self._to}` "
                f"downgrades one database, `{self._files.command('migrate --restore')}` restores the backup",
                path=target.path,
            )
        found.steps = [self._planned(found, step, rows) for step in due]
        return found

    def _read(
        self, connection: Connection, target: Target, backend: Backend | None
    ) -> tuple[Found, dict[str, int], list[runner.MigrationStep]]:
        """Read the revision of a database and, below the target, the number of rows of its tables and its steps."""
        before = version_of(connection, target.path)
        if compare(before) is VersionStatus.TOO_NEW:
            raise too_new(before, target.path)
        rows = {} if before == self._to else rows_of(connection)
        if rows and before is None:
            runner.require_legacy_shape(connection, target.path)
        found = Found(target, backend, before, before is None and not rows)
        if target.database == "timeseries":
            found.owned = ColumnsStateRepository(connection).owner() is not None
        elif before is not None or "buffered_records" in rows:
            records = PointerRepository(connection)
            may_be_noted = before is not None and before >= NOTING
            found.noted = may_be_noted and records.noted()
            found.pointers = records.count() if found.noted or not may_be_noted else 0
        return found, rows, runner.steps(connection, found.database, before, self._to)

    def _planned(self, found: Found, step: runner.MigrationStep, rows: dict[str, int]) -> PlannedStep:
        touched = sum(rows.values() if step.rewrites is None else [rows.get(t, 0) for t in step.rewrites])
        rewrites = step.rewrites is None or bool(step.rewrites)
        needed = int(found.size_bytes * engine_named(found.target.engine).rewrite_factor) if rewrites else 0
        return PlannedStep(found.database, step.revision, step.title, touched, needed)

    def _refuse_damage(self, found: list[Found]) -> None:
        owned = any(one.owned for one in found)
        if owned and any(one.is_new and one.database == "metadata" for one in found):
            raise StoreCorrupt(
                f"{self._files.metadata} is empty, but {self._files.folder} has the columns of a store, whose journal "
                "was in that file: this is a damaged store, not a new one. Restore the file, or a backup of both: "
                f"`{self._files.command('migrate --restore')}`",
                path=self._files.metadata,
            )

    def _wanted(self, found: list[Found], backup: bool) -> list[Wanted]:
        """Return the extra bytes that each folder may need."""
        wanted = [(self._files.folder, HEADROOM_BYTES)]
        for one in found:
            if backup:
                wanted.append((self._files.folder, one.backup_bytes))
            if one.database == "metadata" and one.steps:
                wanted.append((one.target.path.parent, one.pointers * _POINTER_BYTES))
            # A step reuses the blocks that the step before it freed.
            wanted.append((one.target.path.parent, max((s.needed_bytes for s in one.steps), default=0)))
        return wanted
