"""`compact`: sorts the points on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from repo.commands.global_options import global_options, store_argument
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.commands.texts import size_text
from repo.engines.registry import ENGINES
from repo.errors import counted

if TYPE_CHECKING:
    from repo.upkeep.compact import Compacted

__all__ = ["compact"]


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be sorted; sort nothing.")
@store_argument
@global_options
@click.pass_obj
def compact(session: Session, dry_run: bool) -> None:
    """Sort the points on disk by series and time, which makes queries faster.

    Queries of one series then read little else. Points are sorted in slices of about a million; what is sorted already
    is left alone. Applications can keep writing and reading: they wait at most about a second for a slice. If the
    command is killed, each slice is as it was, or sorted.

    A store that an application has open does this by itself (setting compact_background). Run it after loading much
    data, or if no application has the store open for long. The file does not get smaller; cleanup --shrink, afterwards,
    returns free space to the disk. On SQLite there is nothing to do.

    \b
    JSON: {"dry_run", "engine", "sorted_by_key": true on SQLite, "through": seq,
    "sorted_slices", "sorted_points", "noted_slices", "noted_points": arrived
    sorted, "skipped_slices", "skipped_points": texts too large to be sorted
    within the memory limit, "columns_before_bytes", "columns_after_bytes"}
    """
    with session.opened(read_only=dry_run) as store, session.progress("compacting") as show:
        done = store.compact(dry_run=dry_run, progress=show)
    if session.as_json:
        print_json(done.as_dict())
    else:
        for line in _lines(done):
            session.say(line)


def _lines(done: Compacted) -> list[str]:
    would = "would be " if done.dry_run else ""
    lines = [
        f"{counted(points, 'point')} in {counted(slices, 'slice')} {what}"
        for slices, points, what in (
            (done.sorted_slices, done.sorted_points, f"{would}sorted"),
            (done.noted_slices, done.noted_points, "arrived sorted"),
            (
                done.skipped_slices,
                done.skipped_points,
                "left as they are: their texts are too large to be sorted",
            ),
        )
        if slices
    ]
    if not lines:
        title = ENGINES[done.engine].title
        why = f"{title} keeps the points sorted" if done.sorted_by_key else "all points are sorted"
        return [f"there is nothing to do: {why}"]
    if done.sorted_slices and not done.dry_run:
        before, after = size_text(done.columns_before_bytes), size_text(done.columns_after_bytes)
        lines.append(f"the column file has {after}, {before} before")
    return lines
