"""Buckets: spans of equal width on the clock of a time zone. Owns their arithmetic; reads no table."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, case, literal

__all__ = ["Buckets"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  (wall-clock times are meant)
_MICROSECOND = timedelta(microseconds=1)
_HOUR_US = 3_600_000_000
_WEEK_US = 7 * 24 * _HOUR_US
_MONDAY_US = 4 * 24 * _HOUR_US  # 1970-01-05
_FAR_US = (
    20_000_000_000_000_000  # past every timestamp that a point may have, so that modulo meets no negative
)


@dataclass(frozen=True)
class Buckets:
    """Buckets of `every_us` in a zone, for points within [start_us, end_us].

    Widths up to an hour follow real time, aligned to the zone's present offset. Wider ones follow the wall
    clock: a day begins at local midnight and may last 23 or 25 hours. Whole weeks begin on Monday.
    """

    every_us: int
    zone: tzinfo
    start_us: int
    end_us: int

    @property
    def wall_clock(self) -> bool:
        """Whether the buckets follow the wall clock instead of real time."""
        return self.every_us > _HOUR_US

    def expression(self, time: Any) -> ColumnElement[int]:
        """Return the SQL for the number of the bucket of a time; `start_of` turns it into a moment."""
        offsets = self._offsets
        offset: ColumnElement[int] = literal(offsets[-1][1])
        if len(offsets) > 1:
            offset = case(
                *((time < until, us) for (until, _), (_, us) in zip(offsets[1:], offsets, strict=False)),
                else_=offsets[-1][1],
            )
        shift = _FAR_US - _FAR_US % self.every_us - (_MONDAY_US if self.every_us % _WEEK_US == 0 else 0)
        into = (time + offset + shift) % self.every_us
        start: ColumnElement[int] = time + offset - into if self.wall_clock else time - into
        return start

    def start_of(self, number: int) -> datetime:
        """Return the moment at which a bucket begins, in the zone."""
        if self.wall_clock:
            wall = (_NAIVE_EPOCH + number * _MICROSECOND).replace(tzinfo=self.zone)
            return wall.astimezone(UTC).astimezone(self.zone)  # where clocks skip the start: when they go on
        return (_EPOCH + number * _MICROSECOND).astimezone(self.zone)

    @cached_property
    def _offsets(self) -> list[tuple[int, int]]:
        """The zone's offsets within the span, as (from this moment, offset), both in µs."""
        day_us = 24 * _HOUR_US
        found = [(self.start_us, self._offset(self.start_us))]
        low = self.start_us
        while low < self.end_us:
            high = min(low + day_us, self.end_us)
            if self._offset(high) != self._offset(low):
                seconds = range(-(-low // 1_000_000), high // 1_000_000 + 1)
                old = self._offset(low)
                at = bisect_left(seconds, True, key=lambda s: self._offset(s * 1_000_000) != old)
                found.append((seconds[at] * 1_000_000, self._offset(seconds[at] * 1_000_000)))
            low = high
        return found

    def _offset(self, us: int) -> int:
        offset = (_EPOCH + us * _MICROSECOND).astimezone(self.zone).utcoffset()
        assert offset is not None
        return offset // _MICROSECOND
