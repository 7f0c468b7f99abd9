"""Times in text files: owns the formats that a file may use. Never opens a file.

A format is `iso` (ISO 8601), `unix`, `unix_ms`, `unix_us`, or a `strptime` pattern. Several are tried in order; the
first that matches a text is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache, partial
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from repo.errors import InvalidSettings
from repo.times import UNIX_EXPONENTS, Unfit, checked_us, local_us, moment_us

__all__ = ["Ambiguous", "time_reader"]

Ambiguous = Literal["refuse", "earlier", "later"]
"""How to interpret a local time that occurred twice because clocks were set back."""

_Reader = Callable[[str], int | None]
"""Returns microseconds UTC, or None for a text in another format; raises Unfit for a time out of range."""

_Place = Callable[[int], int]
_FOLDS: dict[str, int | None] = {"refuse": None, "earlier": 0, "later": 1}
_DIRECTIVE = re.compile(r"%(.)", re.DOTALL)
_YEAR = frozenset("YyGcx")
_DATE = frozenset("YymdbBjaA%")
_TIME = frozenset("HIMSfp%")
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - local times are naive until their zone is applied
_STRPTIME_DAY = datetime(1900, 1, 1)  # noqa: DTZ001 - the day that strptime gives to a time alone
_MAX_CHARS = 64
_EXACT = Context(prec=_MAX_CHARS)
_CACHED_HALVES = 8_192  # dates and times of day recur; this many of each are cached


def time_reader(formats: Sequence[str], zone_name: str, ambiguous: Ambiguous) -> Callable[[str], int]:
    """Return a function from a text to microseconds UTC; it raises Unfit with the reason.

    Times without an offset are local times in the zone with this IANA name. A local time that clocks skipped is
    refused; one that occurred twice is refused unless `ambiguous` selects one. Raises InvalidSettings.
    """
    try:
        zone = ZoneInfo(zone_name) if zone_name.upper() != "UTC" else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError) as fault:
        raise InvalidSettings(
            f"no time zone {zone_name!r} is known here; use an IANA name: Europe/Berlin"
        ) from fault
    if ambiguous not in _FOLDS:
        raise InvalidSettings(f"ambiguous is {ambiguous!r}; it may be refuse, earlier or later")
    if not formats:
        raise InvalidSettings(
            "no time format is given; use iso, unix, unix_ms, unix_us or a strptime pattern"
        )
    place = partial(_placed, zone, _FOLDS[ambiguous])
    readers = [_reader(name, place) for name in formats]
    listed = ", ".join(formats)

    def read(text: str) -> int:
        fault = None
        if len(text) <= _MAX_CHARS:
            for reader in readers:
                try:
                    us = reader(text)
                except Unfit as unfit:
                    fault = fault or unfit
                else:
                    if us is not None:
                        return us
        raise fault or Unfit(f"fits no time format ({listed})")

    return read


def _placed(zone: tzinfo, fold: int | None, clock_us: int) -> int:
    """Convert local time in the zone, in microseconds since local 1970, to microseconds UTC."""
    if zone is UTC:
        return checked_us(clock_us)
    return local_us(_EPOCH + timedelta(microseconds=clock_us), zone, fold=fold)


def _clock_us(moment: datetime) -> int:
    span = moment - _EPOCH
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def _reader(name: str, place: _Place) -> _Reader:
    if name == "iso":
        return partial(_read_iso, place)
    if name in UNIX_EXPONENTS:
        return partial(_read_unix, UNIX_EXPONENTS[name])
    _check_pattern(name)
    for separator in (" ", "T"):
        date, found, time = name.partition(separator)
        if found and _only(date, _DATE) and _only(time, _TIME) and separator not in time:
            return _halves_reader(date, separator, time, place)
    return partial(_read_pattern, name, place)


def _check_pattern(pattern: str) -> None:
    try:
        datetime.strptime("", pattern)  # noqa: DTZ007 - only to have the pattern checked
    except ValueError as fault:
        if "does not match" not in str(fault):
            raise InvalidSettings(f"the time format {pattern!r} cannot be used: {fault}") from fault
    if _YEAR.isdisjoint(_DIRECTIVE.findall(pattern)):
        raise InvalidSettings(f"the time format {pattern!r} has no year; use %Y or %y")


def _only(pattern: str, allowed: frozenset[str]) -> bool:
    directives = set(_DIRECTIVE.findall(pattern))
    return bool(directives) and directives <= allowed


def _read_iso(place: _Place, text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment_us(moment) if moment.tzinfo is not None else place(_clock_us(moment))


def _read_unix(exponent: int, text: str) -> int | None:
    if not text.isascii() or "_" in text:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if number.is_finite() and number.adjusted() < _MAX_CHARS:  # a larger one is refused as it is
        number = _EXACT.scaleb(number, exponent)
    return moment_us(number)


def _read_pattern(pattern: str, place: _Place, text: str) -> int | None:
    try:
        moment = datetime.strptime(text, pattern)  # noqa: DTZ007 - `place` gives it its zone
    except ValueError:
        return None
    return moment_us(moment) if moment.tzinfo is not None else place(_clock_us(moment))


def _halves_reader(date: str, separator: str, time: str, place: _Place) -> _Reader:
    """Parse date and time of day separately, each from a cache if possible, as strptime takes 8 µs."""

    @lru_cache(_CACHED_HALVES)
    def half_us(pattern: str, origin: datetime, text: str) -> int | None:
        try:
            span = datetime.strptime(text, pattern) - origin  # noqa: DTZ007 - `place` gives it its zone
        except ValueError:
            return None
        return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds

    def read(text: str) -> int | None:
        left, _, right = text.partition(separator)
        day_us = half_us(date, _EPOCH, left)
        if day_us is None:
            return None
        time_us = half_us(time, _STRPTIME_DAY, right)
        return None if time_us is None else place(day_us + time_us)

    return read
