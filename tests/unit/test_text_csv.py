"""CSV files of many shapes become rows for insert_many; anything else is rejected by line and column."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from repo.errors import InvalidFile, InvalidSettings
from repo.formats.text.csv import read_csv
from repo.formats.text.layout import Layout, ReadingChunk, Rejected
from repo.values import check_rows

LONG = "sensor_id,metric_name,timestamp,value\n"
WIDE = "timestamp,pressure,flow\n"


def whole(text: str, **layout: Any) -> ReadingChunk:
    """The only chunk of a small file."""
    merged = ReadingChunk()
    for chunk in read_csv(io.StringIO(text, newline=""), Layout(**layout)):
        merged.rows += chunk.rows
        merged.lines += chunk.lines
        merged.rejected += chunk.rejected
        merged.missing += chunk.missing
    assert len(merged.rows) == len(merged.lines)
    return merged


def rejected(text: str, **layout: Any) -> list[tuple[int | None, str | None, str]]:
    return [(one.line, one.column, one.reason) for one in whole(text, **layout).rejected]


def test_a_long_file_has_one_reading_per_line() -> None:
    chunk = whole(LONG + "S-1,pressure,2024-01-01T00:00:00Z,1.5\nS-2,flow,2024-01-01T00:00:00.5Z,-2\n")
    assert chunk.rows == [("S-1", "pressure", 1_704_067_200, 1.5), ("S-2", "flow", 1_704_067_200.5, -2.0)]
    assert (chunk.lines, chunk.rejected, chunk.missing) == ([2, 3], [], 0)


def test_a_wide_file_has_one_metric_per_column() -> None:
    chunk = whole(WIDE + "2024-01-01,1,2\n2024-01-02,3,4\n", sensor="S")
    assert chunk.rows == [
        ("S", "pressure", 1_704_067_200, 1.0),
        ("S", "flow", 1_704_067_200, 2.0),
        ("S", "pressure", 1_704_153_600, 3.0),
        ("S", "flow", 1_704_153_600, 4.0),
    ]
    assert chunk.lines == [2, 2, 3, 3]


def test_constants_replace_columns() -> None:
    chunk = whole("timestamp,value\n0001-01-01,1\n2024-01-01,1\n", sensor="S", metric="temperature")
    assert chunk.rows == [("S", "temperature", 1_704_067_200, 1.0)]
    assert [one.line for one in chunk.rejected] == [2]


def test_columns_may_have_any_names_and_any_order() -> None:
    chunk = whole(
        "wert;zeit;art;ort;güte;bemerkung\n1,5;1704067200;druck;S;7;gut\n",
        sensor_column="ort", metric_column="art", value_column="wert", quality_column="güte",
        time_columns=("zeit",), time_formats=("unix",), delimiter=";", decimal=",",
    )  # fmt: skip
    assert chunk.rows == [("S", "druck", 1_704_067_200, 1.5, 7)]


def test_date_and_time_may_be_two_columns() -> None:
    chunk = whole("Date,Time,x\n1/1/07,0:01:00,1\n13/1/2007,23:59:59,2\n", sensor="S",
        time_columns=("Date", "Time"), time_formats=("%d/%m/%y %H:%M:%S", "%d/%m/%Y %H:%M:%S"))  # fmt: skip
    assert [row[2] for row in chunk.rows] == [
        int(datetime(2007, 1, 1, 0, 1, tzinfo=UTC).timestamp()),
        int(datetime(2007, 1, 13, 23, 59, 59, tzinfo=UTC).timestamp()),
    ]


def test_a_missing_mark_in_a_wide_file_gives_no_point_and_is_counted() -> None:
    chunk = whole(WIDE + "2024-01-01,,2\n2024-01-02, NA ,null\n2024-01-03,nan,NaN\n", sensor="S")
    assert [row[1:] for row in chunk.rows] == [("flow", 1_704_067_200, 2.0)]
    assert (chunk.missing, chunk.rejected, chunk.lines) == (5, [], [2])


def test_the_missing_marks_may_be_numbers() -> None:
    chunk = whole(WIDE + "2024-01-01,-999, -999 \n2024-01-01,-999.0,1\n", sensor="S", missing=("-999",))
    assert [row[3] for row in chunk.rows] == [-999.0, 1.0]
    assert chunk.missing == 2


def test_a_missing_mark_in_a_long_file_is_a_point_without_a_reading() -> None:
    chunk = whole(LONG + "S,m,2024-01-01,\n")
    assert chunk.rows == [("S", "m", 1_704_067_200, None)]


def test_texts_are_taken_only_from_metrics_declared_as_text() -> None:
    chunk = whole(
        "timestamp,valve,flow\n2024-01-01,OPEN,OPEN\n2024-01-02,,1\n", sensor="S", text_metrics=("valve",)
    )
    assert [row[1::2] for row in chunk.rows] == [("valve", "OPEN"), ("flow", 1.0)]
    assert [(one.line, one.column, one.text) for one in chunk.rejected] == [(2, "flow", "OPEN")]
    assert chunk.missing == 1
    long = whole(LONG + "S,valve,2024-01-01,OPEN\nS,flow,2024-01-01,OPEN\n", text_metrics=("valve",))
    assert [row[3] for row in long.rows] == ["OPEN"]
    assert [(one.line, one.column) for one in long.rejected] == [(3, "value")]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1", 1.0),
        (" 1.5 ", 1.5),
        ("+1e3", 1000.0),
        (".5", 0.5),
        ("inf", float("inf")),
        ("-Infinity", float("-inf")),
        ("9007199254740992", 2.0**53),
        ("-9007199254740994", -(2.0**53) - 2),
        ("1e300", 1e300),
    ],
)
def test_numbers_are_read_as_other_programs_write_them(cell: str, value: float) -> None:
    assert whole(WIDE + f"2024-01-01,{cell},\n", sensor="S").rows[0][3] == value


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("abc", "not a number"),
        ("1_000", "only to Python"),
        ("１２", "only to Python"),
        ("0x1F", "not a number"),
        ("1e400", "too large"),
        ("-1e400", "too large"),
        ("9007199254740993", "would round"),
        ('"1,5"', "not a number"),
        ("1\x00", "not a number"),
        ("\ud800", "not a number"),
        ("=1+1", "not a number"),
        ("'; DROP TABLE x;--", "not a number"),
    ],
)
def test_a_cell_without_a_number_is_rejected_with_line_column_and_reason(cell: str, reason: str) -> None:
    text = WIDE + f"2024-01-01,1,{cell}\n2024-01-02,3,4\n"
    ((line, column, why),) = rejected(text, sensor="S")
    assert (line, column) == (2, "flow")
    assert reason in why
    assert len(whole(text, sensor="S").rows) == 3


def test_a_decimal_comma_excludes_the_point() -> None:
    chunk = whole("timestamp;x\n2024-01-01;1,5\n2024-01-01;1.234\n2024-01-01;1.234,5\n2024-01-01;1,2,3\n2024-01-01;7\n",
        sensor="S", delimiter=";", decimal=",")  # fmt: skip
    assert [row[3] for row in chunk.rows] == [1.5, 7.0]
    assert [one.line for one in chunk.rejected] == [3, 4, 5]


def test_a_bad_time_rejects_its_line_once() -> None:
    text = WIDE + "yesterday,1,2\n2024-13-01,1,2\n,1,2\n2262-01-01,1,2\n"
    assert [(line, column) for line, column, _ in rejected(text, sensor="S")] == [
        (line, "timestamp") for line in (2, 3, 4, 5)
    ]
    assert "outside the years 1678 to 2261" in rejected(text, sensor="S")[3][2]


def test_a_quality_column_applies_to_the_whole_line() -> None:
    text = (
        "timestamp,quality,x,y\n2024-01-01,7,1,2\n2024-01-02,,3,4\n2024-01-03,good,5,6\n2024-01-04,1.5,7,8\n"
    )
    chunk = whole(text, sensor="S")
    assert [row[3:] for row in chunk.rows] == [(1.0, 7), (2.0, 7), (3.0, None), (4.0, None)]
    assert [(one.line, one.column, one.text) for one in chunk.rejected] == [
        (4, "quality", "good"),
        (5, "quality", "1.5"),
    ]


def test_a_trailing_empty_column_is_ordinary() -> None:
    assert len(whole("timestamp,x,\n2024-01-01,1,\n2024-01-02,2,\n", sensor="S").rows) == 2
    assert len(whole("timestamp,x\n2024-01-01,1,\n2024-01-02,2, ,\n", sensor="S").rows) == 2


def test_short_and_long_lines_are_rejected_whole() -> None:
    text = WIDE + "2024-01-01,1\n2024-01-02,1,2,3\n\n   \n2024-01-03,1,2\n"
    assert rejected(text, sensor="S") == [
        (2, None, "the line has 2 cells, the header 3"),
        (3, None, "the line has 4 cells, the header 3"),
    ]
    assert whole(text, sensor="S").lines == [6, 6]


@pytest.mark.parametrize(
    "bad", ['2024-01-01,"1,2', '2024-01-01,1"2,"3', '2024-01-01,"1"2,3', '2024-01-01,1,"']
)
def test_a_stray_quote_costs_its_own_line_only(bad: str) -> None:
    text = WIDE + f"2024-01-01,1,2\n{bad}\n2024-01-02,3,4\n"
    chunk = whole(text, sensor="S")
    assert [one.line for one in chunk.rejected] == [3]
    assert [row[3] for row in chunk.rows] == [1.0, 2.0, 3.0, 4.0]
    at_the_end = whole(WIDE + f"2024-01-01,1,2\n{bad}", sensor="S")
    assert [one.line for one in at_the_end.rejected] == [3]


def test_a_cell_with_a_line_break_costs_the_lines_it_spans() -> None:
    text = LONG + '"S-1\nS-2",m,2024-01-01,1\nS-3,m,2024-01-01,2\n'
    chunk = whole(text)
    assert [one.line for one in chunk.rejected] == [2, 3]
    assert [row[0] for row in chunk.rows] == ["S-3"]


def test_a_huge_cell_and_a_huge_line_cost_their_own_line_only() -> None:
    text = WIDE + "2024-01-01," + "1" * 200_000 + ",2\n" + "x" * 3_000_000 + "\n2024-01-02,3,4\n"
    chunk = whole(text, sensor="S")
    assert [one.line for one in chunk.rejected] == [2, 3]
    assert "larger than field limit" in chunk.rejected[0].reason
    assert "longer than 1048576 characters" in chunk.rejected[1].reason
    assert chunk.lines == [4, 4]


def test_quoted_cells_and_windows_line_ends_are_ordinary() -> None:
    chunk = whole('"sensor_id","metric_name","timestamp","value"\r\n"S,1","a ""b""","2024-01-01","1"\r\n')
    assert chunk.rows == [("S,1", 'a "b"', 1_704_067_200, 1.0)]


