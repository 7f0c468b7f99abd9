"""`query`, `latest` and `series`: print the content of the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, tzinfo
from itertools import islice
from sys import maxsize
from typing import TYPE_CHECKING, Any

import click

from repo.commands.global_options import global_options
from repo.commands.options import bounds, format_option, iso, iso_second, names_hint, naming, zone_of
from repo.commands.output import FORMATS, write_rows
from repo.commands.session import Session
from repo.errors import InvalidQuery, counted
from repo.inputs.time_texts import parse_width
from repo.inputs.times import to_us

if TYPE_CHECKING:
    from repo import Store

__all__ = ["latest", "query", "series"]

_NAMES = ("sensor_id", "metric_name")
_POINT_COLUMNS = ("sensor_id", "metric_name", "timestamp", "value", "quality", "metadata")
_SERIES_COLUMNS = (
    "sensor_id",
    "metric_name",
    "kind",
    "unit",
    "points",
    "first",
    "last",
    "description",
    "labels",
)


@click.command()
@click.argument("sensor")
@click.argument("metric")
@click.option("--start", metavar="TIME", help="Start of the range, inclusive.")
@click.option("--end", metavar="TIME", help="End of the range, exclusive.")
@click.option("--since", metavar="SPAN", help="Only the last SPAN (6h, 1d12h, 3mo); replaces --start.")
@click.option("--every", metavar="SPAN", help="Aggregate into buckets of 10s, 5min, 6h, 1d, 1w, 3mo, 1y.")
@click.option(
    "--agg",
    "aggs",
    metavar="NAMES",
    multiple=True,
    help="avg, min, max, sum, count, first, last, stddev, median, p95, p99.9: comma-separated, repeatable. "
    "Default with --every: avg.",
)
@click.option(
    "--fill",
    type=click.Choice(["none", "null", "previous", "linear"]),
    help="With --every: how to fill buckets without a reading; none omits them.",
)
@click.option("--states", is_flag=True, help="Show the time spent in each state, and its share.")
@click.option("--tz", metavar="ZONE", default="UTC", show_default=True, help="Time zone of times and days.")
@click.option("--limit", metavar="ROWS", type=click.IntRange(min=1), help="Print the first rows only.")
@click.option(
    "--format", "form", type=click.Choice([*FORMATS, "plot"]), help="Output format; a table by default."
)
@global_options
@click.pass_obj
def query(
    session: Session,
    sensor: str,
    metric: str,
    start: str | None,
    end: str | None,
    since: str | None,
    every: str | None,
    aggs: tuple[str, ...],
    fill: str | None,
    states: bool,
    tz: str,
    limit: int | None,
    form: str | None,
) -> None:
    """Print points of SENSOR and METRIC, or aggregates of them.

    Both can be quoted globs ('PUMP-*', '*'). Points are in order of time, from --start up to but excluding
    --end. A TIME is ISO 8601 (2026-11-05T12:00, in --tz unless it has an offset), a month (2026-11), today,
    yesterday, a clock time (21:30, yesterday 21:30), Unix seconds, now, or relative (-6h, -1d12h, -1mo, today+6h).
    The CSV of points can be ingested again; metadata is not read back.

    --fill covers --start to --end; a missing bound is the first or last point of each series. `null` leaves buckets
    empty, `previous` repeats the last bucket with readings (initially the last reading before --start), and `linear`
    interpolates. With --states, the state before --start counts from --start, and the last state counts until --end (or
    the last point). A point without a reading ends a state.

    \b
    JSON: an array, or one object per line (ndjson). Points: {"sensor_id",
    "metric_name", "timestamp": ISO 8601, "timestamp_us": µs since 1970 UTC,
    "value": number, text or null, "quality", "metadata"}. Aggregates:
    {"sensor_id", "metric_name", "bucket": ISO 8601 and "bucket_us" (with
    --every), and one key per --agg}. States: {"sensor_id", "metric_name",
    "bucket" and "bucket_us" (with --every), "state": text, number or null,
    "seconds", "share": 0 to 1}. An infinite number is the text "Infinity" or
    "-Infinity".
    """
    zone = zone_of(tz)
    low, high = bounds(start, end, since, zone)
    if every is not None:
        with naming("--every"):
            parse_width(every)
    names = [name.strip() for given in aggs for name in given.split(",") if name.strip()]
    if states and (names or fill or form == "plot"):
        raise InvalidQuery("--states cannot be combined with --agg, --fill or --format plot")
    form = form or ("json" if session.as_json else "table")
    hint = ""
    with session.opened(read_only=True) as store:
        if form == "plot":
            from repo.commands.plotting import draw

            lines = _lines(store, (sensor, metric), low, high, every, names, tz=zone, fill=fill)
            if lines:
                click.echo(draw(lines, zone))
            count = len(lines)
        elif states or every or names or fill:
            if states:
                found = store.points.states(sensor, metric, low, high, every=every, tz=zone)
                wanted = ["state", "seconds", "share"]
            else:
                asked: dict[str, Any] = {"agg": names or "avg", "every": every, "tz": zone, "fill": fill}
                found = store.points.aggregate(sensor, metric, low, high, **asked)
                wanted = names or ["avg"]
            columns = ["sensor_id", "metric_name", *(["bucket"] if every else []), *wanted]
            rows = islice(map(_shown_aggregate, found), None if limit is None else min(limit, maxsize))
            count = write_rows(form, columns, rows, cuttable=(*_NAMES, "state"))
        else:
            points = _points(store, (sensor, metric), low, high, limit)
            count = _write_points(session, form, (_shown_point(point, zone) for point in points))
        if not count:
            hint = names_hint(session, store, [sensor], [metric])
    if not count:
        session.note(f"no points of {sensor} {metric} found; {hint}")


@click.command()
@click.argument("sensor", required=False)
@click.argument("metric", required=False)
@click.option("--limit", metavar="POINTS", type=click.IntRange(min=1), default=1, help="Points per series.")
@format_option
@global_options
@click.pass_obj
def latest(session: Session, sensor: str | None, metric: str | None, limit: int, form: str | None) -> None:
    """Print the newest points of each series.

    SENSOR and METRIC can be names or quoted globs; without them, all series are shown. One point each (the default)
    needs only SQLite, so it never waits for another process.

    \b
    JSON: an array of points as `holdfast query` prints them, newest first within
    a series.
    """
    with session.opened(read_only=True) as store:
        found = store.points.latest(sensor, metric, limit)
        hint = "" if found else names_hint(session, store, filter(None, [sensor]), filter(None, [metric]))
    form = form or ("json" if session.as_json else "table")
    if not _write_points(session, form, (_shown_point(point, UTC) for point in found)):
        session.note(f"no points found; {hint}")


@click.command()
@click.argument("pattern", required=False)
@format_option
@global_options
@click.pass_obj
def series(session: Session, pattern: str | None, form: str | None) -> None:
    """List the series of the store.

    PATTERN is a name or a quoted glob that matches the sensor or the metric. Counts and times are those of the
    last flush; a terminal shows the times in whole seconds.

    \b
    JSON: [{"sensor_id", "metric_name", "kind": "number", "text" or null, "unit",
    "description", "labels", "points", "first_us", "last_us"}]
    """
    with session.opened(read_only=True) as store:
        found = {(info.sensor_id, info.metric_name): info for info in store.series.list(pattern)}
        hint = ""
        if pattern is not None:
            found |= {(info.sensor_id, info.metric_name): info for info in store.series.list(None, pattern)}
            hint = "" if found else f"; {names_hint(session, store, [pattern], [pattern])}"
        waiting = store.status().points_waiting
    rows = [found[pair]._asdict() for pair in sorted(found)]
    form = form or ("json" if session.as_json else "table")
    if form in ("json", "ndjson"):
        write_rows(form, _SERIES_COLUMNS, rows)
        return
    for row in rows:
        for edge in ("first", "last"):
            row[edge] = iso_second(row[f"{edge}_us"])
    cuttable = (*_NAMES, "unit", "description", "labels")
    optional = ("labels", "description", "kind", "unit")
    if not write_rows(form, _SERIES_COLUMNS, rows, cuttable=cuttable, optional=optional, note=session.note):
        session.note(f"no series matches {pattern}{hint}" if pattern else "the store has no series yet")
    if waiting:
        session.note(f"{counted(waiting, 'point')} waiting to be applied, not counted here")


# --- rows -----------------------------------------------------------------------------------------------


def _points(
    store: Store, names: tuple[str, str], low: datetime | None, high: datetime | None, limit: int | None
) -> Iterator[Any]:
    found = store.points.range(*names, low, high)
    if limit is None or limit > _page_rows():
        return islice(iter(found), None if limit is None else min(limit, maxsize))
    return iter(next(found.pages(limit), []))


def _page_rows() -> int:
    from repo.store.results import PAGE_ROWS

    return PAGE_ROWS


def _write_points(session: Session, form: str, rows: Iterable[dict[str, Any]]) -> int:
    return write_rows(
        form,
        _POINT_COLUMNS,
        rows,
        cuttable=(*_NAMES, "value", "metadata"),
        optional=("metadata", "quality"),
        note=session.note,
    )


def _shown_point(point: Any, zone: tzinfo) -> dict[str, Any]:
    time = point["timestamp"]
    return {**point, "timestamp": iso(time if zone is UTC else time.astimezone(zone))}


def _shown_aggregate(row: dict[str, Any]) -> dict[str, Any]:
    if "bucket" not in row:
        return row
    return {**row, "bucket": iso(row["bucket"]), "bucket_us": to_us(row["bucket"])}


# --- plots ----------------------------------------------------------------------------------------------


def _lines(
    store: Store,
    names: tuple[str, str],
    low: datetime | None,
    high: datetime | None,
    every: str | None,
    aggs: list[str],
    **options: Any,
) -> dict[str, list[tuple[int, float]]]:
    """Return the lines to draw: with `every` the requested aggregates, else the minimum and maximum per column."""
    wanted = aggs or ["avg"]
    if every is None:
        if aggs:
            raise InvalidQuery("a plot of --agg needs buckets; add --every")
        every, wanted = _column_width(store, names, low, high), ["min", "max"]
    if every is None:
        return {}
    found = store.points.aggregate(*names, low, high, agg=wanted, every=every, **options)
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in found:
        for name in wanted:
            value = row[name]
            if isinstance(value, int | float) and abs(value) != float("inf"):
                title = f"{row['sensor_id']} {row['metric_name']}" + (f" {name}" if aggs else "")
                lines.setdefault(title, []).append((to_us(row["bucket"]), value))
    return lines


def _column_width(
    store: Store, names: tuple[str, str], low: datetime | None, high: datetime | None
) -> str | None:
    """Return the time span of one column of the plot; None if there is nothing to plot."""
    from repo.commands.plotting import plot_columns

    first = next(_points(store, names, low, high, 1), None)
    if first is None:
        return None
    last_us = max(point["timestamp_us"] for point in _newest(store, names))
    if high is not None:
        last_us = min(last_us, to_us(high))
    return f"{max(1, (last_us - first['timestamp_us']) // plot_columns())}us"


def _newest(store: Store, names: tuple[str, str]) -> Iterable[Any]:
    return store.points.latest(*names)
