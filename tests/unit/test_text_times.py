"""Times in CSV cells: the order of formats, zones, and local times that occur twice or never."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from repo.errors import InvalidSettings
from repo.formats.text.times import TimeReader
from repo.inputs.times import Unfit


def us_of(text: str, *formats: str, zone: str = "UTC", ambiguous: Any = "refuse") -> int:
    return TimeReader(formats or ("iso",), zone, ambiguous).us(text)


def instant_us(iso: str) -> int:
    moment = datetime.fromisoformat(iso)
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


@pytest.mark.parametrize(
    ("text", "formats", "wanted"),
    [
        ("2024-01-01", ("iso",), "2024-01-01T00:00:00+00:00"),
        ("2024-01-01 12:00:00.000001+02:00", ("iso",), "2024-01-01T12:00:00.000001+02:00"),
        ("2024-01-01T12:00:00Z", ("iso",), "2024-01-01T12:00:00+00:00"),
        ("1704067200", ("unix",), "2024-01-01T00:00:00+00:00"),
        ("1704067200.000001", ("unix",), "2024-01-01T00:00:00.000001+00:00"),
        ("1.704067200E9", ("unix",), "2024-01-01T00:00:00+00:00"),
        ("1.704067200001E+12", ("unix_ms",), "2024-01-01T00:00:00.001+00:00"),
        ("-1", ("unix",), "1969-12-31T23:59:59+00:00"),
        ("1704067200001", ("unix_ms",), "2024-01-01T00:00:00.001+00:00"),
        ("1704067200000001", ("unix_us",), "2024-01-01T00:00:00.000001+00:00"),
        ("31.12.2023 23:59:59", ("%d.%m.%Y %H:%M:%S",), "2023-12-31T23:59:59+00:00"),
        ("31.12.2023T11:59:59.25 PM", ("%d.%m.%YT%I:%M:%S.%f %p",), "2023-12-31T23:59:59.25+00:00"),
        ("Dec 31 2023 23:59", ("%b %d %Y %H:%M",), "2023-12-31T23:59:00+00:00"),
        ("23:59 31.12.2023", ("%H:%M %d.%m.%Y",), "2023-12-31T23:59:00+00:00"),
        ("2023-12-31 23:59:59 +0200", ("%Y-%m-%d %H:%M:%S %z",), "2023-12-31T23:59:59+02:00"),
        ("20231231", ("%Y%m%d",), "2023-12-31T00:00:00+00:00"),
        ("1/2/07 0:00:00", ("%d/%m/%y %H:%M:%S", "%d/%m/%Y %H:%M:%S"), "2007-02-01T00:00:00+00:00"),
        ("1/2/2007 0:00:00", ("%d/%m/%y %H:%M:%S", "%d/%m/%Y %H:%M:%S"), "2007-02-01T00:00:00+00:00"),
        ("2024-01-01", ("unix", "iso"), "2024-01-01T00:00:00+00:00"),
        ("1704067200000", ("unix", "unix_ms"), "2024-01-01T00:00:00+00:00"),
    ],
)
def test_a_time_is_parsed_by_the_first_matching_format(
    text: str, formats: tuple[str, ...], wanted: str
) -> None:
    assert us_of(text, *formats) == instant_us(wanted)


@pytest.mark.parametrize(
    ("text", "formats", "reason"),
    [
        ("", ("iso",), "fits no time format (iso)"),
        ("01/02/2024", ("iso", "unix"), "fits no time format (iso, unix)"),
        ("1704067200000", ("unix",), "looks like milliseconds"),
        (
            "1704067200",
            ("iso",),
            "fits no time format (iso); if it counts seconds since 1970, add the format unix (--time-format unix)",
        ),
        (
            "1704067200.5",
            ("iso",),
            "if it counts seconds since 1970, add the format unix (--time-format unix)",
        ),
        (
            "01.02.2024",
            ("iso",),
            "fits no time format (iso); give its pattern, such as --time-format '%d.%m.%Y %H:%M'",
        ),
        ("nan", ("unix",), "not a time"),
        ("inf", ("unix",), "not a time"),
        ("1e999999999", ("unix",), "outside the years"),
        ("1e-999999999x", ("unix",), "fits no time format"),
        ("1_704_067_200", ("unix",), "fits no time format"),
        ("１７０４０６７２００", ("unix",), "fits no time format"),
        ("2262-01-01", ("iso",), "outside the years"),
        ("0001-01-01T00:00+14:00", ("iso",), "outside the years"),
        ("29.02.2023 00:00", ("%d.%m.%Y %H:%M",), "fits no time format"),
        ("28.02.2023 24:01", ("%d.%m.%Y %H:%M",), "fits no time format"),
        ("28.02.2023 25:00", ("%d.%m.%Y %H:%M",), "fits no time format"),
        ("2024-01-01 24:01", ("iso",), "fits no time format"),
        ("28.02.2023", ("%d.%m.%Y %H:%M",), "fits no time format"),
        ("2024-01-01\x00", ("iso",), "fits no time format"),
        ("2024-01-01" + "0" * 100, ("iso",), "fits no time format"),
    ],
)
def test_an_invalid_time_is_unfit(text: str, formats: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Unfit) as caught:
        us_of(text, *formats)
    assert reason in str(caught.value)


@pytest.mark.parametrize("time_format", ["iso", "%Y-%m-%d %H:%M:%S"])
def test_times_without_an_offset_are_local_to_the_zone(time_format: str) -> None:
    assert us_of("2024-07-01 12:00:00", time_format, zone="Europe/Berlin") == instant_us(
        "2024-07-01T10:00:00+00:00"
    )
    assert us_of("2024-01-01 12:00:00", time_format, zone="Europe/Berlin") == instant_us(
        "2024-01-01T11:00:00+00:00"
    )


@pytest.mark.parametrize("time_format", ["iso", "%Y-%m-%d %H:%M:%S"])
def test_a_local_time_that_occurs_twice_needs_a_choice(time_format: str) -> None:
    twice = "2024-10-27 02:30:00"
    with pytest.raises(Unfit, match="occurs twice in Europe/Berlin"):
        us_of(twice, time_format, zone="Europe/Berlin")
    earlier = us_of(twice, time_format, zone="Europe/Berlin", ambiguous="earlier")
    later = us_of(twice, time_format, zone="Europe/Berlin", ambiguous="later")
    assert earlier == instant_us("2024-10-27T02:30:00+02:00")
    assert later == instant_us("2024-10-27T02:30:00+01:00")


@pytest.mark.parametrize("ambiguous", ["refuse", "earlier", "later"])
def test_a_local_time_that_the_clock_skipped_is_never_taken(ambiguous: str) -> None:
    with pytest.raises(Unfit, match="does not exist in Europe/Berlin"):
        us_of("2024-03-31 02:30:00", zone="Europe/Berlin", ambiguous=ambiguous)


def test_an_offset_in_the_text_beats_the_zone() -> None:
    assert us_of("2024-10-27 02:30:00+01:00", zone="Europe/Berlin") == instant_us("2024-10-27T02:30:00+01:00")


@pytest.mark.parametrize(
    "text",
    ["1777012961840", "1777012961840000", "17770129618", "177701296184011.5", "20240101-0640", "2024010112"],
)
def test_a_run_of_digits_is_not_an_iso_date_with_a_time(text: str) -> None:
    with pytest.raises(Unfit, match="fits no time format"):
        us_of(text)
    assert us_of("1777012961840", "iso", "unix_ms") == instant_us("2026-04-24T06:42:41.840+00:00")


@pytest.mark.parametrize(
    "text", ["20240501", "20240501T06", "20240501T0640", "2024-W18-3", "2024-05-01_00:00"]
)
def test_iso_dates_may_be_basic_and_in_weeks(text: str) -> None:
    assert us_of(text) // 86_400_000_000 == instant_us("2024-05-01T00:00:00+00:00") // 86_400_000_000


@pytest.mark.parametrize(
    ("text", "clock"), [("0", "00:00"), ("5", "00:05"), ("135", "01:35"), ("1000", "10:00")]
)
def test_a_clock_that_lost_its_leading_zeros_is_read_as_a_number(text: str, clock: str) -> None:
    assert us_of(f"2026 1 {text}", "%Y %j %H%M") == instant_us(f"2026-01-01T{clock}:00+00:00")
    assert us_of("2026-01-01 93005", "%Y-%m-%d %H%M%S") == instant_us("2026-01-01T09:30:05+00:00")


@pytest.mark.parametrize(
    ("text", "time_format"),
    [
        ("202611", "%Y%m%d"),
        ("2026111", "%Y%m%d"),
        ("1012026", "%d%m%Y"),
        ("20261 0100", "%Y%j %H%M"),
        ("2026-01-01 135", "%Y-%m-%d %H%M%S"),
        ("2026-01-01 1.5", "%Y-%m-%d %H%M%S.%f"),
        ("01.01.20261:35", "%d.%m.%Y%H:%M"),
    ],
)
def test_directives_that_touch_need_all_of_their_digits(text: str, time_format: str) -> None:
    with pytest.raises(Unfit, match="fits no time format"):
        us_of(text, time_format)


@pytest.mark.parametrize("machine", ["UTC", "America/New_York"])
def test_zone_names_do_not_depend_on_the_zone_of_the_machine(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", machine)
    time.tzset()
    try:
        for name in ("UTC", "GMT", "Z"):
            text = f"2026-01-01 12:00 {name}"
            assert us_of(text, "%Y-%m-%d %H:%M %Z", zone="Europe/Berlin") == instant_us(
                "2026-01-01T12:00:00+00:00"
            )
        for name in ("EST", "EDT", "CET", "America/New_York"):
            with pytest.raises(Unfit, match=f"has the zone name '{name}'"):
                us_of(f"2026-01-01 12:00 {name}", "%Y-%m-%d %H:%M %Z")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["1.76723E+12", "1.767E12", "1767230E6"])
def test_a_number_that_a_spreadsheet_rounded_is_unfit(text: str) -> None:
    with pytest.raises(Unfit, match="was rounded"):
        us_of(text, "unix_ms")


def test_the_end_of_the_day_may_be_24_00() -> None:
    midnight = instant_us("1998-01-01T00:00:00+00:00")
    assert us_of("12/31/1997 24:00", "%m/%d/%Y %H:%M") == midnight
    assert us_of("1997-12-31T24:00:00Z") == midnight
    assert us_of("1997-12-31 24:00", zone="-01:00") == midnight + 3_600_000_000


@pytest.mark.parametrize(
    ("text", "formats"),
    [
        ("28.10.2023 00:15 - 28.10.2023 00:30", ("iso", "%d.%m.%Y %H:%M")),
        ("28.10.2023 00:15 - 00:30", ("%d.%m.%Y %H:%M",)),
        ("2023-10-28T00:15Z/2023-10-28T00:30Z", ("iso",)),
    ],
)
def test_the_time_of_an_interval_is_its_begin(text: str, formats: tuple[str, ...]) -> None:
    assert us_of(text, *formats) == instant_us("2023-10-28T00:15:00+00:00")
    with pytest.raises(Unfit, match="fits no time format"):
        us_of(text.replace(":30", ":99"), *formats)


@pytest.mark.parametrize("zone", ["-07:00", "-0700", "UTC-7", "GMT-07:00", "gmt -7"])
def test_a_zone_may_be_a_fixed_offset(zone: str) -> None:
    assert us_of("2024-07-01 12:00:00", zone=zone) == instant_us("2024-07-01T12:00:00-07:00")


def test_patterns_read_every_part_of_a_time() -> None:
    for text, time_format, wanted in (
        ("Mon Jan 05 13:07:09 2026", "%c", "2026-01-05T13:07:09+00:00"),
        ("Sept 5 2026 12:30 a.m.", "%b %d %Y %I:%M %p", "2026-09-05T00:30:00+00:00"),
        ("2026-W02-1 07", "%G-W%V-%u %H", "2026-01-05T07:00:00+00:00"),
        ("2026 week 1 monday", "%Y week %W %A", "2026-01-05T00:00:00+00:00"),
        ("366/2024", "%j/%Y", "2024-12-31T00:00:00+00:00"),
        ("20260105T130709.5-0130", "%Y%m%dT%H%M%S.%f%z", "2026-01-05T13:07:09.5-01:30"),
    ):
        assert us_of(text, time_format) == instant_us(wanted)
    for text, time_format in (("366/2025", "%j/%Y"), ("2026-02-30", "%Y-%m-%d"), ("Foo 5 2026", "%b %d %Y")):
        with pytest.raises(Unfit, match="fits no time format"):
            us_of(text, time_format)


@pytest.mark.parametrize(
    ("time_format", "reason"),
    [
        ("%d/%M/%Y", "day without a month"),
        ("%Y-%m-%d %H:%M %p", "%I without %p, or %p without %I"),
        ("%Y-%m-%d %I:%M", "%I without %p"),
        ("%Y %M", "minutes (%M) without hours"),
        ("%Y-%m-%d %H:%S", "seconds without minutes"),
        ("%Y %Y", "has %Y twice"),
        ("%Y %y", "has two years"),
        ("%G-%V", "together"),
        ("%Q", "not a directive"),
        ("%Y %", "not a directive"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(time_format: str, reason: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        TimeReader([time_format], "UTC", "refuse")
    assert reason in str(caught.value)


def test_times_in_january_1970_are_counted_as_suspect() -> None:
    reader = TimeReader(["unix", "unix_ms"], "UTC", "refuse")
    reader.us("1767225600")
    assert not reader.suspects
    reader = TimeReader(["unix_ms"], "UTC", "refuse")
    reader.us("1767225600")
    reader.us("1767225600000")
    assert reader.suspects == {"unix_ms": 1}


def passes(*clocks: str, **options: Any) -> list[str]:
    """The UTC times of the clocks of Oslo on the day that has 25 hours, by their order."""
    reader = TimeReader(["iso"], "Europe/Oslo", "infer")
    found = [reader.us(f"2026-10-25 {clock}", **options) // 60_000_000 for clock in clocks]
    assert len(reader.single_passes()) == (len(set(clocks)) == len(clocks))
    return [f"{minutes // 60 % 24:02}:{minutes % 60:02}" for minutes in found]


def test_the_order_of_the_file_shows_which_pass_of_an_hour_is_meant() -> None:
    clocks = ("01:30", "02:00", "02:30", "02:00", "02:30", "03:00")
    wanted = ["23:30", "00:00", "00:30", "01:00", "01:30", "02:00"]
    assert passes(*clocks) == wanted
    assert passes(*reversed(("01:00", *clocks, "03:30")))[1:-1] == wanted[::-1]
    assert passes("01:00", "02:00", "02:00", "03:00") == ["23:00", "00:00", "01:00", "02:00"]
    assert passes("02:30", "02:00", "02:30", "03:00") == ["00:30", "01:00", "01:30", "02:00"]
    assert passes("02:00", "02:30", "03:00") == ["00:00", "00:30", "02:00"]


def test_each_series_has_an_order_of_its_own() -> None:
    reader = TimeReader(["iso"], "Europe/Oslo", "infer")
    for _ in range(2):
        both = [reader.us("2026-10-25 02:00", series) for series in ("a", "b")]
        assert both[0] == both[1]
    with pytest.raises(Unfit, match="the order of the readings does not show"):
        reader.us("2026-10-25 02:00", "a")
    assert reader.single_passes() == []


def test_an_october_of_quarter_hours_in_local_time_comes_in_whole() -> None:
    zone, quarter = ZoneInfo("Europe/Berlin"), timedelta(minutes=15)
    begin = datetime(2026, 10, 1, tzinfo=zone).astimezone(UTC)
    moments = [begin + quarter * number for number in range(31 * 96 + 4)]
    reader = TimeReader(["%d.%m.%Y %H:%M"], "Europe/Berlin", "infer")
    for moment in moments:
        assert reader.us(f"{moment.astimezone(zone):%d.%m.%Y %H:%M}") == int(moment.timestamp()) * 1_000_000
    assert reader.single_passes() == []
