"""Patterns: reads local times by strptime patterns, without the locale and the time zone of the machine.

Where Python's strptime would guess, a pattern or a text is refused: directives that touch need all of their digits
(`135` is not 13:05 for `%H%M`), and the only zone names are UTC, GMT and Z. A clock that lost its leading zeros is
still read by `%H%M`: `135` is 01:35 and `5` is 00:05. 24:00 is the end of the day. Names of days and months are
English.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import lru_cache

from repo.errors import InvalidSettings
from repo.inputs.times import Unfit

__all__ = ["Clock", "pattern_reader"]


Clock = tuple[int, bool]
"""A time as it was written: microseconds since 1970, and whether they are in UTC, not on a local clock."""

_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US
_EPOCH_DAY = date(1970, 1, 1).toordinal()

_EXPANDED = {
    "c": "%a %b %d %H:%M:%S %Y",
    **dict.fromkeys("xD", "%m/%d/%y"),
    **dict.fromkeys("XT", "%H:%M:%S"),
    "R": "%H:%M",
    "F": "%Y-%m-%d",
    "h": "%b",
}
_DIGITS = {
    **dict.fromkeys("YG", (4, 4)),
    **dict.fromkeys("y", (2, 2)),
    **dict.fromkeys("mdHIMSUWV", (1, 2)),
    **dict.fromkeys("uw", (1, 1)),
    "j": (1, 3),
    "f": (1, 6),
}
"""The fewest and the most digits of each numeric directive."""
_TEXTS = {
    "a": "[a-z]{3,9}",
    "A": "[a-z]{3,9}",
    "b": "[a-z]{3,9}",
    "B": "[a-z]{3,9}",
    "p": r"[ap]\.?m\.?",
    "z": r"z|[+-][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2})?)?",
    "Z": r"[a-z][a-z0-9_/+-]*",
}
_CLOCK_RUNS = {"HM": (1, 4), "IM": (1, 4), "HMS": (5, 6), "IMS": (5, 6)}
"""Clocks without a separator that may lack leading zeros, and how many digits they may have."""

_DAY = frozenset("YymdbBjaAGVuUWw")
_TIME = frozenset("HIMSfp")
_WEEKDAY = frozenset("aAuw")
_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = {name: at for at, full in enumerate(_MONTH_NAMES, 1) for name in (full, full[:3])} | {"sept": 9}
_DAYS = {name: at for at, full in enumerate(_DAY_NAMES, 1) for name in (full, full[:3])}
_UTC_NAMES = frozenset(("UTC", "GMT", "Z"))
_CACHED_HALVES = 8_192  # dates and times of day recur; this many of each are cached


def pattern_reader(pattern: str) -> Callable[[str], Clock | None]:
    """Return a function that reads a text by a strptime pattern; it returns None for a text in another format.

    The function raises `Unfit` for a zone name that has no single meaning. Raises `InvalidSettings` for a pattern that
    is invalid or cannot determine a time.
    """
    tokens = _tokens(pattern)
    _check(pattern, [token[1] for token in tokens if len(token) == 2])
    for separator in (" ", "T"):
        if tokens.count(separator) == 1:
            at = tokens.index(separator)
            day, time = tokens[:at], tokens[at + 1 :]
            if _only(day, _DAY) and _only(time, _TIME):
                return _halves_reader(_Part(day), separator, _Part(time))
    part = _Part(tokens)

    def read(text: str) -> Clock | None:
        found = part.groups(text)
        if found is None:
            return None
        try:
            us = _local_us(found)
        except ValueError:
            return None
        offset_us = _offset_us(found)
        return (us, False) if offset_us is None else (us - offset_us, True)

    return read


def _halves_reader(day: _Part, separator: str, time: _Part) -> Callable[[str], Clock | None]:
    """Read date and time of day separately, each from a cache if possible."""

    @lru_cache(_CACHED_HALVES)
    def half_us(part: _Part, text: str) -> int | None:
        found = part.groups(text)
        try:
            return None if found is None else _local_us(found)
        except ValueError:
            return None

    def read(text: str) -> Clock | None:
        left, _, right = text.partition(separator)
        day_us = half_us(day, left.rstrip())
        if day_us is None:
            return None
        time_us = half_us(time, right.lstrip())
        return None if time_us is None else (day_us + time_us, False)

    return read


# --- the pattern ---------------------------------------------------------------------------------------


def _tokens(pattern: str) -> list[str]:
    """Return a pattern as directives (`%d`) and single characters."""
    tokens: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern[at] != "%":
            tokens.append(pattern[at])
            at += 1
            continue
        name = pattern[at + 1 : at + 2]
        if name == "%":
            tokens.append("%")
        elif name in _EXPANDED:
            tokens += _tokens(_EXPANDED[name])
        elif name and (name in _DIGITS or name in _TEXTS):
            tokens.append(f"%{name}")
        else:
            raise InvalidSettings(f"the time format {pattern!r} cannot be used: %{name} is not a directive")
        at += 2
    return tokens


def _check(pattern: str, names: Sequence[str]) -> None:
    """Refuse a pattern that does not determine a time, or that strptime would apply only in part."""
    has = frozenset(names)
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    month = has & frozenset("mbB")
    for wrong, reason in (
        (twice is not None, f"has %{twice} twice"),
        (not has & frozenset("YyG"), "has no year; use %Y or %y"),
        (len(has & frozenset("YyG")) > 1, "has two years"),
        (len(month) > 1, "has two months"),
        ("d" in has and not month, "has a day without a month; use %m or %b (%M is the minutes)"),
        ("M" in has and not has & frozenset("HI"), "has minutes (%M) without hours; the month is %m"),
        ("S" in has and "M" not in has, "has seconds without minutes"),
        ("f" in has and "S" not in has, "has a fraction without seconds"),
        ({"H", "I"} <= has, "has two hours"),
        (("I" in has) != ("p" in has), "has %I without %p, or %p without %I; %H is for clocks of 24 hours"),
        (
            ("V" in has) != ("G" in has) or ("V" in has and not has & _WEEKDAY),
            "needs %G, %V and a weekday (%u) together",
        ),
        (bool(has & frozenset("UW")) and not has & _WEEKDAY, "has a week without a weekday; add %u or %a"),
    ):
        if wrong:
            raise InvalidSettings(f"the time format {pattern!r} {reason}")


def _only(tokens: Sequence[str], allowed: frozenset[str]) -> bool:
    directives = {token[1] for token in tokens if len(token) == 2}
    return bool(directives) and directives <= allowed


class _Part:
    """A part of a pattern as a regular expression."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._runs: list[str] = []
        source, at = "", 0
        while at < len(tokens):
            run = _numeric_run(tokens, at)
            touches_digits = any(
                tokens[near].isdigit() for near in (at - 1, at + len(run)) if 0 <= near < len(tokens)
            )
            if run:
                source += self._run(run, touches_digits=touches_digits)
                at += len(run)
                continue
            token = tokens[at]
            if len(token) == 2:
                source += f"(?P<{token[1]}>{_TEXTS[token[1]]})"
            else:
                source += r"\s+" if token.isspace() else re.escape(token)
            at += 1
        self._match = re.compile(source, re.IGNORECASE | re.ASCII).fullmatch

    def _run(self, run: str, *, touches_digits: bool) -> str:
        """Return the expression of numeric directives that follow each other without a separator."""
        if len(run) == 1 and not touches_digits:
            fewest, most = _DIGITS[run]
            return f"(?P<{run}>[0-9]{{{fewest},{most}}})"
        if run in _CLOCK_RUNS and not touches_digits:
            fewest, most = _CLOCK_RUNS[run]
            self._runs.append(run)
            return f"(?P<{run}>[0-9]{{{fewest},{most}}})"
        widths = [f"{_DIGITS[name][1]}" for name in run]
        if run[-1] == "f":
            widths[-1] = "1,6"
        return "".join(f"(?P<{name}>[0-9]{{{width}}})" for name, width in zip(run, widths, strict=True))

    def groups(self, text: str) -> dict[str, str] | None:
        """Return the text of each directive; None for a text in another format."""
        match = self._match(text)
        if match is None:
            return None
        found = match.groupdict()
        for run in self._runs:
            digits = found.pop(run).zfill(2 * len(run))
            found |= {name: digits[2 * at : 2 * at + 2] for at, name in enumerate(run)}
        return found


