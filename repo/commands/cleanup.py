"""`cleanup`: dropping by hand what a device has no room for, and giving the space back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from repo.clock import system_clock
from repo.commands.options import bounds, iso, names_of, zone_of
from repo.commands.output import print_json, write_rows
from repo.commands.session import Session, json_option
from repo.errors import HoldfastError, counted
from repo.times import parse_duration_us, to_datetime

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
    "--older-than", metavar="SPAN", help="Only data older than SPAN (90d, 12h, 2w); replaces --end."
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
@click.option("--records", is_flag=True, help="Delete unsent records.")
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
@click.option("--shrink", is_flag=True, help="Return free space to the disk; also works alone.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted; delete nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
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
    shrink: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete points and pending records, and return free space to the disk.

    Select points by time, --sensor and --metric; select records by time, --source and --failed. The command shows what
    it would delete and how much of it is unsent, then asks; -y skips the question. The loss ledger records every
    deletion. Deleting frees space inside the files for new data. --shrink also makes the files smaller: it rewrites
    them, which needs free disk space and makes reads wait. It states the bytes needed and refuses if they are not
    available.

    To be able to restore points with `holdfast import`, run `holdfast export` first.

    \b
    JSON (with -y or --dry-run): {"dry_run", "points": number, or null where another process keeps the columns and
    they fall later, "unsent_points", "records", "bytes": about, or null, "first_us", "last_us", "series":
    [{"sensor_id", "metric_name", "points", "unsent", "first_us", "last_us"}], "sources": [{"source", "records",
    "first_us", "last_us", "bytes"}], "shrunk": null or {"columns_before_bytes", "columns_after_bytes",
    "metadata_before_bytes", "metadata_after_bytes", "needed_bytes": the least that had to be free meanwhile,
    "free_bytes"}; of a dry run before and after are the same}
    """
    of_records = records or bool(sources) or failed is not None
    of_points = points or bool(sensors) or bool(metrics) or not of_records
    low, high = _span(older_than, start, end, tz)
    chosen = low is not None or high is not None or bool(sensors or metrics or sources) or failed is not None
    if not chosen and not everything:
        if points or records or not shrink:
            raise click.UsageError("say what is to go: --older-than 90d, --sensor NAME, ..., or --all")
        of_points = of_records = False
    if dry_run and yes:
        raise click.UsageError("--dry-run drops nothing, so -y has nothing to answer; give one")
    if session.as_json and (of_points or of_records) and not dry_run and not yes:
        raise click.UsageError("--json does not ask: add -y, or --dry-run")
    scope: dict[str, Any] = {
        "points": of_points,
        "records": of_records,
        "sensor_id": names_of(sensors),
        "metric_name": names_of(metrics),
        "source": names_of(sources),
        "start": low,
        "end": high,
        "min_retries": failed,
        "everything": everything,
    }
    from repo.upkeep.cleanup import Cleaned

    with session.opened(looks=dry_run) as store:
        dropped = _drop(session, store, scope, dry_run=dry_run, yes=yes) if of_points or of_records else None
        shrunk = None
        try:
            shrunk = _shrink(session, store, dry_run=dry_run) if shrink else None
        except HoldfastError as error:
            if dropped is not None and not dry_run:
                later = session.files().command("cleanup --shrink")
                error.add_note(f"what was to be dropped is dropped; `{later}` gives its space back later")
            raise
        finally:  # what was dropped is reported even if its space could not be returned
            if session.as_json and not (dropped is None and shrunk is None):
                report = (dropped or Cleaned(dry_run)).as_dict()
                print_json({**report, "shrunk": None if shrunk is None else shrunk.as_dict()})


