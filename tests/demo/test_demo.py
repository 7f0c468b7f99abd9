"""The demo as a user runs it, from a folder of its own, and the parts that its result depends on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from repo import Settings, Store
from repo.commands import holdfast
from repo.demo.chart import chart
from repo.demo.report import WIDTH, event_line, heading, plot, table
from repo.demo.result import Check, DemoResult, Figures
from repo.demo.scenario import Scenario
from repo.demo.site import STEP_US, WELLS, ticks
from repo.errors import InvalidSettings

ROOT = Path(__file__).resolve().parents[2]


def run_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", "from repo.commands import main; main()", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_demo_holds_what_it_promises_from_any_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "repo").mkdir(parents=True)
    (elsewhere / "repo" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    kept = tmp_path / "kept"
    done = run_command("--json", "demo", "--seconds", "1", "--seed", "11", "--keep", str(kept), cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["ok"]
    assert result["seed"] == 11
    assert all(check["holds"] for check in result["checks"])
    assert len(result["checks"]) == 11
    figures = result["figures"]
    assert figures["acknowledged_points"] == figures["arrived_points"] >= 10_000
    assert figures["failed_tries"] > 0

    # Counted here, from the stores that it left.
    with Store(kept / "receiver", Settings(background=False), create=False) as store:
        arrived = store.sql("SELECT count(*) AS n FROM time_series_data WHERE sensor_id <> 'GATEWAY'")[0]["n"]
    with Store(kept / "store", Settings(background=False), create=False) as store:
        sink = store.sinks.show("receiver")
        [refused] = store.quarantine.list("receiver")
        stored = store.sql("SELECT count(*) AS n FROM time_series_data")[0]["n"]
    site = _points_of_site(11, 10_000)
    assert arrived == stored - 1 == site == figures["acknowledged_points"]
    assert (sink.repeats, sink.behind, sink.attempt, sink.sent_points) == (1, 0, None, site)
    assert (refused.sensor_id, refused.value_text) == ("GATEWAY", "NOT SYNCHRONIZED")


def _points_of_site(seed: int, at_least: int) -> int:
    """Count what the site says up to the tick that completes so many points."""
    total = 0
    for readings in ticks(seed):
        total += len(readings)
        if total >= at_least:
            break
    return total


def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from repo.demo.process import Child, Inbox\n"
        f"inbox = Inbox(); folder = Path({str(tmp_path)!r})\n"
        "child = Child('receiver', 'receiver', [str(folder / 'r')], inbox, folder)\n"
        "inbox.get(timeout=300); print(child._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    child = int(parent.stdout.readline())
    assert _is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    deadline = time.monotonic() + 300
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_alive(child)


def _is_alive(pid: int) -> bool:
    if Path("/proc/self/stat").exists():  # on Linux, ps may not be installed
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].strip()
        except (FileNotFoundError, ProcessLookupError):
            return False
    else:
        command = ["ps", "-o", "stat=", "-p", str(pid)]
        state = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_the_site_says_the_same_for_the_same_seed_and_has_what_sites_have() -> None:
    first, again, other = (list(islice(ticks(seed), 1_000)) for seed in (5, 5, 6))
    assert repr(first) == repr(again) != repr(other)
    readings = [reading for tick in first for reading in tick]
    numbers = [reading[3] for reading in readings if isinstance(reading[3], float)]
    assert {reading[0] for reading in readings} == set(WELLS)
    assert {reading[1] for reading in readings} == {"pressure", "temperature", "flow", "valve"}
    assert {reading[3] for reading in readings if reading[1] == "valve"} == {"OPEN", "CLOSED"}
    assert any(reading[3] is None for reading in readings)
    assert any(math.isnan(number) for number in numbers)
    assert {reading[4] for reading in readings} == {0, 40, 100}
    assert all(math.isnan(number) or -20 < number < 300 for number in numbers)
    assert min(map(len, first)) < 3 * len(WELLS) <= max(map(len, first)), "there are gaps"
    identities = [reading[:3] for reading in readings]
    assert len(set(identities)) == len(identities)
    assert round((first[1][0][2] - first[0][0][2]) * 1e6) == STEP_US


def test_the_demo_refuses_a_folder_in_use_and_sizes_beyond_sense(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InvalidSettings, match="not empty"):
        Scenario(tmp_path)
    for seconds, rate in (
        (0, 100),
        (1, 10),
        (-5, -1000),
        (float("nan"), 1000),
        (1e9, 1e9),
        (1, float("inf")),
    ):
        with pytest.raises(InvalidSettings, match="points"):
            Scenario(tmp_path / "new", seconds=seconds, rate=rate)
    done = CliRunner().invoke(holdfast, ["demo", "--keep", str(tmp_path)])
    assert done.exit_code == 2
    assert "not empty" in done.stderr


def _result(*, holds: bool) -> DemoResult:
    figures = Figures(
        acknowledged_points=9_999_999,
        arrived_points=9_999_998,
        backlog_points=9_000_000,
        backlog_cleared_s=100.25,
        failed_tries=12,
        written_points_per_s=199_999,
        drained_points_per_s=99_999,
        store_bytes=10**9,
        receiver_bytes=10**9,
        wire_bytes=10**9,
        wall_s=299.5,
    )
    checks = (Check("acknowledged / arrived", "9,999,999", "9,999,998", holds),)
    samples = [(at / 10, at * 1_000) for at in range(1, 2_900)]
    return DemoResult(
        seed=1,
        rate=200_000,
        engine="duckdb",
        checks=checks,
        figures=figures,
        events=(),
        acknowledged=samples,
        arrived=[(200.0, 2_899_000)],
    )


def test_what_does_not_hold_is_said_loudly() -> None:
    assert _result(holds=True).ok
    assert table(_result(holds=True)).endswith("All checks passed.")
    failed = _result(holds=False)
    assert not failed.ok
    assert "FAILED: acknowledged / arrived." in table(failed)
    assert not failed.as_dict()["ok"]


def test_the_report_is_plain_and_fits_eighty_columns() -> None:
    result = _result(holds=True)
    text = "\n".join(
        (heading(1, 200_000), event_line(299.9, "a long story " * 20), table(result), plot(result))
    )
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_chart_shows_when_counts_grow() -> None:
    drawn = chart({"#": [(1.0, 50), (3.0, 100)]}, title="points", width=27, rows=4)
    assert drawn.splitlines() == [
        "points",
        " 0.1k |                   #",
        "      |      #############",
        "      |      #",
        "      |######",
        "    0 +--------------------",
        "       0 s    1 s   2 s",
    ]
