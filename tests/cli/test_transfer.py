"""`export` and `import`: an operator carries points off a device, and back into another."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import Command

T0 = 1_714_521_600
DAY_S = 86_400
EXPORT_KEYS = {"path", "files", "points", "bytes", "first_us", "last_us", "first_seq", "last_seq", "resumed"}
IMPORT_KEYS = {
    *("files", "verified", "read", "stored", "present", "duplicates", "nulls", "refused"),
    *("no_reading", "problems"),
}


def rows() -> list[Any]:
    return [(sensor, "m", T0 + day * DAY_S, float(day)) for sensor in ("P-1", "P-2", "Q") for day in range(3)]


@pytest.mark.slow_on("duckdb")
def test_exported_points_can_be_imported_into_another_store(on_store: Command, tmp_path: Path) -> None:
    on_store.write(*rows())
    said = on_store.json("export", tmp_path / "stick", "--by-day")
    assert said.keys() == EXPORT_KEYS
    assert (said["points"], said["files"]) == (9, 3)
    other = Command(tmp_path / "other")
    other("init")
    done = other.json("import", tmp_path / "stick")
    assert done.keys() == IMPORT_KEYS
    assert (done["stored"], done["verified"]) == (9, 3)
    assert (
        other("query", "*", "*", "--format", "csv").stdout
        == on_store("query", "*", "*", "--format", "csv").stdout
    )
    assert "0 of 9 points stored; 9 already stored" in other("import", tmp_path / "stick").stdout


@pytest.mark.slow_on("duckdb")
def test_recover_is_another_name_of_import(on_store: Command, tmp_path: Path) -> None:
    on_store.write(("P-1", "m", T0, 1.0))
    on_store("export", tmp_path / "one.parquet")
    assert on_store.json("recover", tmp_path / "one.parquet")["present"] == 1
    listed = on_store("--help").stdout
    assert "  import " in listed
    assert "  recover " not in listed


@pytest.mark.slow_on("duckdb")
def test_counts_of_one_are_printed_in_the_singular(on_store: Command, tmp_path: Path) -> None:
    on_store.write(("P-1", "m", T0, 1.0))
    assert "exported 1 point to 1 file in" in on_store("export", tmp_path / "stick", "--by-day").stdout
    assert "valid: 1 file, 1 point" in on_store("import", "--verify", tmp_path / "stick").stdout
    assert "0 of 1 point stored; 1 already stored" in on_store("import", tmp_path / "stick").stdout


@pytest.mark.slow_on("duckdb")
def test_patterns_and_times_select_what_is_exported(on_store: Command, tmp_path: Path) -> None:
    on_store.write(*rows())
    call = (
        "export",
        tmp_path / "a.parquet",
        "--sensor",
        "P-*",
        "--start",
        "2024-05-02",
        "--end",
        "2024-05-03",
    )
    assert "exported 2 points to" in on_store(*call).stdout
    found = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [(row["sensor_id"], row["value"]) for row in found] == [("P-1", 1.0), ("P-2", 1.0)]
    on_store("export", tmp_path / "b.parquet", "--sensor", "P-1", "--sensor", "Q")
    assert {row["sensor_id"] for row in pq.read_table(tmp_path / "b.parquet").to_pylist()} == {"P-1", "Q"}


@pytest.mark.slow_on("duckdb")
def test_verify_needs_no_store_and_finds_damage(on_store: Command, tmp_path: Path) -> None:
    on_store.write(*rows())
    on_store("export", tmp_path / "a.parquet")
    nowhere = Command(tmp_path / "nowhere")
    assert nowhere.json("import", "--verify", tmp_path / "a.parquet")["points"] == 9
    broken = bytearray((tmp_path / "a.parquet").read_bytes())
    broken[100] ^= 1
    (tmp_path / "a.parquet").write_bytes(broken)
    for option in ("--verify", "--dry-run", "--overwrite"):
        result = on_store("import", option, tmp_path / "a.parquet", code=1)
        assert "a.parquet is damaged" in result.stderr
        assert result.stdout == ""
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow_on("duckdb")
def test_a_dry_run_stores_nothing_and_keeping_is_the_default(on_store: Command, tmp_path: Path) -> None:
    on_store.write(*rows())
    on_store("export", tmp_path / "a.parquet")
    on_store.write(("Q", "m", T0, 99.0))
    last_seq = on_store.json("status")["last_seq"]
    assert "0 of 9 points would be stored" in on_store("import", "--dry-run", tmp_path / "a.parquet").stdout
    assert on_store.json("import", tmp_path / "a.parquet")["present"] == 9
    assert on_store.json("status")["last_seq"] == last_seq
    assert on_store.json("query", "Q", "m", "--end", "2024-05-01T00:00:01")[0]["value"] == 99.0
    on_store("import", "--overwrite", tmp_path / "a.parquet")
    assert on_store.json("query", "Q", "m", "--end", "2024-05-01T00:00:01")[0]["value"] == 0.0


@pytest.mark.slow_on("duckdb")
def test_columns_of_other_programs_are_mapped_and_bad_rows_are_reported(
    on_store: Command, tmp_path: Path
) -> None:
    table = pa.table(
        {"tag": ["a", None], "metric_name": ["m", "m"], "timestamp": [T0, T0], "value": [1.5, 2.5]}
    )
    pq.write_table(table, tmp_path / "other.parquet")
    result = on_store("import", tmp_path / "other.parquet", "--column", "sensor_id=tag", code=3)
    assert "1 of 2 points stored; 1 without a sensor, a metric or a time" in result.stdout
    assert "other.parquet" in result.stderr
    assert "no column 'sensor_id'" in on_store("import", tmp_path / "other.parquet", code=1).stderr
    assert "FIELD=COLUMN" in on_store("import", tmp_path / "other.parquet", "--column", "tag", code=2).stderr


@pytest.mark.slow_on("duckdb")
def test_times_of_other_programs_may_count_milliseconds(on_store: Command, tmp_path: Path) -> None:
    table = pa.table(
        {
            "sensor_id": ["a", "a"],
            "metric_name": ["m", "m"],
            "at": [T0 * 1000, T0 * 1000 + 1],
            "value": [1.5, 2.5],
        }
    )
    pq.write_table(table, tmp_path / "other.parquet")
    options = ("--column", "timestamp=at", "--time-format", "unix_ms")
    assert on_store.json("import", "--verify", tmp_path / "other.parquet", *options)["points"] == 2
    assert on_store.json("import", tmp_path / "other.parquet", *options)["stored"] == 2
    assert (
        on_store.json("ingest", tmp_path / "other.parquet", "--time-column", "at", *options[2:])["points"]
        == 2
    )
    assert [row["timestamp_us"] - T0 * 10**6 for row in on_store.json("query", "a", "m")] == [0, 1000]


@pytest.mark.parametrize("name", ["export", "import"])
def test_import_without_a_store_creates_nothing(tmp_path: Path, name: str) -> None:
    nowhere = Command(tmp_path / "nowhere")
    said = nowhere(name, tmp_path / "a.parquet", code=1).stderr
    assert f"{shlex.quote(str(nowhere.folder))} init`" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by_day", [False, True])
@pytest.mark.slow_on("duckdb")
def test_ndjson_is_exported_by_file_name_or_option(on_store: Command, tmp_path: Path, by_day: bool) -> None:
    on_store.write(*rows())
    where = [tmp_path / "stick", "--by-day", "--format", "ndjson"] if by_day else [tmp_path / "a.ndjson.gz"]
    said = on_store.json("export", *where)
    assert said.keys() == EXPORT_KEYS
    assert (said["points"], said["files"]) == (9, 3 if by_day else 1)
    other = Command(tmp_path / "other")
    assert other.json("import", "--verify", where[0])["verified"] == said["files"]
    other("init")
    done = other.json("import", where[0])
    assert done.keys() == IMPORT_KEYS
    assert (done["stored"], done["verified"]) == (9, said["files"])
    assert other.json("query", "*", "*") == on_store.json("query", "*", "*")
    assert "9 already stored" in other("import", where[0]).stdout


@pytest.mark.slow_on("duckdb")
def test_the_name_of_the_file_chooses_the_format_and_everything_comes_back(
    on_store: Command, tmp_path: Path
) -> None:
    states = [("V-1", "state", T0 + at, text) for at, text in enumerate(("OPEN", 'a "b", c', "Grüße"))]
    on_store.write(
        *rows(),
        *states,
        ("P-1", "p", T0, float("inf")),
        ("P-1", "p", T0 + 1, None),
        ("P-1", "q", T0, 0.1 + 0.2, 7),
    )
    on_store("export", tmp_path / "new" / "a.csv")
    head, line, *_ = (tmp_path / "new" / "a.csv").read_text().splitlines()
    assert head == "sensor_id,metric_name,timestamp,value,quality,metadata"
    assert line.count(",") == 5
    on_store("export", tmp_path / "b.csv.gz")
    on_store("export", tmp_path / "c.ndjson")
    on_store("export", tmp_path / "d.ndjson.zst")
    on_store("export", tmp_path / "e", "--format", "csv", "--compression", "gzip")
    expected = on_store.json("query", "*", "*")
    names = ("new/a.csv", "b.csv.gz", "c.ndjson", "d.ndjson.zst", "e")
    for number, name in enumerate(names):
        assert (tmp_path / f"{name}.sha256").exists()
        other = Command(tmp_path / f"other{number}")
        other("init", "--engine", "sqlite")
        other("ingest", tmp_path / name, "--mixed")
        assert other.json("query", "*", "*") == expected, name
        if "ndjson" in name:
            assert other.json("import", tmp_path / name)["present"] == 15


@pytest.mark.slow_on("duckdb")
def test_points_are_written_to_standard_output(on_store: Command, tmp_path: Path) -> None:
    on_store.write(*rows())
    on_store("export", tmp_path / "a.csv")
    assert on_store("export", "-").stdout == (tmp_path / "a.csv").read_text()
    lines = on_store("export", "-", "--format", "ndjson").stdout.splitlines()
    assert {tuple(json.loads(line))[:2] for line in lines} == {("sensor_id", "metric_name")}
    assert len(lines) == 9
    assert "name a file" in on_store("export", "-", "--format", "parquet", code=2).stderr
    assert "name a file" in on_store("--json", "export", "-", code=2).stderr


@pytest.mark.slow_on("duckdb")
def test_an_export_that_matches_nothing_says_so(on_store: Command, tmp_path: Path) -> None:
    on_store.write(*rows())
    for options in ([tmp_path / "a.csv"], [tmp_path / "a.parquet"], ["-"]):
        result = on_store("export", *options, "--end", "1970-01-01", code=3)
        assert "no points match" in result.stderr
    assert on_store.json("export", tmp_path / "a.csv", "--end", "1970-01-01", code=3)["points"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.json"], "the format of .json is not known"),
        (["a.parquet", "--format", "ndjson"], "a.parquet would be ndjson"),
        (["a.ndjson.gz", "--compression", "none"], "ends as gzip files do"),
        (["a", "--by-day", "--format", "csv"], "a folder of days contains"),
        (["a.parquet.gz"], "Parquet is compressed inside"),
    ],
)
@pytest.mark.slow_on("duckdb")
def test_an_export_that_import_would_not_recognize_is_refused(
    on_store: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    name, *options = arguments
    assert message in on_store("export", tmp_path / name, *options, code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_without_duckdb_and_pyarrow_the_message_names_the_alternatives(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("init", "--engine", "sqlite")
    command.write(*rows())
    monkeypatch.setattr("repo.transfer.exporter.duckdb_is_installed", lambda: False)
    monkeypatch.setattr("repo.transfer.importer.duckdb_is_installed", lambda: False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for where in (["a.parquet"], ["stick", "--by-day"]):
        result = command("export", tmp_path / where[0], *where[1:], code=1)
        assert "[arrow]'" in result.stderr
        assert "--format ndjson" in result.stderr
    command("export", tmp_path / "stick", "--by-day", "--format", "ndjson")
    assert command.json("import", tmp_path / "stick")["present"] == 9


@pytest.mark.parametrize("call", [("export", "x.parquet"), ("cleanup", "--dry-run")])
@pytest.mark.slow_on("duckdb")
def test_a_glob_among_several_names_is_refused(
    on_store: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    on_store.write(*rows())
    said = on_store(*call, "--sensor", "P-*", "--sensor", "Q", code=2)
    assert "'P-*' is a glob" in said.stderr
