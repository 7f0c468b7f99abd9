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
from repo.inputs.values import check_rows

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
    assert [row[3] for row in chunk.rows] == [1.0]
    assert chunk.missing == 3
    commas = whole("timestamp;x\n2024-01-01;-999,00\n2024-01-02;1,5\n", sensor="S", missing=("-999",),
        delimiter=";", decimal=",")  # fmt: skip
    assert ([row[3] for row in commas.rows], commas.missing) == ([1.5], 1)


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
        ('"1,5"', "is not a number; if it has a decimal comma, set the decimal sign (--decimal ,)"),
        ("1'234.5", 'is not a number; if it has separators of thousands, set them (--thousands "\'")'),
        ("1.234.567", "if it has separators of thousands, set them (--thousands . --decimal ,)"),
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


def test_a_mark_that_has_the_separator_of_thousands_may_mean_no_reading() -> None:
    text = "timestamp;level\n2024-01-01;n.v.\n"
    ((_, _, why),) = rejected(text, sensor="S", delimiter=";", decimal=",", thousands=".")
    assert "if it means no reading, name it (--missing)" in why


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
    text = WIDE + "2024-01-01\n2024-01-02,1,2,3\n\n   \n2024-01-03,1,2\n2024-01-04,3"
    assert rejected(text, sensor="S") == [
        (2, None, "the line has 1 cell, the header 3"),
        (3, None, "the line has 4 cells, the header 3"),
        (7, None, "the line has 2 cells, the header 3, and the file ends within it"),
    ]
    assert whole(text, sensor="S").lines == [6, 6]
    assert rejected(LONG + "S,m,2024-01-01\n") == [(2, None, "the line has 3 cells, the header 4")]


def test_empty_cells_at_the_end_of_a_line_may_be_left_out() -> None:
    chunk = whole("timestamp,a,b,quality\n2024-01-01,1\n2024-01-02,1,2\n2024-01-03,,3,7\n", sensor="S")
    assert [row[1:] for row in chunk.rows] == [
        ("a", 1_704_067_200, 1.0, None),
        ("a", 1_704_153_600, 1.0, None),
        ("b", 1_704_153_600, 2.0, None),
        ("b", 1_704_240_000, 3.0, 7),
    ]
    assert (chunk.missing, chunk.rejected) == (2, [])
    assert [row[3] for row in whole("timestamp,p,q,\n2024-01-01,1,10", sensor="S").rows] == [1.0, 10.0]


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
    for header in ('"Temp, C","timestamp"', '"Temp, C",timestamp'):
        assert whole(f"\ufeff{header}\n2.5,2024-01-01\n", sensor="S").rows[0][1] == "Temp, C"


def test_blanks_around_cells_are_not_part_of_names_and_states() -> None:
    text = "sensor_id, metric_name, timestamp, value\nA, p, 2024-01-01, 1\nA ,p , 2024-01-02 ,2\n"
    text += '"A", "p", "2024-01-03", 3\n'
    assert {row[:2] for row in whole(text).rows} == {("A", "p")}
    assert len(whole(text).rows) == 3
    states = whole(
        "timestamp, valve\n2024-01-01, OPEN\n2024-01-02,OPEN \n", sensor="S", text_metrics=("valve",)
    )
    assert [row[3] for row in states.rows] == ["OPEN", "OPEN"]


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
        {"decimal": ",", "delimiter": ","},
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
        {"header": 0},
        {"header": "one"},
        {"skip": -1},
        {"footer": True},
        {"comment": ""},
        {"thousands": ".", "decimal": "."},
        {"thousands": "x"},
        {"columns": (("a", "x"), ("a", "y"))},
        {"columns": (("", "x"),)},
        {"columns": (("a", "x"),), "metric": "m"},
        {"mixed": 1},
        {"zone": 5},
        {"ambiguous": ["infer"]},
        {"missing": (5,)},
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
        for number in range(12_000):
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
    assert (readings, faults) == (12_000, 12_000)
    assert largest <= 10_001
    assert peak_bytes < 16_000_000


def test_a_compressed_file_is_read_through_its_text_stream(tmp_path: Path) -> None:
    path = tmp_path / "data.csv.gz"
    with gzip.open(path, "wt", newline="") as out:
        out.write(WIDE + "2024-01-01,1,2\n" * 1000)
    with gzip.open(path, "rt", newline="") as stream:
        assert sum(len(chunk.rows) for chunk in read_csv(stream, Layout(sensor="S"))) == 2000


