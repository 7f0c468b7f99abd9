"""Upgrading a store: brings its existing databases to the head, under its lease. Never creates a database.

The command and the opening of a store both use it. Nothing is changed until it is certain that no other process has the
store open and that the disk has enough space, and until both databases are backed up. A kill leaves each database at a
whole revision; the next run continues there and keeps the backup made before the first change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from repo.clock import Clock, system_clock
from repo.disk.space import refuse_full_disk
from repo.engines.base import READ, typed_errors
from repo.engines.registry import ENGINES, engine_named
from repo.engines.sqlite import driver as sqlite
from repo.engines.sqlite.backend import SQLiteBackend
from repo.errors import HoldfastError, InvalidSettings, StoreMissing, counted, denied
from repo.files import StoreFiles
from repo.processes.lease import leased
from repo.repositories.pointers import PointerRepository
from repo.schema import backup as backups
from repo.schema import runner
from repo.schema.backup import Backup
from repo.schema.databases import in_pieces, opened, typed
from repo.schema.legacy_records import Restored, restore_records
from repo.schema.plan import DatabaseVersion, Found, Migration, PlannedStep, UpgradePlan, UpgradePlanner
from repo.schema.restore import finish_leased
from repo.schema.restore_files import discard_unfinished, is_restoring
from repo.schema.version import HEAD, REVISIONS
from repo.settings import Settings

__all__ = [
    "DatabaseVersion",
    "Migration",
    "PlannedStep",
    "migrate_store",
    "run",
]

log = logging.getLogger("holdfast.migrating")

Progress = Callable[[int, int], object]


def migrate_store(
    path: str | os.PathLike[str] | StoreFiles,
    *,
    to: str = HEAD,
    check: bool = False,
    backup: bool = True,
    force: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Migration:
    """Bring the databases of the store to the revision `to`; with `check`, only report what that would do.

    `path` is a path as `Store` takes it, or the store's files.

    Raises `StoreBusy` if another process does not hand over the columns, or has the metadata open; none can open the
    columns during the upgrade. Raises `StoreFull`, with nothing changed, if disk space is short (with `force`, only
    when the disk is full); `StoreMissing`, `SchemaTooNew`, `MigrationFailed` or the engine's typed error. Each database
    is then at its last completed revision. A missing file is created, at the head, when it is first needed. `progress`
    receives the bytes done and the bytes in total.
    """
    if to not in REVISIONS:
        raise InvalidSettings(f"there is no revision {to}; there are {', '.join(REVISIONS)}")
    files = path if isinstance(path, StoreFiles) else StoreFiles.of(os.path.realpath(path))
    columns = [file for file in map(files.columns, ENGINES) if file.exists()]
    if not files.metadata.exists() and not (columns and files.apart):
        alone = f"; if {columns[0].name} is the legacy program's, name it: --store FILE" if columns else ""
        raise StoreMissing(
            f"there is no store in {files.folder}; check the path, or create one: `{files.command('init')}`{alone}",
            path=files.folder,
        )
    settings = Settings.load(files.folder)
    with leased(
        files.folder, settings.lease_timeout_s, system_clock, "migrating the store", prefix=files.prefix
    ):
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
    """Do the same as `migrate_store`; the caller holds the lease and has closed both databases.

    With `without_columns`, columns whose engine is missing are skipped; they are upgraded once it is installed.
    """
    if is_restoring(files):
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
        planner = UpgradePlanner(self._files, self._settings, self._clock, self._to)
        plan = planner.plan(backup=backup, without_columns=without_columns)
        if check or not (plan.due or plan.restores_records):
            return plan.report
        if plan.due and not plan.is_new:
            self._make_sure(plan, force)
        report_bytes = in_pieces(plan.total_bytes, progress)
        begun = self._back_up(plan, report_bytes) if plan.backs_up else plan.begun
        try:
            databases = tuple(one.version(self._upgrade(one, report_bytes)) for one in plan.found)
        except HoldfastError as error:
            if begun is not None:
                error.add_note(
                    f"each database is at a whole revision; `{self._files.command('migrate --restore')}` restores "
                    f"the backup from before, {begun.folder}"
                )
            raise
        report = replace(
            plan.report,
            databases=databases,
            backup=begun.folder if begun is not None and plan.due else None,
            nan_points=sum(one.nan_points for one in plan.found),
            outside_points=sum(one.outside_points for one in plan.found),
        )
        if plan.restores_records:
            report = self._with_restored_records(report, plan.found, report_bytes, lenient=without_columns)
        progress(plan.total_bytes, plan.total_bytes)
        return report

    def _make_sure(self, plan: UpgradePlan, force: bool) -> None:
        """Raise, before the first change, whatever prevents it: permissions, another program, a full disk."""
        _refuse_read_only(plan.due)
        if any(one.database == "metadata" and not one.is_new for one in plan.due):
            sqlite.wait_until_unused(self._files.metadata, self._settings.lease_timeout_s)
        discard_unfinished(self._files)
        if not force:
            refuse_full_disk(
                plan.wanted,
                "migrating the store",
                "nothing was changed. Free some space and try again; "
                f"`{self._files.command('migrate --no-backup')}` needs less, `--force` tries anyway",
            )

    def _back_up(self, plan: UpgradePlan, report_bytes: Callable[[int], object]) -> Backup:
        found = [one for one in plan.found if not one.is_new]
        for one in found:
            copies_log = engine_named(one.target.engine).copy is not None
            if one.backend is not None and not copies_log and one.backend.log_bytes():
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
            report_bytes,
        )
        backups.keep(self._files, self._settings.migration_backups)
        log.info("both databases are backed up in %s", made.folder)
        return made

    def _upgrade(self, one: Found, report_bytes: Callable[[int], object]) -> str | None:
        # A new database is upgraded in one step: there is no space to reclaim in between.
        steps = one.steps[-1:] if one.is_new else one.steps
        if not steps:
            return one.before
        with opened(one.target, one.backend, self._settings) as engine:
            for step in steps:
                log.log(
                    logging.DEBUG if one.is_new else logging.INFO,
                    "revision %s on %s: %s (%s)",
                    step.revision,
                    one.target.path,
                    counted(step.rows, "row"),
                    step.title,
                )
                counts: dict[str, int] = {}
                at = runner.upgrade(
                    engine, one.database, step.revision, path=one.target.path, counts=counts
                ).after
                one.nan_points += counts.get("nan_points", 0)
                one.outside_points += counts.get("outside_points", 0)
                # After each step, so that the next one reuses the space that it freed.
                with runner.typed_errors(engine, one.target.path):
                    engine_named(one.target.engine).traits().checkpoint_log(engine)
                report_bytes(one.size_bytes)
        return at

    # --- records of the legacy program ------------------------------------------------------------------------

    def _with_restored_records(
        self, report: Migration, found: list[Found], report_bytes: Callable[[int], object], *, lenient: bool
    ) -> Migration:
        """Restore records that are stored only as pointers, and report them; if `lenient`, errors are only logged."""
        by_name = {one.database: one for one in found}
        if "timeseries" not in by_name:
            return report
        size_bytes = by_name["timeseries"].size_bytes
        reported = 0

        def report_points(done: int, total: int) -> None:
            nonlocal reported
            now = size_bytes * done // max(1, total)
            report_bytes(now - reported)
            reported = now

        try:
            restored = self._restore(by_name["metadata"], by_name["timeseries"], report_points)
        except HoldfastError as error:
            if not lenient:
                raise
            log.warning("records of the legacy program wait until their data is restored: %s", error)
            return report
        if restored.orphans:
            log.warning(
                "%s of %s stored only as a pointer, and no point has the data; left unchanged",
                counted(restored.orphans, "record"),
                self._files.metadata,
            )
        if restored.records:
            log.info("restored the data of %s from the points", counted(restored.records, "record"))
        return replace(
            report,
            records_restored=restored.records,
            records_without_original=restored.orphans,
            records_waiting=0,
        )

    def _restore(self, metadata: Found, columns: Found, progress: Callable[[int, int], object]) -> Restored:
        assert columns.backend is not None
        with (
            opened(columns.target, columns.backend, self._settings) as points,
            opened(metadata.target, None, self._settings) as records,
            typed_errors(columns.backend, SQLiteBackend(metadata.target.path, self._settings)),
            points.connect().execution_options(**READ) as read,
        ):
            with records.begin() as changed:
                # Another process may have done it first.
                noted = PointerRepository(changed).noted()
                restored = restore_records(changed, read, progress) if noted else Restored(0, 0)
            sqlite.checkpoint_wal(records)
        return restored


def _refuse_read_only(due: list[Found]) -> None:
    """Raise, before the first change, if a file is read-only: otherwise only the other one would be upgraded."""
    for one in due:
        if not os.access(one.target.path, os.W_OK):
            raise denied(one.target.path, "it is not writable here", "nothing was changed")
