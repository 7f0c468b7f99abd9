"""`export` and `import`: write points to files, and read them back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from repo.commands.exits import Exit
from repo.commands.global_options import global_options
from repo.commands.options import bounds, names_hint, series_names, zone_of
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.commands.texts import size_text
from repo.errors import counted

if TYPE_CHECKING:
    from repo import Imported

__all__ = ["export", "import_"]


@click.command()
@click.argument("path", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--sensor", "sensors", metavar="NAME", multiple=True, help="Only this sensor; may be a quoted glob."
)
@click.option(
    "--metric", "metrics", metavar="NAME", multiple=True, help="Only this metric; may be a quoted glob."
)
@click.option("--start", metavar="TIME", help="Start of the range, inclusive.")
@click.option("--end", metavar="TIME", help="End of the range, exclusive.")
@click.option("--since", metavar="SPAN", help="Only the last SPAN (6h, 1d12h, 3mo); replaces --start.")
@click.option(
    "--tz", metavar="ZONE", default="UTC", show_default=True, help="Time zone of --start and --end."
)
@click.option("--by-day", is_flag=True, help="Write a folder with one file per UTC day and a manifest.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["parquet", "csv", "ndjson"]),
    help="Default: by the name of PATH (.parquet, .csv, .ndjson, also with .gz or .zst); CSV for -.",
)
@click.option(
    "--compression",
    type=click.Choice(["zstd", "gzip", "none"]),
    help="Default: zstd for Parquet; for texts by the name of PATH.",
)
@global_options
@click.pass_obj
def export(
    session: Session,
    path: Path,
    sensors: tuple[str, ...],
    metrics: tuple[str, ...],
    start: str | None,
    end: str | None,
    since: str | None,
    tz: str,
    by_day: bool,
    form: Literal["parquet", "csv", "ndjson"] | None,
    compression: Literal["zstd", "gzip", "none"] | None,
) -> None:
    """Write points to Parquet, CSV or NDJSON: one file, a folder of days, or - for standard output.

    Exports all points unless you select by time, --sensor or --metric (repeat either for several exact names). A file
    appears only when it is complete, and missing folders are created; PATH.sha256 holds its SHA-256. A folder has a
    manifest.json with the SHA-256 of each file; run an interrupted export again to resume it. Applications can keep
    writing. Parquet needs DuckDB or pyarrow; CSV and NDJSON need neither. `holdfast import` reads Parquet and NDJSON
    back, `holdfast ingest` also CSV. If no point matches, the exit code is 3.

    \b
    JSON: {"path", "files", "points", "bytes", "first_us", "last_us": µs since
    1970 UTC or null, "first_seq", "last_seq", "resumed": files that were already
    complete}
    """
    low, high = bounds(start, end, since, zone_of(tz))
    to_stdout = str(path) == "-"
    if to_stdout and (by_day or form == "parquet"):
        raise click.UsageError(
            "standard output (-) takes only CSV and NDJSON, without --by-day; name a file or a folder"
        )
    if to_stdout and session.as_json:
        raise click.UsageError("--json prints the report, and - prints the points; name a file")
    with session.opened(read_only=True) as store, session.progress("export") as show:
        done = store.export(
            sys.stdout.buffer if to_stdout else path,
            **series_names(store, sensors, metrics),
            start=low,
            end=high,
            format=form,
            partition="day" if by_day else None,
            compression=compression,
            progress=show,
        )
        hint = "" if done.points else names_hint(session, store, sensors, metrics)
    if session.as_json:
        print_json(done.as_dict())
    elif not to_stdout:
        where = f"{counted(done.files, 'file')} in {done.path}" if by_day else str(done.path)
        resumed = f"; {counted(done.resumed, 'file')} already complete" if done.resumed else ""
        points, size = counted(done.points, "point"), size_text(done.bytes)
        session.say(f"exported {points} to {where} ({size}){resumed}")
    if not done.points:
        session.note(f"no points match; {hint}")
        raise click.exceptions.Exit(Exit.PROBLEMS)


@click.command("import")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Only validate the files. Needs no store.")
@click.option("--dry-run", is_flag=True, help="Report what would be stored; store nothing.")
@click.option(
    "--keep-existing/--overwrite",
    default=True,
    help="On conflict, keep the stored point (default) or take the file's.",
)
@click.option(
    "--column",
    "columns",
    metavar="FIELD=COLUMN",
    multiple=True,
    help="Read FIELD of an export from this column: sensor_id=tag. Repeatable.",
)
@click.option(
    "--time-format",
    type=click.Choice(["unix", "unix_ms", "unix_us"]),
    default="unix",
    show_default=True,
    help="Unit of numeric timestamps: seconds, milliseconds or microseconds since 1970.",
)
@click.option(
    "--zone",
    metavar="ZONE",
    default="UTC",
    show_default=True,
    help="Time zone of times without one: an IANA name, or an offset such as -07:00.",
)
@click.option("--sensor", metavar="NAME", help="Sensor of every row; replaces the column.")
@click.option("--metric", metavar="NAME", help="Metric of every row; replaces the column.")
@click.option(
    "--only", metavar="COLUMN", multiple=True, help="Read only this metric of a wide file. Repeatable."
)
@global_options
@click.pass_obj
def import_(
    session: Session,
    paths: tuple[Path, ...],
    verify: bool,
    dry_run: bool,
    keep_existing: bool,
    columns: tuple[str, ...],
    time_format: Literal["unix", "unix_ms", "unix_us"],
    zone: str,
    sensor: str | None,
    metric: str | None,
    only: tuple[str, ...],
) -> None:
    """Read Parquet and exported NDJSON into the store: files, folders, bundles.

    Reads exports, including those of the legacy program, and Parquet files of other programs. Use `holdfast ingest` for
    other NDJSON. A Parquet file without columns for metric and value is wide: each of its other columns is a metric.
    Every file is validated first: if one is damaged or lacks a column, nothing is stored. Stored points are kept unless
    you pass --overwrite. Importing the same files again changes nothing. Rows that cannot be stored are skipped and
    counted, and the exit code is 3. `holdfast recover` is the same command.

    \b
    JSON: {"files", "verified": files with a SHA-256, "read", "stored", "present",
    "duplicates", "nulls", "refused", "no_reading", "problems": [text]}; with
    --verify {"files", "verified", "points", "bytes"}
    """
    options: dict[str, Any] = {
        "columns": _mapping(columns),
        "time_format": time_format,
        "zone": zone,
        "sensor": sensor,
        "metric": metric,
        "only": only or None,
    }
    if verify:
        _verify(session, paths, options)
        return
    with session.opened(read_only=dry_run) as store, session.progress("import") as show:
        done = store.import_parquet(
            paths,
            on_conflict="keep" if keep_existing else "overwrite",
            **options,
            dry_run=dry_run,
            progress=show,
        )
    if session.as_json:
        print_json(done.as_dict())
    else:
        for problem in done.problems:
            session.note(problem)
        session.say(_summary(done, dry_run=dry_run))
    if done.refused or done.nulls:
        raise click.exceptions.Exit(Exit.PROBLEMS)


def _verify(session: Session, paths: tuple[Path, ...], options: dict[str, Any]) -> None:
    from repo.formats.files.mapping import ReadOptions
    from repo.settings import Settings
    from repo.transfer.importer import verify_parquet

    settings = Settings.load(session.files().folder)
    found = verify_parquet(paths, settings, ReadOptions.of(**options))
    if session.as_json:
        print_json(found.as_dict())
        return
    without = found.files - found.verified
    unchecked = f"; {counted(without, 'file')} without a SHA-256 to check" if without else ""
    session.say(f"valid: {counted(found.files, 'file')}, {counted(found.points, 'point')}{unchecked}")


def _summary(done: Imported, *, dry_run: bool) -> str:
    parts = [
        f"{count:,} {what}"
        for count, what in (
            (done.present, "already stored"),
            (done.duplicates, "repeated in a file"),
            (done.nulls, "without a sensor, a metric or a time"),
            (done.refused, "refused"),
        )
        if count
    ]
    stored = "would be stored" if dry_run else "stored"
    return f"{done.stored:,} of {counted(done.read, 'point')} {stored}" + (
        f"; {', '.join(parts)}" if parts else ""
    )


def _mapping(columns: tuple[str, ...]) -> dict[str, str]:
    for given in columns:
        if "=" not in given:
            raise click.BadParameter(f"{given!r} is not FIELD=COLUMN", param_hint="--column")
    return dict(given.split("=", 1) for given in columns)
