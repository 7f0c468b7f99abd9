"""Limits of bytes per second that follow the time of day. Parses and looks up; never reads a clock, never waits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from repo.errors import InvalidSettings
from repo.inputs.times import Unfit, to_datetime, zone_named

__all__ = ["Rate", "Window", "parse_bytes_per_s"]

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_AMOUNT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([kmg]?)b(?:/s|ps)?|0", re.ASCII | re.IGNORECASE)
_WINDOW = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})=(.+)", re.ASCII)
_DAY_MINUTES = 24 * 60
_MINUTE_US = 60_000_000


class Window(NamedTuple):
    """A part of each day, in minutes since midnight, with its own limit; it may span midnight.

    `start` belongs to it, and `end`, which is at most 24:00, does not. A limit of 0 stops everything.
    """

    start: int
    end: int
    bytes_per_s: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a text such as `08:00-18:00=100kB/s`; raises `InvalidSettings`."""
        match = _WINDOW.fullmatch(text.strip())
        start = end = -1
        if match is not None:
            start_hour, start_minute, end_hour, end_minute = map(int, match.groups()[:4])
            start, end = start_hour * 60 + start_minute, end_hour * 60 + end_minute
            if max(start_minute, end_minute) > 59:
                match = None
        if match is None or start >= _DAY_MINUTES or end > _DAY_MINUTES or start == end:
            raise InvalidSettings(
                f"{text[:60]!r} is not a window; write its start, end and limit: 08:00-18:00=100kB/s"
            )
        return cls(start, end, parse_bytes_per_s(match[5]))

    def __str__(self) -> str:
        start, end = (f"{minute // 60:02}:{minute % 60:02}" for minute in self[:2])
        return f"{start}-{end}={_shown(self.bytes_per_s)}"

    def has(self, minute: int) -> bool:
        """Return whether a minute of the day is inside."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


class Rate(NamedTuple):
    """A limit of bytes per second, and others for parts of the day. None means no limit."""

    bytes_per_s: int | None = None
    windows: tuple[Window, ...] = ()
    zone: str = "UTC"
    """The zone of the windows: an IANA name or an offset."""

    @classmethod
    def of(cls, limit: str | None, windows: Iterable[str] = (), zone: str = "UTC") -> Self:
        """Parse a limit such as `500kB/s`, and windows; raises `InvalidSettings`."""
        try:
            zone_named(zone)
        except Unfit as fault:
            raise InvalidSettings(f"the zone {fault}") from fault
        limit_bytes = None if limit is None else parse_bytes_per_s(limit)
        return cls(limit_bytes, tuple(map(Window.parse, windows)), zone)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the form of `to_json`."""
        found: dict[str, Any] = json.loads(text)
        return cls(found["bytes_per_s"], tuple(Window(*window) for window in found["windows"]), found["zone"])

    def to_json(self) -> str:
        """Return the form that the store keeps."""
        return json.dumps(self._asdict())

    def __str__(self) -> str:
        parts = [
            "no limit" if self.bytes_per_s is None else _shown(self.bytes_per_s),
            *map(str, self.windows),
        ]
        return ", ".join(parts) + (f" ({self.zone})" if self.windows else "")

    def resumes_us(self, now_us: int) -> int | None:
        """Return when the limit, which is 0 at this time, stops being 0; None if it never does. Exact to a minute."""
        begin_us = now_us - now_us % _MINUTE_US
        local = to_datetime(now_us).astimezone(zone_named(self.zone))
        minute = local.hour * 60 + local.minute
        edges = {(edge - minute) % _DAY_MINUTES for window in self.windows for edge in window[:2]}
        for after in sorted(edges):
            if after and self.at(begin_us + after * _MINUTE_US) != 0:
                return begin_us + after * _MINUTE_US
        return None

    def zero(self, now_us: int) -> str:
        """Return in words how long the limit, which is 0 at this time, stays 0."""
        resumes_us = self.resumes_us(now_us)
        if resumes_us is None:
            return "0"
        local = to_datetime(resumes_us).astimezone(zone_named(self.zone))
        return f"0 until {local:%Y-%m-%d %H:%M} ({self.zone})"

    def at(self, now_us: int) -> int | None:
        """Return the limit at a time, in µs since 1970 UTC: that of the first window that it is in."""
        if self.windows:
            local = to_datetime(now_us).astimezone(zone_named(self.zone))
            for window in self.windows:
                if window.has(local.hour * 60 + local.minute):
                    return window.bytes_per_s
        return self.bytes_per_s


def parse_bytes_per_s(text: str) -> int:
    """Parse a rate such as `500kB/s`, `1.5MB/s` or `0`; raises `InvalidSettings`.

    Bits, and a small b, which may mean them, are refused: `500kbit/s` is an eighth of `500kB/s`.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is not None and "b" in text:
        amount = match[0].split("b")[0].strip()
        raise InvalidSettings(
            f"{text[:40]!r} may mean bits or bytes; write {amount}B/s for bytes per second, eight times as many bits"
        )
    if match is None:
        raise InvalidSettings(
            f"{text[:40]!r} is not a rate; write bytes per second, such as 500kB/s or 1.5MB/s"
        )
    return 0 if match[1] is None else int(float(match[1]) * _UNITS[match[2].lower()])


def _shown(bytes_per_s: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if bytes_per_s >= size:
            return f"{bytes_per_s / size:.10g}{unit}/s"
    return f"{bytes_per_s}B/s"
