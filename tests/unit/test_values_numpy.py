"""Numbers and times of NumPy and pandas, which the library accepts without importing either."""

from __future__ import annotations

import json
import math
from array import array
from typing import Any

import pytest

from repo.errors import InvalidPoint
from repo.inputs.batch import Batch
from repo.inputs.values import check_point, check_rows

np = pytest.importorskip("numpy")

NOW_US = 1_700_000_000_123_456


def both_roads(*, accept_bool: bool = False, **fields: Any) -> Batch:
    """One row, alone and as rows; both paths must agree."""
    row = {"sensor_id": "S", "metric_name": "m", "value": 1.0} | fields
    batch, _ = check_rows([row, row], accept_bool=accept_bool, now_us=NOW_US)
    if "timestamp_us" not in fields:
        alone = check_point(
            "S",
            "m",
            row["value"],
            row.get("timestamp"),
            row.get("quality"),
            None,
            accept_bool=accept_bool,
            now_us=NOW_US,
        )
        assert alone.timestamp_us == batch.timestamps_us[0]
        assert array("d", [alone.value] * 2).tobytes() == batch.values.tobytes()
    return batch


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (np.float64(2.5), 2.5),
        (np.float64(-0.0), 0.0),
        (np.float32(2.5), 2.5),
        (np.float16(2.5), 2.5),
        (np.int16(-3), -3.0),
        (np.uint64(2**60), 2.0**60),
        (np.float64("inf"), math.inf),
        (np.array(2.5), 2.5),
        (np.array(2), 2.0),
    ],
)
def test_numpy_numbers_are_stored_as_the_floats_they_are(given: Any, stored: float) -> None:
    got = both_roads(value=given).values[0]
    assert (got, math.copysign(1.0, got)) == (stored, math.copysign(1.0, stored))


@pytest.mark.parametrize("given", [np.float64("nan"), np.float32("nan")])
def test_numpy_nan_is_no_reading(given: Any) -> None:
    assert both_roads(value=given).kinds == [None]


def test_a_numpy_bool_is_a_bool() -> None:
    assert both_roads(value=np.True_, accept_bool=True).values[0] == 1.0
    with pytest.raises(InvalidPoint, match="is a bool"):
        both_roads(value=np.True_)


def test_numpy_text_is_text() -> None:
    batch = both_roads(value=np.str_("OPEN"), sensor_id=np.str_("T"))
    assert type(batch.texts[0]) is type(batch.series[0][0]) is str


@pytest.mark.parametrize(
    "given",
    [
        np.int64(2**53 + 1),
        np.array([1.0]),
        np.complex128(1),
        np.datetime64("2024-01-01"),
        np.timedelta64(5, "s"),
        np.bytes_(b"1"),
        np.array(["a"], dtype=object),
    ],
)
def test_other_numpy_types_are_refused(given: Any) -> None:
    with pytest.raises(InvalidPoint, match=r"row 0: value: .*; row 1: value: "):
        both_roads(value=given)


@pytest.mark.parametrize(
    ("given", "us"),
    [
        (np.float64(1_700_000_000.123456), 1_700_000_000_123_456),
        (np.int64(1_700_000_000), 1_700_000_000_000_000),
        (np.int32(1_700_000_000), 1_700_000_000_000_000),
        (np.uint32(2**32 - 1), 4_294_967_295_000_000),
        (np.datetime64("2024-01-01"), 1_704_067_200_000_000),
        (np.datetime64("2024-01-01T00:00:00.000001999"), 1_704_067_200_000_001),
    ],
)
def test_numpy_seconds_are_exact(given: Any, us: int) -> None:
    assert both_roads(timestamp=given).timestamps_us[0] == us
    if not isinstance(given, np.datetime64):
        assert both_roads(timestamp_us=np.int64(us)).timestamps_us[0] == us


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.float64("nan"), "NaN"),
        (np.float64(1e308), "outside the years"),
        (np.float64(1.7e12), "looks like milliseconds"),
        (np.int64(1_700_000_000_000_000_000), "looks like nanoseconds"),
        (np.True_, "bool"),
        (np.datetime64("NaT", "us"), "not a time"),
        (np.datetime64("3000-01-01"), "outside the years"),
        (np.datetime64(2**62, "D"), "outside the years"),
        (np.array(["2024-01-01"], "datetime64[s]"), "an array"),
        (np.timedelta64(5, "s"), "a duration"),
        (np.array([1.0]), "ndarray"),
    ],
)
def test_anything_but_a_time_is_refused(given: Any, reason: str) -> None:
    with pytest.raises(InvalidPoint, match=f"timestamp: .*{reason}"):
        both_roads(timestamp=given)


def test_a_numpy_timedelta_is_not_a_number_of_microseconds() -> None:
    with pytest.raises(InvalidPoint, match=r"timestamp_us: .*timedelta64"):
        both_roads(timestamp_us=np.timedelta64(5, "s"))


def test_numpy_qualities_are_integers() -> None:
    assert both_roads(quality=np.int16(7)).qualities == 7
    with pytest.raises(InvalidPoint, match="quality: is a float64"):
        both_roads(quality=np.float64(7))
    with pytest.raises(InvalidPoint, match="quality: is a"):
        both_roads(quality=np.True_)


def test_pandas_timestamps_are_datetimes() -> None:
    pd = pytest.importorskip("pandas")
    moment = pd.Timestamp("2024-01-01T00:00:00.000001Z")
    assert both_roads(timestamp=moment).timestamps_us[0] == 1_704_067_200_000_001
    with pytest.raises(InvalidPoint, match="without a time zone"):
        both_roads(timestamp=pd.Timestamp("2024-01-01"))
    with pytest.raises(InvalidPoint, match="timestamp"):
        both_roads(timestamp=pd.NaT)


def test_what_numpy_and_pandas_write_where_nothing_is_counts_as_nothing() -> None:
    pd = pytest.importorskip("pandas")
    batch = both_roads(value=pd.NA, quality=pd.NA, metadata=pd.NA)
    assert np.isnan(batch.values[0])
    assert (batch.qualities, batch.metadata) == (100, {})
    assert np.isnan(both_roads(value=pd.NaT).values[0])
    with pytest.raises(InvalidPoint, match="timestamp"):
        both_roads(timestamp=pd.NA)  # not now: a missing time must not become another one


def test_metadata_takes_numpy_scalars_times_and_what_is_missing() -> None:
    pd = pytest.importorskip("pandas")
    given = {
        "count": np.int64(3),
        "ratio": np.float32(0.5),
        "on": np.True_,
        "name": np.str_("x"),
        "at": np.datetime64("2024-05-01T12:00"),
        "since": pd.Timestamp("2024-05-01T12:00", tz="Europe/Oslo"),
        "deep": [{"none": pd.NA, "nat": pd.NaT, "n": np.datetime64("NaT", "us")}],
    }
    assert json.loads(both_roads(metadata=given).metadata[0]) == {
        "count": 3,
        "ratio": 0.5,
        "on": True,
        "name": "x",
        "at": "2024-05-01T12:00:00+00:00",
        "since": "2024-05-01T10:00:00+00:00",
        "deep": [{"none": None, "nat": None, "n": None}],
    }
    for wrong in (np.float32("nan"), np.array([1]), pd.Timestamp("2024-05-01"), np.timedelta64(1, "s"), 1j):
        with pytest.raises(InvalidPoint, match="metadata"):
            both_roads(metadata={"a": wrong})
