"""The fast path and the slow path agree: the same columns, or the same refusals, whatever comes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from repo.inputs import values
from repo.inputs.batch import Batch
from repo.inputs.times import EXACT_FLOAT_S, MAX_TIMESTAMP_US, MIN_TIMESTAMP_US, to_datetime, to_us
from repo.inputs.values import check_rows

NOW_US = 1_700_000_000_123_456

names = st.sampled_from(["a", "b", "ü", "c'--"])
odd_names = st.one_of(
    st.none(), st.just(""), st.just("a\x00"), st.just("\ud800"), st.just("x" * 256), st.integers()
)
instants = st.integers(MIN_TIMESTAMP_US, MAX_TIMESTAMP_US)
zones = st.sampled_from([UTC, timezone(timedelta(hours=-5)), timezone(timedelta(seconds=1))])
times = st.one_of(
    st.floats(-1e9, 1e10),
    st.integers(-(10**9), 10**10),
    st.none(),
    st.builds(lambda us, zone: to_datetime(us).astimezone(zone), instants, zones),
)
odd_times = st.one_of(
    st.floats(),
    st.integers(),
    st.booleans(),
    st.text(max_size=3),
    st.datetimes(),
    st.decimals(),
    st.binary(max_size=2),
)
numbers = st.one_of(st.floats(), st.integers(-(2**55), 2**55), st.none())
texts = st.sampled_from(["OPEN", "SHUT", "", "☃"])
odd_values = st.one_of(
    st.integers(),
    st.booleans(),
    st.text(max_size=4),
    st.decimals(),
    st.binary(max_size=2),
    st.complex_numbers(),
)
qualities = st.one_of(st.none(), st.just(100), st.integers(-(2**31), 2**31 - 1))
odd_qualities = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=2))
metadata = st.one_of(
    st.none(), st.dictionaries(st.text(max_size=2), st.one_of(st.integers(), st.text(max_size=3)))
)
odd_metadata = st.one_of(st.text(max_size=2), st.dictionaries(st.integers(), st.floats(), max_size=2))


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda dice: odd if dice == 0 else usual)


@dataclass
class Row:
    sensor_id: Any
    metric_name: Any
    timestamp: Any
    value: Any
    quality: Any
    metadata: Any


@st.composite
def batches(draw: st.DrawFn) -> list[Any]:
    """Rows that are mostly ordinary; each batch has its own forms, so that the fast path is often taken."""
    oddity = draw(st.booleans())
    value = draw(st.sampled_from([st.floats(), numbers, texts, st.one_of(numbers, texts)]))
    time = draw(st.sampled_from([st.floats(-1e9, 4e9), st.integers(-(10**9), 10**10), times]))
    row = st.builds(
        Row,
        mostly(names, odd_names) if oddity else names,
        mostly(names, odd_names) if oddity else names,
        mostly(time, odd_times) if oddity else time,
        mostly(value, odd_values) if oddity else value,
        mostly(qualities, odd_qualities) if oddity else qualities,
        mostly(metadata, odd_metadata) if oddity else metadata,
    )
    forms = draw(
        st.lists(
            st.sampled_from(["tuple", "four", "dict", "sparse", "us", "dataclass"]), min_size=1, max_size=2
        )
    )
    rows = draw(st.lists(row, max_size=12))
    return [_formed(row, forms[index % len(forms)]) for index, row in enumerate(rows)]


def _formed(row: Row, form: str) -> Any:
    fields = asdict(row)
    if form == "tuple":
        return tuple(fields.values())
    if form == "four":
        return list(fields.values())[:4]
    if form == "sparse":
        return {name: value for name, value in fields.items() if value is not None or name == "value"}
    if form == "us":
        time = fields.pop("timestamp")
        return fields | {"timestamp_us": time if isinstance(time, int) else None}
    return fields if form == "dict" else row


def same(one: Batch, other: Batch) -> bool:
    """Equal bit for bit, NaN and minus zero included."""
    return (
        (one.series, one.kinds, one.texts, one.metadata)
        == (other.series, other.kinds, other.texts, other.metadata)
        and one.codes == other.codes
        and one.timestamps_us == other.timestamps_us
        and one.values.tobytes() == other.values.tobytes()
        and type(one.qualities) is type(other.qualities)
        and one.qualities == other.qualities
    )


@settings(max_examples=100)
@given(batches())
def test_both_roads_make_the_same_of_any_rows(rows: list[Any]) -> None:
    long, refusals, _ = values._slow_path(rows, False, NOW_US, {})
    short = values._fast_path(rows, NOW_US)
    if short is not None:
        assert refusals == []
        assert same(short, long)
    batch, reported = check_rows(rows, accept_bool=False, now_us=NOW_US, skip=True)
    assert same(batch, long)
    assert list(reported) == refusals
    assert len(batch) + len(refusals) == len(rows)


@settings(max_examples=50)
@given(st.lists(st.tuples(names, names, st.floats(-4e9, 4e9), st.floats()), min_size=1, max_size=20))
def test_ordinary_rows_take_the_fast_path(rows: list[Any]) -> None:
    assert values._fast_path(rows, NOW_US) is not None


@settings(max_examples=200)
@given(st.integers(-int(EXACT_FLOAT_S) * 2 * 10**6, int(EXACT_FLOAT_S) * 2 * 10**6))
def test_float_seconds_give_back_the_microsecond_they_were_made_of(us: int) -> None:
    assert to_us(us / 1e6, "timestamp") == us


@given(instants)
def test_datetimes_are_exact_both_ways(us: int) -> None:
    assert to_us(to_datetime(us), "timestamp") == us
    assert to_us(Decimal(us) / 10**6, "timestamp") == us


@given(st.datetimes(timezones=zones))
def test_any_aware_datetime_is_its_instant_or_refused(moment: datetime) -> None:
    try:
        us = to_us(moment, "timestamp")
    except ValueError:
        assert moment.year in {1, 9999} or not 1678 <= moment.astimezone(UTC).year <= 2261
    else:
        assert to_datetime(us) == moment


@given(st.integers())
def test_an_integer_is_stored_exactly_or_refused(number: int) -> None:
    batch, refusals = check_rows([("a", "b", 0, number)], accept_bool=False, now_us=NOW_US, skip=True)
    assert refusals or (batch.values[0] == number and math.isfinite(batch.values[0]))
