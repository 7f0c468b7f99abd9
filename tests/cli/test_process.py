"""The command as a process: what it loads, and how it ends when something goes away under it."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from repo import Settings, Store
from repo.commands import holdfast
from tests.starter import Starter

ROOT = Path(__file__).resolve().parents[2]
HEADER = "sensor_id,metric_name,timestamp,value\n"
WITH_SMALL_FILES = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
runpy.run_path("cli.py", run_name="__main__")
"""
HEAVY = ("sqlalchemy", "duckdb", "alembic", "numpy", "pandas", "pyarrow", "plotext", "sqlite3")


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "cli.py", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def lines(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield f"s,m,{1_714_521_600 + number},{number}.5\n".encode()


def points_in_journal(folder: Path) -> int:
    connection = sqlite3.connect(folder / "offline_buffer.db", timeout=300)
    try:
        return int(
            connection.execute(
                "SELECT max(last_seq, coalesce((SELECT max(seq) FROM journal), 0)) FROM store_state"
            ).fetchone()[0]
        )
    finally:
        connection.close()


def test_help_loads_no_engine() -> None:
    script = f"""
import sys
from repo.commands import holdfast
for command in [], ["query"], ["ingest"], ["status"], ["demo"]:
    try:
        holdfast([*command, "--help"], prog_name="holdfast")
    except SystemExit as end:
        print("loaded", command, end.code, sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.count("Usage: holdfast") == 5
    loaded = [line for line in ended.stdout.splitlines() if line.startswith("loaded")]
    assert len(loaded) == 5
    assert all(line.endswith("] 0 []") for line in loaded), loaded


@pytest.mark.parametrize("engine", ["sqlite"])
def test_commands_on_a_store_of_the_current_schema_load_no_migrations(on_store: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER.encode() + b"".join(lines(2)))
    ingest = ["ingest", str(tmp_path / "a.csv"), "--time-format", "unix"]
    script = f"""
import sys
from repo.commands import holdfast
for command in ["status"], {ingest!r}, ["query", "s", "m"], ["cleanup", "--sensor", "x"]:
    try:
        holdfast(["--store", {str(on_store.folder)!r}, *command])
    except SystemExit as end:
        assert not end.code, command
print("loaded", sorted({{"alembic", "sqlalchemy", "numpy", "pyarrow"}} & set(sys.modules)))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "loaded ['sqlalchemy']"


def test_the_list_of_commands_has_the_first_line_of_each_help() -> None:
    import click

    context = click.Context(holdfast)
    listed = CliRunner().invoke(holdfast, ["--help"], terminal_width=200, max_content_width=200).stdout
    for name in holdfast.list_commands(context):
        command = holdfast.get_command(context, name)
        assert command is not None
        assert re.search(
            rf"^  {name} +{re.escape((command.help or '').splitlines()[0])}$", listed, re.MULTILINE
        )


def test_the_lists_of_subcommands_have_whole_sentences() -> None:
    for group in ("sinks", "quarantine"):
        listed = CliRunner().invoke(holdfast, [group, "--help"], terminal_width=80).stdout
        assert "..." not in listed.split("Commands:\n")[1]


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(holdfast, ["explode"]).exit_code == 2
    assert CliRunner().invoke(holdfast, ["-q", "-v", "status"]).exit_code == 2


@pytest.mark.duckdb
def test_python_cli_py_is_the_command(tmp_path: Path) -> None:
    process = start("--store", tmp_path / "store", "init")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"created a store in")


@pytest.mark.slow_on("duckdb")
def test_a_closed_pipe_ends_the_command_quietly(on_store: Any) -> None:
    on_store.write(*(("s", "m", 1_714_521_600 + n, float(n)) for n in range(8_000)))
    process = start("--store", on_store.folder, "query", "s", "m", "--format", "csv")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"sensor_id,")
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.slow_on("duckdb")
def test_ctrl_c_ends_ingest_quietly_and_keeps_acknowledged_points(on_store: Any, starter: Starter) -> None:
    process = starter.open(["cli.py", "--store", on_store.folder, "ingest", "-", "--time-format", "unix"])
    process.stdin.write(HEADER + b"".join(lines(30_000)).decode())
    process.stdin.flush()
    deadline = time.monotonic() + 300
    while points_in_journal(on_store.folder) == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130
    assert process.communicate() == ("", "")
    process.close()
    stored = points_in_journal(on_store.folder)
    assert 10_000 <= stored <= 30_000
    assert len(on_store.json("query", "s", "m")) == stored


@pytest.mark.slow_on("duckdb")
def test_on_a_full_disk_ingest_reports_the_acknowledged_points_and_can_be_repeated(
    on_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starter: Starter
) -> None:
    file = tmp_path / "many.csv"
    file.write_bytes(HEADER.encode() + b"".join(lines(20_000)))

    ingest = ("ingest", file, "--time-format", "unix")
    done = starter.run(["-c", WITH_SMALL_FILES, "--store", on_store.folder, *ingest])
    assert done.returncode == 1, done.stderr
    reported = re.search(r"this import acknowledged ([\d,]+) points", done.stderr)
    assert reported is not None, done.stderr
    acknowledged = int(reported[1].replace(",", ""))
    assert 0 < acknowledged < 20_000
    assert points_in_journal(on_store.folder) >= acknowledged
    monkeypatch.setenv("HOLDFAST_QUIET", "1")
    assert on_store(*ingest).output == ""
    monkeypatch.delenv("HOLDFAST_QUIET")
    assert on_store.json("query", "s", "m", "--agg", "count,sum")[0]["count"] == 20_000


@pytest.mark.duckdb
@pytest.mark.parametrize("delay_s", [0.02, pytest.param(0.15, marks=pytest.mark.slow)])
def test_ctrl_c_ends_an_export_quietly_and_leaves_no_partial_file(
    on_duckdb: Any, tmp_path: Path, delay_s: float, starter: Starter
) -> None:
    numpy = pytest.importorskip("numpy")
    times = 1_714_521_600_000_000 + numpy.arange(500_000) * 1000
    with Store(on_duckdb.folder, Settings(background=False)) as store:
        store.points.insert_table(
            {"sensor_id": "s", "metric_name": "m", "timestamp_us": times, "value": times * 0.37}
        )
    part, out = tmp_path / ".out.parquet.part", tmp_path / "out.parquet"
    while True:
        process = starter.open(["cli.py", "--store", on_duckdb.folder, "export", out])
        deadline = time.monotonic() + 300
        while not (part.exists() or out.exists()) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        process.close()
        if not out.exists():
            break
        for path in tmp_path.glob("out.parquet*"):  # it was complete before this process had its turn
            path.unlink()
        delay_s /= 2
    assert (process.returncode, err.replace("export\n", "")) == (130, ""), err
    assert sorted(os.listdir(tmp_path)) == ["store"]
