"""`migrate`: upgrades a store's schema to this program's version, and restores its backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from repo.commands.asking import asked
from repo.commands.exits import Exit
from repo.commands.global_options import global_options, store_argument
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.commands.texts import size_text
from repo.errors import counted

if TYPE_CHECKING:
    from repo.schema.upgrade import Migration

__all__ = ["migrate", "show"]


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 5 if a migration is due.")
@click.option("--to", metavar="REVISION", help="Stop at this revision.")
@click.option("--dry-run", is_flag=True, help="Show the steps, rows and disk space needed; change nothing.")
@click.option("--no-backup", is_flag=True, help="Do not back up the databases first.")
@click.option("--force", is_flag=True, help="Proceed even if the disk may be too small.")
@click.option("--restore", is_flag=True, help="Restore the newest backup; later writes are lost.")
@click.option("-y", "--yes", is_flag=True, help="With --restore, do not ask for confirmation.")
@store_argument
@global_options
@click.pass_obj
def migrate(
    session: Session,
    check: bool,
    to: str | None,
    dry_run: bool,
    no_backup: bool,
    force: bool,
    restore: bool,
    yes: bool,
) -> None:
    """Upgrade the store's schema to this program's version.

    Backs both databases up to the store's folder `backups`, then runs each revision in one transaction. If the command
    is killed, run it again to resume from the last complete revision. No other process may have the store open. If the
    store's folder has no column file, DUCKDB_STORAGE_PATH can name one; the upgrade creates a symlink to it.

    \b
    JSON: {"path", "head", "outdated": true if an upgrade is due, "databases":
    [{"database": "metadata" or "timeseries", "engine", "file", "before": revision
    or null, "after"}], "steps": [{"database", "revision", "title", "rows": number
    affected, "needed_bytes"}], "needed_bytes": for backup and steps together,
    "free_bytes", "backup": its folder, or null, "nan_points": points that
    contained NaN and now have no reading, "outside_points": points outside the
    years 1678 to 2261, which are kept, "records_restored": records of the legacy
    program whose data was restored from their points, "records_without_original":
    those whose data no point has, "records_waiting": those still to be restored};
    with --restore {"path", "restored": the backup's folder, "made_us",
    "databases": [{"database", "engine", "name", "revision", "size_bytes",
    "sha256": of the file}]}
    """
    if restore:
        if check or dry_run or no_backup or force or to is not None:
            raise click.UsageError("--restore cannot be combined with other options, except -y and --json")
        _restore(session, yes=yes)
        return
    if yes:
        raise click.UsageError("-y is only valid with --restore")
    from repo.schema.upgrade import migrate_store
    from repo.schema.version import HEAD

    goal = HEAD if to is None else to
    read_only = check or dry_run
    files = session.files(read_only=read_only)
    if read_only:
        done = migrate_store(files, to=goal, check=True, backup=not no_backup)
    else:
        with session.progress("migrating") as progress:
            done = migrate_store(files, to=goal, backup=not no_backup, force=force, progress=progress)
    show(session, done, goal, steps=dry_run)
    if check and (done.restores or any(database.after != goal for database in done.databases)):
        raise click.exceptions.Exit(Exit.SCHEMA)


def show(session: Session, done: Migration, goal: str, *, steps: bool) -> None:
    """Print what a migration to the revision `goal` did or would do, as JSON or text; `steps` adds its steps."""
    if session.as_json:
        print_json(done.as_dict())
    else:
        _print(session, done, goal, steps=steps)
    if done.records_waiting and not done.restores:
        session.note(
            f"warning: {session.files().folder} has no time-series file, but the data of "
            f"{counted(done.records_waiting, 'record')} is in one; if the file is elsewhere, set "
            "DUCKDB_STORAGE_PATH to its path and run this again before new points are written"
        )


def _print(session: Session, done: Migration, goal: str, *, steps: bool) -> None:
    for database in done.databases:
        before, after = database.before or "none", database.after or "none"
        step = f"{before} -> {after}" if before != after else _at(database.after)
        due = "" if after == goal else f", {goal} is due"
        session.say(f"{database.database:<12}{step}{due}  ({database.file})")
    for name, count, what in (
        ("points", done.nan_points, "contained NaN and now have no reading"),
        ("points", done.outside_points, "outside the years 1678 to 2261, which are kept"),
        ("records", done.records_restored, "of the legacy program restored from their points"),
        ("records", done.records_without_original, "not restored: no point has their data"),
        ("records", done.records_waiting, "to be restored from their points"),
    ):
        if count:
            session.say(f"{name:<12}{count:,} {what}")
    if steps and done.steps:
        for planned in done.steps:
            session.say(
                f"{planned.database:<12}{planned.revision}: {planned.title}; {counted(planned.rows, 'row')} affected, "
                f"{size_text(planned.needed_bytes)} needed"
            )
        session.say(
            f"{'disk':<12}{size_text(done.needed_bytes)} needed, {size_text(done.free_bytes)} free; nothing was changed"
        )
    if done.backup is not None:
        session.say(f"{'backup':<12}{done.backup}")


def _at(revision: str | None) -> str:
    return "no revision" if revision is None else f"at {revision}"


def _restore(session: Session, *, yes: bool) -> None:
    from repo.inputs.times import to_datetime
    from repo.schema.backup import list_backups
    from repo.schema.restore import restore_store

    if session.as_json and not yes:
        raise click.UsageError("--json does not ask for confirmation; add -y")
    files = session.files()
    if not yes:
        backups = list_backups(files)
        if backups:
            when = to_datetime(backups[0].made_us).strftime("%Y-%m-%d %H:%M:%S UTC")
            asked(
                f"Restore {backups[0].folder}, made {when}? Everything written to the store since then will be lost"
            )
    with session.progress("restoring") as progress:
        done = restore_store(files, progress=progress)
    if session.as_json:
        print_json(done.as_dict())
        return
    restored = done.backup
    for saved in restored.saved:
        session.say(f"{saved.database:<12}{_at(saved.revision)}  ({saved.name})")
    session.say(f"{'restored':<12}{restored.folder}")
