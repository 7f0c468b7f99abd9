"""The points in the data of a record: times and qualities in the forms that devices write."""

from __future__ import annotations

from typing import Any

import pytest

from repo.errors import InvalidPoint
from repo.store import readings
from repo.store.readings import readings_of

NOW_US = 5_000_000
NEW_YEAR_US = 1_767_225_600_000_000


def _read(*, accept_bool: bool = False, **data: Any) -> tuple[int, int | None]:
    [row] = readings_of({"pressure": 1.5} | data, "gw", NOW_US, accept_bool=accept_bool)
    return row["timestamp_us"], row["quality"]


@pytest.mark.parametrize(
    "given",
    [
        1767225600,
        1767225600.0,
        "1767225600",
        "2026-01-01T00:00:00Z",
        "2026-01-01 00:00:00",
        " 2026-01-01 ",
        "2026-01-01T01:00:00.000+01:00",
        "2025-12-31T24:00Z",
    ],
)
def test_a_time_is_read_as_unix_seconds_or_iso(given: Any) -> None:
    assert _read(timestamp=given) == (NEW_YEAR_US, None)


@pytest.mark.parametrize(
    ("given", "quality"),
    [
        ("Bad", 0),
        ("good", 100),
        (" UNCERTAIN", 64),
        ("Bad_NoCommunication", 0),
        ("GoodClamped", 100),
        (192, 192),
        (192.0, 192),
        ("192", 192),
        (None, None),
    ],
)
def test_a_quality_is_an_integer_or_a_word(given: Any, quality: int | None) -> None:
    assert _read(quality=given) == (NOW_US, quality)


def test_what_cannot_be_read_is_logged_once_for_each_source(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readings, "_said", set())
    times: list[Any] = ["yesterday", "1767225600000", "2026-13-01", True, [1], {}]
    for time in times:
        assert _read(timestamp=time) == (NOW_US, None)
    qualities: list[Any] = ["stale", "badge", 1.5, True, 2**40, []]
    for quality in qualities:
        assert _read(quality=quality) == (NOW_US, 64)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "the record's time" in caplog.text
    assert "stored as 64" in caplog.text
    assert "stale" not in caplog.text
    assert readings_of({"value": 1, "timestamp": "soon"}, "other", NOW_US, accept_bool=False)
    assert len(caplog.records) == 3


def test_milliseconds_as_a_number_are_refused() -> None:
    with pytest.raises(InvalidPoint, match="milliseconds"):
        _read(timestamp=1767225600000)


def test_booleans_are_readings_only_if_they_are_accepted() -> None:
    assert readings_of({"value": True}, "gw", NOW_US, accept_bool=False) == []
    [row] = readings_of({"value": True}, "gw", NOW_US, accept_bool=True)
    assert row["value"] is True


def test_numbers_as_text_are_readings_and_other_texts_are_not() -> None:
    data = {
        "value": " 12.5",
        "pressure": "1e3",
        "temperature": "OPEN",
        "flow_rate": "1e400",
        "flowRate": "1_0",
    }
    rows = readings_of(data, "gw", NOW_US, accept_bool=False)
    assert {(row["metric_name"], row["value"]) for row in rows} == {("unknown", 12.5), ("pressure", 1000.0)}
