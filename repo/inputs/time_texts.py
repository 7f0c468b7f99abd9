"""Times and durations as people type them. Never reads a clock."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from repo.errors import InvalidQuery
from repo.inputs.times import (
    MAX_TIMESTAMP_US,
    MIN_TIMESTAMP_US,
    Unfit,
    checked_us,
    iso_datetime,
    local_us,
    moment_us,
    to_datetime,
)

__all__ = [
    "Duration",
    "Width",
    "before_us",
    "parse_duration",
    "parse_duration_us",
    "parse_time",
    "parse_width",
]

_SECOND_US = 1_000_000
_MINUTE_US = 60 * _SECOND_US
_HOUR_US = 60 * _MINUTE_US
_DAY_US = 24 * _HOUR_US

_UNITS = {
    "us": (1, 0),
    "ms": (1_000, 0),
    "s": (_SECOND_US, 0),
    "sec": (_SECOND_US, 0),
    "m": (_MINUTE_US, 0),
    "min": (_MINUTE_US, 0),
    "h": (_HOUR_US, 0),
    "hour": (_HOUR_US, 0),
    "d": (_DAY_US, 0),
    "day": (_DAY_US, 0),
    "w": (7 * _DAY_US, 0),
    "week": (7 * _DAY_US, 0),
    "mo": (0, 1),
    "month": (0, 1),
    "y": (0, 12),
    "year": (0, 12),
}
"""Each unit in microseconds and in calendar months; the words may also end in s."""

_FIXED_UNITS = "us, ms, s, m or min, h, d, w"
_ALL_UNITS = f"{_FIXED_UNITS}, mo (months), y"
_PART = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([a-z]+)")
_PARTS = re.compile(r"(?:[0-9.]+[a-z]+ ?)+")
_OFFSET = re.compile(r"(now|today|yesterday|tomorrow)? ?([+-])([0-9.a-z ]+)")
_CLOCK = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?"
_DAY = re.compile(rf"(today|yesterday|tomorrow)(?:[ T]({_CLOCK}))?|({_CLOCK})")
_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")
_UNIX_SECONDS = re.compile(r"[+-]?[0-9]+(?:\.[0-9]{0,9})?")
_LIKE_A_DATE = re.compile(r"(?:19|20)[0-9]{2}(?:[01][0-9][0-3][0-9])?")
_MAX_CHARS = 64
_MOST_MONTHS = 584 * 12
_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}
_TIME_FORMS = (
    "ISO 8601 (2024-05-01T12:00Z), a month (2024-05), today, yesterday, a clock time (21:30), Unix seconds, now, or "
    "relative (-6h, -1d12h, -1mo, today+6h)"
)


class Duration(NamedTuple):
    """A length of time: `us` microseconds and `months` calendar months; at least one is not 0."""

    us: int
    months: int


class Width(NamedTuple):
    """The width of buckets: `us` microseconds or `months` calendar months; the other field is 0."""

    us: int
    months: int


def parse_duration(text: str) -> Duration:
    """Parse a length of time such as `15m`, `1d12h`, `1.5h`, `5min`, `3mo` or `1y`; always positive.

    A day has 24 hours; months (mo) and years (y) are calendar months, in whole numbers. Raises InvalidQuery.
    """
    return _duration(text, _ALL_UNITS)


def parse_duration_us(text: str) -> int:
    """Parse a length of time as `parse_duration` does, but without months, into microseconds. Raises InvalidQuery."""
    duration = _duration(text, _FIXED_UNITS)
    if duration.months:
        raise InvalidQuery(
            f"{text[:40]!r} has months or years, whose length varies; write days (d) or weeks (w)"
        )
    return duration.us


def parse_width(text: str) -> Width:
    """Parse the width of buckets: a length of time as for `parse_duration`, either with or without months.

    Raises InvalidQuery.
    """
    duration = parse_duration(text)
    if duration.us and duration.months:
        raise InvalidQuery(
            f"a bucket of {text[:40]!r} would have months and shorter units; use either: 1mo, or 30d12h"
        )
    return Width(*duration)


def parse_time(text: str, *, now_us: int, zone: tzinfo = UTC) -> int:
    """Parse a time that a person typed into microseconds UTC.

    Accepts ISO 8601, local to `zone` if it has no offset; a month (`2024-05`), which means its beginning; `today`,
    `yesterday` and `tomorrow`, also with a clock time (`yesterday 21:30`); a clock time of today (`21:30`); Unix
    seconds; `now`; and relative times (`-6h`, `-1d12h`, `-1mo`, `+15m`, `now-6h`, `today+6h`), where months are
    calendar months. Refuses `20240501` and `2024`, which could be dates or seconds. Raises InvalidQuery.
    """
    given = text.strip()
    try:
        return _typed_us(given, now_us, zone)
    except Unfit as fault:
        raise InvalidQuery(f"{given[:40]!r} {fault}") from fault


def before_us(text: str, *, now_us: int, zone: tzinfo = UTC) -> int:
    """Return the time that lies a typed length of time before now; months are those of `zone`. Raises InvalidQuery."""
    try:
        return _moved_us(now_us, parse_duration(text.strip().removeprefix("-")), -1, zone)
    except Unfit as fault:
        raise InvalidQuery(f"{text[:40]!r} before now {fault}") from fault


def _duration(text: str, units: str) -> Duration:
    given = text.strip()
    us, months = Fraction(0), Fraction(0)
    for number, (unit_us, unit_months) in _parts(given, units):
        us += number * unit_us
        months += number * unit_months
    if us.denominator != 1 or months.denominator != 1 or us + months <= 0:
        raise InvalidQuery(
            f"the duration {given[:40]!r} is not a positive number of whole microseconds or months"
        )
    if us > MAX_TIMESTAMP_US - MIN_TIMESTAMP_US or months > _MOST_MONTHS:
        raise InvalidQuery(f"the duration {given[:40]!r} exceeds the range of times (1678 to 2261)")
    return Duration(int(us), int(months))


def _parts(given: str, units: str) -> Iterator[tuple[Fraction, tuple[int, int]]]:
    for part in given.split() if _PARTS.fullmatch(given) else [""]:
        found = list(_PART.finditer(part))
        if "".join(match[0] for match in found) != part or not found:
            raise InvalidQuery(
                f"{given[:40]!r} is not a duration; write numbers with units: {units}, such as 1d12h"
            )
        for match in found:
            unit = match[2] if match[2] in _UNITS else match[2].removesuffix("s")
            if unit not in _UNITS or (unit != match[2] and len(unit) < 3):
                raise InvalidQuery(
                    f"{given[:40]!r} is not a duration; {match[2][:10]!r} is not a unit; the units are {units}"
                )
            yield Fraction(match[1]), _UNITS[unit]


def _typed_us(given: str, now_us: int, zone: tzinfo) -> int:
    if len(given) > _MAX_CHARS:
        raise Unfit(f"is not a time; write {_TIME_FORMS}")
    if given == "now":
        return now_us
    offset = _OFFSET.fullmatch(given)
    if offset and not _UNIX_SECONDS.fullmatch(given):
        base_us = now_us if offset[1] in (None, "now") else _day_us(offset[1], None, now_us, zone)
        return _moved_us(base_us, parse_duration(offset[3]), 1 if offset[2] == "+" else -1, zone)
    if day := _DAY.fullmatch(given):
        return _day_us(day[1] or "today", day[2] or day[3], now_us, zone)
    if month := _MONTH.fullmatch(given):
        return _local_us(_first_of(int(month[1]), int(month[2])), zone)
    if _LIKE_A_DATE.fullmatch(given):
        raise Unfit("could be a date or Unix seconds; write 2024-05-01, or 20240501.0 for seconds")
    if _UNIX_SECONDS.fullmatch(given):
        return moment_us(Decimal(given))
    moment = iso_datetime(given)
    if moment is None:
        raise Unfit(f"is not a time; write {_TIME_FORMS}")
    return moment_us(moment) if moment.tzinfo is not None else local_us(moment, zone)


def _day_us(name: str, clock: str | None, now_us: int, zone: tzinfo) -> int:
    """Return the beginning of a day near now, or a clock time in it."""
    day = to_datetime(now_us).astimezone(zone).date() + timedelta(days=_DAYS[name])
    if clock is None:
        return _local_us(day, zone)
    try:
        at = time.fromisoformat(clock if clock[2] == ":" else f"0{clock}")
    except ValueError:
        raise Unfit(f"is not a time; write {_TIME_FORMS}") from None
    return local_us(datetime.combine(day, at), zone)


def _first_of(year: int, month: int) -> date:
    try:
        return date(year, month, 1)
    except ValueError:
        raise Unfit(f"is not a time; write {_TIME_FORMS}") from None


def _local_us(day: date, zone: tzinfo) -> int:
    """Return the first moment of a day, in zones that skip or repeat midnight, too."""
    return moment_us(datetime.combine(day, time(), zone))


def _moved_us(base_us: int, duration: Duration, sign: int, zone: tzinfo) -> int:
    """Return a time moved by calendar months in the zone, to the last day of a shorter month, and by microseconds."""
    if duration.months:
        local = to_datetime(base_us).astimezone(zone)
        year, month0 = divmod(local.year * 12 + local.month - 1 + sign * duration.months, 12)
        if not 1 <= year <= 9999:
            raise Unfit("is outside the years 1678 to 2261")
        day = min(local.day, monthrange(year, month0 + 1)[1])
        base_us = moment_us(local.replace(year=year, month=month0 + 1, day=day))
    return checked_us(base_us + sign * duration.us)
