"""Time in state of random states, against pandas counting the minutes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import given, settings

from repo import PointRepository, Settings, Store
from tests.conftest import Templates

MINUTE_US = 60_000_000
FLOORS = {"10m": "10min", "1h": "1h", "6h": "6h", "1d": "1D", "1w": "W-MON", "1mo": "MS"}
PLACES = [
    ("UTC", "2024-02-28"),
    ("Europe/Oslo", "2024-03-30"),
    ("Europe/Oslo", "2024-10-26"),
    ("America/New_York", "2024-11-02"),
    ("Australia/Lord_Howe", "2024-04-06"),
    ("Asia/Kolkata", "2023-12-31"),
]
number = count()


@pytest.fixture(scope="module", params=["duckdb", "sqlite"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, templates: Templates
) -> Iterator[Store]:
    """One store for all examples; each has sensors of its own."""
    path: Path = tmp_path_factory.mktemp(request.param) / "store"
    templates.copy(request.param, 1, path)
    with Store(path, Settings(engine=request.param)) as store:
        store.points.insert("other", "m", "ON", timestamp=1)
        yield store


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    zone, day = draw(st.sampled_from(PLACES))
    begin = round(datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp())
    minute = st.integers(0, 3 * 24 * 60).map(lambda minutes: begin + 60 * minutes)
    state = st.sampled_from(["ON", "OFF", "fault", None])
    series = st.dictionaries(minute, state, min_size=1, max_size=12).map(lambda d: sorted(d.items()))
    bounds = sorted([draw(minute), draw(minute)])
    return {
        "zone": zone,
        "series": draw(st.lists(series, min_size=1, max_size=2)),
        "low": bounds[0] if draw(st.booleans()) else None,
        "high": bounds[1] if draw(st.booleans()) else None,
        "every": draw(st.sampled_from([None, *FLOORS])),
    }


def expected(points: list[tuple[int, str | None]], asked: dict[str, Any]) -> dict[tuple[Any, str], int]:
    """Seconds by (bucket, state): the state at each minute is that of the last point up to it."""
    low = points[0][0] if asked["low"] is None else asked["low"]
    high = points[-1][0] if asked["high"] is None else asked["high"]
    minutes = pd.DataFrame({"at": pd.Series(range(low, high, 60), dtype="int64")})
    reported = pd.DataFrame({"at": [at for at, _ in points], "state": [s or "unknown" for _, s in points]})
    reported["at"] = reported["at"].astype("int64")
    joined = pd.merge_asof(minutes, reported, on="at").fillna({"state": "unknown"})
    local = pd.to_datetime(joined["at"], unit="s", utc=True).dt.tz_convert(asked["zone"])
    every = asked["every"]
    if every is None:
        joined["bucket"] = 0
    elif every in ("1w", "1mo"):
        wall = local.dt.tz_localize(None)
        begins = wall.dt.to_period("W-SUN" if every == "1w" else "M").dt.start_time
        joined["bucket"] = begins.dt.tz_localize(asked["zone"])
    else:
        joined["bucket"] = begun(local, FLOORS[every], asked["zone"])
    sizes: Any = joined.groupby(["bucket", "state"]).size()
    return {key: 60 * n for key, n in sizes.items()}


def begun(local: Any, floor: str, zone: str) -> Any:
    """Where the buckets of these times begin: short ones by real time, from the change of a clock on too."""
    wall = local.dt.tz_localize(None)
    into = wall - wall.dt.floor(floor)
    if floor not in ("10min", "1h"):
        return wall.dt.floor(floor).dt.tz_localize(
            zone, ambiguous=[True] * len(wall), nonexistent="shift_forward"
        )
    change = local.map(lambda moment: moment.utcoffset()).diff().abs() > pd.Timedelta(0)
    changed = local.where(change).ffill()
    return (local - into).where(~(changed > local - into), changed)


@settings(max_examples=15)
@given(asked=questions())
def test_the_time_in_each_state_is_what_counting_minutes_gives(shared: Store, asked: dict[str, Any]) -> None:
    prefix = f"{next(number)}-"
    shared.points.insert_many(
        [(f"{prefix}{n}", "m", at, state) for n, points in enumerate(asked["series"]) for at, state in points]
    )
    options = {"every": asked["every"], "tz": asked["zone"]}
    found = shared.points.states(f"{prefix}*", "m", asked["low"], asked["high"], **options)
    for n, points in enumerate(asked["series"]):
        own = [row for row in found if row["sensor_id"] == f"{prefix}{n}"]
        seconds = {
            (row["bucket"].timestamp() if asked["every"] else 0, row["state"] or "unknown"): row["seconds"]
            for row in own
        }
        wanted = {
            (bucket.timestamp() if asked["every"] else 0, state): total
            for (bucket, state), total in expected(points, asked).items()
        }
        assert seconds == wanted
        shares: dict[Any, float] = {}
        for row in own:
            key = row.get("bucket", datetime(1970, 1, 1, tzinfo=UTC)).timestamp()
            shares[key] = shares.get(key, 0) + row["share"]
        assert all(total == pytest.approx(1) for total in shares.values())
    with shared._handle.reading("a test") as (connection, _):
        again = PointRepository(connection).states(f"{prefix}*", "m", asked["low"], asked["high"], **options)
    assert again == found