def _drop(session: Session, store: Store, scope: dict[str, Any], *, dry_run: bool, yes: bool) -> Cleaned:
    if not yes:
        meant = store.cleanup(**scope, dry_run=True)
        if session.as_json:
            return meant
        _show(session, meant)
        if dry_run or (not meant.points and not meant.records):
            return meant
        try:
            agreed = click.confirm("Drop this for good?", err=True)
        except click.Abort as nobody:
            if sys.stdin.isatty():
                raise
            raise click.UsageError("nothing was dropped; where nobody can say yes, add -y") from nobody
        if not agreed:
            raise click.Abort
    dropped = store.cleanup(**scope)
    if session.as_json:
        return dropped
    if dropped.points is None:
        session.note(
            "another process has the columns open: the points are deleted for good, and leave the file when it is "
            "through; `holdfast status` counts them then"
        )
    session.say(f"dropped {_told(dropped)}")
    return dropped


def _shrink(session: Session, store: Store, *, dry_run: bool) -> Shrunk | None:
    if dry_run:
        meant = store.shrink(dry_run=True)
        if not session.as_json:
            size = store.size(inside=True)
            inside_bytes = size.columns_free_bytes + size.metadata_free_bytes
            session.say(
                f"{inside_bytes:,} bytes inside the files are free by now; giving them back {_needs(meant)}"
            )
        return meant
    if not session.as_json:
        session.note(f"giving space back {_needs(store.shrink(dry_run=True))}")
    with session.progress("shrink") as show:
        shrunk = store.shrink(progress=show)
    if not session.as_json:
        left = shrunk.columns_after_bytes + shrunk.metadata_after_bytes
        given = f"{shrunk.freed_bytes:,} bytes went" if shrunk.freed_bytes > 0 else "no bytes could go"
        session.say(f"{given} back to the disk; the store takes {left:,}")
    return shrunk


def _needs(meant: Shrunk) -> str:
    return f"may take {meant.needed_bytes:,} bytes meanwhile, and {meant.free_bytes:,} are free on the disk"


def _show(session: Session, meant: Cleaned) -> None:
    """Print what is meant, the largest series and sources first."""
    if session.quiet:
        return
    points = sorted(meant.series, key=lambda extent: -extent.points)
    records = sorted(meant.sources, key=lambda extent: -extent.records)
    _table(session, ("sensor_id", "metric_name", "points", "unsent", "first", "last"), points)
    _table(session, ("source", "records", "first", "last"), records)
    session.say(f"this means {_told(meant)}")


def _table(session: Session, columns: Sequence[str], extents: Sequence[SeriesExtent | RecordExtent]) -> None:
    if not extents:
        return
    write_rows("table", columns, [_with_times(extent._asdict()) for extent in extents[:_SHOWN_ROWS]])
    if len(extents) > _SHOWN_ROWS:
        session.say(f"... and {len(extents) - _SHOWN_ROWS:,} more")


def _told(found: Cleaned) -> str:
    parts = []
    if found.points or not found.records:
        unsent = f" ({found.unsent_points:,} of them not sent to every sink)" if found.unsent_points else ""
        parts.append(("points" if found.points is None else counted(found.points, "point")) + unsent)
    if found.records:
        parts.append(counted(found.records, "unsent record"))
    told = " and ".join(parts)
    if found.first_us is not None and found.last_us is not None:
        told += f", {iso(to_datetime(found.first_us))} to {iso(to_datetime(found.last_us))}"
    return told + (f", about {found.bytes:,} bytes" if found.bytes else "")


def _with_times(row: dict[str, Any]) -> dict[str, Any]:
    edges = {edge: row[f"{edge}_us"] for edge in ("first", "last")}
    return row | {edge: None if us is None else iso(to_datetime(us)) for edge, us in edges.items()}


def _span(
    older_than: str | None, start: str | None, end: str | None, tz: str
) -> tuple[datetime | None, datetime | None]:
    if older_than is None:
        return bounds(start, end, None, zone_of(tz))
    if end is not None:
        raise click.UsageError("--older-than and --end both say where it ends; give one")
    low, _ = bounds(start, None, None, zone_of(tz))
    return low, to_datetime(system_clock() - parse_duration_us(older_than))
