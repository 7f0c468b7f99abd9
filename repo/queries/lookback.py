"""Lookback: the last point and the last reading of series before a given time. Owns how they are found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, case, func, or_, select

from repo.engines.registry import traits_of
from repo.models import Point
from repo.queries.selection import Known, SeriesScope

__all__ = ["Before", "before"]

_FIRST_WINDOW_US = 3_600_000_000
_WINDOW_GROWTH = 8

_points: Any = Point.__table__
_c = _points.c
_reading = or_(_c.value.is_not(None), _c.value_text.is_not(None))


class Before(NamedTuple):
    """The last point of a series before a given time; `reading` is None if the point has none."""

    last_us: int
    reading: float | str | None


def before(
    connection: Connection,
    known: Known,
    pairs: Iterable[tuple[str, str]],
    moment_us: int,
    *,
    readings_only: bool,
) -> dict[tuple[str, str], Before]:
    """Return the last point of each series before a given time, or the last one with a reading.

    The summaries answer for most series. The rest is looked up by key if the table has one, otherwise in windows
    that grow towards the past.
    """
    found: dict[tuple[str, str], Before] = {}
    missing: list[tuple[str, str]] = []
    for pair in pairs:
        last = known[pair]
        reading = last.last_value if last.last_value_text is None else last.last_value_text
        if last.last_us < moment_us and not (readings_only and reading is None):
            found[pair] = Before(last.last_us, reading)
        elif last.first_us < moment_us:
            missing.append(pair)
    if traits_of(connection).keyed_by_series:
        for pair in missing:
            query = _newest(pair, moment_us)
            row = connection.execute(query.where(_reading) if readings_only else query).one_or_none()
            if row is not None:
                found[pair] = Before(row[0], row[1] if row[2] is None else row[2])
        return found
    return found | _in_windows(connection, known, missing, moment_us, readings_only=readings_only)


def _newest(pair: tuple[str, str], moment_us: int) -> Select[Any]:
    return (
        select(_c.timestamp_us, _c.value, _c.value_text)
        .where(_c.sensor_id == pair[0], _c.metric_name == pair[1], _c.timestamp_us < moment_us)
        .order_by(_c.timestamp_us.desc())
        .limit(1)
    )


def _in_windows(
    connection: Connection,
    known: Known,
    missing: Sequence[tuple[str, str]],
    moment_us: int,
    *,
    readings_only: bool,
) -> dict[tuple[str, str], Before]:
    found: dict[tuple[str, str], Before] = {}
    high, width_us = moment_us, _FIRST_WINDOW_US
    while missing := [pair for pair in missing if pair not in found and known[pair].first_us < high]:
        low = high - width_us
        names = (_c.sensor_id, _c.metric_name)
        query = (
            select(
                *names,
                func.max(_c.timestamp_us),
                func.max(case((_reading, _c.timestamp_us))),
                func.arg_max(_c.value, _c.timestamp_us),
                func.arg_max(_c.value_text, _c.timestamp_us),
            )
            .where(SeriesScope(traits_of(connection), known, missing).where(low, high))
            .group_by(*names)
        )
        for sensor, metric, last_us, read_us, value, text in connection.execute(query).all():
            if readings_only and read_us is not None:
                found[sensor, metric] = Before(read_us, value if text is None else text)
            elif not readings_only:
                known_then = last_us == read_us
                found[sensor, metric] = Before(
                    last_us, (value if text is None else text) if known_then else None
                )
        high, width_us = low, width_us * _WINDOW_GROWTH
    return found
