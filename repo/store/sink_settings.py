"""The settings of a sink that are the same for every kind: filter, rate, lanes, limits of its hold. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from repo.errors import InvalidQuery, InvalidSettings
from repo.inputs.arguments import (
    LARGEST,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_seconds,
    shown,
)
from repo.inputs.rates import Rate
from repo.inputs.time_texts import parse_duration_us
from repo.queries.selection import Selection
from repo.repositories.sinks import Lanes, MaxBacklog

__all__ = ["SINK_SETTINGS", "check_filter", "check_lanes", "check_max_backlog", "check_rate"]

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kmgt]?)b?", re.ASCII | re.IGNORECASE)

SINK_SETTINGS: Final = ("filter", "hold", "lanes", "max_backlog", "rate", "records")
"""Their names; the options of a kind have others."""

RateArgument = Rate | float | str
"""What `check_rate` accepts, besides None."""
LanesArgument = Lanes | bool | Mapping[str, Any]
"""What `check_lanes` accepts."""
BacklogArgument = MaxBacklog | timedelta | float | str | Mapping[str, Any]
"""What `check_max_backlog` accepts, besides None."""


def check_filter(given: object) -> Selection | None:
    """Return the series that `{"sensor_id": names, "metric_name": names}` selects; None for all.

    Names are a text, a glob or a list, as in queries. Raises `InvalidQuery`.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given or not set(given) <= {"sensor_id", "metric_name"}:
        raise InvalidQuery(
            f"filter = {shown(given)}: a dict with sensor_id, metric_name or both is expected, or None for all series"
        )
    chosen = Selection.of(given.get("sensor_id"), given.get("metric_name"))
    return None if chosen.everything else chosen


def check_rate(given: object) -> Rate | None:
    """Return a limit of bytes per second: a `Rate`, a number, or a text such as `500kB/s`; None for no limit.

    Raises `InvalidSettings`.
    """
    if given is None or isinstance(given, Rate):
        return given
    if isinstance(given, str):
        return Rate.of(given)
    return Rate(check_count(given, "rate", 0, error=InvalidSettings))


def check_lanes(given: object) -> Lanes:
    """Return the lanes of a sink: True for two, False for one, or `{"share": 0.2, "order": "oldest"}`.

    Raises `InvalidSettings`.
    """
    if isinstance(given, Lanes):
        given = given._asdict()
    if not isinstance(given, Mapping):
        return Lanes(check_flag(given, "lanes", error=InvalidSettings))
    if not set(given) <= set(Lanes._fields):
        raise InvalidSettings(f"lanes = {shown(given)}: its settings are {', '.join(Lanes._fields)}")
    standard = Lanes()
    share = check_number(given.get("share", standard.share), "share", error=InvalidSettings)
    if not 0.01 <= share <= 0.99:
        raise InvalidSettings(f"share = {share!r}: from 0.01 to 0.99")
    return Lanes(
        check_flag(given.get("two", standard.two), "two", error=InvalidSettings),
        share,
        check_choice(
            given.get("order", standard.order), "order", ("oldest", "newest"), error=InvalidSettings
        ),
    )


def check_max_backlog(given: object) -> MaxBacklog | None:
    """Return the limits of a hold: an age (a `timedelta`, seconds, or a text such as `30d`), or a dict.

    The dict has `age`, `points`, `bytes` or several of them; bytes may be a text such as `2GB`. Raises
    `InvalidSettings`, or `InvalidQuery` for a duration.
    """
    if given is None:
        return None
    if isinstance(given, MaxBacklog):
        limits: dict[str, Any] = {"age_us": given.age_us, "points": given.points, "bytes": given.bytes}
    elif isinstance(given, Mapping):
        limits = dict(given)
    else:
        limits = {"age": given}
    if not limits or not set(limits) <= {"age", "age_us", "points", "bytes"}:
        raise InvalidSettings(f"max_backlog = {shown(given)}: its limits are age, points and bytes")
    age_us = limits.get("age_us")
    if limits.get("age") is not None:
        age_us = _age_us(limits["age"])
    return MaxBacklog(
        None if age_us is None else check_count(age_us, "age", error=InvalidSettings),
        _count(limits.get("points"), "points"),
        _count(_bytes(limits.get("bytes")), "bytes"),
    )


def _age_us(given: object) -> int:
    if isinstance(given, str):
        return parse_duration_us(given)
    seconds = check_seconds(given, "age", error=InvalidSettings)
    if not 1e-6 <= seconds <= LARGEST / 1e6:
        raise InvalidSettings(f"age = {seconds:g}: a positive duration is expected")
    return timedelta(seconds=seconds) // timedelta(microseconds=1)


def _count(given: object, name: str) -> int | None:
    return None if given is None else check_count(given, name, error=InvalidSettings)


def _bytes(given: object) -> object:
    if not isinstance(given, str):
        return given
    found = _SIZE.fullmatch(given.strip())
    if found is None:
        raise InvalidSettings(f"bytes = {shown(given)}: a number of bytes such as 500MB is expected")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " "))
