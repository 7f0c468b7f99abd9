"""Planning a migration: what the databases of a store are at, which steps are due, and the room for them.

Looks only: nothing that is there is changed by a plan.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

from sqlalchemy import Connection

from repo.clock import Clock
from repo.disk import HEADROOM_BYTES, Wanted, by_disk
from repo.engines.base import Backend
from repo.engines.sqlite import driver as sqlite
from repo.errors import EngineMissing, InvalidSettings, StoreCorrupt
from repo.files import StoreFiles
from repo.repositories.pointers import PointerRepository
from repo.repositories.state import ColumnsStateRepository
from repo.schema import backup as backups
from repo.schema import runner
from repo.schema.backup import Backup
from repo.schema.counting import rows_of
from repo.schema.databases import DATABASES, REWRITE_FACTOR, Target, backend_of, in_store, opened, typed
from repo.schema.version import HEAD, REVISIONS, Standing, compare, too_new, version_of
from repo.settings import Settings

__all__ = ["DatabaseVersion", "Found", "Migration", "Plan", "PlannedStep", "Planner"]

log = logging.getLogger("holdfast.migrating")

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
class Found:
    """One database of the store as it was found, and its steps."""

    target: Target
    backend: Backend | None
    before: str | None
    is_new: bool
    """Whether nothing is in it, not even tables: there is nothing to lose."""
    size_bytes: int = 0
    """That of its file and its log."""
    steps: list[PlannedStep] = field(default_factory=list)
    noted: bool = False
    """Whether it is noted that pointers stand."""
    nan_points: int = 0
    owned: bool = False
    """Whether a store has taken these columns, so that its metadata cannot be new."""
    pointers: int = 0
    """How many records look like pointers; counted where they are noted, or may be by a step."""

    @property
    def database(self) -> runner.Database:
        """Which one it is."""
        return cast("runner.Database", self.target.database)

    def version(self, after: str | None) -> DatabaseVersion:
        """Return what to report of it, which is at `after` now."""
        return DatabaseVersion(
            self.target.database, self.target.engine, str(self.target.path), self.before, after
        )

    @property
    def backup_bytes(self) -> int:
        """What a backup of it takes."""
        return 0 if self.is_new else self.size_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done to the databases that were found."""

    found: list[Found]
    begun: Backup | None
    """The backup of a run that was cut off, which stands for this one too."""
    backs_up: bool
    wanted: list[Wanted]
    """The room for backup and steps."""
    report: Migration
    """What is reported where nothing is done."""

    @property
    def due(self) -> list[Found]:
        """Return those that have steps before them."""
        return [one for one in self.found if one.steps]

    @property
    def adopts(self) -> bool:
        """Whether records of the legacy program are to get their data back, or a note is to go."""
        return self.report.restores or any(one.noted for one in self.found)

    @property
    def is_new(self) -> bool:
        """Whether there is nothing yet that could be lost."""
        return all(one.is_new for one in self.found)

    @property
    def columns_bytes(self) -> int:
        """The size of the columns."""
        return sum(one.size_bytes for one in self.found if one.database == "timeseries")

    @property
    def total_bytes(self) -> int:
        """How many bytes a run goes through, for who watches it."""
        total = sum(one.size_bytes for one in self.due for _ in one.steps)
        total += sum(one.backup_bytes for one in self.found) if self.backs_up else 0
        return total + (self.columns_bytes if self.adopts else 0)


