"""The settings of a sink on the command line: their options, and what is given as arguments of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from repo.commands.options import naming, series_names, zone_of

if TYPE_CHECKING:
    from repo import Store
    from repo.inputs.rates import Rate

__all__ = ["lanes_of", "options_of", "settings_of", "settings_options"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_tz = click.option(
    "--tz", metavar="ZONE", default="UTC", show_default=True, help="Time zone of times and windows."
)


def settings_options(function: Decorated) -> Decorated:
    """Add the settings that `add` and `change` have."""
    for option in (
        click.option(
            "--sensor",
            "sensors",
            metavar="NAME",
            multiple=True,
            help="Only this sensor; may be a quoted glob.",
        ),
        click.option(
            "--metric",
            "metrics",
            metavar="NAME",
            multiple=True,
            help="Only this metric; may be a quoted glob.",
        ),
        click.option(
            "--rate", metavar="RATE", help="Send at most this many bytes per second: 500kB/s, 1.5MB/s."
        ),
        click.option(
            "--window",
            "windows",
            metavar="WINDOW",
            multiple=True,
            help="Another rate for a part of each day: '08:00-18:00=100kB/s'; 0 sends nothing.",
        ),
        _tz,
        click.option("--max-backlog", metavar="SPAN", help="Do not hold points older than this: 30d."),
        click.option(
            "--max-backlog-points",
            metavar="COUNT",
            type=click.IntRange(min=1),
            help="Hold at most about this many points.",
        ),
        click.option("--max-backlog-bytes", metavar="SIZE", help="Hold at most about this much: 2GB."),
        click.option(
            "--share",
            metavar="PERCENT",
            type=click.IntRange(1, 99),
            help="Share of the bytes that a backlog gets while there are new readings (20).",
        ),
        click.option("--newest-first", is_flag=True, help="Send the newest part of a backlog first."),
        click.option(
            "--one-lane", is_flag=True, help="Send everything in order: a backlog before new readings."
        ),
        click.option(
            "--option", "options", metavar="KEY=VALUE", multiple=True, help="An option of the kind of sink."
        ),
        click.option(
            "--secret",
            "secrets",
            metavar="KEY=PLACE",
            multiple=True,
            help="Where a secret is: token=env:NAME or password=file:PATH.",
        ),
    )[::-1]:
        function = option(function)
    return function


def settings_of(store: Store, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are given, as arguments of `store.sinks.add`."""
    settings: dict[str, Any] = {}
    if given["sensors"] or given["metrics"]:
        settings["filter"] = series_names(store, given["sensors"], given["metrics"])
    if given["rate"] is not None or given["windows"]:
        settings["rate"] = _rate(given)
    if limits := _limits(given):
        settings["max_backlog"] = limits
    if given["share"] or given["newest_first"] or given["one_lane"]:
        settings["lanes"] = lanes_of(given, {})
    return settings


def _rate(given: dict[str, Any]) -> Rate:
    from repo.inputs.rates import Rate, Window, parse_bytes_per_s

    zone_of(given["tz"])
    with naming("--rate"):
        limit = None if given["rate"] is None else parse_bytes_per_s(given["rate"])
    with naming("--window"):
        windows = tuple(map(Window.parse, given["windows"]))
    return Rate(limit, windows, given["tz"])


def _limits(given: dict[str, Any]) -> dict[str, Any]:
    """Return the limits of the hold that are given."""
    from repo.store.sink_settings import check_max_backlog

    limits: dict[str, Any] = {}
    for limit, option in (("age", ""), ("points", "-points"), ("bytes", "-bytes")):
        value = given[f"max_backlog{option}".replace("-", "_")]
        if value is not None:
            with naming(f"--max-backlog{option}"):
                check_max_backlog({limit: value})
            limits[limit] = value
    return limits


def lanes_of(given: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return the lanes `before` with the changes that are given."""
    lanes = dict(before)
    if given["one_lane"]:
        lanes["two"] = False
    if given["share"]:
        lanes["share"] = given["share"] / 100
    if given["newest_first"]:
        lanes["order"] = "newest"
    return lanes


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the kind of sink; one without a value is None."""
    from repo.store.sink_options import is_reference
    from repo.store.sink_settings import SINK_SETTINGS

    options: dict[str, Any] = {}
    for flag, texts in (("--option", given["options"]), ("--secret", given["secrets"])):
        for text in texts:
            key, separator, value = text.partition("=")
            key = key.strip()
            if not separator or not key:
                shown = "KEY=VALUE" if flag == "--option" else "KEY=env:NAME or KEY=file:PATH"
                raise click.UsageError(f"write {flag} as {shown}")
            if flag == "--secret" and not is_reference(value):  # the value is not shown: it may be the secret
                raise click.UsageError(f"--secret {key}: name its place, {key}=env:NAME or {key}=file:PATH")
            if key in options or key in SINK_SETTINGS or key == "start":
                raise click.UsageError(
                    f"{flag} {key}: it is given twice, or it has its own option; see --help"
                )
            options[key] = value or None
    return options
