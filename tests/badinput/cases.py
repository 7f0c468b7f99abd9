"""The matrix of bad and odd input: for each field and fault what is given, and what each entry point makes of it.

Data only. A case says what the entry points of Python get and what is expected of them, and the same for the text of a
CSV cell; a fault that an entry point cannot receive has no expectation, and its cell in the grid stays empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal


@dataclass(frozen=True)
class Stored:
    """One point is written, and the field reads back as this."""

    value: Any


@dataclass(frozen=True)
class Refused:
    """Nothing is written, and the message holds this text."""

    text: str


@dataclass(frozen=True)
class NoPoint:
    """Nothing is written, and that is no fault: a missing mark."""


Expectation = Stored | Refused | NoPoint | None


@dataclass(frozen=True)
class Case:
    """One row of the grid. `expect` is for Python's entry points, or for those in `entries`; `csv` for a CSV cell."""

    field: str
    fault: str
    given: Any = None
    expect: Expectation = None
    cell: str | None = None
    csv: Expectation = None
    wide: Expectation | Literal["as long"] = "as long"
    entries: tuple[str, ...] | None = None


_UNDECODABLE = Refused("invalid in this encoding")
NOW_US = 1_700_000_000_123_456


def _names(field: str) -> list[Case]:
    """Sensor and metric names follow one rule; only an unnamed column of a wide file is no metric at all."""

    def both(fault: str, given: str, expect: Expectation) -> Case:
        return Case(field, fault, given, expect, given, expect)

    is_header = field == "metric_name"
    return [
        Case(field, "None", None, Refused("is None")),
        Case(field, "empty", "", Refused("is empty"), "", Refused("is empty"), None if is_header else "as long"),
        Case(field, "wrong type", 7, Refused("is an int"), "7", Stored("7")),
        Case(field, "bool", True, Refused("is a bool"), "True", Stored("True")),
        Case(field, "NaN", math.nan, Refused("is a float"), "NaN", Stored("NaN")),
        Case(field, "inf", math.inf, Refused("is a float"), "inf", Stored("inf")),
        Case(field, "Decimal", Decimal(1), Refused("is a Decimal")),
        Case(field, "bytes", b"S", Refused("is a bytes")),
        Case(field, "list", ["S"], Refused("is a list")),
        both("numeric text", "12", Stored("12")),
        both("control character", "a\tb", Refused("U+0009")),
        both("NUL", "a\x00b", Refused("U+0000")),
        both("C1 control character", "a\x9bb", Refused("U+009B")),
        Case(field, "line break", "a\nb", Refused("U+000A"), "a\nb", Refused("not closed")),
        Case(field, "lone surrogate", "a\udc80b", Refused("lone surrogate"), "a\udc80b", Refused("lone surrogate"),
             _UNDECODABLE if is_header else "as long"),
        both("255 characters", "\u00e9" * 255, Stored("\u00e9" * 255)),
        both("256 characters", "x" * 256, Refused("256 characters")),
        both("injection text", "x'); DROP TABLE time_series_data;--", Stored("x'); DROP TABLE time_series_data;--")),
        both("glob characters", "*[?]", Stored("*[?]")),
        both("path", "../../etc/passwd", Stored("../../etc/passwd")),
        both("format characters", "{0}%s%n", Stored("{0}%s%n")),
        both("decomposed accent", "e\u0301", Stored("e\u0301")),
        both("beyond the BMP", "\U0001f321", Stored("\U0001f321")),
        Case(field, "blank", " ", Stored(" "), " ", Refused("is empty"), None if is_header else "as long"),
    ]  # fmt: skip


