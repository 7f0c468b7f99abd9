"""`ingest`: layouts, what is rejected, all or nothing, and doing it twice."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest

LONG = """sensor_id,metric_name,timestamp,value
P-1,flow,2024-05-01T00:00:00Z,1.5
P-1,flow,2024-05-01T00:01:00Z,2.5
P-2,flow,1714521600,7
"""
WIDE = """Date,Time,Power,Voltage
1/5/2024,00:00:00,1.0,230
1/5/24,00:01:00,?,231
2/5/2024,00:00:00,3.0,
"""
WIDE_OPTIONS = [
    *("--sensor", "house", "--time-column", "Date", "--time-column", "Time", "--missing", "?"),
    *("--time-format", "%d/%m/%Y %H:%M:%S", "--time-format", "%d/%m/%y %H:%M:%S"),
]
BAD = """sensor_id,metric_name,timestamp,value
P-1,flow,2024-05-01T00:00:00Z,1.5
P-1,flow,yesterday,2.5
P-1,flow,2024-05-01T00:02:00Z,low
P-1,flow,2024-05-01T00:03:00Z
,flow,2024-05-01T00:04:00Z,4
P-1,flow,2024-05-01T00:05:00Z,5.5
"""
BOTH_TIMES = ["--time-format", "iso", "--time-format", "unix"]


def values(command: Any, sensor: str = "*", metric: str = "*") -> list[Any]:
    return [point["value"] for point in command.json("query", sensor, metric)]


def test_a_long_file_is_ingested(on_store: Any, tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text(LONG)
    said = on_store.json("ingest", file, *BOTH_TIMES)
    counts = {"points": 3, "overwritten": 0, "rejected": 0, "no_reading": 0}
    assert said.keys() == {"path", "files", *counts, "elapsed_s", "points_per_s"}
    assert said["files"] == [{"file": str(file), **counts}]
    assert values(on_store, "P-1", "flow") == [1.5, 2.5]
    assert values(on_store, "P-2", "flow") == [7.0]


@pytest.mark.slow_on("duckdb")
def test_a_wide_file_is_ingested_by_its_columns(on_store: Any) -> None:
    said = on_store.json("ingest", "-", *WIDE_OPTIONS, stdin=WIDE)
    assert (said["points"], said["no_reading"], said["rejected"]) == (4, 2, 0)
    assert values(on_store, "house", "Power") == [1.0, 3.0]
    assert [p["timestamp"] for p in on_store.json("query", "house", "Voltage")] == [
        "2024-05-01T00:00:00Z",
        "2024-05-01T00:01:00Z",
    ]


@pytest.mark.slow_on("duckdb")
def test_columns_of_a_wide_file_can_be_chosen_or_left_out(on_store: Any) -> None:
    assert on_store.json("ingest", "-", *WIDE_OPTIONS, "--ignore", "Power", stdin=WIDE)["points"] == 2
    assert on_store.json("ingest", "-", *WIDE_OPTIONS, "--only", "Power", stdin=WIDE)["points"] == 2
    assert [row["metric_name"] for row in on_store.json("series")] == ["Power", "Voltage"]


@pytest.mark.slow_on("duckdb")
def test_columns_may_have_other_names_and_local_times(on_store: Any) -> None:
    text = "wer;was;wann;wert;güte\nP-1;Druck;2024-05-01 02:00;1,5;50\n"
    options = (
        "--sensor-column wer --metric-column was --time-column wann --value-column wert --quality-column güte"
    )
    on_store(
        "ingest",
        "-",
        *options.split(),
        "--delimiter",
        ";",
        "--decimal",
        ",",
        "--zone",
        "Europe/Oslo",
        stdin=text,
    )
    (point,) = on_store.json("query", "P-1", "Druck")
    assert (point["value"], point["quality"], point["timestamp"]) == (1.5, 50, "2024-05-01T00:00:00Z")


@pytest.mark.slow_on("duckdb")
def test_states_are_read_where_they_are_declared(on_store: Any) -> None:
    text = "timestamp,valve\n2024-05-01,OPEN\n2024-05-02,SHUT\n"
    assert on_store.json("ingest", "-", "--sensor", "V-1", "--text", "valve", stdin=text)["points"] == 2
    assert values(on_store) == ["OPEN", "SHUT"]


@pytest.mark.slow_on("duckdb")
def test_gzip_is_recognized_whatever_the_file_name(on_store: Any, tmp_path: Path) -> None:
    for name in ("a.csv.gz", "b.csv"):
        (tmp_path / name).write_bytes(gzip.compress(LONG.encode()))
        assert on_store.json("ingest", tmp_path / name, *BOTH_TIMES)["points"] == 3
    assert on_store.json("ingest", "-", *BOTH_TIMES, stdin=gzip.compress(LONG.encode()))["points"] == 3
    assert len(values(on_store)) == 3


@pytest.mark.slow_on("duckdb")
def test_a_truncated_gzip_is_reported(on_store: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(LONG.encode() * 5_000)[:-200])
    result = on_store("ingest", tmp_path / "cut.csv.gz", *BOTH_TIMES, code=1)
    assert "truncated or damaged gzip" in result.stderr
    (tmp_path / "no.csv.gz").write_text(LONG)
    assert "is not gzip" in on_store("ingest", tmp_path / "no.csv.gz", code=1).stderr


@pytest.mark.slow_on("duckdb")
def test_bad_rows_are_reported_by_line_and_good_rows_are_written(on_store: Any) -> None:
    result = on_store("ingest", "-", stdin=BAD, code=3)
    assert "2 points" in result.stdout
    assert "4 rejected" in result.stdout
    lines = result.stderr.splitlines()
    assert [line.split(":")[0].split(",")[0] for line in lines] == ["line 3", "line 4", "line 5", "line 6"]
    assert "line 4, value: is not a number" in lines[1]
    assert "line 6, sensor_id: is empty" in lines[3]
    assert values(on_store) == [1.5, 5.5]


@pytest.mark.slow_on("duckdb")
def test_rejections_are_kept_in_a_file(on_store: Any, tmp_path: Path) -> None:
    good, bad, kept = tmp_path / "good.csv", tmp_path / "bad.csv", tmp_path / "errors.csv"
    good.write_text(LONG.replace("1714521600", "2024-05-01"))
    bad.write_bytes(BAD.encode() + b"P-\xff1,flow,2024-05-01T00:06:00Z,6\n" * 30)
    result = on_store("ingest", good, bad, "--errors", kept, code=3)
    assert f"{bad}, line 3" in result.stderr
    assert f"and 14 more; all are in {kept}" in result.stderr
    with kept.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 34
    assert rows[0] == {
        "file": str(bad),
        "line": "3",
        "column": "timestamp",
        "reason": "fits no time format (iso); give its pattern, such as --time-format '%d.%m.%Y %H:%M'",
        "text": "yesterday",
    }
    assert on_store("-q", "ingest", bad, "--errors", kept, code=3).stderr == ""


@pytest.mark.slow_on("duckdb")
def test_strict_writes_nothing_of_any_file_if_one_row_is_bad(on_store: Any, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(LONG)
    bad.write_text(BAD)
    said = on_store.json("ingest", good, bad, "--strict", *BOTH_TIMES, code=3)
    assert (said["points"], said["rejected"]) == (0, 4)
    assert on_store.json("status")["last_seq"] == 0
    assert "nothing was written" in on_store("ingest", bad, "--strict", code=3).stdout


@pytest.mark.parametrize("source", ["file", "stdin"])
@pytest.mark.slow_on("duckdb")
def test_strict_writes_valid_files(on_store: Any, tmp_path: Path, source: str) -> None:
    (tmp_path / "good.csv").write_text(LONG)
    file = "-" if source == "stdin" else tmp_path / "good.csv"
    assert on_store.json("ingest", file, "--strict", *BOTH_TIMES, stdin=LONG)["points"] == 3
    assert len(values(on_store)) == 3


@pytest.mark.slow_on("duckdb")
def test_numbers_for_a_series_of_texts_are_rejected_one_by_one(on_store: Any) -> None:
    on_store.write(("P-1", "flow", 1_714_521_600, "OPEN"))
    for options in ([], ["--strict"]):
        result = on_store("ingest", "-", *BOTH_TIMES, *options, stdin=LONG, code=3)
        assert "line 2, value: the series holds text values, but this is a number" in result.stderr
        assert "2 rejected" in result.stdout
    assert values(on_store, "P-1") == ["OPEN"]
    assert values(on_store, "P-2") == [7.0]


@pytest.mark.slow_on("duckdb")
def test_ingesting_again_changes_nothing(on_store: Any) -> None:
    for _ in range(2):
        assert on_store.json("ingest", "-", *BOTH_TIMES, stdin=LONG)["points"] == 3
        assert len(values(on_store)) == 3
    on_store("ingest", "-", *BOTH_TIMES, stdin=LONG.replace("2.5", "9.5"))
    assert values(on_store, "P-1") == [1.5, 9.5]


@pytest.mark.slow_on("duckdb")
def test_the_last_of_several_lines_with_one_time_wins(on_store: Any) -> None:
    lines = "".join(f"P-1,flow,2024-05-01T00:00:00Z,{n}\n" for n in range(25_000))
    said = on_store.json("ingest", "-", stdin="sensor_id,metric_name,timestamp,value\n" + lines)
    assert (said["points"], said["overwritten"]) == (1, 24_999)
    assert values(on_store) == [24_999.0]


@pytest.mark.parametrize(
    ("text", "options", "code", "message"),
    [
        ("", "", 1, "the file is empty"),
        (
            "a,b\n1,2\n",
            "",
            1,
            "there is no column 'timestamp' for the time, only 'a', 'b'; name the column (--time-column)",
        ),
        ("timestamp,b\n1,2\n", "", 1, "or the sensor of all lines (--sensor)"),
        ("timestamp,b\n2024-05-01,n/a\n", "--sensor S", 3, "if it means no reading, name it (--missing)"),
        ("sensor_id;metric_name;timestamp;value\n", "", 1, "is ';' its delimiter"),
        (LONG, "--time-format %H:%M", 2, "has no year"),
        (LONG, "--zone Mars/Olympus", 2, "no time zone"),
        (LONG, "--encoding klingon", 2, "no text encoding"),
        (LONG, "--encoding idna", 2, "no text encoding"),
        (LONG, "--encoding undefined", 2, "no text encoding"),
        (LONG, "--decimal ,", 2, "delimiter"),
        (LONG, "--shape round", 2, "--shape"),
    ],
)
@pytest.mark.slow_on("duckdb")
def test_an_invalid_file_or_layout_is_reported(
    on_store: Any, text: str, options: str, code: int, message: str
) -> None:
    assert message in on_store("ingest", "-", *options.split(), stdin=text, code=code).stderr


@pytest.mark.slow_on("duckdb")
def test_a_missing_file_is_reported_before_anything_is_written(on_store: Any, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(LONG)
    result = on_store("ingest", tmp_path / "good.csv", tmp_path / "gone.csv", *BOTH_TIMES, code=2)
    assert "gone.csv" in result.stderr
    assert on_store.json("status")["last_seq"] == 0


@pytest.mark.slow_on("duckdb")
def test_no_progress_is_drawn_if_stderr_is_not_a_terminal(on_store: Any) -> None:
    assert on_store("ingest", "-", *BOTH_TIMES, stdin=LONG).stderr == ""


@pytest.mark.slow_on("duckdb")
def test_the_file_of_rejections_is_neither_the_input_nor_of_the_store(on_store: Any, tmp_path: Path) -> None:
    given, link = tmp_path / "a.csv", tmp_path / "link.csv"
    given.write_text(BAD)
    link.symlink_to(given)
    for errors in (given, link, on_store.folder / "offline_buffer.db", on_store.folder / "holdfast.toml"):
        assert "give another name" in on_store("ingest", given, "--errors", errors, code=2).stderr
    assert given.read_text() == BAD
    assert on_store.json("status")["last_seq"] == 0


@pytest.mark.slow_on("duckdb")
def test_seconds_that_are_read_as_milliseconds_are_reported(on_store: Any) -> None:
    text = "timestamp,p\n1767225600,1\n1767225660,2\n"
    result = on_store("ingest", "-", "--sensor", "S", "--time-format", "unix_ms", stdin=text)
    assert "standard input, 2 lines of unix_ms: times are in January 1970" in result.stderr
    assert "2 points" in result.stdout
    assert on_store("ingest", "-", "--sensor", "S", "--time-format", "unix", stdin=text).stderr == ""


TWICE = "time,p\n2026-10-25 01:30,1\n2026-10-25 02:00,2\n2026-10-25 02:00,3\n2026-10-25 03:00,4\n"


@pytest.mark.slow_on("duckdb")
def test_the_hour_that_occurs_twice_is_read_completely_or_counted_as_overwritten(on_store: Any) -> None:
    options = ["--sensor", "S", "--time-column", "time", "--zone", "Europe/Oslo", "--ambiguous"]
    result = on_store("ingest", "-", *options, "earlier", stdin=TWICE)
    assert "3 points" in result.stdout
    assert "1 overwritten by a later one" in result.stdout
    said = on_store.json("ingest", "-", *options, "infer", stdin=TWICE)
    assert (said["points"], said["overwritten"]) == (4, 0)
    assert [(point["timestamp"], point["value"]) for point in on_store.json("query", "S", "p")] == [
        ("2026-10-24T23:30:00Z", 1.0),
        ("2026-10-25T00:00:00Z", 2.0),
        ("2026-10-25T01:00:00Z", 3.0),
        ("2026-10-25T02:00:00Z", 4.0),
    ]
    once = on_store("ingest", "-", *options, "infer", stdin=TWICE.replace("2026-10-25 02:00,3\n", ""))
    assert "the file has only one pass of that hour" in once.stderr