def _numeric_run(tokens: Sequence[str], at: int) -> str:
    end = at
    while end < len(tokens) and len(tokens[end]) == 2 and tokens[end][1] in _DIGITS:
        end += 1
    return "".join(token[1] for token in tokens[at:end])


# --- the parts of a time -------------------------------------------------------------------------------


def _local_us(found: dict[str, str]) -> int:
    """Return the microseconds since 1970 on the clock; without a year, since midnight. Raises ValueError."""
    day = _day(found) - _EPOCH_DAY if not found.keys().isdisjoint("YyG") else 0
    return day * _DAY_US + _time_us(found)


def _day(found: dict[str, str]) -> int:
    """Return the ordinal of the day; raises ValueError if there is none."""
    if "G" in found:
        return date.fromisocalendar(int(found["G"]), int(found["V"]), _weekday(found)).toordinal()
    year = int(found["Y"]) if "Y" in found else int(found["y"]) + (2000 if int(found["y"]) < 69 else 1900)
    for week in "UW":
        if week in found:
            text = f"{year:04} {found[week]} {_weekday(found) % 7}"
            return datetime.strptime(text, f"%Y %{week} %w").toordinal()  # noqa: DTZ007 - a day has no zone
    if "j" in found:
        day = date(year, 1, 1).toordinal() + int(found["j"]) - 1
        if date.fromordinal(day).year != year:
            raise ValueError("the year has no such day")
        return day
    month = (
        int(found["m"]) if "m" in found else _MONTHS.get(_name(found, "bB"), 0) if _name(found, "bB") else 1
    )
    return date(year, month, int(found.get("d", 1))).toordinal()


