"""Times: conversion between callers' times and microseconds UTC, and times as people type them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from repo.errors import InvalidPoint, InvalidQuery
from repo.inputs.time_texts import Width, before_us, parse_duration_us, parse_time, parse_width
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US, bound_us, local_us, to_datetime, to_us
from repo.inputs.values import check_point, check_rows

NOW_US = 1_700_000_000_123_456
BERLIN = ZoneInfo("Europe/Berlin")


def us_of(given: Any) -> int:
    """The stored time, which is the same through every function."""
    alone = check_point("S", "m", 1.0, given, None, None, accept_bool=False, now_us=NOW_US)
    among, _ = check_rows([("S", "m", given, 1.0)] * 2, accept_bool=False, now_us=NOW_US)
    assert list(among.timestamps_us) == [alone.timestamp_us] * 2
    return alone.timestamp_us


def test_the_range_is_the_years_1678_to_2261() -> None:
    assert to_datetime(MIN_TIMESTAMP_US) == datetime(1678, 1, 1, tzinfo=UTC)
    assert to_datetime(MAX_TIMESTAMP_US) == datetime(2261, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "us"),
    [
        (0, 0),
        (-1, -1_000_000),
        (1.5, 1_500_000),
        (-1.5, -1_500_000),
        (1_700_000_000.123456, 1_700_000_000_123_456),
        (4_294_967_295.999999, 4_294_967_295_999_999),
        (4_294_967_296.000001, 4_294_967_296_000_001),
        (8_589_934_591.999999, 8_589_934_591_999_999),
        (9_214_646_399, 9_214_646_399_000_000),
        (-9_214_560_000, MIN_TIMESTAMP_US),
        (None, NOW_US),
        (Decimal("9214646399.999999"), MAX_TIMESTAMP_US),
        (Fraction(1, 4), 250_000),
        (Decimal("1e-999999999"), 0),
        (Decimal("1700000000.1234565"), 1_700_000_000_123_456),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
        (datetime(2261, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), MAX_TIMESTAMP_US),
        (datetime(2024, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 1_704_067_200_000_000),
        (datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=0), 1_729_989_000_000_000),
        (datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1), 1_729_992_600_000_000),
    ],
)
def test_seconds_and_aware_datetimes_are_exact_to_the_microsecond(given: Any, us: int) -> None:
    assert us_of(given) == us
    if given is not None:
        assert to_us(given, "start") == bound_us(given, "start") == us


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (datetime(2024, 1, 1), "without a time zone"),  # noqa: DTZ001
        (date(2024, 1, 1), "type date"),
        (True, "is a bool"),
        ("2024-01-01", "is a text"),
        (b"1", "type bytes"),
        (float("nan"), "NaN"),
        (float("inf"), "infinite"),
        (Decimal("NaN"), "NaN"),
        (Decimal("-Infinity"), "Infinity"),
        (Decimal("1e999999999"), "outside the years"),
        (1_700_000_000_000, "looks like milliseconds"),
        (1_700_000_000_000.0, "looks like milliseconds"),
        (1_700_000_000_000_000, "looks like microseconds"),
        (9_214_646_400, "9214646400 s is outside the years 1678 to 2261"),
        (-9_214_560_001, "outside the years"),
        (10**400, "bits s is outside"),
        (datetime(2262, 1, 1, tzinfo=UTC), "outside the years"),
        (datetime(1677, 12, 31, tzinfo=UTC), "outside the years"),
    ],
)
def test_an_invalid_time_is_refused_with_its_likely_meaning(given: Any, reason: str) -> None:
    with pytest.raises(InvalidPoint, match=f"timestamp: .*({reason})"):
        check_point("S", "m", 1.0, given, None, None, accept_bool=False, now_us=NOW_US)
    with pytest.raises(InvalidPoint, match=f"row 1: timestamp: .*({reason})"):
        check_rows([("S", "m", 0, 1.0), ("S", "m", given, 1.0)], accept_bool=False, now_us=NOW_US)
    with pytest.raises(InvalidPoint, match=f"since: .*({reason})"):
        to_us(given, "since")
    with pytest.raises(InvalidQuery, match=f"start: .*({reason})"):
        bound_us(given, "start")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (1.0, "type float"),
        (True, "type bool"),
        ("1", "type str"),
        (MAX_TIMESTAMP_US + 1, "outside the years"),
        (MIN_TIMESTAMP_US - 1, "outside the years"),
        (1_700_000_000_000_000_000, "looks like nanoseconds"),
    ],
)
def test_timestamp_us_takes_integers_in_range_only(given: Any, reason: str) -> None:
    row = {"sensor_id": "S", "metric_name": "m", "value": 1.0, "timestamp_us": given}
    with pytest.raises(InvalidPoint, match=f"row 0: timestamp_us: .*{reason}"):
        check_rows([row, row], accept_bool=False, now_us=NOW_US)


def test_timestamp_us_is_kept_as_it_is() -> None:
    rows = [
        {"sensor_id": "S", "metric_name": "m", "value": 1.0, "timestamp_us": us}
        for us in (MIN_TIMESTAMP_US, -1, 0, MAX_TIMESTAMP_US)
    ]
    batch, _ = check_rows(rows, accept_bool=False, now_us=NOW_US)
    assert list(batch.timestamps_us) == [MIN_TIMESTAMP_US, -1, 0, MAX_TIMESTAMP_US]


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2024-05-01T12:00Z", 1_714_564_800_000_000),
        ("2024-05-01 12:00:00.000001+02:00", 1_714_557_600_000_001),
        ("2024-05-01", 1_714_521_600_000_000),
        (" 2024-05-01T00 ", 1_714_521_600_000_000),
        ("1700000000", 1_700_000_000_000_000),
        ("1700000000.000001", 1_700_000_000_000_001),
        ("-3600", -3_600_000_000),
        ("0", 0),
        ("20240501.0", 20_240_501_000_000),
        ("now", NOW_US),
        ("-6h", NOW_US - 21_600_000_000),
        ("now-15m", NOW_US - 900_000_000),
        ("+30s", NOW_US + 30_000_000),
        ("-7d", NOW_US - 7 * 86_400_000_000),
        ("-2w", NOW_US - 14 * 86_400_000_000),
        ("-1.5h", NOW_US - 5_400_000_000),
        ("-250ms", NOW_US - 250_000),
    ],
)
def test_times_as_people_type_them(text: str, us: int) -> None:
    assert parse_time(text, now_us=NOW_US) == us


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a time"),
        ("yesterday 25:00", "is not a time"),
        ("21:60", "is not a time"),
        ("2024-13", "is not a time"),
        ("today+1x", "not a duration"),
        ("-10000y", "exceeds the range of times"),
        ("-400y", "outside the years"),
        ("6h", "is not a time"),
        ("-6M", "is not a time"),
        ("-6 h", "not a duration"),
        ("-6x", "not a duration"),
        ("-1.2.3h", "not a duration"),
        ("-0s", "not a positive"),
        ("-20000w", "outside the years"),
        ("-999999999999w", "exceeds the range of times"),
        ("2024", "could be a date or Unix seconds"),
        ("20240501", "could be a date or Unix seconds"),
        ("1700000000000", "looks like milliseconds"),
        ("2024-13-01", "is not a time"),
        ("2262-01-01", "outside the years"),
        ("0001-01-01T00:00+14:00", "outside the years"),
        ("nan", "is not a time"),
        ("１２３", "is not a time"),
        ("2024-05-01\x00", "is not a time"),
        ("\ud800", "is not a time"),
        ("1" * 5000, "is not a time"),
    ],
)
def test_an_invalid_typed_time_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidQuery, match=reason) as caught:
        parse_time(text, now_us=NOW_US)
    assert len(str(caught.value)) < 250


def test_a_naive_time_is_local_to_the_zone() -> None:
    assert parse_time("2024-07-01T12:00", now_us=NOW_US, zone=BERLIN) == 1_719_828_000_000_000
    assert parse_time("2024-01-01T12:00", now_us=NOW_US, zone=BERLIN) == 1_704_106_800_000_000


def test_a_local_time_that_occurs_twice_or_never_is_refused() -> None:
    with pytest.raises(InvalidQuery, match="occurs twice in Europe/Berlin"):
        parse_time("2024-10-27T02:30", now_us=NOW_US, zone=BERLIN)
    with pytest.raises(InvalidQuery, match="does not exist in Europe/Berlin"):
        parse_time("2024-03-31T02:30", now_us=NOW_US, zone=BERLIN)
    assert parse_time("2024-10-27T02:30+01:00", now_us=NOW_US, zone=BERLIN) == 1_729_992_600_000_000


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("today", "2024-03-31T00:00+01:00"),
        ("yesterday", "2024-03-30T00:00+01:00"),
        ("tomorrow", "2024-04-01T00:00+02:00"),
        ("21:30", "2024-03-31T21:30+02:00"),
        ("9:05:07.5", "2024-03-31T09:05:07.5+02:00"),
        ("yesterday 21:30", "2024-03-30T21:30+01:00"),
        ("2024-02", "2024-02-01T00:00+01:00"),
        ("today+6h", "2024-03-31T07:00+02:00"),
        ("-1d12h", "2024-03-30T02:00+01:00"),
        ("-1mo", "2024-02-29T15:00+01:00"),
        ("now+1mo", "2024-04-30T15:00+02:00"),
        ("-1y1d", "2023-03-30T15:00+02:00"),
    ],
)
def test_days_clock_times_and_months_are_those_of_the_zone(text: str, local: str) -> None:
    now_us = to_us(
        datetime.fromisoformat("2024-03-31T15:00+02:00")
    )  # the clocks went forward at 2:00 this day
    assert parse_time(text, now_us=now_us, zone=BERLIN) == to_us(datetime.fromisoformat(local))
    if text.startswith("-"):
        assert before_us(text, now_us=now_us, zone=BERLIN) == to_us(datetime.fromisoformat(local))


def test_widths_have_either_months_or_shorter_units() -> None:
    assert parse_width("3mo") == parse_width("3months") == Width(0, 3)
    assert parse_width("1d12h") == Width(36 * 3_600_000_000, 0)
    with pytest.raises(InvalidQuery, match="use either"):
        parse_width("1mo1d")
    with pytest.raises(InvalidQuery, match="length varies"):
        parse_duration_us("1mo")


def test_a_day_without_midnight_begins_when_the_clock_was_set() -> None:
    now_us = to_us(datetime(2018, 11, 4, 15, tzinfo=UTC))  # in Sao Paulo, this day began at 1:00
    assert parse_time("today", now_us=now_us, zone=ZoneInfo("America/Sao_Paulo")) == to_us(
        datetime(2018, 11, 4, 3, tzinfo=UTC)
    )


def test_fold_selects_one_of_two_local_times() -> None:
    twice = datetime(2024, 10, 27, 2, 30)  # noqa: DTZ001
    assert local_us(twice, BERLIN, fold=1) - local_us(twice, BERLIN, fold=0) == 3_600_000_000


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1us", 1), ("1ms", 1_000), ("1s", 1_000_000), ("1m", 60_000_000), ("1h", 3_600_000_000),
        ("1d", 86_400_000_000), ("1w", 604_800_000_000), ("0.5s", 500_000), (" 90s ", 90_000_000),
        ("5min", 300_000_000), ("1h30m", 5_400_000_000), ("1d 12hours", 129_600_000_000), ("2weeks", 1_209_600_000_000),
    ],
)  # fmt: skip
def test_durations(text: str, us: int) -> None:
    assert parse_duration_us(text) == us


@pytest.mark.parametrize(
    "text", ["", "1", "m", "-1m", "0m", "0.5us", "1M", "1 m", "1mo", "1h30", "1hs", "9" * 30 + "w", "１s"]
)
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidQuery):
        parse_duration_us(text)
