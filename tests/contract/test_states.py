"""Time in state: which time counts for which state, the bounds of the span, and buckets."""

from __future__ import annotations

from typing import Any

import pytest

from repo import InvalidQuery, Store

pytestmark = pytest.mark.shared_stores

T0 = 1_714_521_600  # 2024-05-01T00:00:00Z
HOUR = 3_600


def reported(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["state"], row["seconds"], row["share"]) for row in rows]


@pytest.fixture
def valve(store: Store) -> Store:
    store.points.insert_many(
        [
            ("v", "state", T0, "OPEN"),
            ("v", "state", T0 + HOUR, "OPEN"),
            ("v", "state", T0 + 2 * HOUR, "SHUT"),
            ("v", "state", T0 + 3 * HOUR, None),
            ("v", "state", T0 + 4 * HOUR, "OPEN"),
            ("v", "flow", T0, 0.0),
            ("v", "flow", T0 + HOUR, 1.0),
        ]
    )
    return store


def test_each_state_has_its_seconds_and_its_share_and_no_reading_is_no_state(valve: Store) -> None:
    rows = valve.points.states("v", "state", T0, T0 + 8 * HOUR)
    assert rows[0].keys() == {"sensor_id", "metric_name", "state", "seconds", "share"}
    assert reported(rows) == [
        ("OPEN", 6.0 * HOUR, 0.75),
        ("SHUT", 1.0 * HOUR, 0.125),
        (None, 1.0 * HOUR, 0.125),
    ]


def test_without_bounds_the_span_is_from_the_first_point_to_the_last(valve: Store) -> None:
    assert reported(valve.points.states("v", "state")) == [
        ("OPEN", 2.0 * HOUR, 0.5),
        ("SHUT", 1.0 * HOUR, 0.25),
        (None, 1.0 * HOUR, 0.25),
    ]


def test_the_state_before_start_counts_from_start_however_long_ago_it_came(store: Store) -> None:
    store.points.insert_many([("v", "state", 1, "OPEN"), ("v", "state", T0 + 100, "SHUT")])
    assert reported(store.points.states("v", "state", T0, T0 + 200)) == [
        ("OPEN", 100, 0.5),
        ("SHUT", 100, 0.5),
    ]
    assert reported(store.points.states("v", "state", T0, T0 + 50)) == [("OPEN", 50, 1.0)]
    assert reported(store.points.states("v", "state", T0 + 500, T0 + 600)) == [("SHUT", 100, 1.0)]


def test_before_the_first_point_and_after_one_without_a_reading_the_state_is_unknown(store: Store) -> None:
    store.points.insert_many([("v", "state", T0, "OPEN"), ("v", "state", T0 + 100, None)])
    assert reported(store.points.states("v", "state", T0 - 300, T0 + 100)) == [
        (None, 300, 0.75),
        ("OPEN", 100, 0.25),
    ]
    assert reported(store.points.states("v", "state", T0 + 200, T0 + 300)) == [(None, 100, 1.0)]
    store.points.insert("v", "state", "SHUT", timestamp=T0 + 1000)
    assert reported(store.points.states("v", "state", T0 + 200, T0 + 300)) == [(None, 100, 1.0)]


def test_each_bucket_has_its_own_times_and_shares(valve: Store) -> None:
    rows = valve.points.states("v", "state", T0, T0 + 6 * HOUR, every="3h", tz="Etc/GMT-2")
    found = [(row["bucket"].isoformat(), row["state"], row["seconds"], row["share"]) for row in rows]
    assert found == [
        ("2024-05-01T00:00:00+02:00", "OPEN", HOUR, 1.0),
        ("2024-05-01T03:00:00+02:00", "OPEN", HOUR, pytest.approx(1 / 3)),
        ("2024-05-01T03:00:00+02:00", "SHUT", HOUR, pytest.approx(1 / 3)),
        ("2024-05-01T03:00:00+02:00", None, HOUR, pytest.approx(1 / 3)),
        ("2024-05-01T06:00:00+02:00", "OPEN", 2 * HOUR, 1.0),
    ]


def test_numbers_are_states_if_their_series_is_named(valve: Store) -> None:
    assert reported(valve.points.states("v", "flow", T0, T0 + 4 * HOUR)) == [
        (1.0, 3.0 * HOUR, 0.75),
        (0.0, 1.0 * HOUR, 0.25),
    ]
    assert {row["metric_name"] for row in valve.points.states("v", ["flow", "state"])} == {"flow", "state"}
    valve.points.insert("v", "flow", None, timestamp=T0 + 2 * HOUR)
    for names in (("v", None), ("*", "flow"), (None, "*")):
        assert "flow" not in {row["metric_name"] for row in valve.points.states(*names)}


def test_one_point_alone_and_an_unknown_series_have_no_rows(store: Store) -> None:
    store.points.insert("v", "state", "OPEN", timestamp=T0)
    assert store.points.states("v", "state") == []
    assert store.points.states("nobody", "state", 0, 10) == []
    assert reported(store.points.states("v", "state", None, T0 + 5)) == [("OPEN", 5, 1.0)]


@pytest.mark.parametrize(
    "options", [{"every": "0s"}, {"every": "1h", "tz": "Mars/Olympus"}, {"start": "now"}]
)
def test_invalid_arguments_are_refused(store: Store, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidQuery):
        store.points.states("v", "state", **options)


def test_a_result_of_too_many_rows_is_refused(valve: Store) -> None:
    with pytest.raises(InvalidQuery, match="wider buckets"):
        valve.points.states("v", "state", 0, T0, every="1s")
