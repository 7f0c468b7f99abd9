"""`cleanup`: deletes points and pending records, and returns free space to the disk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from repo.clock import system_clock
from repo.commands.asking import asked, check_asking
from repo.commands.global_options import global_options, store_argument
from repo.commands.options import bounds, iso, iso_second, names_hint, names_of, naming, series_names, zone_of
from repo.commands.output import print_json, write_rows
from repo.commands.session import Session
from repo.commands.texts import size_text
from repo.errors import HoldfastError, counted
from repo.inputs.time_texts import before_us
from repo.inputs.times import to_datetime

if TYPE_CHECKING:
    from repo import Store
    from repo.queries.counts import SeriesExtent
    from repo.repositories.records import RecordExtent
    from repo.upkeep.cleanup import Cleaned
    from repo.upkeep.shrink import Shrunk

__all__ = ["cleanup"]

_SHOWN_ROWS = 20


@click.command()
@click.option(
    "--older-than", metavar="SPAN", help="Only data older than SPAN (90d, 12h, 3mo); replaces --end."
)
@click.option("--start", metavar="TIME", help="Start of the range, inclusive.")
@click.option("--end", metavar="TIME", help="End of the range, exclusive.")
@click.option(
    "--tz", metavar="ZONE", default="UTC", show_default=True, help="Time zone of --start and --end."
)
@click.option(
    "--sensor", "sensors", metavar="NAME", multiple=True, help="Points of this sensor; may be a quoted glob."
)
@click.option(
    "--metric", "metrics", metavar="NAME", multiple=True, help="Points of this metric; may be a quoted glob."
)
@click.option("--points", is_flag=True, help="Delete points (the default unless a record option is given).")
@click.option("--records", is_flag=True, help="Delete pending records.")
@click.option(
    "--source", "sources", metavar="NAME", multiple=True, help="Records of this source; may be a quoted glob."
)
@click.option(
    "--failed",
    metavar="TIMES",
    type=click.IntRange(min=1),
    help="Records that failed at least this many times.",
)
@click.option("--all", "everything", is_flag=True, help="All points, or with --records all records.")
@click.option("--even-unsent", is_flag=True, help="Also points that a sink with a hold has not confirmed.")
@click.option("--shrink", is_flag=True, help="Return free space to the disk; also works alone.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted; delete nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@store_argument
@global_options
@click.pass_obj
def cleanup(
    session: Session,
    older_than: str | None,
    start: str | None,
    end: str | None,
    tz: str,
    sensors: tuple[str, ...],
    metrics: tuple[str, ...],
    points: bool,
    records: bool,
    sources: tuple[str, ...],
    failed: int | None,
    everything: bool,
    even_unsent: bool,
    shrink: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete points and pending records, and return free space to the disk.

    Select points by time, --sensor and --metric; select records by time, --source and --failed. The command shows what
    it would delete (and, if there are sinks, how much of it is unsent), then asks; -y skips the question. Points that
    a sink with a hold has not confirmed are kept, unless --even-unsent is given. The loss ledger records deletions.

    Deleting frees space inside the files for new data. --shrink also makes the files smaller: it rewrites them, which
    needs free disk space and makes reads wait. It states the space needed and refuses if it is not available.

    To be able to restore points with `holdfast import`, run `holdfast export` first.

    \b
    JSON (with -y or --dry-run): {"dry_run", "points": number, or null if another
    process holds the columns and they are deleted later, "unsent_points": not
    confirmed by every sink, null without sinks, "held_points": selected and kept
    for sinks, null if unknown, "held_by": [sinks], "records", "bytes": estimate or
    null, "first_us", "last_us", "series": [{"sensor_id", "metric_name", "points",
    "unsent", "first_us", "last_us"}], "sources": [{"source", "records",
    "first_us", "last_us", "bytes"}], "shrunk": null or {"columns_before_bytes",
    "columns_after_bytes": as before in a dry run, "metadata_before_bytes",
    "metadata_after_bytes", "needed_bytes": of free space, "free_bytes"}}
    """
    of_records = records or bool(sources) or failed is not None
    of_points = points or bool(sensors) or bool(metrics) or not of_records
    low, high = _span(older_than, start, end, tz)
    chosen = low is not None or high is not None or bool(sensors or metrics or sources) or failed is not None
    if not chosen and not everything:
        if points or records or not shrink:
            raise click.UsageError("select what to delete: --older-than 90d, --sensor NAME, ..., or --all")
        of_points = of_records = False
    check_asking(session, dry_run=dry_run, yes=yes, asks=of_points or of_records)
    scope: dict[str, Any] = {
        "points": of_points,
        "records": of_records,
        "start": low,
        "end": high,
        "min_retries": failed,
        "everything": everything,
        "even_unsent": even_unsent,
    }
    from repo.upkeep.cleanup import Cleaned

    with session.opened(read_only=dry_run) as store:
        scope |= series_names(store, sensors, metrics)
        scope["source"] = names_of(sources, lambda name: name in store.records.counts().by_source)
        dropped = _drop(session, store, scope, dry_run=dry_run, yes=yes) if of_points or of_records else None
        shrunk = None
        try:
            shrunk = _shrink(session, store, dry_run=dry_run) if shrink else None
        except HoldfastError as error:
            if dropped is not None and not dry_run:
                later = session.command("cleanup --shrink")
                error.add_note(f"the selected data is deleted; run `{later}` later to return its space")
            raise
        finally:  # the deletion is reported even if its space could not be returned
            if session.as_json and not (dropped is None and shrunk is None):
                report = (dropped or Cleaned(dry_run)).as_dict()
                print_json({**report, "shrunk": None if shrunk is None else shrunk.as_dict()})


