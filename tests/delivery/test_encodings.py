"""The text forms of points: NDJSON, JSON, line protocol."""

from __future__ import annotations

import json
import random
import re
from array import array
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo.delivery.encodings import ndjson
from repo.delivery.encodings.line_protocol import LineProtocol
from repo.delivery.keys import BatchKey
from repo.delivery.protocol import Lane, RecordItem
from tests.delivery.sink_batches import batch_of, columns_of

parser = pytest.importorskip("line_protocol_parser", reason="line-protocol-parser is not installed")

NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x85\u2028\u2029"),
    min_size=1,
    max_size=12,
)
ODD = st.sampled_from(
    ["a b", "a,b", "a=b", 'a"b', "a\\b", "\\", "a\\", "#a", "é日😀", "/+#", " ", "a\\,b", "'", "a\\\\ b"]
)
NUMBERS = st.floats(allow_subnormal=False)  # the parser refuses them
POINTS = st.lists(
    st.tuples(
        NAMES | ODD,
        NAMES | ODD,
        st.integers(-(2**53), 2**53),
        NUMBERS | st.none() | NAMES | ODD | st.just(""),
        st.integers(-(2**31), 2**31 - 1),
        st.none() | st.sampled_from(['{"a":"\\"x\\\\"}', '{"k":1}']),
    ),
    max_size=8,
)


def reference(seq: int, point: Any) -> str:
    sensor, metric, us, value, quality, metadata = point
    if value is None or value != value:
        shown = "null"
    elif isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False)
    else:
        shown = {"inf": "1e999", "-inf": "-1e999"}.get(repr(value), repr(value))
    names = ",".join(
        f'"{key}":{json.dumps(name, ensure_ascii=False)}'
        for key, name in (("sensor_id", sensor), ("metric_name", metric))
    )
    return (
        f'{{"seq":{seq},{names},"timestamp_us":{us},"value":{shown},"quality":{quality},'
        f'"metadata":{"null" if metadata is None else metadata}}}'
    )


@given(POINTS)
def test_ndjson_is_canonical_and_reads_back(points: list[Any]) -> None:
    lines = ndjson.encode(batch_of(points, 7)).texts
    assert lines == [reference(seq, point) for seq, point in enumerate(points, 7)]
    for line, point in zip(lines, points, strict=True):
        read = json.loads(line)
        value = None if point[3] != point[3] else point[3]
        assert (read["sensor_id"], read["metric_name"], read["value"]) == (point[0], point[1], value)


@given(POINTS)
def test_line_protocol_reads_back_and_no_point_disappears(points: list[Any]) -> None:
    encoded = LineProtocol(nanoseconds=True).encode(columns_of(points))
    refused = {item.row for item in encoded.refused}
    rows = [encoded.row(text) for text in range(len(encoded.texts))]
    assert sorted([*rows, *refused]) == list(range(len(points)))
    for row, line in zip(rows, encoded.texts, strict=True):
        sensor, metric, us, value, quality, metadata = points[row]
        assert "\n" not in line
        _, _, time = line.rpartition(" ")
        assert int(time) == us * 1000
        if "\\" not in sensor + metric and '"' not in sensor + metric:
            read = parser.parse_line(line)
            fields: dict[str, Any] = {"quality": quality}
            if isinstance(value, str):
                fields["value_text"] = value
            elif value is not None and value == value:
                fields["value"] = value
            if metadata is not None:
                fields["metadata"] = metadata
            assert (read["measurement"], read["tags"]["sensor_id"], read["fields"]) == (
                metric,
                sensor,
                fields,
            )
    for row in refused:
        sensor, metric, _, value, *_ = points[row]
        ambiguous = re.search(r"\\([,= ]|$)", sensor) or re.search(r"\\([,= ]|$)", metric)
        assert value in (inf, -inf) or ambiguous or metric.startswith("#")