def readings(text: str, **layout: Any) -> list[tuple[Any, ...]]:
    """Metric, day of January 2024 and value of each reading; nothing may be rejected."""
    chunk = whole(text, sensor="S", **layout)
    assert chunk.rejected == []
    return [(row[1], 1 + (row[2] - 1_704_067_200) // 86_400, row[3]) for row in chunk.rows]


def test_a_later_header_applies_to_the_lines_after_it() -> None:
    text = "timestamp,p,q\n2024-01-01,1,10\ntimestamp,q,p\n2024-01-02,11,2\n"
    text += "timestamp,q,p\n2024-01-03,12,3\nr,timestamp\n5,2024-01-04\n"
    assert readings(text) == [
        *(("p", 1, 1.0), ("q", 1, 10.0), ("q", 2, 11.0), ("p", 2, 2.0), ("q", 3, 12.0), ("p", 3, 3.0)),
        ("r", 4, 5.0),
    ]
    long = LONG + "S,m,2024-01-01,1\nvalue,timestamp,metric_name,sensor_id\n2,2024-01-02,m,S\n"
    assert [row[3] for row in whole(long).rows] == [1.0, 2.0]
    logger = '"TOA5","st"\n"timestamp","p"\n"TS","kPa"\n"2024-01-01",1\n'
    joined = logger + '"TOA5","st",2\n"timestamp","q"\n"TS","C"\n"2024-01-02",2\n'
    assert readings(joined, header=2, skip=1) == [("p", 1, 1.0), ("q", 2, 2.0)]
    units = "timestamp,p\nUTC,bar\n2024-01-01,1\ntimestamp,p\nUTC,bar\n2024-01-02,2\n"
    assert readings(units, skip=1) == [("p", 1, 1.0), ("p", 2, 2.0)]


@pytest.mark.parametrize(
    ("header", "layout", "reason"),
    [
        ("time,q,p", {}, "line 3 looks like another header, but has no column 'timestamp'"),
        (
            "timestamp,q,q",
            {},
            "line 3 is another header, which cannot be used: more than one column is named 'q'",
        ),
        ("timestamp,q,r", {"metrics": ("p",)}, "there is no column 'p'"),
        ("timestamp,q,p", {"metrics": ("#2",)}, "column #2 is 'q' and not 'p'"),
    ],
)
def test_a_later_header_that_cannot_apply_stops_the_file(
    header: str, layout: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidFile) as caught:
        whole(f"timestamp,p,q\n2024-01-01,1,10\n{header}\n2024-01-02,11,2\n", sensor="S", **layout)
    assert reason in str(caught.value)


def test_the_header_may_be_on_any_line_with_other_lines_around_it() -> None:
    text = '"TOA5","st","x"\r\n"timestamp","p"\r\n"TS","kPa"\r\n"","Avg"\r\n"2024-01-01",1\r\n'
    assert readings(text, header=2, skip=2) == [("p", 1, 1.0)]
    text = "# made by\n#\ntimestamp,p\n# units\nd,n\n2024-01-01,1\n# end\n"
    assert readings(text, comment="#", skip=1) == [("p", 1, 1.0)]
    text = "sep=;\r\ntimestamp;p\r\n2024-01-01;1,5\r\n"
    assert readings(text, decimal=",") == [("p", 1, 1.5)]
    assert readings("\ufeff" + text, decimal=",", delimiter=";") == [("p", 1, 1.5)]
    assert readings(text.replace("\n", "\nA title\r\n", 1), header=3, decimal=",") == [("p", 1, 1.5)]
    text = "timestamp,p\n2024-01-01,1\n2024-01-02,2\n\nLegend, of, all\nthe end"
    assert readings(text, footer=3) == [("p", 1, 1.0), ("p", 2, 2.0)]
    assert [one.line for one in whole(text.replace(",2\n", ",x\n"), sensor="S", footer=3).rejected] == [3]


def test_columns_may_be_chosen_by_position_and_named() -> None:
    assert readings(",p\n2024-01-01,1\n", time_columns=("#1",)) == [("p", 1, 1.0)]
    assert readings(",p\n2024-01-01,1\n", time_columns=("",)) == [("p", 1, 1.0)]
    text = "2024-01-01,1,10\n2024-01-02,2,20\n"
    one = {"header": "none", "time_columns": ("#1",)}
    assert readings(text, **one)[:2] == [("#2", 1, 1.0), ("#3", 1, 10.0)]
    assert readings(text, columns=(("flow", "#3"),), **one) == [("flow", 1, 10.0), ("flow", 2, 20.0)]
    text = "#1,timestamp,x,x\n5,2024-01-01,1,2\n"
    assert readings(text, columns=(("a", "#3"), ("b", "#4"), ("c", "#1"))) == [
        ("a", 1, 1.0),
        ("b", 1, 2.0),
        ("c", 1, 5.0),
    ]
    assert readings(text, ignored=("#3", "x")) == [("#1", 1, 5.0)]
    assert readings(text, metrics=("#1",)) == [("#1", 1, 5.0)]


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        ("a\nb\ntimestamp,p\n", {}, "line 3 has it: set the line of the header (--header 3)"),
        ("timestamp,p\n", {"header": 5}, "should be line 5, but the file has 1 line"),
        (",,p\n", {"time_columns": ("",)}, "2 columns have no name"),
        (
            "timestamp,x,x\n",
            {"metrics": ("x",)},
            "more than one column is named 'x'; choose one by its position",
        ),
        ("timestamp,x\n", {"metrics": ("#3",)}, "no column '#3'"),
        (
            "timestamp,Temp \udcb0C\n",
            {},
            "has the byte 0xB0, which is invalid in this encoding; set the encoding",
        ),
    ],
)
def test_a_header_that_is_not_found_is_explained(text: str, layout: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        whole(text, sensor="S", **layout)
    assert message in str(caught.value)


def test_numbers_and_states_may_share_a_column() -> None:
    text = LONG + "A,state,2024-01-01,21.5\nB,state,2024-01-01, on\n"
    text += "B,state,2024-01-02,Off\nA,state,2024-01-02,1e400\n"
    mixed = whole(text, mixed=True)
    assert [row[3] for row in mixed.rows] == [21.5, "on", "Off"]
    assert [one.line for one in mixed.rejected] == [5]
    assert [row[3] for row in whole(text, on_off=True).rows] == [21.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("cell", "layout", "value"),
    [
        ('"1,234,567.5"', {"thousands": ","}, 1_234_567.5),
        ('"-1,234"', {"thousands": ","}, -1234.0),
        ("12", {"thousands": ","}, 12.0),
        ('"12,34"', {"thousands": ","}, None),
        ('"1234,567"', {"thousands": ","}, None),
        ("1'234.5", {"thousands": "'"}, 1234.5),
        ("1\u202f234", {"thousands": " "}, 1234.0),
        ("1.234,5", {"thousands": ".", "decimal": ",", "delimiter": ";"}, 1234.5),
        ("1.2345", {"thousands": ".", "decimal": ",", "delimiter": ";"}, None),
    ],
)
def test_thousands_may_be_separated_if_the_sign_is_set(
    cell: str, layout: dict[str, Any], value: float | None
) -> None:
    mark = layout.get("delimiter", ",")
    chunk = whole(f"timestamp{mark}x\n2024-01-01{mark}{cell}\n", sensor="S", **layout)
    assert [row[3] for row in chunk.rows] == ([] if value is None else [value])
    assert len(chunk.rejected) == (value is None)


def test_a_cell_with_an_undecodable_byte_is_rejected_for_that() -> None:
    assert rejected(LONG + "\udcb0C,m,2024-01-01,1\nS,m,2024-01-01,\udce9\n")[0] == (
        3, "value", "has the byte 0xE9, which is invalid in this encoding; set the encoding of the file (--encoding)"
    )  # fmt: skip


def test_empty_lines_for_the_hour_that_the_clock_skips_are_not_errors() -> None:
    text = "timestamp,p,q\n2026-03-29 02:15,,\n2026-03-29 02:30,1,\n2026-03-29 03:15,2,\n"
    chunk = whole(text, sensor="S", zone="Europe/Berlin")
    assert [row[3] for row in chunk.rows] == [2.0]
    assert [(one.line, one.column) for one in chunk.rejected] == [(3, "timestamp")]
    assert chunk.missing == 3


def test_metrics_can_be_chosen_in_a_long_file_too() -> None:
    text = LONG + "S,p,2024-01-01,1\nS,q,2024-01-01,x\n"
    assert [row[1] for row in whole(text, metrics=("p",)).rows] == ["p"]