_NO_TIME = Refused("fits no time format")
_TIMES = [
    Case("timestamp", "None", None, Stored(NOW_US)),
    Case("timestamp", "empty", "", Refused("is a text"), "", _NO_TIME),
    Case("timestamp", "wrong type", [1], Refused("type list")),
    Case("timestamp", "bool", True, Refused("is a bool"), "True", _NO_TIME),
    Case("timestamp", "NaN", math.nan, Refused("NaN"), "NaN", Refused("not a time")),
    Case("timestamp", "inf", math.inf, Refused("infinite"), "inf", Refused("not a time")),
    Case("timestamp", "minus zero", -0.0, Stored(0), "-0.0", Stored(0)),
    Case("timestamp", "huge int", 10**400, Refused("outside the years"), "1" + "0" * 400, _NO_TIME),
    Case("timestamp", "2**53+1", 2**53 + 1, Refused("looks like microseconds"), "9007199254740993",
         Refused("looks like microseconds")),
    Case("timestamp", "Decimal", Decimal("1.5"), Stored(1_500_000), "1.5", Stored(1_500_000)),
    Case("timestamp", "huge Decimal", Decimal("1e999999999"), Refused("outside the years"), "1e999999999",
         Refused("outside the years")),
    Case("timestamp", "numeric text", "12", Refused("is a text"), "12", Stored(12_000_000)),
    Case("timestamp", "time as text", "2024-01-01T00:00:00Z", Refused("is a text"), "2024-01-01T00:00:00Z",
         Stored(1_704_067_200_000_000)),
    Case("timestamp", "bytes", b"12", Refused("type bytes")),
    Case("timestamp", "control character", "12\t3", Refused("is a text"), "12\t3", _NO_TIME),
    Case("timestamp", "NUL", "12\x00", Refused("is a text"), "12\x00", _NO_TIME),
    Case("timestamp", "lone surrogate", "12\udc80", Refused("is a text"), "12\udc80", _UNDECODABLE),
    Case("timestamp", "injection text", "0); DROP TABLE x", Refused("is a text"), "0); DROP TABLE x", _NO_TIME),
    Case("timestamp", "milliseconds", 1_700_000_000_000, Refused("looks like milliseconds"), "1700000000000",
         Refused("looks like milliseconds")),
    Case("timestamp", "microseconds", 1_700_000_000_000_000, Refused("looks like microseconds"), "1700000000000000",
         Refused("looks like microseconds")),
    Case("timestamp", "nanoseconds", 1.7e18, Refused("looks like nanoseconds"), "1700000000000000000",
         Refused("looks like nanoseconds")),
    Case("timestamp", "last moment", datetime(2261, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
         Stored(9_214_646_399_999_999), "2261-12-31T23:59:59.999999Z",
         Stored(9_214_646_399_999_999)),
    Case("timestamp", "year 2262", datetime(2262, 1, 1, tzinfo=UTC), Refused("1678 to 2261"), "2262-01-01T00:00Z",
         Refused("1678 to 2261")),
    Case("timestamp", "year 2262 in seconds", 9_214_646_400, Refused("1678 to 2261"), "9214646400",
         Refused("1678 to 2261")),
    Case("timestamp", "first moment", -9_214_560_000, Stored(-9_214_560_000_000_000), "1678-01-01",
         Stored(-9_214_560_000_000_000)),
    Case("timestamp", "year 1677", datetime(1677, 12, 31, tzinfo=UTC), Refused("1678 to 2261"), "1677-12-31",
         Refused("1678 to 2261")),
    Case("timestamp", "before 1970", -1.5, Stored(-1_500_000), "-1.5", Stored(-1_500_000)),
    Case("timestamp", "naive datetime", datetime(2024, 1, 1), Refused("without a time zone"), "2024-01-01 00:00:00",  # noqa: DTZ001
         Stored(1_704_067_200_000_000)),
    Case("timestamp", "other zone", datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1))),
         Stored(1_704_063_600_000_000), "2024-01-01T00:00:00+01:00",
         Stored(1_704_063_600_000_000)),
    Case("timestamp", "date", date(2024, 1, 1), Refused("type date"), "2024-01-01",
         Stored(1_704_067_200_000_000)),
    Case("timestamp", "microsecond float", 1_700_000_000.123457, Stored(1_700_000_000_123_457), "1700000000.123457",
         Stored(1_700_000_000_123_457)),
    Case("timestamp", "impossible day", None, None, "2023-02-29", _NO_TIME),
]  # fmt: skip

_US_ENTRIES = ("dict", "dict among others")
_MICROSECONDS = [
    Case("timestamp_us", "None", None, Stored(NOW_US), entries=_US_ENTRIES),
    Case("timestamp_us", "bool", True, Refused("type bool"), entries=_US_ENTRIES),
    Case("timestamp_us", "float", 1.0, Refused("type float"), entries=_US_ENTRIES),
    Case("timestamp_us", "NaN", math.nan, Refused("type float"), entries=_US_ENTRIES),
    Case("timestamp_us", "Decimal", Decimal(1), Refused("type Decimal"), entries=_US_ENTRIES),
    Case("timestamp_us", "numeric text", "1", Refused("type str"), entries=_US_ENTRIES),
    Case("timestamp_us", "bytes", b"1", Refused("type bytes"), entries=_US_ENTRIES),
    Case("timestamp_us", "huge int", 10**400, Refused("outside the years"), entries=_US_ENTRIES),
    Case(
        "timestamp_us",
        "nanoseconds",
        1_700_000_000_000_000_000,
        Refused("looks like nanoseconds"),
        entries=_US_ENTRIES,
    ),
    Case("timestamp_us", "2**53+1", 2**53 + 1, Stored(2**53 + 1), entries=_US_ENTRIES),
    Case(
        "timestamp_us", "year 2262", 9_214_646_400_000_000, Refused("outside the years"), entries=_US_ENTRIES
    ),
    Case(
        "timestamp_us",
        "naive datetime",
        datetime(2024, 1, 1),  # noqa: DTZ001
        Refused("type datetime"),
        entries=_US_ENTRIES,
    ),
    Case("timestamp_us", "before 1970", -1, Stored(-1), entries=_US_ENTRIES),
]

