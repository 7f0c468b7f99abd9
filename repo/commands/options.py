"""Options that commands share: names, time zones and time ranges; also formats times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from repo.clock import system_clock
from repo.commands.output import FORMATS
from repo.commands.terminal import is_terminal
from repo.errors import InvalidQuery, InvalidSettings
from repo.inputs.time_texts import before_us, parse_time
from repo.inputs.times import Unfit, to_datetime, zone_named

if TYPE_CHECKING:
    from repo import Store
    from repo.commands.session import Session

__all__ = [
    "bounds",
    "format_option",
    "iso",
    "iso_second",
    "names_hint",
    "names_of",
    "naming",
    "series_names",
    "zone_of",
]


format_option = click.option(
    "--format", "form", type=click.Choice(FORMATS), help="Output format; a table by default."
)


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Begin the message about a value that was typed with the name of its option."""
    try:
        yield
    except (InvalidQuery, InvalidSettings) as error:
        raise type(error)(f"{option}: {error}") from error


def zone_of(name: str) -> tzinfo:
    """Return the time zone of `--tz`; `InvalidQuery` for an unknown one."""
    try:
        return zone_named(name)
    except Unfit as fault:
        raise InvalidQuery(f"--tz: {fault}") from fault


def bounds(
    start: str | None, end: str | None, since: str | None, zone: tzinfo
) -> tuple[datetime | None, datetime | None]:
    """Return the range of `--start` or `--since`, and `--end`; None leaves a side open."""
    if start is not None and since is not None:
        raise InvalidQuery("--start and --since cannot be combined")
    now_us = system_clock()
    low: datetime | None
    if since is not None:
        with naming("--since"):
            low = to_datetime(before_us(since, now_us=now_us, zone=zone))
    else:
        low = _time("--start", start, now_us, zone)
    return low, _time("--end", end, now_us, zone)


def names_of(given: tuple[str, ...], is_name: Callable[[str], bool]) -> str | list[str] | None:
    """Return the selection of a repeatable option: a single name may be a glob, several names are exact.

    Raises `InvalidQuery` for a glob among several names, unless `is_name` says that it is the name of something.
    """
    if len(given) < 2:
        return given[0] if given else None
    globs = [name for name in given if any(char in name for char in "*?[") and not is_name(name)]
    if globs:
        raise InvalidQuery(
            f"{globs[0]!r} is a glob, which cannot be combined with other names; give one glob, or exact names"
        )
    return list(given)


def series_names(
    store: Store, sensors: tuple[str, ...], metrics: tuple[str, ...]
) -> dict[str, str | list[str] | None]:
    """Return the selection of `--sensor` and `--metric` as arguments of the library; see `names_of`."""
    return {
        "sensor_id": names_of(sensors, lambda name: bool(store.series.list([name]))),
        "metric_name": names_of(metrics, lambda name: bool(store.series.list(None, [name]))),
    }


def names_hint(session: Session, store: Store, sensors: Iterable[str], metrics: Iterable[str]) -> str:
    """Say what may be meant by names that selected nothing: similar names, or how to list them all."""
    known = store.series.list()
    if not known:
        return "the store has no series yet"
    for what, given, names in (
        ("sensor", sensors, {series.sensor_id for series in known}),
        ("metric", metrics, {series.metric_name for series in known}),
    ):
        lower = {name.lower(): name for name in sorted(names)}
        for name in given:
            close = [] if name in names else get_close_matches(name.lower(), lower)
            if close:
                return f"did you mean the {what} {' or '.join(repr(lower[found]) for found in close)}?"
    return f"`{session.command('series')}` lists the series of the store"


def iso_second(us: int | None) -> str | None:
    """Return a time for a summary: on a terminal in whole seconds, so that two fit in a line."""
    if us is None:
        return None
    time = to_datetime(us)
    return iso(time.replace(microsecond=0) if is_terminal() else time)


def iso(time: datetime) -> str:
    """Return a time as ISO 8601, UTC as `Z`."""
    text = time.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text


def _time(option: str, text: str | None, now_us: int, zone: tzinfo) -> datetime | None:
    if text is None:
        return None
    with naming(option):
        return to_datetime(parse_time(text, now_us=now_us, zone=zone))
