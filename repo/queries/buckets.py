"""Buckets: spans of equal width on the clock or calendar of a time zone. Owns their arithmetic; reads no table."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, bindparam, case, literal_column

from repo.inputs.time_texts import Width
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US, to_datetime, to_datetimes

__all__ = ["AggregateColumns", "BucketKey", "Buckets"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  (wall-clock times are meant)
_MICROSECOND = timedelta(microseconds=1)
_DAY = timedelta(days=1)
_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_WEEK_US = 7 * _DAY_US
_MONDAY_US = 4 * _DAY_US  # 1970-01-05
_SHORTEST_MONTH_US = 28 * _DAY_US
_USUAL_US = (0, 4_102_444_799_999_999)  # 1970 to 2099
_FAR_US = (
    20_000_000_000_000_000  # beyond every valid timestamp, so that the modulo never sees a negative number
)


class BucketKey(NamedTuple):
    """SQL for the bucket that contains a time."""

    group: ColumnElement[int]
    """What to group by. DuckDB groups by a bucket's place, a small number, twice as fast as by its start."""

    number: ColumnElement[int]
    """The number of the bucket, computed from the group."""


@dataclass(frozen=True)
class Buckets:
    """Buckets of one width in a zone, for points within [start_us, end_us].

    Widths up to an hour follow elapsed time, aligned to the zone's current offset. Where a clock change leaves
    them unaligned, a new bucket begins at the change. Wider buckets follow the wall clock: a day begins at local
    midnight and may last 23 or 25 hours. Whole weeks begin on Monday. Months and years are calendar months and
    years, counted from January 1970, so `3mo` gives quarters.

    Legacy stores may hold points outside of the years 1678 to 2261, whose times had a wrong unit. With such points,
    those outside of the years 1970 to 2099 count in the first or the last bucket: buckets for all centuries would
    take seconds.

    Each bucket has a number, by which the engines group: its start in µs. For buckets that follow the wall clock
    it is the local time of the start, taken as if it were UTC.
    """

    width: Width
    zone: tzinfo
    start_us: int
    end_us: int
    has_outside: bool = False
    """Whether there are points outside of `start_us` and `end_us`; they count in the first or the last bucket."""

    @classmethod
    def over(cls, width: Width, zone: tzinfo, first_us: int, last_us: int) -> Buckets:
        """Return the buckets for points within [first_us, last_us], whatever these are."""
        if first_us >= MIN_TIMESTAMP_US and last_us <= MAX_TIMESTAMP_US:
            return cls(width, zone, first_us, last_us)
        start_us, end_us = (min(max(us, _USUAL_US[0]), _USUAL_US[1]) for us in (first_us, last_us))
        return cls(width, zone, start_us, end_us, has_outside=True)

    def key(self, time: Any) -> BucketKey:
        """Return the SQL that groups times by their bucket."""
        if self.has_outside:
            edges = ((time < self.start_us, self.start_us), (time > self.end_us, self.end_us))
            time = case(*edges, else_=time)
        if self.width.months:
            # The first one twice: DuckDB cannot group by an expression that is only a parameter.
            months = _stepped(time, [(us, us) for us in (self._months[0], *self._months)])
            return BucketKey(months, months)
        every, offset = self.width.us, _stepped(time, self._offsets)
        if self._wall_clock or len(self._offsets) == 1:
            place: ColumnElement[int] = (time + offset + self._shift) // every
            return BucketKey(place, place * every - self._back)
        start: ColumnElement[int] = time - (time + offset + self._shift) % every
        if self._cuts:
            cut = _stepped(time, [(-_FAR_US, -_FAR_US), *((us, us) for us in self._cuts)])
            start = case((start < cut, cut), else_=start)
        return BucketKey(start, start)

    @property
    def plain_parameters(self) -> dict[str, int] | None:
        """The values for `plain_key`; None if the buckets depend on months, a clock change or outliers."""
        if self.has_outside or self.width.months or len(self._offsets) > 1:
            return None
        return {
            "bucket_us": self.width.us,
            "bucket_shift": self._offsets[0][1] + self._shift,
            "bucket_back": self._back,
        }

    @staticmethod
    def plain_key(time: Any) -> BucketKey:
        """Return the SQL that groups times by buckets of one width, whatever the width and the zone's offset."""
        width: ColumnElement[int] = bindparam("bucket_us", type_=BigInteger)
        place: ColumnElement[int] = (time + bindparam("bucket_shift")) // width
        return BucketKey(place, place * width - bindparam("bucket_back"))

    def number_of(self, us: int) -> int:
        """Return the number of the bucket that contains a time, as `key` does in SQL."""
        us = self._inside(us)
        if self.width.months:
            return self._months[max(0, bisect_right(self._months, us) - 1)]
        offset = self._offset(us)
        into = (us + offset + self._shift) % self.width.us
        if self._wall_clock:
            return us + offset - into
        return max([us - into, *(cut for cut in self._cuts if us - into < cut <= us)])

    def _inside(self, us: int) -> int:
        return min(max(us, self.start_us), self.end_us) if self.has_outside else us

    def start_of(self, number: int, fold: int = 0) -> datetime:
        """Return the start of a bucket in the zone. If clocks show it twice, `fold=1` is the second time."""
        if not self._wall_clock:
            moment = to_datetime(number)
            return moment if self.zone is UTC else moment.astimezone(self.zone)
        return self._moment_of(_NAIVE_EPOCH + number * _MICROSECOND, fold).astimezone(self.zone)

    def starts_of(self, numbers: Iterable[int]) -> dict[int, datetime]:
        """Return the start of each of these buckets in the zone, by number; see `start_of`."""
        different = list(set(numbers))
        if self._wall_clock:
            return {number: self.start_of(number) for number in different}
        moments = to_datetimes(different)
        if self.zone is not UTC:
            moments = [moment.astimezone(self.zone) for moment in moments]
        return dict(zip(different, moments, strict=True))

    def start_us_of(self, number: int, fold: int = 0) -> int:
        """Return the start of a bucket in µs since 1970 UTC; `fold` as in `start_of`."""
        return (self.start_of(number, fold) - _EPOCH) // _MICROSECOND if self._wall_clock else number

    def numbers(self, low_us: int, high_us: int) -> list[int]:
        """Return the numbers of all buckets that overlap [low_us, high_us], in order."""
        if low_us > high_us:
            return []
        low_us, high_us = self._inside(low_us), self._inside(high_us)
        if self.width.months:
            first = max(0, bisect_right(self._months, low_us) - 1)
            return self._months[first : bisect_right(self._months, high_us)]
        changes = [us for us, _ in self._offsets[1:] if low_us < us <= high_us]
        if self._wall_clock:
            edges = [low_us, high_us, *changes, *(us - 1 for us in changes)]
            found = [self.number_of(us) for us in edges]
            numbers = range(min(found), max(found) + 1, self.width.us)
            starts = [self.start_us_of(number) for number in (*numbers, numbers[-1] + self.width.us)]
            # A bucket that clocks skip (Samoa had no 30 December 2011) would begin when the next one does.
            return [
                number
                for number, (start, after) in zip(numbers, pairwise(starts), strict=True)
                if start < after
            ]
        steps: list[int] = []
        for low, high in pairwise([low_us, *changes, high_us + 1]):
            first = self.number_of(low)
            aligned = low - (low + self._offset(low) + self._shift) % self.width.us
            steps += [first, *range(aligned + self.width.us, high, self.width.us)]
        return list(dict.fromkeys(steps))

    def pieces(self, low_us: int, high_us: int) -> list[tuple[int, int]]:
        """Return (start time, bucket number) for each piece of [low_us, high_us], in order.

        A bucket has more than one piece if clocks were set back across its start.
        """
        numbers = self.numbers(low_us, high_us)
        if not self._wall_clock:
            return [(max(low_us, number), number) for number in numbers]
        cuts = {self.start_us_of(number, fold) for number in numbers for fold in (0, 1)}
        cuts |= {low_us, *(us for us, _ in self._offsets)}
        return [(us, self.number_of(us)) for us in sorted(cuts) if low_us <= us <= high_us]

    def most(self, low_us: int, high_us: int) -> int:
        """Return an upper bound for the number of buckets in [low_us, high_us], without creating them."""
        width_us = self.width.us or self.width.months * _SHORTEST_MONTH_US
        return max(0, high_us - low_us) // width_us + 2

    @property
    def _wall_clock(self) -> bool:
        return self.width.us > _HOUR_US

    @property
    def _shift(self) -> int:
        every = self.width.us
        return _FAR_US - _FAR_US % every - (_MONDAY_US if every % _WEEK_US == 0 else 0)

    @property
    def _back(self) -> int:
        """The difference between a number and the product of place and width, unless the offset changes."""
        return self._shift if self._wall_clock else self._shift + self._offsets[0][1]

    @cached_property
    def _months(self) -> list[int]:
        """The starts of month buckets, from the one that contains `start_us` to the one that contains `end_us`."""
        step = self.width.months
        first, last = (self._local(us) for us in (self.start_us, self.end_us))
        low, high = ((local.year - 1970) * 12 + local.month - 1 for local in (first, last))
        months = (
            datetime(1970 + month // 12, month % 12 + 1, 1)  # noqa: DTZ001  (wall-clock times are meant)
            for month in range(low - low % step, high + 1, step)
        )
        return [(self._moment_of(month) - _EPOCH) // _MICROSECOND for month in months]

    def _moment_of(self, wall: datetime, fold: int = 0) -> datetime:
        """Return the time at which clocks show `wall`; if they skip it, the time at which they resume."""
        first, second = (wall.replace(tzinfo=self.zone, fold=fold) for fold in (0, 1))
        before, after = first.utcoffset(), second.utcoffset()
        assert before is not None
        assert after is not None
        if before < after:
            low, high = (
                (wall.replace(tzinfo=UTC) - offset - _EPOCH) // _MICROSECOND for offset in (after, before)
            )
            return to_datetime(self._change(low, high))
        return (second if fold else first).astimezone(UTC)

    def _change(self, low_us: int, high_us: int) -> int:
        """Return the time of the clock change in (low_us, high_us]. Zones change at whole seconds."""
        old = self._offset(low_us)
        seconds = range(-(-low_us // 1_000_000), high_us // 1_000_000 + 1)
        at = bisect_left(seconds, True, key=lambda second: self._offset(second * 1_000_000) != old)
        return seconds[at] * 1_000_000

    @cached_property
    def _offsets(self) -> list[tuple[int, int]]:
        """The zone's offsets within the span, as (valid from, offset), both in µs."""
        # One day earlier, to include a change within the first bucket.
        low = self.start_us - _DAY_US
        found = [(low, self._offset(low))]
        if self.zone is UTC:
            return found
        moment = to_datetime(low)
        offset = moment.astimezone(self.zone).utcoffset()
        while low < self.end_us:
            high = low + _DAY_US
            moment += _DAY  # faster than converting `high`, as three centuries have 100,000 days
            if high > self.end_us:
                high, moment = self.end_us, to_datetime(self.end_us)
            old, offset = offset, moment.astimezone(self.zone).utcoffset()
            if offset != old:
                changed = self._change(low, high)
                found.append((changed, self._offset(changed)))
            low = high
        return found

    @cached_property
    def _cuts(self) -> list[int]:
        """The clock changes that fall inside a bucket of elapsed time, which they split."""
        return [us for us, offset in self._offsets[1:] if (us + offset + self._shift) % self.width.us]

    def _local(self, us: int) -> datetime:
        return to_datetime(us).astimezone(self.zone)

    def _offset(self, us: int) -> int:
        if self.zone is UTC:
            return 0
        offset = self._local(us).utcoffset()
        assert offset is not None
        return offset // _MICROSECOND


def _stepped(time: Any, steps: Sequence[tuple[int, int]]) -> ColumnElement[int]:
    """Return the SQL for the value of the last step at or before a time: nested CASEs, as a binary search.

    The numbers are part of the SQL: as thousands of parameters, they double the time of the statement.
    """
    if len(steps) == 1:
        return _whole(steps[0][1])
    middle = len(steps) // 2
    return case(
        (time < _whole(steps[middle][0]), _stepped(time, steps[:middle])),
        else_=_stepped(time, steps[middle:]),
    )


def _whole(number: int) -> ColumnElement[int]:
    return literal_column(f"{number:d}", BigInteger)


@dataclass(slots=True)
class AggregateColumns:
    """The result, column by column; one row per series and bucket, in this order."""

    sensors: Sequence[str] = ()
    metrics: Sequence[str] = ()
    numbers: Sequence[int] = ()
    """Bucket numbers; 0 without buckets."""

    values: dict[str, Sequence[Any]] = field(default_factory=dict)
    """By the aggregate's name; None if the result is undefined, such as inf - inf."""