_NO_NUMBER = Refused("is not a number")
_VALUES = [
    Case("value", "None", None, Stored(None)),
    Case("value", "empty", "", Stored(""), "", Stored(None), NoPoint()),
    Case("value", "missing mark", None, None, "NA", Stored(None), NoPoint()),
    Case("value", "wrong type", [1.0], Refused("is a list")),
    Case("value", "object", object(), Refused("is an object")),
    Case("value", "complex", 1j, Refused("is a complex")),
    Case("value", "datetime", datetime(2024, 1, 1, tzinfo=UTC), Refused("is a datetime"), "2024-01-01", _NO_NUMBER),
    Case("value", "bool", True, Refused("is a bool"), "True", _NO_NUMBER),
    Case("value", "NaN", math.nan, Stored(None), "nan", Stored(None), NoPoint()),
    Case("value", "inf", math.inf, Stored(math.inf), "inf", Stored(math.inf)),
    Case("value", "-inf", -math.inf, Stored(-math.inf), "-Infinity", Stored(-math.inf)),
    Case("value", "minus zero", -0.0, Stored(0.0), "-0.0", Stored(0.0)),
    Case("value", "smallest", 5e-324, Stored(5e-324), "5e-324", Stored(5e-324)),
    Case("value", "largest", 1.7976931348623157e308, Stored(1.7976931348623157e308), "1.7976931348623157e308",
         Stored(1.7976931348623157e308)),
    Case("value", "huge int", 10**400, Refused("too large"), "1" + "0" * 400, Refused("too large")),
    Case("value", "2**53", 2**53, Stored(2.0**53), "9007199254740992", Stored(2.0**53)),
    Case("value", "2**53+1", 2**53 + 1, Refused("would round"), "9007199254740993", Refused("would round")),
    Case("value", "Decimal", Decimal("0.1"), Stored(0.1), "0.1", Stored(0.1)),
    Case("value", "huge Decimal", Decimal("1e999999999"), Refused("too large"), "1e999999999",
         Refused("too large")),
    Case("value", "numeric text", "12", Refused("given as text"), "12", Stored(12.0)),
    Case("value", "'nan' as text", "nan", Refused("given as text")),
    Case("value", "grouped digits", "1_000", Refused("given as text"), "1_000", Refused("only to Python")),
    Case("value", "decimal comma", "1,5", Stored("1,5"), "1,5", _NO_NUMBER),
    Case("value", "hexadecimal text", "0x1F", Stored("0x1F"), "0x1F", _NO_NUMBER),
    Case("value", "other digits", "\uff11\uff12", Refused("given as text"), "\uff11\uff12",
         Refused("only to Python")),
    Case("value", "state text", "OPEN", Stored("OPEN"), "OPEN", _NO_NUMBER),
    Case("value", "bytes", b"1", Refused("is a bytes")),
    Case("value", "control character", "a\nb", Refused("U+000A"), "a\tb", _NO_NUMBER),
    Case("value", "NUL", "a\x00", Refused("U+0000"), "1\x00", _NO_NUMBER),
    Case("value", "lone surrogate", "\ud800", Refused("lone surrogate"), "\udc80", _UNDECODABLE),
    Case("value", "longest text", "x" * 65_536, Stored("x" * 65_536)),
    Case("value", "too long", "x" * 65_537, Refused("longer than"), "9" * 140_000, Refused("field larger")),
    Case("value", "injection text", "1); DROP TABLE x", Stored("1); DROP TABLE x"), "1); DROP TABLE x", _NO_NUMBER),
    Case("value", "spreadsheet formula", "=1+1", Stored("=1+1"), "=1+1", _NO_NUMBER),
]  # fmt: skip