class Planner:
    """Looks at the databases of one store, which nobody has open; the caller holds the lease."""

    def __init__(self, files: StoreFiles, settings: Settings, clock: Clock, to: str) -> None:
        self._files = files
        self._settings = settings
        self._clock = clock
        self._to = to

    def plan(self, *, backup: bool, without_columns: bool) -> Plan:
        """Plan the way to the head, or the revision `to`; raises before anything is changed what stands in it."""
        found = self._look(without_columns)
        self._refuse_damage(found)
        due = [one for one in found if one.steps]
        standing = backups.list_backups(self._files) if due else []
        # Of a run that was cut off: what is there now is between two schemas, and worth no backup.
        begun = standing[0] if standing and standing[0].began({f.database: f.before for f in found}) else None
        backs_up = backup and begun is None and self._settings.migration_backups > 0
        backs_up = backs_up and any(not one.is_new for one in due)
        wanted = self._wanted(found, backs_up) if due else []
        pointers = sum(one.pointers for one in found if one.database == "metadata")
        report = Migration(
            tuple(one.version(one.before) for one in found),
            tuple(step for one in due for step in one.steps),
            needed_bytes=sum(by_disk(wanted).values()),
            free_bytes=shutil.disk_usage(self._files.folder).free,
            records_waiting=pointers if self._to == HEAD else 0,
        )
        return Plan(found, begun, backs_up, wanted, report)

    def _look(self, without_columns: bool) -> list[Found]:
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

    def _looked_at(self, target: Target) -> Found:
        backend = backend_of(target, self._settings, self._clock)
        with (
            opened(target, backend, self._settings, looking=True) as engine,
            typed(target, backend),
            engine.connect().execution_options(**sqlite.READ) as connection,
        ):
            found, rows = self._read(connection, target, backend)
        found.size_bytes = target.path.stat().st_size + (
            sqlite.log_bytes(target.path) if backend is None else backend.log_bytes()
        )
        before = found.before
        if before is not None and REVISIONS.index(before) > REVISIONS.index(self._to):
            raise InvalidSettings(
                f"{target.path} is at {before} already, and a migration goes up to a revision; `alembic downgrade "
                f"{self._to}` takes one back, `{self._files.command('migrate --restore')}` puts the backup back",
                path=target.path,
            )
        if before != self._to:
            found.steps = [
                self._planned(found, step, rows) for step in runner.steps(found.database, before, self._to)
            ]
        return found

    def _read(
        self, connection: Connection, target: Target, backend: Backend | None
    ) -> tuple[Found, dict[str, int]]:
        """Read what a database is at, and, where it is not at the goal, how many rows its tables have."""
        before = version_of(connection, target.path)
        if compare(before) is Standing.TOO_NEW:
            raise too_new(before, target.path)
        rows = {} if before == self._to else rows_of(connection)
        if rows and before is None:
            runner.require_legacy_shape(connection, target.path)
        found = Found(target, backend, before, before is None and not rows)
        if target.database == "timeseries":
            found.owned = ColumnsStateRepository(connection).owner() is not None
        elif before == HEAD or "buffered_records" in rows:
            records = PointerRepository(connection)
            found.noted = before == HEAD and records.noted()
            found.pointers = records.count() if found.noted or before != HEAD else 0
        return found, rows

    def _planned(self, found: Found, step: runner.Step, rows: dict[str, int]) -> PlannedStep:
        touched = sum(rows.values() if step.rewrites is None else [rows.get(t, 0) for t in step.rewrites])
        rewrites = step.rewrites is None or bool(step.rewrites)
        needed = int(found.size_bytes * REWRITE_FACTOR[found.target.engine]) if rewrites else 0
        return PlannedStep(found.database, step.revision, step.title, touched, needed)

    def _refuse_damage(self, found: list[Found]) -> None:
        owned = any(one.owned for one in found)
        if owned and any(one.is_new and one.database == "metadata" for one in found):
            raise StoreCorrupt(
                f"{self._files.metadata} is empty, and {self._files.folder} has the columns of a store, whose "
                "journal it held: this is a damaged store, not a new one. Put the file back, or a backup of both: "
                f"`{self._files.command('migrate --restore')}`",
                path=self._files.metadata,
            )

    def _wanted(self, found: list[Found], backup: bool) -> list[Wanted]:
        """Say how many bytes more may come into which folder."""
        wanted = [(self._files.folder, HEADROOM_BYTES)]
        for one in found:
            if backup:
                wanted.append((self._files.folder, one.backup_bytes))
            if one.database == "metadata" and one.steps:
                wanted.append((one.target.path.parent, one.pointers * _POINTER_BYTES))
            # Blocks that one step has let go of, the next one uses.
            wanted.append((one.target.path.parent, max((s.needed_bytes for s in one.steps), default=0)))
        return wanted
