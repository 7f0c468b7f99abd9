"""`ingest` of NDJSON and Parquet, packed and plain, many files at once, and files that are not what they seem."""

from __future__ import annotations

import csv
import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command

T0 = 1_714_521_600  # 2024-05-01
CSV = "sensor_id,metric_name,timestamp,value\nC,m,2024-05-01T00:00:00Z,1\nC,m,2024-05-01T00:00:01Z,2\n"
BAD = """{"sensor_id":"P","metric_name":"flow","timestamp":"2024-05-01","value":1.5}
{"sensor_id":"P","metric_name":"flow","timestamp":"yesterday","value":2.5}
{"sensor_id":"P","metric_name":"flow","timestamp":1714521601,"value":"low"}
{"sensor_id":"P","metric_name":"flow","timestamp":1714521602,"value":NaN}
{"sensor_id":"","metric_name":"flow","timestamp":1714521603,"value":4}
{"sensor_id":"P","metric_name":"flow","timestamp":1714521604,"value":9007199254740993}
{"sensor_id":"P","metric_name":"flow","timestamp":1714521605,"val
{"sensor_id":"P","metric_name":"flow","timestamp":1714521606,"value":5.5}
"""


def lines(sensor: str = "N", count: int = 2, **changed: Any) -> str:
    return "".join(
        json.dumps(
            {"sensor_id": sensor, "metric_name": "m", "timestamp": T0 + n, "value": float(n)} | changed
        )
        + "\n"
        for n in range(count)
    )