_NO_INT = Refused("not an integer")
_QUALITIES = [
    Case("quality", "None", None, Stored(100)),
    Case("quality", "empty", "", Refused("is a str"), "", Stored(100)),
    Case("quality", "wrong type", [1], Refused("is a list")),
    Case("quality", "float", 1.0, Refused("is a float"), "1.0", _NO_INT),
    Case("quality", "bool", True, Refused("is a bool"), "True", _NO_INT),
    Case("quality", "NaN", math.nan, Refused("is a float"), "nan", _NO_INT),
    Case("quality", "inf", math.inf, Refused("is a float"), "inf", _NO_INT),
    Case("quality", "minus zero", -0.0, Refused("is a float"), "-0", Stored(0)),
    Case(
        "quality", "largest", 2**31 - 1, Stored(2**31 - 1), "2147483647", Stored(2**31 - 1), Stored(2**31 - 1)
    ),
    Case("quality", "2**31", 2**31, Refused("32 bits"), "2147483648", Refused("32 bits")),
    Case("quality", "least", -(2**31), Stored(-(2**31)), "-2147483648", Stored(-(2**31))),
    Case(
        "quality",
        "2**53+1",
        2**53 + 1,
        Refused("32 bits"),
        "9007199254740993",
        Refused("32 bits"),
        Refused("32 bits"),
    ),
    Case(
        "quality",
        "huge int",
        10**400,
        Refused("32 bits"),
        "1" + "0" * 400,
        Refused("32 bits"),
        Refused("32 bits"),
    ),
    Case("quality", "Decimal", Decimal(1), Refused("is a Decimal")),
    Case("quality", "numeric text", "12", Refused("is a str"), "12", Stored(12)),
    Case("quality", "bytes", b"1", Refused("is a bytes")),
    Case("quality", "NUL", "1\x00", Refused("is a str"), "1\x00", _NO_INT),
    Case("quality", "lone surrogate", "\ud800", Refused("is a str"), "\udc80", _UNDECODABLE),
    Case("quality", "injection text", "1 OR 1=1", Refused("is a str"), "1 OR 1=1", _NO_INT),
]

_METADATA = [
    Case("metadata", "None", None, Stored(None)),
    Case("metadata", "empty", {}, Stored({})),
    Case("metadata", "wrong type", [1], Refused("is a list")),
    Case("metadata", "JSON as text", "{}", Refused("is a str")),
    Case("metadata", "bytes", b"{}", Refused("is a bytes")),
    Case("metadata", "bool", True, Refused("is a bool")),
    Case("metadata", "bool inside", {"a": True}, Stored({"a": True})),
    Case("metadata", "NaN", math.nan, Refused("is a float")),
    Case("metadata", "NaN inside", {"a": math.nan}, Refused("not JSON")),
    Case("metadata", "inf inside", {"a": [math.inf]}, Refused("not JSON")),
    Case("metadata", "minus zero inside", {"a": -0.0}, Stored({"a": -0.0})),
    Case("metadata", "huge int inside", {"a": 10**5000}, Refused("not JSON")),
    Case("metadata", "2**53+1 inside", {"a": 2**53 + 1}, Stored({"a": 2**53 + 1})),
    Case("metadata", "Decimal inside", {"a": Decimal(1)}, Refused("not JSON")),
    Case("metadata", "numeric text inside", {"a": "12"}, Stored({"a": "12"})),
    Case("metadata", "bytes inside", {"a": b"x"}, Refused("not JSON")),
    Case(
        "metadata",
        "datetime inside",
        {"a": datetime(2024, 1, 1, tzinfo=UTC)},
        Stored({"a": "2024-01-01T00:00:00+00:00"}),
    ),
    Case("metadata", "key that is no text", {1: "a"}, Refused("key that is not a text")),
    Case("metadata", "control characters", {"a\t": "\n\x7f\x9b"}, Stored({"a\t": "\n\x7f\x9b"})),
    Case("metadata", "NUL", {"a": "\x00"}, Stored({"a": "\x00"})),
    Case("metadata", "lone surrogate", {"a": "\ud800"}, Refused("lone surrogate")),
    Case("metadata", "too long", {"a": "x" * 1_048_576}, Refused("longer than")),
    Case("metadata", "injection text", {"a": "'); DROP TABLE x;--"}, Stored({"a": "'); DROP TABLE x;--"})),
    Case("metadata", "deep nesting", {"a": [[[[{"b": {}}]]]]}, Stored({"a": [[[[{"b": {}}]]]]})),
]

CASES = [
    *_names("sensor_id"),
    *_names("metric_name"),
    *_TIMES,
    *_MICROSECONDS,
    *_VALUES,
    *_QUALITIES,
    *_METADATA,
]