def _weekday(found: dict[str, str]) -> int:
    """Return the day of the week from Monday (1) to Sunday (7)."""
    number = (
        int(found["u"])
        if "u" in found
        else int(found["w"]) or 7
        if "w" in found
        else _DAYS.get(_name(found, "aA"), 0)
    )
    if not 1 <= number <= 7:
        raise ValueError("no such weekday")
    return number


def _name(found: dict[str, str], directives: str) -> str:
    return next((found[name].lower() for name in directives if name in found), "")


def _time_us(found: dict[str, str]) -> int:
    hour, minute, second = (int(found.get(name, 0)) for name in "HMS")
    fraction_us = int(found.get("f", "").ljust(6, "0"))
    if "I" in found:
        hour = int(found["I"])
        if not 1 <= hour <= 12:
            raise ValueError("no such hour")
        hour = hour % 12 + (12 if found["p"][0] in "pP" else 0)
    is_end_of_day = hour == 24 and not (minute or second or fraction_us)
    if (hour > 23 and not is_end_of_day) or minute > 59 or second > 59:
        raise ValueError("no such time of day")
    return (hour * 3_600 + minute * 60 + second) * _SECOND_US + fraction_us


def _offset_us(found: dict[str, str]) -> int | None:
    name = found.get("Z")
    if name is not None and name.upper() not in _UTC_NAMES:
        raise Unfit(
            f"has the zone name {name!r}; only UTC, GMT and Z are unambiguous. Leave the name out of the time, and set "
            "the zone of the file, such as America/New_York or -05:00"
        )
    offset = found.get("z")
    if offset is None:
        return None if name is None else 0
    digits = offset[1:].replace(":", "").ljust(6, "0")
    seconds = int(digits[:2]) * 3_600 + int(digits[2:4]) * 60 + int(digits[4:])
    return seconds * _SECOND_US * (-1 if offset[0] == "-" else 1)
