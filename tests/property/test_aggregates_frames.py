"""Aggregates, buckets and filled gaps of random points, against pandas and NumPy."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from repo import PointRepository, Settings, Store
from tests.conftest import Templates

NAMES = ["avg", "min", "max", "sum", "count", "first", "last", "stddev", "median", "p0", "p37.5", "p95"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
WIDTHS = {
    "7m": 7 * HOUR_US // 60,
    "30m": HOUR_US // 2,
    "1h": HOUR_US,
    "90m": 3 * HOUR_US // 2,
    "6h": 6 * HOUR_US,
    "1d": DAY_US,
    "2d": 2 * DAY_US,
    "1w": 7 * DAY_US,
    "1mo": 31 * DAY_US,
    "3mo": 92 * DAY_US,
    "1y": 366 * DAY_US,
}
MONTHS = {"1mo": 1, "3mo": 3, "1y": 12}
PLACES = [
    ("UTC", "2024-02-28"),
    ("Europe/Oslo", "2024-03-30"),
    ("Europe/Oslo", "2024-10-26"),
    ("America/St_Johns", "2024-11-02"),
    ("America/St_Johns", "2010-03-13"),  # clocks changed a minute past midnight
    ("Australia/Lord_Howe", "2024-04-06"),  # by half an hour
    ("Australia/Lord_Howe", "2024-10-05"),
    ("America/Sao_Paulo", "2018-02-17"),  # at midnight, back into the day before
    ("Asia/Kathmandu", "1985-12-31"),  # by a quarter of an hour, for good
    ("Pacific/Apia", "2011-12-28"),  # a day was skipped
    ("America/New_York", "1969-10-25"),
]
READINGS = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.integers(-3, 3).map(float),
    st.sampled_from([None, None, math.nan]),
)
number = count()

Point = tuple[int, float | None]


@pytest.fixture(scope="module", params=["duckdb", "sqlite"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, templates: Templates
) -> Iterator[Store]:
    """One store for all examples; each has sensors of its own."""
    path: Path = tmp_path_factory.mktemp(request.param) / "store"
    templates.copy(request.param, 1, path)
    with Store(path, Settings(engine=request.param)) as store:
        store.points.insert("other", "m", 7.0, timestamp=1)
        yield store


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    zone, day = draw(st.sampled_from(PLACES))
    every = draw(st.sampled_from(list(WIDTHS)))
    begin_us = round(datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 10**6
    reach_us = 12 * WIDTHS[every]
    times = st.integers(begin_us, begin_us + reach_us) | st.integers(0, 24).map(
        lambda step: begin_us + step * reach_us // 24
    )
    values = READINGS | (st.sampled_from([math.inf, -math.inf]) if draw(st.booleans()) else READINGS)
    series = st.dictionaries(times, values, max_size=25).map(lambda found: sorted(found.items()))
    bound = st.none() | st.integers(begin_us - reach_us // 8, begin_us + reach_us * 9 // 8)
    low, high = draw(bound), draw(bound)
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    return {
        "zone": ZoneInfo(zone),
        "every": every,
        "series": draw(st.lists(series, min_size=1, max_size=3)),
        "low": low,
        "high": high,
        "fill": draw(st.sampled_from([None, "none", "null", "previous", "linear"])),
    }


def moment(us: int | None) -> datetime | None:
    return None if us is None else EPOCH + timedelta(microseconds=us)


def bucket(us: int, every: str, zone: ZoneInfo) -> int:
    """The moment at which the bucket of a moment begins, by the clock on the wall."""
    there = (EPOCH + timedelta(microseconds=us)).astimezone(zone)
    wall: Any = pd.Timestamp(there.replace(tzinfo=None, fold=0))
    if every in MONTHS:
        month = wall.to_period("M").ordinal // MONTHS[every] * MONTHS[every]
        start: Any = wall.to_period("M").start_time - pd.DateOffset(
            months=wall.to_period("M").ordinal - month
        )
    else:
        origin: Any = pd.Timestamp("1970-01-05") if every == "1w" else pd.Timestamp(0)
        start = wall - (wall - origin) % pd.Timedelta(WIDTHS[every], "us")
        if WIDTHS[every] <= HOUR_US:
            begin = there.astimezone(UTC) - (wall - start).to_pytimedelta()
            while begin.astimezone(zone).utcoffset() != there.utcoffset():
                begin = begin.replace(second=0, microsecond=0) + timedelta(minutes=1)
            return int((begin - EPOCH) // timedelta(microseconds=1))
    begins = start.to_pydatetime().replace(tzinfo=zone)
    if begins.astimezone(UTC).astimezone(zone) != begins:  # clocks skip it: the first minute past it
        begins = start.to_pydatetime().replace(tzinfo=UTC) - timedelta(days=2)
        while begins.astimezone(zone).replace(tzinfo=None) < start:
            begins += timedelta(minutes=1)
    return int((begins.astimezone(UTC) - EPOCH) // timedelta(microseconds=1))


def quantile(values: list[float], share: float) -> float:
    """NumPy's, but where it meets an infinity: there it says NaN for what lies between 1 and infinity."""
    if all(map(math.isfinite, values)):
        return float(np.quantile(values, share))
    ordered = sorted(values)
    place = share * (len(values) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    if low == high:
        return low
    return low + high if math.isinf(low) or math.isinf(high) else low + (high - low) * (place % 1)


def summary(readings: list[float]) -> dict[str, Any]:
    column = pd.Series(readings, dtype=float)
    with np.errstate(invalid="ignore"):
        return {
            "avg": column.mean(),
            "min": column.min(),
            "max": column.max(),
            "sum": column.sum(),
            "count": len(column),
            "first": column.iloc[0],
            "last": column.iloc[-1],
            "stddev": column.std(),
            "median": quantile(readings, 0.5),
            "p0": column.min(),
            "p37.5": quantile(readings, 0.375),
            "p95": quantile(readings, 0.95),
        }


def expected(points: list[Point], asked: dict[str, Any]) -> list[dict[str, Any]]:
    low, high = asked["low"], asked["high"]
    every, zone, fill = asked["every"], asked["zone"], asked["fill"]
    inside = [p for p in points if (low is None or p[0] >= low) and (high is None or p[0] < high)]
    groups: dict[int, list[float]] = {}
    for us, value in inside:
        group = groups.setdefault(bucket(us, every, zone), [])
        if value is not None and not math.isnan(value):
            group.append(value)
    empty = dict.fromkeys(NAMES) | {"count": 0}
    rows = {at: summary(group) if group else empty for at, group in sorted(groups.items())}
    if fill in (None, "none"):
        return [{"bucket": at, **row} for at, row in rows.items()]
    first = points[0][0] if low is None else low
    last = points[-1][0] if high is None else high - 1
    reported = {at: row for at, row in rows.items() if row["count"]}
    before = [v for us, v in points if low is not None and us < low and v is not None and not math.isnan(v)]
    starts = sorted(reported)
    filled = []
    for at in steps(first, last, every, zone):
        row = reported.get(at, empty)
        place = bisect_right(starts, at)
        if at not in reported and fill == "previous":
            row = reported[starts[place - 1]] if place else summary(before[-1:]) if before else empty
        if at not in reported and fill == "linear" and 0 < place < len(starts):
            xs = starts[place - 1 : place + 1]
            share = (at - xs[0]) / (xs[1] - xs[0])
            row = {name: on_line(reported[xs[0]][name], reported[xs[1]][name], share) for name in NAMES}
        filled.append({"bucket": at, **row, "count": reported[at]["count"] if at in reported else 0})
    return filled


def steps(first: int, last: int, every: str, zone: ZoneInfo) -> list[int]:
    """All buckets of a span, by asking of so many moments that none can be missed."""
    if first > last:
        return []
    width = WIDTHS[every]
    step = (
        min(HOUR_US // 4, width // 2) if width < DAY_US else HOUR_US if width < 30 * DAY_US else 20 * DAY_US
    )
    near = range(first - first % (HOUR_US // 60), last, min(step, width // 2))
    return sorted({bucket(us, every, zone) for us in (first, last, *near) if first <= us <= last})


def on_line(left: Any, right: Any, share: float) -> Any:
    if left == right:
        return left
    with np.errstate(invalid="ignore"):
        return float(np.float64(left) * (1 - share) + np.float64(right) * share)


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [row["bucket"].timestamp() * 1e6 for row in found] == [row["bucket"] for row in wanted]
    for left, right in zip(found, wanted, strict=True):
        for name in NAMES:
            value = right[name]
            if value is None or math.isnan(value):
                assert left[name] is None, (name, left, right)
            else:
                assert left[name] == pytest.approx(value, rel=1e-9, abs=1e-6), (name, left, right)


@settings(max_examples=12)
@given(asked=questions())
def test_aggregates_of_random_points_are_those_of_pandas(shared: Store, asked: dict[str, Any]) -> None:
    prefix = f"{next(number)}-"
    rows = [
        (f"{prefix}{n}", "m", us / 1e6, value)
        for n, points in enumerate(asked["series"])
        for us, value in points
    ]
    shared.points.insert_many(rows)
    low, high = moment(asked["low"]), moment(asked["high"])
    options = {"every": asked["every"], "tz": asked["zone"].key, "fill": asked["fill"]}
    found = shared.points.aggregate(f"{prefix}*", "m", low, high, agg=NAMES, **options)
    for n, points in enumerate(asked["series"]):
        own = [row for row in found if row["sensor_id"] == f"{prefix}{n}"]
        same(own, expected(points, asked) if points else [])
    with shared._handle.reading("a test") as (connection, _):
        own_connection = PointRepository(connection)
        assert own_connection.aggregate(f"{prefix}*", "m", low, high, agg=NAMES, **options) == found
