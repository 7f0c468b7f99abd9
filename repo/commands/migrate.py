"""`migrate`: bringing a store's schema to this program's version, and putting the backup back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from repo.commands.exits import Exit
from repo.commands.output import print_json
from repo.commands.session import Session, json_option
from repo.errors import counted

if TYPE_CHECKING:
    from repo.schema.upgrade import Migration

__all__ = ["migrate", "show"]


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 5 if a migration is due.")
@click.option("--to", metavar="REVISION", help="Stop at this revision.")
@click.option("--dry-run", is_flag=True, help="Show the steps, rows and bytes needed; change nothing.")
@click.option("--no-backup", is_flag=True, help="Do not back up the databases first.")
@click.option("--force", is_flag=True, help="Proceed even if the disk may be too small.")
@click.option("--restore", is_flag=True, help="Restore the newest backup; later writes are lost.")
@click.option("-y", "--yes", is_flag=True, help="With --restore, do not ask for confirmation.")
@json_option
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
    JSON: {"path", "head", "outdated": true if something is still due, "databases": [{"database": "metadata"
    or "timeseries", "engine", "file", "before": revision or null, "after"}], "steps": [{"database", "revision",
    "title", "rows": those it touches, "needed_bytes"}], "needed_bytes": for backup and steps together,
    "free_bytes", "backup": its folder, or null, "nan_points": points that held NaN and have no reading now,
    "outside_points": points outside of the years 1678 to 2261, which are kept,
    "records_restored": records of the legacy program that have their data back from their points,
    "records_without_original": those that stay as they are, for no point has it, "records_waiting": those that are
    still to be restored}; with --restore {"path", "restored": the backup's folder,
    "made_us", "databases": [{"database", "engine", "name", "revision", "size_bytes",
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
    looks = check or dry_run
    files = session.files(looks=looks)
    if looks:
        done = migrate_store(files, to=goal, check=True, backup=not no_backup)
    else:
        with session.progress("migrating") as tell:
            done = migrate_store(files, to=goal, backup=not no_backup, force=force, progress=tell)
    show(session, done, goal, steps=dry_run)
    if check and (done.restores or any(database.after != goal for database in done.databases)):
        raise click.exceptions.Exit(Exit.SCHEMA)


def show(session: Session, done: Migration, goal: str, *, steps: bool) -> None:
    """Print what a migration to the revision `goal` did, or would do, as JSON or, with its `steps`, for people."""
    if session.as_json:
        print_json(done.as_dict())
    else:
        _tell(session, done, goal, steps=steps)
    if done.records_waiting and not done.restores:
        session.note(
            f"warning: {session.files().folder} has no time-series file, and the data of "
            f"{counted(done.records_waiting, 'record')} is in one; where it lies elsewhere, set "
            "DUCKDB_STORAGE_PATH to it and run this again before new points are written"
        )


def _tell(session: Session, done: Migration, goal: str, *, steps: bool) -> None:
    for database in done.databases:
        before, after = database.before or "none", database.after or "none"
        step = f"{before} -> {after}" if before != after else f"at {after}"
        due = "" if after == goal else f", {goal} is due"
        session.say(f"{database.database:<12}{step}{due}  ({database.file})")
    for name, count, what in (
        ("points", done.nan_points, "held NaN, and have no reading now"),
        ("points", done.outside_points, "lie outside of the years 1678 to 2261, and are kept"),
        ("records", done.records_restored, "of the legacy program have their data back from their points"),
        ("records", done.records_without_original, "stay as they are: no point has their data"),
        ("records", done.records_waiting, "are to be given their data back from their points"),
    ):
        if count:
            session.say(f"{name:<12}{count:,} {what}")
    if steps and done.steps:
        for planned in done.steps:
            session.say(
                f"{planned.database:<12}{planned.revision}: {planned.title}; {counted(planned.rows, 'row')} touched, "
                f"{planned.needed_bytes:,} bytes needed"
            )
        session.say(
            f"{'disk':<12}{done.needed_bytes:,} bytes needed in all, {done.free_bytes:,} are free; nothing was changed"
        )
    if done.backup is not None:
        session.say(f"{'backup':<12}{done.backup}")


def _restore(session: Session, *, yes: bool) -> None:
    from repo.schema.backup import list_backups
    from repo.schema.restore import restore_store
    from repo.times import to_datetime

    if session.as_json and not yes:
        raise click.UsageError("--json does not ask: add -y")
    files = session.files()
    if not yes:
        standing = list_backups(files)
        if standing:
            when = to_datetime(standing[0].made_us).strftime("%Y-%m-%d %H:%M:%S UTC")
            click.confirm(
                f"Put back {standing[0].folder}, made {when}? Everything written to the store since is gone then",
                abort=True,
                err=True,
            )
    with session.progress("restoring") as tell:
        done = restore_store(files, progress=tell)
    if session.as_json:
        print_json(done.as_dict())
        return
    restored = done.backup
    for saved in restored.saved:
        session.say(f"{saved.database:<12}at {saved.revision or 'none'}  ({saved.name})")
    session.say(f"{'restored':<12}{restored.folder}")
