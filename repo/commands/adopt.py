"""`adopt`: creates a new store from an old one, which it does not modify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from repo.commands.global_options import output_options
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.commands.texts import size_text
from repo.errors import counted

if TYPE_CHECKING:
    from repo.schema.adopt import Adoption

__all__ = ["adopt"]


@click.command()
@click.argument("old", type=click.Path(file_okay=False, path_type=Path))
@click.argument("new", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--timeseries",
    metavar="FILE",
    envvar="DUCKDB_STORAGE_PATH",
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The time-series file of OLD, if it is outside that folder.",
)
@click.option("--dry-run", is_flag=True, help="Show the steps, rows and disk space needed; create nothing.")
@click.option("--force", is_flag=True, help="Proceed even if the disk may be too small.")
@output_options
@click.pass_obj
def adopt(
    session: Session, old: Path, new: Path, timeseries: Path | None, dry_run: bool, force: bool
) -> None:
    """Create the store NEW from a copy of the store OLD.

    OLD is a folder of the legacy program or of an older version of this one. It is not modified. NEW must not exist, or
    must be empty. The copy is upgraded and checked beside NEW, then renamed: if the command is killed, NEW is either
    complete or absent, and you can run it again. No program may have OLD open. --dry-run makes the copy, inspects it,
    and removes it, so it needs the same space.

    \b
    JSON: {"old", "new", "made": false with --dry-run, "records", "points",
    "copied_bytes", "needed_bytes": for the copy and its migration, "free_bytes"},
    and from the JSON of `migrate`: "databases", "steps", "nan_points",
    "outside_points", "records_restored", "records_without_original",
    "records_waiting"
    """
    from repo.schema.adopt import adopt_store

    with session.progress("adopting") as show:
        done = adopt_store(old, new, columns=timeseries, dry_run=dry_run, force=force, progress=show)
    if session.as_json:
        print_json(done.as_dict())
    else:
        _print(session, done)


def _print(session: Session, done: Adoption) -> None:
    migration = done.migration
    if not done.made:
        for step in migration.steps:
            session.say(
                f"{step.database:<12}{step.revision}: {step.title}; {counted(step.rows, 'row')} affected"
            )
        if migration.records_waiting:
            session.say(f"{'records':<12}{migration.records_waiting:,} to be restored from their points")
        session.say(
            f"{'disk':<12}{size_text(done.needed_bytes)} needed, {size_text(done.free_bytes)} free; {done.new} was not "
            "created"
        )
        return
    for database in migration.databases:
        session.say(f"{database.database:<12}{database.before or 'none'} -> {database.after}")
    for name, count, what in (
        ("points", done.points, "copied"),
        ("points", migration.nan_points, "contained NaN and now have no reading"),
        ("points", migration.outside_points, "outside the years 1678 to 2261, which are kept"),
        ("records", done.records, "copied"),
        ("records", migration.records_restored, "restored from their points"),
        ("records", migration.records_without_original, "not restored: no point has their data"),
    ):
        if count or what == "copied":
            session.say(f"{name:<12}{count:,} {what}")
    session.say(f"{'store':<12}{done.new} was created; {done.old} is unchanged")
