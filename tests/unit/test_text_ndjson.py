"""NDJSON lines of many shapes become rows for insert_many; anything else is rejected by line and key."""

from __future__ import annotations

import io
import json
import math
import tracemalloc
from typing import Any

import pytest

from repo.errors import InvalidFile, InvalidSettings
from repo.formats.text.layout import Layout, ReadingChunk
from repo.formats.text.ndjson import read_ndjson
from repo.inputs.values import check_rows

DAY = 1_704_067_200  # 2024-01-01


def whole(*lines: Any, **layout: Any) -> ReadingChunk:
    """The only chunk of a small file; anything but strings is encoded as JSON."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    merged = ReadingChunk()
    for chunk in read_ndjson(io.StringIO(text, newline=""), Layout(**layout)):
        merged.rows += chunk.rows
        merged.lines += chunk.lines
        merged.rejected += chunk.rejected
        merged.missing += chunk.missing
    assert len(merged.rows) == len(merged.lines)
    return merged


def point(**changed: Any) -> dict[str, Any]:
    found = {"sensor_id": "S", "metric_name": "m", "timestamp": DAY, "value": 1.5} | changed
    return {key: value for key, value in found.items() if value is not ...}


def rejected(*lines: Any, **layout: Any) -> list[tuple[int | None, str | None, str]]:
    return [(one.line, one.column, one.reason) for one in whole(*lines, **layout).rejected]


def test_a_long_line_has_the_fields_of_a_point() -> None:
    chunk = whole(
        point(), point(value="OPEN", quality=7, metadata={"b": [1]}, further=[1]), point(value=None)
    )
    assert chunk.rows == [
        ("S", "m", DAY, 1.5, None, None),
        ("S", "m", DAY, "OPEN", 7, {"b": [1]}),
        ("S", "m", DAY, None, None, None),
    ]
    assert (chunk.lines, chunk.rejected, chunk.missing) == ([1, 2, 3], [], 0)


@pytest.mark.parametrize(
    ("time", "layout", "seconds"),
    [
        (DAY, {}, DAY),
        (DAY + 0.25, {}, DAY + 0.25),
        ("2024-01-01T00:00:00.5Z", {}, DAY + 0.5),
        (" 2024-01-01 ", {}, DAY),
        ("2024-01-01T01:00", {"zone": "Europe/Oslo"}, DAY),
        (DAY * 1000 + 1, {"time_formats": ("unix_ms",)}, DAY + 0.001),
        (DAY * 1000 + 0.5, {"time_formats": ("unix_ms",)}, DAY + 0.0005),
        (str(DAY), {"time_formats": ("iso", "unix")}, DAY),
        (20240101, {"time_formats": ("%Y%m%d",)}, DAY),
        (1777012961840, {"time_formats": ("iso", "unix_ms")}, 1777012961.84),
        (20240101, {"time_formats": ("iso", "unix")}, 20240101),
    ],
)
def test_a_time_is_a_text_or_a_number(time: Any, layout: dict[str, Any], seconds: float) -> None:
    assert whole(point(timestamp=time), **layout).rows[0][2] == seconds


@pytest.mark.parametrize("formats", [("iso",), ("unix",), ("iso", "unix_ms")])
def test_a_time_that_was_rounded_is_rejected(formats: tuple[str, ...]) -> None:
    [(line, column, reason)] = rejected(
        '{"sensor_id":"S","metric_name":"m","timestamp":1.76723E+9,"value":1.5}', time_formats=formats
    )
    assert (line, column) == (1, "timestamp")
    assert "was rounded" in reason


def test_a_number_too_large_for_a_float_is_rejected_and_not_infinity() -> None:
    chunk = whole(
        '{"sensor_id":"S","timestamp":0,"p":1e400,"q":1}', '{"sensor_id":"S","timestamp":0,"p":-1e400}'
    )
    assert [row[1] for row in chunk.rows] == ["q"]
    assert [(one.line, one.column, one.reason) for one in chunk.rejected] == [
        (1, "p", "is too large for a 64-bit float"),
        (2, "p", "is too large for a 64-bit float"),
    ]
    [(_, column, reason)] = rejected('{"sensor_id":"S","metric_name":"m","timestamp":0,"value":1e400}')
    assert (column, reason) == ("value", "is too large for a 64-bit float")


def test_exact_microseconds_take_precedence_over_another_time() -> None:
    [row] = whole(point(timestamp="when?", timestamp_us=DAY * 10**6 + 1)).rows
    assert row[2] == DAY + 1e-6
    [row] = whole(point(timestamp=..., timestamp_us=DAY * 10**6), time_columns=("timestamp_us",)).rows
    assert row[2] == DAY
    [row] = whole(point(timestamp_us=5, at="2024-01-01"), time_columns=("at",)).rows
    assert row[2] == DAY


def test_date_and_time_may_be_two_keys() -> None:
    line = {"Date": "1/1/2024", "Time": "00:00:07", "x": 1}
    [row] = whole(line, sensor="S", time_columns=("Date", "Time"), time_formats=("%d/%m/%Y %H:%M:%S",)).rows
    assert row == ("S", "x", DAY + 7, 1, None, None)


def test_a_wide_line_has_one_number_per_metric() -> None:
    chunk = whole(
        {"sensor_id": "S", "timestamp": DAY, "p": 1, "q": None, "r": "Infinity", "quality": 9},
        {"sensor_id": "S", "timestamp": DAY, "p": True, "list": [1], "text": "high"},
        point(),
    )
    assert chunk.rows == [
        ("S", "p", DAY, 1, 9, None),
        ("S", "r", DAY, math.inf, 9, None),
        ("S", "p", DAY, True, None, None),
        ("S", "m", DAY, 1.5, None, None),
    ]
    assert chunk.missing == 1
    assert [(one.line, one.column) for one in chunk.rejected] == [(2, "list"), (2, "text")]


def test_keys_of_a_wide_line_can_be_chosen_left_out_and_declared_as_text() -> None:
    line = {"at": "2024-01-01", "p": 1, "state": "OPEN", "note": "x"}
    same: dict[str, Any] = {"sensor": "S", "time_columns": ("at",), "text_metrics": ("state",)}
    assert [row[1] for row in whole(line, ignored=("note",), **same).rows] == ["p", "state"]
    assert [row[1] for row in whole(line, metrics=("state", "gone"), **same).rows] == ["state"]


def test_columns_may_have_any_names_and_constants_replace_them() -> None:
    line = {"wer": "S", "was": "Druck", "wann": "2024-01-01", "wert": 2, "güte": 5}
    same: dict[str, Any] = {"value_column": "wert", "time_columns": ("wann",), "quality_column": "güte"}
    expected = ("S", "Druck", DAY, 2, 5, None)
    assert whole(line, sensor_column="wer", metric_column="was", **same).rows == [expected]
    assert whole(line, sensor="S", metric="Druck", **same).rows == [expected]


def test_only_the_given_marks_mean_a_missing_reading() -> None:
    assert whole(point(value="NA")).rows[0][3] == "NA"
    assert whole(point(value="NA"), missing=("NA",)).rows[0][3] is None


@pytest.mark.parametrize(
    ("line", "column", "reported"),
    [
        ("nonsense", None, "is not JSON: Expecting value at column 1"),
        ('{"a": 1', None, "is not JSON"),
        ("{} {}", None, "has more text after its JSON, at column 3"),
        (json.dumps(point()) + ",", None, "has more text after its JSON"),
        ("7", None, "is an int, not an object"),
        ('["a"]', None, "is a list, not an object"),
        ("null", None, "is None, not an object"),
        ("{}", "sensor_id", "is missing"),
        (point(sensor_id=7), "sensor_id", "is an int, not a text"),
        (point(metric_name=["m"]), "metric_name", "is a list, not a text"),
        (point(value=...), "value", "is missing"),
        (point(value=[1]), "value", "is a list; expected a number or a text"),
        (
            point(value={"bar": 1}),
            "value",
            "is a nested object; flatten the lines first, with jq for example",
        ),
        (point(timestamp=...), "timestamp", "is missing"),
        (point(timestamp=True), "timestamp", "is a bool; expected a text or a number"),
        (point(timestamp="yesterday"), "timestamp", "fits no time format (iso)"),
        (point(timestamp_us=1.5), "timestamp", "give microseconds as an int"),
        (point(timestamp_us=2**80), "timestamp", "outside the years"),
        ({"sensor_id": "S", "timestamp": 1}, None, "has no key for a metric"),
        ('{"value": NaN}', None, "has NaN, which is not JSON; write null for no reading"),
        ('{"value": -Infinity}', None, 'write "-Infinity", in quotes'),
        ('{"value": 1, "value": 2}', None, "has the key 'value' twice"),
        ('{"metadata": {"a": {"b": 1, "b": 1}}}', None, "has the key 'b' twice"),
        ('{"value": ' + "9" * 5_000 + "}", None, "holds an integer that is too long"),
        ("[" * 100_000, None, "is nested too deeply"),
        ('{"a":' * 100_000, None, "is nested too deeply"),
        ('{"value": "' + "x" * 2_000_000 + '"}', None, "longer than 1048576 characters"),
        ('{"value": "\udcff"}', None, "the byte 0xFF"),
        ('{"value": "a\tb"}', None, "is not JSON: Invalid control character"),
    ],
    ids=lambda case: str(case)[:24],
)
def test_an_invalid_line_is_rejected_alone(line: Any, column: str | None, reported: str) -> None:
    chunk = whole(point(), line, point(value=2))
    assert [row[3] for row in chunk.rows] == [1.5, 2]
    assert chunk.lines == [1, 3]
    [one] = chunk.rejected
    assert (one.line, one.column) == (2, column)
    assert reported in one.reason
    assert len(one.text) <= 80


@pytest.mark.parametrize(
    ("line", "column"),
    [
        (point(sensor_id=""), "sensor_id"),
        (point(sensor_id="\ud800"), "sensor_id"),
        (point(metric_name="x" * 256), "metric_name"),
        (point(timestamp=10**400), "timestamp"),
        (point(timestamp=DAY * 1000), "timestamp"),
        (point(value=2**53 + 1), "value"),
        (point(value=10**400), "value"),
        (point(value="1.5"), "value"),
        (point(value="\udc80"), "value"),
        (point(value=False), "value"),
        (point(quality="good"), "quality"),
        (point(quality=[[]]), "quality"),
        (point(metadata=[1]), "metadata"),
        (point(metadata={"\ud800": 1}), "metadata"),
    ],
    ids=lambda case: str(case)[:48],
)
def test_a_row_that_the_store_refuses_is_reported_with_its_line(line: Any, column: str) -> None:
    chunk = whole(point(), line)
    batch, refusals = check_rows(chunk.rows, accept_bool=False, now_us=0, skip=True)
    assert len(batch) == 1
    [one] = chunk.rejections(refusals)
    assert (one.line, one.column) == (2, column)


def test_blank_lines_and_a_byte_order_mark_are_skipped() -> None:
    chunk = whole("\ufeff" + json.dumps(point()), "", " \t", json.dumps(point()) + "\r", "")
    assert (chunk.lines, chunk.rejected) == ([1, 4], [])


def test_a_json_array_is_reported_as_such() -> None:
    with pytest.raises(InvalidFile, match="a JSON array, not one object per line"):
        whole("[", json.dumps(point()) + ",", "]")


def test_a_contradictory_layout_is_refused_before_anything_is_read() -> None:
    refused: tuple[dict[str, Any], ...] = (
        {"shape": "round"},
        {"zone": "Mars"},
        {"time_columns": ()},
        {"sensor": ""},
    )
    for layout in refused:
        with pytest.raises(InvalidSettings):
            read_ndjson(io.StringIO(""), Layout(**layout))


def test_large_metadata_does_not_fill_the_memory() -> None:
    line = json.dumps(point(metadata={"note": "x" * 500_000})) + "\n"
    left = 100

    class Repeated(io.TextIOBase):
        def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
            nonlocal left
            left -= 1
            return line if left >= 0 else ""

    tracemalloc.start()
    try:
        sizes = [len(chunk.rows) for chunk in read_ndjson(Repeated(), Layout())]  # type: ignore[arg-type]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == 100
    assert peak_bytes < 16_000_000


def test_switches_states_and_numbers_for_missing_readings_are_read_as_in_csv() -> None:
    line = {
        "sensor_id": "S",
        "timestamp": 0,
        "a": "on",
        "b": True,
        "c": -9999,
        "d": -9999.0,
        "e": "high",
        "f": "-9999",
    }
    chunk = whole(line, on_off=True, mixed=True, missing=("-9999",))
    assert [(row[1], row[3]) for row in chunk.rows] == [("a", 1.0), ("b", 1.0), ("e", "high")]
    assert (chunk.missing, chunk.rejected) == (3, [])
    assert [(row[1], row[3]) for row in whole(line, columns=(("level", "c"),)).rows] == [("level", -9999)]


def test_metrics_can_be_chosen_in_long_lines_too() -> None:
    assert [row[1] for row in whole(point(), point(metric_name="n", value=[]), metrics=("m",)).rows] == ["m"]


def test_an_object_over_several_lines_is_recognized() -> None:
    with pytest.raises(
        InvalidFile, match=r"a JSON object over several lines, not one object per line; `jq -c '.'`"
    ):
        whole(json.dumps(point(), indent=1))