def parquet(path: Path, **columns: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    usual = {
        "sensor_id": ["Q", "Q"],
        "metric_name": ["m", "m"],
        "timestamp": [T0, T0 + 1],
        "value": [1.0, 2.0],
    }
    given = {name: column for name, column in (usual | columns).items() if column is not None}
    pq.write_table(pa.table(given), path)
    return path


def values(command: Command, sensor: str = "*", metric: str = "*") -> list[Any]:
    return [point["value"] for point in command.json("query", sensor, metric)]


@pytest.mark.parametrize("chosen", [("--only", "data.temp"), ("--column", "temp=data.temp")])
def test_a_choice_of_metrics_that_no_line_has_is_warned_of(
    on_store: Command, chosen: tuple[str, str]
) -> None:
    line = json.dumps({"sensor_id": "N", "timestamp": T0, "data": {"temp": 21.5}})
    done = on_store("ingest", "-", "--format", "ndjson", *chosen, stdin=line)
    assert (done.exit_code, done.stdout.split(" in ")[0]) == (0, "0 points")
    assert "no line has a metric that --only or --column chose" in done.stderr
    found = on_store(
        "ingest", "-", *chosen, stdin=line.replace('"data"', '"data.temp"').replace('{"temp": 21.5}', "21")
    )
    assert "no line has" not in found.stderr


def test_files_of_every_format_are_ingested_together(on_store: Command, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    files = {
        "a.csv": CSV.encode(),
        "b.tsv": CSV.replace(",", "\t").replace("C", "T").encode(),
        "c.ndjson": lines("N1").encode(),
        "d.jsonl.gz": gzip.compress(lines("N2").encode()),
        "e.csv.zst": zstandard.ZstdCompressor().compress(CSV.replace("C", "Z").encode()),
        "f.data": zstandard.ZstdCompressor().compress(lines("N3").encode()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    parquet(tmp_path / "g.bin")
    said = on_store.json(
        "ingest", *(tmp_path / name for name in files), tmp_path / "g.bin", "-", stdin=lines("I")
    )
    assert [file["points"] for file in said["files"]] == [2] * 8
    assert (said["points"], said["rejected"], said["no_reading"]) == (16, 0, 0)
    series = {(row["sensor_id"], row["points"]) for row in on_store.json("series")}
    assert series == {(sensor, 2) for sensor in ("C", "T", "N1", "N2", "Z", "N3", "Q", "I")}


@pytest.mark.slow_on("duckdb")
def test_files_of_other_programs_are_read_by_their_own_column_names(on_store: Command) -> None:
    text = '{"dev":"P-1","ts":1714521600500,"Druck":1.5,"q":7,"note":"x"}\n{"dev":"P-1","ts":1714521601000,"T":null}\n'
    options = ["--sensor-column", "dev", "--time-column", "ts", "--time-format", "unix_ms"]
    options += ["--quality-column", "q", "--ignore", "note"]
    said = on_store.json("ingest", "-", *options, stdin=text)
    assert (said["points"], said["no_reading"]) == (1, 1)
    [point] = on_store.json("query", "P-1", "Druck")
    assert (point["value"], point["quality"], point["timestamp"]) == (1.5, 7, "2024-05-01T00:00:00.500000Z")


@pytest.mark.slow_on("duckdb")
def test_bad_lines_are_reported_by_number_and_good_lines_are_written(
    on_store: Command, tmp_path: Path
) -> None:
    kept = tmp_path / "errors.csv"
    result = on_store("ingest", "-", "--errors", kept, stdin=BAD, code=3)
    lines = result.stderr.splitlines()
    assert [line.split(":")[0].split(",")[0] for line in lines] == [f"line {n}" for n in range(2, 8)]
    for found, expected in zip(
        lines,
        [
            "fits no time format",
            "has numbers",
            "NaN, which is not JSON",
            "is empty",
            "would round",
            "is not JSON",
        ],
        strict=True,
    ):
        assert expected in found
    assert "2 points" in result.stdout
    assert "6 rejected" in result.stdout
    assert values(on_store) == [1.5, 5.5]
    with kept.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["line"] for row in rows] == ["2", "3", "4", "5", "6", "7"]
    assert rows[0]["column"] == "timestamp"
    assert rows[0]["text"] == "yesterday"


@pytest.mark.slow_on("duckdb")
def test_strict_writes_nothing_of_any_kind_if_one_row_is_bad(on_store: Command, tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text(lines())
    good, bad = parquet(tmp_path / "b.parquet"), parquet(tmp_path / "c.parquet", sensor_id=["Q", ""])
    said = on_store.json("ingest", tmp_path / "a.ndjson", good, bad, "--strict", code=3)
    assert (said["points"], said["rejected"]) == (0, 1)
    assert on_store.json("ingest", good, "-", "--strict", stdin=BAD, code=3)["points"] == 0
    assert on_store.json("status")["last_seq"] == 0
    assert on_store.json("ingest", tmp_path / "a.ndjson", good, "--strict")["points"] == 4


@pytest.mark.slow_on("duckdb")
def test_rows_of_parquet_that_cannot_be_stored_are_rejected(on_store: Command, tmp_path: Path) -> None:
    file = parquet(
        tmp_path / "a.parquet",
        sensor_id=["Q", None, "Q", "Q", ""],
        metric_name=["m"] * 5,
        timestamp=[T0, T0, T0 * 1000, T0 + 1, T0],
        value=[1.0, 2.0, 3.0, None, 5.0],
    )
    kept = tmp_path / "errors.csv"
    result = on_store("ingest", file, "--errors", kept, code=3)
    assert "2 points" in result.stdout
    assert "1 without a reading, 3 rejected" in result.stdout
    for reason in ("1 row without a sensor", "are read as seconds", "is empty"):
        assert reason in result.stderr
        assert reason in kept.read_text()
    assert str(file) not in result.stderr


@pytest.mark.slow_on("duckdb")
def test_the_last_file_of_any_format_wins_also_over_stored_points(on_store: Command, tmp_path: Path) -> None:
    on_store.write(("Q", "m", T0, 99.0))
    (tmp_path / "a.ndjson").write_text(lines("Q", value=7.0))
    (tmp_path / "b.csv").write_text(CSV.replace("C", "Q").replace("1\n", "5\n", 1))
    file = parquet(tmp_path / "c.parquet")
    on_store("ingest", file)
    assert values(on_store) == [1.0, 2.0]
    on_store("ingest", file, tmp_path / "a.ndjson")
    assert values(on_store) == [7.0, 7.0]
    on_store("ingest", tmp_path / "a.ndjson", tmp_path / "b.csv")
    assert values(on_store) == [5.0, 2.0]
    on_store("ingest", tmp_path / "b.csv", file)
    assert values(on_store) == [1.0, 2.0]


@pytest.mark.slow_on("duckdb")
def test_ingesting_again_changes_nothing(on_store: Command, tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text(lines(count=3))
    file = parquet(tmp_path / "b.parquet")
    stored = []
    for _ in range(2):
        assert on_store.json("ingest", tmp_path / "a.ndjson", file)["points"] == 5
        stored.append([(point["seq"], point["value"]) for point in seqs_of(on_store)])
    assert stored[0] == stored[1]
    assert [value for _, value in stored[0]] == [0.0, 1.0, 2.0, 1.0, 2.0]


def seqs_of(command: Command) -> list[Any]:
    from repo import Settings, Store

    with Store(command.folder, Settings(background=False)) as store:
        return store.points.after(0)


@pytest.mark.slow_on("duckdb")
def test_the_kind_of_a_series_is_that_of_its_first_reading(on_store: Command, tmp_path: Path) -> None:
    numbers = lines("N", 10_000) + lines("N", 1, value="OPEN", timestamp=T0 - 1)
    said = on_store.json("ingest", "-", stdin=numbers, code=3)
    assert (said["points"], said["rejected"]) == (10_000, 1)
    (tmp_path / "a.ndjson").write_text(lines("Q", 1, value="OPEN"))
    file = parquet(tmp_path / "b.parquet")
    assert on_store.json("ingest", file, tmp_path / "a.ndjson", code=3)["rejected"] == 1
    assert (
        "holds number values, but this is a text" in on_store("ingest", tmp_path / "a.ndjson", code=3).stderr
    )


@pytest.mark.slow_on("duckdb")
def test_columns_of_parquet_can_be_named(on_store: Command, tmp_path: Path) -> None:
    file = parquet(
        tmp_path / "a.parquet", tag=["X", "Y"], at=[T0 * 10**6, T0 * 10**6], sensor_id=None, timestamp=None
    )
    options = ("--sensor-column", "tag", "--time-column", "at")
    assert "outside the years" in on_store("ingest", file, *options, code=3).stderr
    assert on_store.json("ingest", file, *options, "--time-format", "unix_us")["points"] == 2
    file = parquet(tmp_path / "b.parquet", tag=["X", "Y"], at=[T0, T0 + 0.5], sensor_id=None, timestamp=None)
    assert on_store.json("ingest", file, *options)["points"] == 2
    assert [row["sensor_id"] for row in on_store.json("series")] == ["X", "Y"]


@pytest.mark.parametrize(
    "option",
    [
        ["--missing", "-1"],
        ["--time-column", "#1"],
        ["--time-column", "a", "--time-column", "b"],
        ["--ambiguous", "infer"],
    ],
)
@pytest.mark.slow_on("duckdb")
def test_options_that_parquet_does_not_support_are_refused_before_anything_is_written(
    on_store: Command, tmp_path: Path, option: list[str]
) -> None:
    (tmp_path / "a.ndjson").write_text(lines())
    file = parquet(tmp_path / "b.parquet")
    assert "b.parquet is Parquet" in on_store("ingest", tmp_path / "a.ndjson", file, *option, code=2).stderr
    assert on_store.json("status")["last_seq"] == 0


@pytest.mark.slow_on("duckdb")
def test_seconds_in_parquet_that_are_read_as_milliseconds_are_reported(
    on_store: Command, tmp_path: Path
) -> None:
    file = parquet(tmp_path / "a.parquet")
    for command in ("ingest", "import"):
        assert "in January 1970" in on_store(command, file, "--time-format", "unix_ms").stderr
        assert "1970" not in on_store(command, file).stderr


@pytest.mark.slow_on("duckdb")
def test_the_format_can_be_given(on_store: Command, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines())
    (tmp_path / "b.txt").write_text("{x" + CSV)
    assert on_store.json("ingest", tmp_path / "a.csv", "--format", "ndjson")["points"] == 2
    assert "has JSON objects" in on_store("ingest", tmp_path / "a.csv", code=1).stderr
    assert "no column" in on_store("ingest", tmp_path / "b.txt", "--format", "csv", code=1).stderr
    assert (
        "cannot be read as Parquet"
        in on_store("ingest", tmp_path / "a.csv", "--format", "parquet", code=1).stderr
    )
    file = parquet(tmp_path / "c.parquet")
    assert "is Parquet, not csv" in on_store("ingest", file, "--format", "csv", code=1).stderr


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("a.ndjson.gz", gzip.compress(lines(count=9_000).encode())[:-100], 1, "truncated or damaged gzip"),
        ("a.ndjson.gz", lines().encode(), 1, "ends in .gz but is not gzip"),
        ("a.ndjson.zst", lines().encode(), 1, "ends in .zst but is not zstd"),
        ("a.ndjson", b"[\n" + lines().encode() + b"]", 1, "is a JSON array"),
        ("a.json", b"[" + lines().encode() + b"]", 1, "is a JSON array"),
        (
            "a.ndjson",
            lines().encode("utf-16"),
            1,
            "is text in UTF-16, not in utf-8; set its encoding (--encoding utf-16)",
        ),
        ("a.csv", CSV.encode("utf-16-be"), 1, "is text in UTF-16-BE"),
        (
            "a.csv",
            b"timestamp,Temp \xb0C\n",
            1,
            "the byte 0xB0, which is invalid in this encoding; set the encoding",
        ),
        ("a.zip", b"PK\x03\x04" + bytes(26) + b"a.csvtimestamp", 1, "is a zip archive; unpack it first"),
        (
            "a.xlsx",
            b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml",
            1,
            "is an Excel workbook (xlsx); save the sheet",
        ),
        ("a.csv", b"\xef\xbb\xbf\n<!DOCTYPE html><title>Login", 1, "is an HTML page"),
        ("a.csv", gzip.compress(gzip.compress(CSV.encode())), 1, "is compressed twice"),
        ("a.parquet", lines().encode(), 1, "cannot be read as Parquet"),
        ("a.csv", b"PAR1" + bytes(100) + b"PAR1", 1, "cannot be read as Parquet"),
        (
            "a.parquet.gz",
            gzip.compress(b"PAR1" + bytes(100)),
            1,
            "is compressed Parquet; decompress it first",
        ),
        ("a.ndjson", b'{"a":' * 100_000 + b"\n" + lines().encode(), 3, "is nested too deeply"),
    ],
    ids=lambda case: "" if isinstance(case, bytes) else None,
)
@pytest.mark.slow_on("duckdb")
def test_a_file_of_another_format_is_reported_with_its_format(
    on_store: Command, tmp_path: Path, name: str, content: bytes, code: int, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    result = on_store("ingest", tmp_path / name, code=code)
    assert message in result.stderr
    assert (name in result.stderr) or code == 3


@pytest.mark.slow_on("duckdb")
def test_utf_16_is_read_if_requested(on_store: Command, tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text(lines(), encoding="utf-16")
    assert on_store.json("ingest", tmp_path / "a.ndjson", "--encoding", "utf-16")["points"] == 2


@pytest.mark.parametrize("option", [[], ["--format", "parquet"]])
@pytest.mark.slow_on("duckdb")
def test_standard_input_cannot_be_parquet(on_store: Command, tmp_path: Path, option: list[str]) -> None:
    content = parquet(tmp_path / "a.parquet").read_bytes()
    result = on_store("ingest", "-", *option, stdin=content, code=1)
    assert "standard input cannot be Parquet, which is read from its end" in result.stderr


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
@pytest.mark.slow_on("duckdb")
def test_standard_input_may_be_compressed_and_read_twice(on_store: Command, pack: str) -> None:
    content = lines(count=3).encode()
    packed = gzip.compress(content) if pack == "gzip" else pytest.importorskip("zstandard").compress(content)
    assert on_store.json("ingest", "-", stdin=packed)["points"] == 3
    assert on_store.json("ingest", "-", "--strict", stdin=packed)["points"] == 3


@pytest.mark.parametrize("option", [[], ["--strict"]])
@pytest.mark.slow_on("duckdb")
def test_a_pipe_is_read_once(on_store: Command, tmp_path: Path, option: list[str]) -> None:
    """As the shell gives it for `<(...)`."""
    os.mkfifo(tmp_path / "pipe")
    content = gzip.compress(lines(count=15_000).encode())
    writing = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(content))
    writing.start()
    assert on_store.json("ingest", tmp_path / "pipe", *option)["points"] == 15_000
    writing.join()


@pytest.mark.slow_on("duckdb")
def test_an_export_is_read_by_ingest_as_well(on_store: Command, tmp_path: Path) -> None:
    on_store.write(
        ("s", "m", T0, 5e-324),
        ("s", "m", T0 + 1e-6, float("inf"), 5, {"a": 1}),
        *(("s", "t", T0, ""), ("s", "t", T0 + 1, "NA"), ("s", "t", T0 + 2, None)),
    )
    on_store("export", tmp_path / "a.ndjson.gz")
    other = Command(tmp_path / "other")
    other("init")
    assert other.json("ingest", tmp_path / "a.ndjson.gz")["points"] == 5
    assert other.json("query", "*", "*") == on_store.json("query", "*", "*")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CSV.encode(), "it is text, perhaps CSV; `holdfast ingest` (store.ingest) reads it"),
        (CSV.encode("utf-16"), "it is text in UTF-16"),
        (b"PK\x03\x04" + bytes(26) + b"a.csvtimestamp", "it is a zip archive; unpack it first"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.slow_on("duckdb")
def test_import_names_the_format_of_a_file_that_it_does_not_read(
    on_store: Command, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert (
        f"{name} cannot be read as Parquet: {message}" in on_store("import", tmp_path / name, code=1).stderr
    )
