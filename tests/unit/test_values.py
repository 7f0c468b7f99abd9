"""check_rows and check_point: what they accept, how it is stored, and how they refuse."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from repo.errors import InvalidPoint, Refusal
from repo.inputs.batch import Batch
from repo.inputs.fields import MAX_METADATA_BYTES, MAX_TEXT_BYTES, check_name, metadata_json
from repo.inputs.values import check_point, check_rows

NOW_US = 1_700_000_000_123_456
GOOD = ("S-1", "pressure", 1.5, 2.5)


def rows_of(rows: Any, *, accept_bool: bool = False) -> Batch:
    batch, refusals = check_rows(rows, accept_bool=accept_bool, now_us=NOW_US)
    assert refusals == ()
    return batch


def refusals_of(rows: Any) -> tuple[Refusal, ...]:
    with pytest.raises(InvalidPoint) as caught:
        check_rows(rows, accept_bool=False, now_us=NOW_US)
    return caught.value.refusals


def value_of(value: Any, *, accept_bool: bool = False) -> float:
    """The stored value, which is the same on both paths."""
    alone = check_point("S", "m", value, 0, None, None, accept_bool=accept_bool, now_us=NOW_US)
    among = rows_of([("S", "m", 0, value)] * 3, accept_bool=accept_bool)
    assert array("d", [alone.value] * 3).tobytes() == among.values.tobytes()
    return alone.value


def reason_against(value: Any, field: str = "value") -> str:
    given: dict[str, Any] = {"sensor_id": "S", "metric_name": "m", "value": 1.0, field: value}
    first, second = refusals_of([given, dict(given)])
    assert first.field == second.field == field
    assert first.reason == second.reason
    return first.reason


@dataclass
class Reading:
    sensor_id: str
    metric_name: str
    value: float
    timestamp: float | None = None


class Swapped(NamedTuple):
    value: float
    timestamp: float
    metric_name: str
    sensor_id: str


def test_rows_of_every_form_give_the_same_columns() -> None:
    forms: list[Any] = [
        GOOD,
        list(GOOD),
        {"sensor_id": "S-1", "metric_name": "pressure", "timestamp": 1.5, "value": 2.5},
        MappingProxyType(
            {"sensor_id": "S-1", "metric_name": "pressure", "timestamp_us": 1_500_000, "value": 2.5}
        ),
        Reading("S-1", "pressure", 2.5, 1.5),
        Swapped(2.5, 1.5, "pressure", "S-1"),
    ]
    wanted = Batch(
        [("S-1", "pressure")],
        ["number"],
        array("I", [0]),
        array("q", [1_500_000]),
        array("d", [2.5]),
        {},
        100,
        {},
    )
    for form in forms:
        assert rows_of([form]) == wanted
    assert rows_of(forms).timestamps_us == array("q", [1_500_000] * len(forms))


def test_a_named_tuple_is_read_by_its_names_not_its_positions() -> None:
    batch = rows_of([Swapped(2.5, 1.5, "pressure", "S-1")] * 2)
    assert batch.series == [("S-1", "pressure")]
    assert list(batch.values) == [2.5, 2.5]


def test_a_generator_is_consumed_once() -> None:
    def readings() -> Iterator[tuple[str, str, float, float]]:
        for index in range(3):
            yield ("S", "m", float(index), float(index))

    source = readings()
    assert len(rows_of(source)) == 3
    assert list(source) == []


def test_no_rows_are_an_empty_batch() -> None:
    batch = rows_of([])
    assert (len(batch), batch.series, batch.qualities) == (0, [], 100)


def test_series_are_numbered_in_order_of_first_appearance() -> None:
    batch = rows_of([("B", "x", 1, 1.0), ("A", "x", 1, 2.0), ("B", "y", 1, 3.0), ("A", "x", 2, 4.0)])
    assert batch.series == [("B", "x"), ("A", "x"), ("B", "y")]
    assert list(batch.codes) == [0, 1, 2, 1]


def test_dicts_may_lack_what_is_optional_each_in_its_own_way() -> None:
    batch = rows_of(
        [
            {"sensor_id": "S", "metric_name": "m", "value": 1.0},
            {"sensor_id": "S", "metric_name": "m", "value": 2.0, "timestamp": 3},
            {
                "sensor_id": "S",
                "metric_name": "m",
                "value": 3.0,
                "quality": 7,
                "metadata": {"b": 1, "a": "é"},
            },
        ]
    )
    assert list(batch.timestamps_us) == [NOW_US, 3_000_000, NOW_US]
    assert batch.qualities == array("i", [100, 100, 7])
    assert batch.metadata == {2: '{"a":"é","b":1}'}


def test_one_quality_for_all_stays_one_number() -> None:
    assert rows_of([(*GOOD, 7), (*GOOD, 7)]).qualities == 7
    assert rows_of([(*GOOD, None), (*GOOD, 100)]).qualities == 100


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (1, 1.0),
        (-0.0, 0.0),
        (2**53, 2.0**53),
        (2**60, 2.0**60),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (5e-324, 5e-324),
        (Decimal("0.1"), 0.1),
        (Decimal("-0"), 0.0),
        (Decimal("Infinity"), math.inf),
        (Fraction(1, 4), 0.25),
    ],
)
def test_a_number_is_stored_as_the_float_it_is(given: Any, stored: float) -> None:
    got = value_of(given)
    assert (got, math.copysign(1.0, got)) == (stored, math.copysign(1.0, stored))


@pytest.mark.parametrize("given", [None, math.nan, Decimal("NaN")])
def test_none_and_nan_are_no_reading_and_set_no_kind(given: Any) -> None:
    assert math.isnan(value_of(given))
    batch = rows_of([("S", "m", 0, given), ("T", "m", 0, given), ("T", "m", 1, "OPEN"), ("U", "m", 0, 1.0)])
    assert batch.kinds == [None, "text", "number"]


def test_a_bool_is_stored_only_with_accept_bool() -> None:
    assert "bool" in reason_against(True)
    assert value_of(True, accept_bool=True) == 1.0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (2**53 + 1, "9007199254740993 is an integer that a 64-bit float would round"),
        (-(2**53) - 1, "would round"),
        (Decimal(2**53 + 1), "would round"),
        (10**400, "too large"),
        (Decimal("1e400"), "too large"),
        (Fraction(10**400), "too large"),
        (Decimal("sNaN"), "not a number"),
        ("12", "'12' is a number given as text"),
        (" 1e3 ", "given as text"),
        ("nan", "given as text"),
        ("a\x00b", "control character U+0000 at position 1"),
        ("a\nb", "control character U+000A"),
        ("a\x85b", "control character U+0085"),
        ("a\ud800b", "lone surrogate U+D800"),
        ("x" * (MAX_TEXT_BYTES + 1), "longer than 65536 bytes"),
        ("é" * (MAX_TEXT_BYTES // 2 + 1), "longer than 65536 bytes"),
        (b"1", "a bytes"),
        (bytearray(b"1"), "a bytearray"),
        (1 + 2j, "a complex"),
        (object(), "an object"),
        ([1.0], "a list"),
        (datetime(2024, 1, 1, tzinfo=UTC), "a datetime"),
    ],
)
def test_an_invalid_value_is_refused_with_the_reason(given: Any, reason: str) -> None:
    assert reason in reason_against(given)


def test_one_rounded_integer_among_floats_and_gaps_is_found() -> None:
    rows = [("S", "m", 0, value) for value in (1.5, None, math.nan, 2**53 + 1, 7)]
    assert [refusal.row for refusal in refusals_of(rows)] == [3]


@pytest.mark.parametrize(
    "text", ["OPEN", "", " ", "0x1F", "1,5", "Ünïcode ☃ \U0001f600", "e\u0301", "\u202eabc", "a\u00a0b"]
)
def test_any_other_text_is_a_text_reading_and_kept_as_it_is(text: str) -> None:
    batch = rows_of([("S", "m", 0, text)] * 2)
    assert (batch.texts, batch.kinds) == ({0: text, 1: text}, ["text"])
    assert all(map(math.isnan, batch.values))


def test_a_text_enum_is_stored_as_its_value() -> None:
    class State(StrEnum):
        OPEN = "open"

    batch = rows_of([("S", "m", 0, State.OPEN)])
    assert type(batch.texts[0]) is str
    assert batch.texts == {0: "open"}


def test_in_a_series_with_both_kinds_the_first_reading_decides() -> None:
    rows = [
        ("S", "m", 0, 1.0),
        ("S", "m", 1, "OPEN"),
        ("S", "m", 2, 2.0),
        ("S", "m", 3, "SHUT"),
        ("S", "n", 0, "A"),
    ]
    refusals = refusals_of(rows)
    assert [(refusal.row, refusal.field) for refusal in refusals] == [(1, "value"), (3, "value")]
    assert refusals[0].reason == "is a text, but 'S' 'm' has numbers in this batch"
    batch, skipped = check_rows(rows, accept_bool=False, now_us=NOW_US, skip=True)
    assert skipped == refusals
    assert (len(batch), batch.kinds, batch.texts) == (3, ["number", "text"], {2: "A"})


def test_a_refused_row_sets_neither_series_nor_kind() -> None:
    batch, refusals = check_rows(
        [("S", "m", 0, "12"), ("S", "m", math.nan, "OPEN"), ("S", "m", 0, 1.0), ("T", "m", 0, b"")],
        accept_bool=False,
        now_us=NOW_US,
        skip=True,
    )
    assert [refusal.row for refusal in refusals] == [0, 1, 3]
    assert (batch.series, batch.kinds, list(batch.values)) == ([("S", "m")], ["number"], [1.0])


@pytest.mark.parametrize("field", ["sensor_id", "metric_name"])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "is None"),
        ("", "is empty"),
        (7, "is an int"),
        (b"S", "is a bytes"),
        ("x" * 256, "256 characters"),
        ("a\tb", "U+0009"),
        ("\x7f", "U+007F"),
        ("\udfff", "lone surrogate"),
    ],
)
def test_an_invalid_name_is_refused(field: str, given: Any, reason: str) -> None:
    assert reason in reason_against(given, field)
    with pytest.raises(InvalidPoint, match=field):
        check_name(given, field)


@pytest.mark.parametrize(
    "name", ["x" * 255, "☃" * 255, "Robert'); DROP TABLE x;--", " ", "a/b*[c]?", "\u00a0"]
)
def test_any_other_name_is_kept_as_it_is(name: str) -> None:
    assert rows_of([(name, name, 0, 1.0)]).series == [(name, name)]
    assert check_name(name, "sensor_id") == name


@pytest.mark.parametrize("given", [True, 1.0, "100", 2**31, -(2**31) - 1, b"1"])
def test_a_quality_is_an_integer_of_32_bits(given: Any) -> None:
    reason_against(given, "quality")


def test_qualities_at_the_ends_of_32_bits_are_kept() -> None:
    rows = [(*GOOD, quality) for quality in (2**31 - 1, -(2**31), 7, None)]
    assert rows_of(rows).qualities == array("i", [2**31 - 1, -(2**31), 7, 100])


def test_metadata_is_kept_as_canonical_json() -> None:
    assert (
        metadata_json({"b": [1, None, True], "a": {"z": 1.5, "y": "é"}})
        == '{"a":{"y":"é","z":1.5},"b":[1,null,true]}'
    )
    assert metadata_json(None) is None
    assert metadata_json({}) == "{}"
    assert metadata_json(MappingProxyType({"a": 1})) == '{"a":1}'


def test_control_characters_in_metadata_are_escaped() -> None:
    assert metadata_json({"a": "\x00\n\x7f\x85"}) == '{"a":"\\u0000\\n\\u007f\\u0085"}'


def _deep() -> dict[str, Any]:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    return deep


def _own() -> dict[str, Any]:
    own: dict[str, Any] = {}
    own["own"] = own
    return own


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{}", "a str, not a mapping"),
        ([1], "a list, not a mapping"),
        ({"a": math.nan}, "not JSON"),
        ({"a": math.inf}, "not JSON"),
        ({"a": object()}, "not JSON"),
        ({"a": b"x"}, "not JSON"),
        ({1: "a"}, "key that is not a text"),
        ({"a": [{None: 1}]}, "key that is not a text"),
        ({1: "a", "b": 2}, "not JSON"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"a": "x" * MAX_METADATA_BYTES}, "longer than"),
        ({"a": 10**5000}, "not JSON"),
        (_deep(), "nested too deeply"),
        (_own(), "not JSON"),
    ],
    ids=lambda given: "" if isinstance(given, dict) else None,
)
def test_invalid_metadata_is_refused(given: Any, reason: str) -> None:
    assert reason in reason_against(given, "metadata")


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (("S", "m", 0), "row", "has 3 items"),
        (("S", "m", 0, 1.0, 100, None, None), "row", "has 7 items"),
        ((), "row", "has 0 items"),
        ("S,m,0,1", "row", "is a str"),
        (None, "row", "is None"),
        (7, "row", "is an int"),
        (Reading, "row", "is a type"),
        ({"sensor_id": "S", "metric_name": "m"}, "value", "is missing"),
        ({"sensor_id": "S", "value": 1.0}, "metric_name", "is missing"),
        (
            {"sensor_id": "S", "metric_name": "m", "value": 1.0, "Value": 2.0},
            "'Value'",
            "not a field of a point",
        ),
        (
            {"sensor_id": "S", "metric_name": "m", "value": 1.0, "\ud800": 2.0},
            r"'\ud800'",
            "not a field of a point",
        ),
        (
            {"sensor_id": "S", "metric_name": "m", "value": 1.0, 3: 2.0},
            "the key of type int",
            "not a field of a point",
        ),
        (
            {"sensor_id": "S", "metric_name": "m", "value": 1.0, "timestamp": 1, "timestamp_us": 1},
            "timestamp",
            "given twice",
        ),
    ],
)
def test_an_invalid_row_is_refused_by_its_number(row: Any, field: str, reason: str) -> None:
    (refusal,) = refusals_of([GOOD, row, GOOD])
    assert (refusal.row, refusal.field) == (1, field)
    assert reason in refusal.reason


@pytest.mark.parametrize("rows", ["text", b"bytes", {"sensor_id": "S"}, 7, None])
def test_anything_but_a_sequence_of_rows_is_refused_as_a_whole(rows: Any) -> None:
    (refusal,) = refusals_of(rows)
    assert (refusal.row, refusal.field) == (None, "rows")


def test_every_bad_row_is_listed_and_only_once() -> None:
    rows = [("", "", "x", b"") if index % 3 == 0 else GOOD for index in range(100)]
    assert [(refusal.row, refusal.field) for refusal in refusals_of(rows)] == [
        (index, "sensor_id") for index in range(0, 100, 3)
    ]


def test_the_message_of_many_refusals_stays_short() -> None:
    with pytest.raises(InvalidPoint) as caught:
        check_rows([("S", "m", 0, b"")] * 1000, accept_bool=False, now_us=NOW_US)
    assert len(caught.value.refusals) == 1000
    assert str(caught.value).endswith("and 995 more")


def test_one_point_is_refused_without_a_row_number() -> None:
    with pytest.raises(InvalidPoint, match=r"^quality: is a float") as caught:
        check_point("S", "m", 1.0, None, 1.5, None, accept_bool=False, now_us=NOW_US)
    assert caught.value.refusals[0].row is None


def test_long_batches_are_checked_like_short_ones() -> None:
    rows: list[Any] = [(f"S-{index % 7}", "m", float(index), float(index)) for index in range(20_000)]
    assert len(rows_of(rows)) == 20_000
    rows[7] = ("S-0", "m", 7.0, 7.0, 50)
    assert rows_of(rows).qualities == array("i", [50 if row == 7 else 100 for row in range(20_000)])
    rows[12_345] = ("S", "m", 0.0)
    assert [refusal.row for refusal in refusals_of(rows)] == [12_345]
