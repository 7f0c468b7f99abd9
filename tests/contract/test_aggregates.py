"""Aggregates, of whole ranges and by buckets in any zone, against a calculation in plain Python."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from repo import InvalidQuery, Store
from repo.engines import registry

pytestmark = pytest.mark.shared_stores

AGGREGATES = ["avg", "min", "max", "sum", "count", "first", "last"]
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  wall-clock arithmetic is meant
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
Points = list[tuple[int, Any]]


def summary(points: Points) -> dict[str, Any]:
    """All aggregates of the points (µs, value) in one bucket, calculated in Python."""
    readings = [value for _, value in sorted(points, key=lambda point: point[0]) if value is not None]
    if not readings:
        return dict.fromkeys(AGGREGATES) | {"count": 0}
    total = math.fsum(readings)
    return {
        "avg": total / len(readings),
        "min": min(readings),
        "max": max(readings),
        "sum": total,
        "count": len(readings),
        "first": readings[0],
        "last": readings[-1],
    }


def bucket_of(us: int, every: str, zone: ZoneInfo) -> datetime:
    """The start of the bucket of a time, calculated in Python."""
    width = timedelta(seconds=int(every[:-1]) * UNITS[every[-1]])
    moment = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).astimezone(zone)
    wall = moment.replace(tzinfo=None, fold=0)
    origin = datetime(1970, 1, 5) if every.endswith("w") else EPOCH  # noqa: DTZ001  a Monday
    into = (wall - origin) % width
    if width <= timedelta(hours=1):
        start = moment.astimezone(UTC) - into
        while start.astimezone(zone).utcoffset() != moment.utcoffset():  # a clock change starts a bucket
            start += timedelta(minutes=1)
        return start.astimezone(zone)
    return (wall - into).replace(tzinfo=zone)


def by_buckets(points: Iterable[tuple[int, Any]], every: str, zone: ZoneInfo) -> list[dict[str, Any]]:
    buckets: dict[datetime, Points] = {}
    for us, value in points:
        buckets.setdefault(bucket_of(us, every, zone).astimezone(UTC), []).append((us, value))
    # Keyed in UTC: within one zone, the two 02:00 of an autumn night compare equal.
    return [{"bucket": bucket, **summary(buckets[bucket])} for bucket in sorted(buckets)]


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for left, right in zip(found, wanted, strict=True):
        for name, value in right.items():
            if isinstance(value, datetime):
                # Compared in UTC: a local time that occurs twice or never equals no time of another zone.
                assert left[name].timestamp() == value.timestamp(), (name, left, right)
            elif isinstance(value, float):
                assert math.isclose(left[name], value, rel_tol=1e-9, abs_tol=1e-9), (name, left, right)
            else:
                assert left[name] == value, (name, left, right)


def test_every_aggregate_of_a_whole_range(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    points = [(at * 10**6, rng.choice([None, rng.gauss(0, 1e6)])) for at in rng.sample(range(5000), 400)]
    store.points.insert_many([("a", "m", us / 1e6, value) for us, value in points] + [("b", "m", 1, 1.0)])
    [row] = store.points.aggregate("a", "m", agg=AGGREGATES)
    same([row], [{"sensor_id": "a", "metric_name": "m", **summary(points)}])
    inside = [(us, value) for us, value in points if 1000 * 10**6 <= us < 2000 * 10**6]
    same(store.points.aggregate("a", "m", 1000, 2000, agg=AGGREGATES), [summary(inside)])


@pytest.mark.parametrize(
    ("zone", "around"),
    [
        ("Europe/Oslo", "2024-03-31"),
        ("Europe/Oslo", "2024-10-27"),
        ("America/New_York", "2024-03-10"),
        ("America/New_York", "2024-11-03"),
        ("Asia/Kolkata", "2024-01-01"),
        ("Australia/Lord_Howe", "2024-04-07"),
    ],
)
def test_buckets_follow_the_zone_over_the_days_when_clocks_change(
    shared_store: Store, zone: str, around: str
) -> None:
    start = datetime.fromisoformat(around).replace(tzinfo=ZoneInfo(zone)) - timedelta(days=1)
    start_us = round(start.timestamp() * 1e6)
    points = [(start_us + step * 937 * 10**6, float(step % 11)) for step in range(300)]
    shared_store.points.insert_many([(around, "m", us / 1e6, value) for us, value in points])
    for every in ("1m", "1h", "2h", "6h", "1w", "1d"):
        found = shared_store.points.aggregate(around, "m", agg=AGGREGATES, every=every, tz=zone)
        same(found, by_buckets(points, every, ZoneInfo(zone)))
        for row in found:  # skips wall-clock times that the zone does not have
            assert row["bucket"] == row["bucket"].astimezone(UTC).astimezone(ZoneInfo(zone))
    starts = [row["bucket"].astimezone(UTC) for row in found]
    odd = {"Asia/Kolkata": 24.0, "Australia/Lord_Howe": 24.5}.get(zone, 23.0 if "-03-" in around else 25.0)
    assert timedelta(hours=odd) in {later - earlier for earlier, later in pairwise(starts)}


def test_buckets_before_1970_and_over_centuries(store: Store) -> None:
    years = [1678, 1899, 1901, 1969, 1970, 1971, 2024, 2261]
    moments = [datetime(year, 7, 1, 12, tzinfo=UTC) for year in years]
    points = [(round(m.timestamp()) * 10**6, float(m.year)) for m in moments]
    store.points.insert_many([("a", "m", us // 10**6, value) for us, value in points])
    for every, first, end in (("1w", 1677, 2262), ("1d", 1899, 1972), ("1h", 1901, 1902), ("1h", 1969, 1971)):
        bounds = () if every == "1w" else (datetime(first, 1, 1, tzinfo=UTC), datetime(end, 1, 1, tzinfo=UTC))
        wanted = [(us, value) for us, value in points if first <= value < end]
        found = store.points.aggregate("a", "m", *bounds, agg=AGGREGATES, every=every, tz="Europe/Oslo")
        same(found, by_buckets(wanted, every, ZoneInfo("Europe/Oslo")))


def test_each_series_has_its_own_rows_in_order(store: Store) -> None:
    store.points.insert_many([(s, m, at, 1.0) for at in (0, 61, 200) for s in "ba" for m in "tp"])
    rows = store.points.aggregate("*", None, agg="count", every="1m")
    keys = [(row["sensor_id"], row["metric_name"], row["bucket"].timestamp(), row["count"]) for row in rows]
    assert keys == [(s, m, at, 1) for s in "ab" for m in "pt" for at in (0, 60, 180)]


def test_nothing_selected_gives_no_row_and_only_gaps_give_a_count_of_zero(store: Store) -> None:
    store.points.insert_many([("gap", "m", 1, None), ("gap", "m", 2, float("nan"))])
    assert store.points.aggregate("nobody", "m", agg=AGGREGATES) == []
    assert store.points.aggregate("gap", "m", 10, 20, agg=AGGREGATES) == []
    same(store.points.aggregate("gap", "m", agg=AGGREGATES), [summary([(1, None)])])


def test_first_and_last_skip_gaps(store: Store) -> None:
    store.points.insert_many(
        [("a", "m", 1, None), ("a", "m", 2, 2.0), ("a", "m", 3, 3.0), ("a", "m", 4, None)]
    )
    [row] = store.points.aggregate("a", "m", agg=["first", "last"])
    assert (row["first"], row["last"]) == (2.0, 3.0)


def test_infinities_pass_through_and_their_difference_is_none(store: Store) -> None:
    inf = float("inf")
    store.points.insert_many(
        [("a", "m", 1, inf), ("a", "m", 2, 1.0), ("b", "m", 1, inf), ("b", "m", 2, -inf)]
    )
    up, both = store.points.aggregate(None, "m", agg=["avg", "min", "max", "sum"])
    assert (up["avg"], up["min"], up["max"], up["sum"]) == (inf, 1.0, inf, inf)
    assert (both["avg"], both["min"], both["max"], both["sum"]) == (None, -inf, inf, None)


def test_text_series_have_first_last_and_count_only(store: Store) -> None:
    store.points.insert_many([("v", "state", 1, "OPEN"), ("v", "state", 2, "SHUT"), ("v", "state", 3, None)])
    store.points.insert("v", "flow", 1.0, timestamp=1)
    [row] = store.points.aggregate("v", "state", agg=["first", "last", "count"])
    assert (row["first"], row["last"], row["count"]) == ("OPEN", "SHUT", 2)
    for name in ("avg", "min", "max", "sum"):
        with pytest.raises(InvalidQuery, match="has text readings"):
            store.points.aggregate("v", "state", agg=name)
    flow, state = store.points.aggregate("v", None, agg=["avg", "last"])
    assert (flow["avg"], flow["last"], state["avg"], state["last"]) == (1.0, 1.0, None, "SHUT")


def test_numbers_of_texts_are_refused_even_if_the_newest_point_or_every_point_has_no_reading(
    store: Store,
) -> None:
    store.points.insert_many([("a", "state", 1, "on"), ("a", "state", 2, None), ("b", "state", 1, "on")])
    store.points.delete("b", "state")
    for sensor in "ab":
        with pytest.raises(InvalidQuery, match="has text readings"):
            store.points.aggregate(sensor, "state")
    store.points.insert_many([("a", "state", 3, "off"), ("c", "m", 1, 2.0), ("c", "m", 2, None)])
    with pytest.raises(InvalidQuery, match="has text readings"):
        store.points.aggregate("a", "state")
    assert store.points.aggregate("c", "m")[0]["avg"] == 2.0


def test_the_deviation_is_that_of_a_sample_and_keeps_its_digits(store: Store) -> None:
    store.points.insert_many([("a", "m", at, 1e9 + at) for at in range(5)] + [("one", "m", 1, 5.0)])
    a, one = store.points.aggregate(None, "m", agg="stddev")
    assert a["stddev"] == pytest.approx(statistics.stdev(range(5)), rel=1e-9)
    assert one["stddev"] is None


def test_percentiles_lie_on_a_line_between_two_readings(store: Store) -> None:
    store.points.insert_many(
        [("a", "m", at, value) for at, value in enumerate([40.0, 10.0, None, 20.0, 30.0])]
    )
    [row] = store.points.aggregate("a", "m", agg=["p0", "p25", "median", "p50", "p99.9", "p100"])
    del row["sensor_id"], row["metric_name"]
    assert row == {
        "p0": 10.0,
        "p25": 17.5,
        "median": 25.0,
        "p50": 25.0,
        "p99.9": pytest.approx(39.97),
        "p100": 40.0,
    }


@pytest.mark.parametrize("names", [("*", None), ("b", "m")], ids=str)
def test_percentiles_of_more_than_fits_in_memory_are_the_same(
    store: Store, seed: int, monkeypatch: pytest.MonkeyPatch, names: Any
) -> None:
    rng = random.Random(seed)
    sizes = {"a": 30, "b": 600, "c": 4, "gap": 3}
    store.points.insert_many(
        [(s, "m", at, None if s == "gap" else rng.gauss(0, 9)) for s, n in sizes.items() for at in range(n)]
        + [("b", "text", 1, "on")]
    )
    small = {
        name: replace(t, most_in_memory=t.most_in_memory and 100) for name, t in registry._traits.items()
    }
    for every in (None, "1m", "1d"):
        asked: dict[str, Any] = {"every": every, "agg": ["median", "p99", "count", "last"]}
        wanted = store.points.aggregate(*names, **asked)
        with monkeypatch.context() as patched:
            patched.setattr(registry, "_traits", small)
            found = store.points.aggregate(*names, **asked)
            late = {**asked, "start": 10**6, "end": 10**6 + 5}
            assert store.points.aggregate(*names, **late) == []
        assert len(found) == len(wanted) > 0
        same(found, wanted)


def test_every_month_and_year_of_the_calendar_is_a_bucket(store: Store) -> None:
    days = [datetime(2023, 11, 5, tzinfo=UTC) + timedelta(days=step) for step in range(500)]
    store.points.insert_many([("a", "m", day, 1.0) for day in days])
    zone = ZoneInfo("America/New_York")
    for every, months in (("1mo", 1), ("3mo", 3), ("1y", 12)):
        rows = store.points.aggregate("a", "m", agg="count", every=every, tz=zone.key)
        wanted: dict[datetime, int] = {}
        for day in days:
            local = day.astimezone(zone)
            month = (local.month - 1) // months * months + 1
            start = datetime(local.year, month, 1, tzinfo=zone)
            wanted[start] = wanted.get(start, 0) + 1
        assert {row["bucket"]: row["count"] for row in rows} == wanted


def test_a_gap_at_the_start_takes_the_last_reading_before_it(store: Store) -> None:
    store.points.insert_many(
        [
            ("a", "m", 1, 5.0),
            ("a", "m", 2, None),
            ("a", "m", 130, 7.0),
            ("b", "s", 0, "ON"),
            ("c", "m", 400, 1.0),
            ("d", "m", 1, 4.0),
            ("d", "m", 2, None),
        ]
    )
    asked: dict[str, Any] = {"every": "1m", "fill": "previous", "agg": ["avg", "last", "count", "stddev"]}
    rows = store.points.aggregate("*", None, 60, 240, **asked)
    reported = [(row["sensor_id"], row["avg"], row["last"], row["count"], row["stddev"]) for row in rows]
    assert reported == [
        ("a", 5.0, 5.0, 0, None),
        ("a", 7.0, 7.0, 1, None),
        ("a", 7.0, 7.0, 0, None),
        *[("b", None, "ON", 0, None)] * 3,
        *[("c", None, None, 0, None)] * 3,
        *[("d", 4.0, 4.0, 0, None)] * 3,
    ]
    assert store.points.aggregate("a", "m", 200, None, **asked) == []


def test_texts_are_held_but_no_line_is_drawn_between_them(store: Store) -> None:
    store.points.insert_many([("v", "state", 0, "ON"), ("v", "state", 120, "OFF"), ("v", "flow", 0, 1.0)])
    store.points.insert("v", "flow", 3.0, timestamp=120)
    with pytest.raises(InvalidQuery, match="previous"):
        store.points.aggregate("v", "state", agg="last", every="1m", fill="linear")
    rows = store.points.aggregate("v", None, agg="last", every="1m", fill="linear")
    assert [row["last"] for row in rows] == [1.0, 2.0, 3.0, "ON", None, "OFF"]


def test_a_fill_of_too_many_rows_is_refused_with_advice(store: Store) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1)
    with pytest.raises(InvalidQuery, match="Use wider buckets"):
        store.points.aggregate("a", "m", 0, 10**9, every="1s", fill="null")
    assert len(store.points.aggregate("a", "m", 0, 10**9, every="1s")) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"agg": "mode"},
        {"agg": "p101"},
        {"agg": "p-1"},
        {"agg": ["avg", 5]},
        {"every": "1.5mo"},
        {"every": "0mo"},
        {"every": "9999y"},
        {"every": "1m", "fill": "next"},
        {"fill": "linear"},
        {"agg": []},
        {"agg": "avg(value); DROP TABLE time_series_data"},
        {"every": "1 fortnight"},
        {"every": "0s"},
        {"every": ""},
        {"every": "1h", "tz": "Mars/Olympus"},
        {"every": "1h", "tz": "../../etc/passwd"},
        {"start": "yesterday"},
        {"start": datetime(2024, 1, 1)},  # noqa: DTZ001
    ],
    ids=str,
)
def test_unknown_aggregates_widths_and_zones_are_refused(
    shared_store: Store, options: dict[str, Any]
) -> None:
    shared_store.points.insert("a", "m", 1.0, timestamp=1)
    with pytest.raises(InvalidQuery):
        shared_store.points.aggregate("a", "m", **options)
