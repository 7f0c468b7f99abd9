"""Times in CSV cells: the order of formats, zones, and local times that occur twice or never."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from repo.formats.text.times import time_reader
from repo.times import Unfit


def us_of(text: str, *formats: str, zone: str = "UTC", ambiguous: Any = "refuse") -> int:
    return time_reader(formats or ("iso",), zone, ambiguous)(text)


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
        ("1.7040672E9", ("unix",), "2024-01-01T00:00:00+00:00"),
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
        ("1704067200", ("iso",), "fits no time format"),
        ("nan", ("unix",), "not a time"),
        ("inf", ("unix",), "not a time"),
        ("1e999999999", ("unix",), "outside the years"),
        ("1e-999999999x", ("unix",), "fits no time format"),
        ("1_704_067_200", ("unix",), "fits no time format"),
        ("１７０４０６７２００", ("unix",), "fits no time format"),
        ("2262-01-01", ("iso",), "outside the years"),
        ("0001-01-01T00:00+14:00", ("iso",), "outside the years"),
        ("29.02.2023 00:00", ("%d.%m.%Y %H:%M",), "fits no time format"),
        ("28.02.2023 24:00", ("%d.%m.%Y %H:%M",), "fits no time format"),
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