def test_a_byte_order_mark_is_ignored() -> None:
    assert len(whole("\ufeff" + LONG + "S,m,2024-01-01,1\n").rows) == 1


def test_lines_are_numbered_as_an_editor_does() -> None:
    assert rejected("\n\n" + WIDE + "\n2024-01-01,x,1\n", sensor="S")[0][0] == 5


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        ("", {}, "is empty"),
        ("\n \n", {}, "is empty"),
        ("a,b\n", {}, "no column 'timestamp' for the time, only 'a', 'b'"),
        ("timestamp;x\n1;2\n", {"sensor": "S"}, "is ';' its delimiter?"),
        ("timestamp,x\n", {}, "no column 'sensor_id' for the sensor"),
        ("timestamp,x\n", {"sensor": "S", "shape": "long"}, "no column 'value' for the value"),
        ("timestamp,value\n", {"sensor": "S", "shape": "long"}, "no column 'metric_name' for the metric"),
        ("timestamp,metric_name\n", {"sensor": "S"}, "no column 'value' for the value"),
        ("timestamp,x,x\n", {"sensor": "S"}, "more than one column is named 'x'"),
        ("timestamp\n", {"sensor": "S"}, "no column is left for a metric"),
        ("timestamp,x\n", {"sensor": "S", "ignored": ("x",)}, "no column is left for a metric"),
        ("timestamp,x\n", {"sensor": "S", "metrics": ("y",)}, "no column 'y' for the metric"),
        ("timestamp,x\n", {"sensor": "S", "text_metrics": ("y",)}, "text metric 'y' is none of"),
        ("timestamp,a\x07b\n", {"sensor": "S"}, "control character U+0007"),
        ("timestamp," + "x" * 256 + "\n", {"sensor": "S"}, "256 characters"),
        ('timestamp,"x\n', {"sensor": "S"}, "header cannot be read"),
        ("x" * 2_000_000, {"sensor": "S"}, "header cannot be read"),
    ],
    ids=lambda case: case[:20] if isinstance(case, str) else None,
)
def test_a_file_without_a_usable_header_is_refused(text: str, layout: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        whole(text, **layout)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "layout",
    [
        {"delimiter": ""},
        {"delimiter": ";;"},
        {"delimiter": "\n"},
        {"decimal": ","},
        {"decimal": "x"},
        {"shape": "tall"},
        {"zone": "Mars/Olympus"},
        {"zone": "../etc/passwd"},
        {"ambiguous": "both"},
        {"time_formats": ()},
        {"time_formats": ("%H:%M",)},
        {"time_formats": ("%Y-%Q",)},
        {"time_formats": ("%Y %",)},
        {"time_columns": ()},
        {"sensor": ""},
        {"metric": "a\x00"},
    ],
    ids=str,
)
def test_a_contradictory_layout_is_refused_before_anything_is_read(layout: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        read_csv(io.StringIO("timestamp,x\n"), Layout(**layout))


def test_undecodable_bytes_refuse_the_file_or_only_their_cell(tmp_path: Path) -> None:
    path = tmp_path / "latin1.csv"
    path.write_bytes(b"timestamp,x\n2024-01-01,1\n2024-01-02,\xe9\n2024-01-03,3\n")
    with (
        path.open(newline="", encoding="utf-8") as stream,
        pytest.raises(InvalidFile, match="byte 0xE9") as caught,
    ):
        list(read_csv(stream, Layout(sensor="S")))
    assert caught.value.path == path
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        (chunk,) = read_csv(stream, Layout(sensor="S"))
    assert [row[3] for row in chunk.rows] == [1.0, 3.0]
    assert [one.line for one in chunk.rejected] == [3]


def test_a_row_that_the_store_refuses_is_reported_with_its_line() -> None:
    chunk = whole(LONG + "S,m,2024-01-01,1\n,m,2024-01-01,1\nS,a\x07b,2024-01-01,1\n")
    batch, refusals = check_rows(chunk.rows, accept_bool=False, now_us=0, skip=True)
    assert len(batch) == 1
    first, second = chunk.rejections(refusals)
    assert first == Rejected(3, "sensor_id", "is empty", "")
    assert (second.line, second.column, second.text) == (4, "metric_name", "a\x07b")


def test_a_rejection_has_a_readable_message() -> None:
    assert str(Rejected(7, "flow", "is not a number", "x\n")) == "line 7, flow: is not a number ('x\\n')"
    assert str(Rejected(7, None, "too long", "")) == "line 7: too long ('')"


class Endless(io.TextIOBase):
    """A text that is generated while it is read."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        return next(self._lines, "")


def test_memory_stays_bounded_however_long_the_file_and_however_bad() -> None:
    def lines() -> Iterator[str]:
        yield WIDE
        for number in range(30_000):
            yield f"2024-01-01,{number},x{number}\n"

    readings = faults = largest = 0
    tracemalloc.start()
    try:
        for chunk in read_csv(Endless(lines()), Layout(sensor="S")):  # type: ignore[arg-type]
            readings += len(chunk.rows)
            faults += len(chunk.rejected)
            largest = max(largest, len(chunk.rows) + len(chunk.rejected))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (readings, faults) == (30_000, 30_000)
    assert largest <= 10_001
    assert peak_bytes < 16_000_000


def test_a_compressed_file_is_read_through_its_text_stream(tmp_path: Path) -> None:
    path = tmp_path / "data.csv.gz"
    with gzip.open(path, "wt", newline="") as out:
        out.write(WIDE + "2024-01-01,1,2\n" * 1000)
    with gzip.open(path, "rt", newline="") as stream:
        assert sum(len(chunk.rows) for chunk in read_csv(stream, Layout(sensor="S"))) == 2000
