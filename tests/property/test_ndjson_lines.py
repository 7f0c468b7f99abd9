"""Any point that a store may hold goes through an NDJSON line and comes back bit for bit."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from repo.formats.lines import Objects
from repo.formats.ndjson_lines import lines_of, stored_row
from repo.formats.text.layout import Layout
from repo.formats.text.ndjson import read_ndjson
from repo.inputs.fields import metadata_json, text_of
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US, Unfit
from repo.inputs.values import check_rows

plain = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))
names = st.text(plain, min_size=1, max_size=20)


def is_text(text: str) -> bool:
    try:
        text_of(text)
    except Unfit:
        return False
    return True


texts = st.text(plain, max_size=20).filter(is_text) | st.sampled_from(["", "NA", "null", "true", "[]", '"'])
numbers = st.floats(allow_nan=False).map(lambda number: number + 0.0)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)
metadata = st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=3).map(metadata_json)
readings = (
    numbers.map(lambda number: (number, None)) | texts.map(lambda text: (None, text)) | st.just((None, None))
)
rows = st.tuples(
    names,
    names,
    st.integers(MIN_TIMESTAMP_US, MAX_TIMESTAMP_US),
    readings,
    st.integers(-(2**31), 2**31 - 1),
    st.none() | metadata,
    st.integers(-(2**62), 2**62),
).map(lambda row: (*row[:3], *row[3], *row[4:]))


def bits(row: Any) -> Any:
    sensor, metric, us, number, *rest = row
    return sensor, metric, us, None if number is None else struct.pack("=d", number), *rest


@settings(max_examples=15)
@given(st.lists(rows, max_size=5))
@example([("s", "m", MAX_TIMESTAMP_US, 5e-324, None, 100, None, -1)])
@example([("s", "m", MIN_TIMESTAMP_US, float("-inf"), None, 100, '{"a":"\\u007f"}', 1)])
def test_a_line_gives_back_what_went_into_it(written: list[Any]) -> None:
    text = "".join(lines_of(written))
    assert text.count("\n") == len(written)
    objects = Objects(io.StringIO(text, newline=""))
    found = []
    while (one := objects.next_object()) is not None:
        found.append(stored_row(one))
    assert list(map(bits, found)) == [bits(row[:7]) for row in written]


@settings(max_examples=40)
@given(st.lists(rows, max_size=5))
def test_ingest_reads_the_same_points_from_it(written: list[Any]) -> None:
    for row in written:  # one at a time, so that no series has numbers and texts
        [chunk] = read_ndjson(io.StringIO("".join(lines_of([row])), newline=""), Layout())
        assert chunk.rejected == []
        batch, refusals = check_rows(chunk.rows, accept_bool=False, now_us=0)
        assert refusals == ()
        sensor, metric, us, number, text, quality, extra, _ = row
        assert batch.series == [(sensor, metric)]
        assert batch.timestamps_us[0] == us
        assert batch.texts.get(0) == text
        assert batch.qualities == quality
        assert batch.metadata.get(0) == extra
        if number is not None:
            assert struct.pack("=d", batch.values[0]) == struct.pack("=d", number)


@settings(max_examples=40)
@given(json_values | st.text(), st.binary(max_size=30))
def test_no_line_does_more_than_to_be_refused(value: Any, rubbish: bytes) -> None:
    # The first line is no object: one that is `{` or begins with `[` there makes the file one of another format.
    lines = ["0", json.dumps(value), rubbish.decode("utf-8", "surrogateescape")]
    lines += [json.dumps({"sensor_id": value, "metric_name": value, "timestamp": value, "value": value})]
    lines += [
        json.dumps({"sensor_id": "s", "metric_name": "m", "timestamp": 1, "value": value, "quality": value})
    ]
    for chunk in read_ndjson(io.StringIO("\n".join(lines), newline=""), Layout()):
        _, refusals = check_rows(chunk.rows, accept_bool=False, now_us=0, skip=True)
        reported = [str(one) for one in [*chunk.rejected, *chunk.rejections(refusals)]]
        assert all(one.startswith("line ") for one in reported)