def _drop(session: Session, store: Store, scope: dict[str, Any], *, dry_run: bool, yes: bool) -> Cleaned:
    if not yes:
        selected = store.cleanup(**scope, dry_run=True)
        if session.as_json:
            return selected
        _show(session, selected)
        nothing = _hint_if_empty(session, store, selected, scope)
        if nothing or dry_run:
            return selected
        asked("Delete this permanently?")
    dropped = store.cleanup(**scope)
    if session.as_json:
        return dropped
    if dropped.points is None:
        session.note(
            "another process has the columns open: the deletion is recorded, and will be applied when that process "
            f"releases them; `{session.command('status')}` then shows the new count"
        )
    if dropped.points is not None or dropped.records:
        session.say(f"deleted {_summary(dropped)}")
    _say_held(session, dropped)
    _hint_if_empty(session, store, dropped, scope)
    return dropped


def _say_held(session: Session, found: Cleaned) -> None:
    if found.held_points:
        session.note(
            f"{counted(found.held_points, 'point')} kept for the sinks that have not confirmed them "
            f"({', '.join(found.held_by)}); --even-unsent deletes them, too"
        )


def _hint_if_empty(session: Session, store: Store, found: Cleaned, scope: dict[str, Any]) -> bool:
    """Return whether nothing was selected, and suggest similar names if names were given."""
    if found.points != 0 or found.records or found.held_points:
        return False
    if named := _listed(scope["sensor_id"]) + _listed(scope["metric_name"]):
        session.note(names_hint(session, store, named, named))
    return True


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def _shrink(session: Session, store: Store, *, dry_run: bool) -> Shrunk | None:
    if dry_run:
        planned = store.shrink(dry_run=True)
        if not session.as_json:
            size = store.size(inside=True)
            inside_bytes = size.columns_free_bytes + size.metadata_free_bytes
            session.say(f"{size_text(inside_bytes)} inside the files free; {_needs(planned)}")
        return planned
    if not session.as_json:
        session.note(_needs(store.shrink(dry_run=True)))
    with session.progress("shrink") as show:
        shrunk = store.shrink(progress=show)
    if not session.as_json:
        left = shrunk.columns_after_bytes + shrunk.metadata_after_bytes
        returned = size_text(shrunk.freed_bytes) if shrunk.freed_bytes > 0 else "no space"
        session.say(f"{returned} returned to the disk; the store takes {size_text(left)}")
    return shrunk


def _needs(planned: Shrunk) -> str:
    needed, free = size_text(planned.needed_bytes), size_text(planned.free_bytes)
    return f"shrinking may need {needed} of disk space; {free} free"


def _show(session: Session, selected: Cleaned) -> None:
    """Print the selection, the largest series and sources first."""
    if session.quiet:
        return
    points = sorted(selected.series, key=lambda extent: -extent.points)
    records = sorted(selected.sources, key=lambda extent: -extent.records)
    _table(session, ("sensor_id", "metric_name", "points", "unsent", "first", "last"), points)
    _table(session, ("source", "records", "first", "last"), records)
    session.say(f"selected {_summary(selected)}")
    _say_held(session, selected)


def _table(session: Session, columns: Sequence[str], extents: Sequence[SeriesExtent | RecordExtent]) -> None:
    if not extents:
        return
    rows = [_with_times(extent._asdict()) for extent in extents[:_SHOWN_ROWS]]
    write_rows("table", columns, rows, cuttable=("sensor_id", "metric_name", "source"))
    if len(extents) > _SHOWN_ROWS:
        session.say(f"... and {len(extents) - _SHOWN_ROWS:,} more")


def _summary(found: Cleaned) -> str:
    parts = []
    if found.points or not found.records:
        unsent = f" ({found.unsent_points:,} of them not sent to every sink)" if found.unsent_points else ""
        parts.append(
            ("an unknown number of points" if found.points is None else counted(found.points, "point"))
            + unsent
        )
    if found.records:
        parts.append(counted(found.records, "pending record"))
    text = " and ".join(parts)
    if found.first_us is not None and found.last_us is not None:
        text += f", {iso(to_datetime(found.first_us))} to {iso(to_datetime(found.last_us))}"
    return text + (f", about {size_text(found.bytes)}" if found.bytes else "")


def _with_times(row: dict[str, Any]) -> dict[str, Any]:
    return row | {edge: iso_second(row[f"{edge}_us"]) for edge in ("first", "last")}


def _span(
    older_than: str | None, start: str | None, end: str | None, tz: str
) -> tuple[datetime | None, datetime | None]:
    if older_than is None:
        return bounds(start, end, None, zone_of(tz))
    if end is not None:
        raise click.UsageError("--older-than and --end cannot be combined")
    zone = zone_of(tz)
    low, _ = bounds(start, None, None, zone)
    with naming("--older-than"):
        return low, to_datetime(before_us(older_than, now_us=system_clock(), zone=zone))
