"""Times in text files: owns the formats that a file may use, and the zone of local times. Never opens a file.

A format is `iso` (ISO 8601), `unix`, `unix_ms`, `unix_us`, or a `strptime` pattern. Several are tried in order; the
first that matches a text is used. Of an interval (`begin - end`, in ISO 8601 `begin/end`) the begin is the time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache, partial
from typing import Literal, get_args

from repo.errors import InvalidSettings
from repo.formats.text.patterns import Clock, pattern_reader
from repo.formats.text.repeated_hours import RepeatedHours
from repo.inputs.times import (
    MAX_TIMESTAMP_US,
    MIN_TIMESTAMP_US,
    SUSPECT_BEFORE_US,
    UNIX_EXPONENTS,
    Unfit,
    checked_us,
    iso_datetime,
    local_choices,
    local_us,
    moment_us,
    zone_named,
)

__all__ = ["Ambiguous", "TimeReader", "refuse_rounded"]

Ambiguous = Literal["refuse", "infer", "earlier", "later"]
"""How to interpret a local time that occurred twice because clocks were set back; `infer`: by the order of the file."""

_Reader = Callable[[str], Clock | None]
"""Returns None for a text in another format; raises Unfit for a time out of range."""

_FOLDS = {"earlier": 0, "later": 1}
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - local times are naive until their zone is applied
_INTERVAL = re.compile(r"(.*?\S)(?:\s+[-–—]\s+|/|--)(\S.*)")
_END_CLOCK = re.compile(r"[0-2]?[0-9]:[0-5][0-9](?::[0-5][0-9])?")
_DIGITS = {10: ("seconds", "unix"), 13: ("milliseconds", "unix_ms"), 16: ("microseconds", "unix_us")}
_QUARTER_US = 900 * 1_000_000
_CACHED_QUARTERS = 4_096
_MAX_CHARS = 64
_EXACT = Context(prec=_MAX_CHARS)


class TimeReader:
    """Converts the times of one file to microseconds UTC. Not thread-safe.

    Times without an offset are local times in the zone `zone`, an IANA name or a fixed offset. A local time that clocks
    skipped is refused; one that occurred twice is refused unless `ambiguous` selects one. With `infer`, pass the times
    of each series in the order of the file. Raises `InvalidSettings`.
    """

    def __init__(self, formats: Sequence[str], zone: str, ambiguous: Ambiguous) -> None:
        try:
            self._zone: tzinfo = zone_named(zone)
        except Unfit as fault:
            raise InvalidSettings(f"zone: {fault}") from fault
        if ambiguous not in get_args(Ambiguous):
            raise InvalidSettings(f"ambiguous is {ambiguous!r}; it may be refuse, infer, earlier or later")
        if not formats:
            raise InvalidSettings(
                "no time format is given; use iso, unix, unix_ms, unix_us or a strptime pattern"
            )
        self._fold = _FOLDS.get(ambiguous)
        self._offset_us = lru_cache(_CACHED_QUARTERS)(partial(_offset_us, self._zone))
        self._hours = RepeatedHours(self._zone) if ambiguous == "infer" else None
        self._readers = [(name == "iso", self._reader(name)) for name in formats]
        self._listed = ", ".join(formats)
        self.suspects: Counter[str] = Counter()
        """The times in January 1970, by the format that read them: most likely the unit of the format is too small."""
        self._last: tuple[str | None, int] = (None, 0)

    def us(self, text: str, series: Hashable = None) -> int:
        """Return the time of a text in a series; raises `Unfit` with the reason."""
        if self._hours is not None:
            return self._placed(self._clock(text, is_number=False), series)
        if text != self._last[0]:  # the lines of one time often follow each other
            self._last = (None, 0)
            self._last = (text, self._placed(self._clock(text, is_number=False), None))
        return self._last[1]

    def number_us(self, text: str, series: Hashable = None) -> int:
        """Return the time of a number, written as text, which is never ISO 8601; raises `Unfit` with the reason."""
        return self._placed(self._clock(text, is_number=True), series)

    def single_passes(self) -> list[datetime]:
        """Return, at the end of the file, a local time of each repeated hour that a series has only once (`infer`)."""
        if self._hours is None:
            return []
        self._hours.finish()
        return self._hours.single

    def _clock(self, text: str, *, is_number: bool) -> Clock:
        fault = None
        if len(text) <= _MAX_CHARS:
            for is_iso, reader in self._readers:
                if is_iso and is_number:
                    continue
                try:
                    clock = reader(text)
                except Unfit as unfit:
                    fault = fault or unfit
                else:
                    if clock is not None:
                        return clock
            begin = None if is_number or fault else self._begin(text)
            if begin is not None:
                return begin
        raise fault or Unfit(f"fits no time format ({self._listed}){self._advice(text)}")

    def _advice(self, text: str) -> str:
        """Return what a text in an unknown format may need."""
        whole, _, fraction = text.partition(".")
        unit = _DIGITS.get(len(whole)) if text.isascii() and (whole + fraction).isdecimal() else None
        if unit is not None:
            return f"; if it counts {unit[0]} since 1970, add the format {unit[1]} (--time-format {unit[1]})"
        if text and self._listed == "iso":
            return "; give its pattern, such as --time-format '%d.%m.%Y %H:%M'"
        return ""

    def _begin(self, text: str) -> Clock | None:
        """Return the begin of an interval; None if the text is not one."""
        found = _INTERVAL.fullmatch(text)
        if found is None:
            return None
        begin, end = found.groups()
        for _, reader in self._readers:
            clock = reader(begin)
            if clock is not None and (_END_CLOCK.fullmatch(end) or reader(end) is not None):
                return clock
        return None

    def _placed(self, clock: Clock, series: Hashable) -> int:
        us, is_utc = clock
        if not MIN_TIMESTAMP_US <= us <= MAX_TIMESTAMP_US:
            checked_us(us)
        if is_utc or self._zone is UTC:
            return us
        offset_us = self._offset_us(us // _QUARTER_US)
        if offset_us is not None:
            return us - offset_us if self._hours is None else self._hours.follow(us - offset_us, series)
        local = _EPOCH + timedelta(microseconds=us)
        if self._hours is not None:
            return self._hours.us(local, series)
        return local_us(local, self._zone, fold=self._fold)

    def _reader(self, name: str) -> _Reader:
        if name == "iso":
            return _read_iso
        if name in UNIX_EXPONENTS:
            return partial(self._read_unix, name)
        return pattern_reader(name)

    def _read_unix(self, name: str, text: str) -> Clock | None:
        if not text.isascii() or "_" in text:
            return None
        try:
            number = Decimal(text)
        except InvalidOperation:
            return None
        refuse_rounded(number)
        if number.is_finite() and number.adjusted() < _MAX_CHARS:  # a larger one is refused as it is
            number = _EXACT.scaleb(number, UNIX_EXPONENTS[name])
        us = moment_us(number)
        if 0 <= us < SUSPECT_BEFORE_US and name != "unix":
            self.suspects[name] += 1
        return us, True


def _offset_us(zone: tzinfo, quarter: int) -> int | None:
    """Return the UTC offset in a quarter of an hour on the local clock; None if it changes in it."""
    offsets: set[int] = set()
    for us in (quarter * _QUARTER_US, (quarter + 1) * _QUARTER_US - 1):
        try:
            choices = local_choices(_EPOCH + timedelta(microseconds=us), zone)
        except Unfit:
            return None
        offsets.update(us - choice for choice in choices)
    return offsets.pop() if len(offsets) == 1 else None


def refuse_rounded(number: Decimal) -> None:
    """Raise `Unfit` for a number whose exponent leaves out its last digits, such as 1.76723E+12."""
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and 0 < exponent < _MAX_CHARS:
        raise Unfit(
            "has an exponent and too few digits for a time, so it was rounded; write all of its digits"
        )


def _read_iso(text: str) -> Clock | None:
    moment = iso_datetime(text)
    if moment is None:
        return None
    if moment.tzinfo is not None:
        return moment_us(moment), True
    span = moment - _EPOCH
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds, False