def test_line_protocol_has_one_measurement_if_it_is_named() -> None:
    encode = LineProtocol(measurement="my site").encode
    line = encode(columns_of([("W 1", "#flow", 5, 1.0)])).texts
    assert line == [r"my\ site,metric_name=#flow,sensor_id=W\ 1 value=1.0,quality=100i 5"]


def test_the_common_case_and_the_general_one_give_the_same_lines() -> None:
    points = [("W", "m", us, us / 7, 100, None) for us in range(50)]
    odd = ("W", "m", 50, "text", 90, '{"a":1}')
    for encode in (ndjson.lines_of_points, lambda columns: LineProtocol().encode(columns).texts):
        assert encode(columns_of([*points, odd]))[:50] == encode(columns_of(points))


def test_columns_may_be_arrays_of_other_libraries() -> None:
    numpy = pytest.importorskip("numpy")
    sensors, metrics, times_us, numbers, *rest = columns_of([("W", "m", 5, 1.5), ("W", "m", 6, 2.0)])
    for columns in (
        (sensors, metrics, array("q", times_us), array("d", numbers), *rest),
        (numpy.array(sensors), metrics, numpy.array(times_us), numpy.array(numbers), *rest),
    ):
        assert ndjson.lines_of_points(columns) == ndjson.lines_of_points(
            (sensors, metrics, times_us, numbers, *rest)
        )
        assert LineProtocol().encode(columns).texts[1] == "m,sensor_id=W value=2.0,quality=100i 6"


def test_a_point_without_a_reading_sends_its_quality_alone() -> None:
    points = [("W", "m", 1, None, 0), ("W", "m", 2, nan, 0), ("W", "m", 3, None, None)]
    encoded = LineProtocol().encode(columns_of(points))
    assert encoded.texts == ["m,sensor_id=W quality=0i 1", "m,sensor_id=W quality=0i 2"]
    assert [(item.row, "neither" in item.reason) for item in encoded.refused] == [(2, True)]
    assert [json.loads(line)["value"] for line in ndjson.lines_of_points(columns_of(points))] == [None] * 3


def test_metadata_of_the_legacy_program_becomes_json() -> None:
    extras = ['{"b": 1, "a": [2]}', "no json", "[1]", "NaN"]
    lines = ndjson.lines_of_points(columns_of([("W", "m", 1, 1.0, 100, extra) for extra in extras]))
    found = [json.loads(line)["metadata"] for line in lines]
    assert found == [{"a": [2], "b": 1}, "no json", "[1]", "NaN"]
    assert '"metadata":{"a":[2],"b":1}}' in lines[0]


def test_records_are_lines_with_their_own_json() -> None:
    record = RecordItem('r"1', "opcua", '{"x": [1, "é"]}', 5)
    (line,) = ndjson.encode(batch_of([], lane=Lane.RECORDS, records=[record])).texts
    assert json.loads(line) == {
        "record_id": 'r"1',
        "source": "opcua",
        "timestamp_us": 5,
        "data": {"x": [1, "é"]},
    }
    assert json.loads(ndjson.array_of([line, line])) == [json.loads(line)] * 2


def test_a_key_names_range_and_content_and_reads_back() -> None:
    batch = batch_of([("W", "m", 1, 1.0)], first_seq=-5)
    key = BatchKey.of(batch, b"content")
    assert BatchKey.parse(str(key)) == key
    assert (key.epoch, key.first_seq, key.last_seq, key.items) == (1, -5, -5, 1)
    assert key != BatchKey.of(batch, b"other content")
    for text in ("", "holdfast-1.x", str(key) + "0", str(key).upper()):
        with pytest.raises(ValueError, match="is not a key"):
            BatchKey.parse(text)


def test_the_cache_of_names_stays_bounded() -> None:
    encoder = LineProtocol()
    encoder._names._MOST = 10
    points = [(f"W{random.randrange(100)}", "m", us, 1.0) for us in range(200)]
    assert len(encoder.encode(columns_of(points)).texts) == 200
    assert len(encoder._names) <= 10
