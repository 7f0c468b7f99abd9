"""On a full disk writes raise `StoreFull`, nothing acknowledged is lost, and writes work again when there is space.

The disk is a tmpfs of a few megabytes in a separate user and mount namespace.
"""

from __future__ import annotations

import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repo.schema.version import HEAD
from tests.faults.full_disk import OLD_POINTS, SEED, Notes
from tests.faults.judge import Expected, judge
from tests.migrations.legacy_store import make_legacy_store

ROOT = Path(__file__).resolve().parents[2]
DISK = "size=8m"
UPGRADE_DISK = "size=32m"


def _in_a_namespace(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _play(processes: list[str], engine: str, folder: Path, size: str = DISK) -> Notes:
    if shutil.which("unshare") is None:
        pytest.skip("a tiny disk needs unshare, of Linux")
    disk, path = folder / "disk", folder / "notes"
    disk.mkdir()
    mount = f"mount -t tmpfs -o {size} tmpfs {shlex.quote(str(disk))}"
    if _in_a_namespace(mount).returncode:
        pytest.skip("a tiny disk needs user and mount namespaces, which are not permitted here")
    words = [sys.executable, "-m", "tests.faults.full_disk"]
    script = [mount]
    for acts in processes:
        line = shlex.join([*words, acts, str(disk), engine, str(path)])
        script.append(line if acts != "fill-and-die" else f"({line}; test $? -eq 137)")
    done = _in_a_namespace(" && ".join(script))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    notes = pickle.loads(path.read_bytes())
    assert isinstance(notes, Notes)
    return notes


def _nothing_is_lost(notes: Notes) -> None:
    assert notes.counted is not None
    # A refused operation must not be stored, so only the acknowledged state is valid, and no later one.
    verdict = judge(notes.counted, {0: Expected(notes.state, notes.next_index)}, SEED, HEAD)
    assert verdict.problems == []
    assert verdict.standing[0].points == notes.state.points


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_a_full_disk_refuses_writes_and_works_again_with_space(engine: str, tmp_path: Path) -> None:
    notes = _play(["fill-and-go-on count"], engine, tmp_path)
    assert notes.acknowledged > 20
    assert set(notes.refused) == {"StoreFull"}
    assert set(notes.while_full) <= {"StoreFull", "ok"}
    assert (notes.after, notes.unflushed) == (20, 0)
    _nothing_is_lost(notes)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", "duckdb"])
def test_a_process_killed_on_a_full_disk_loses_nothing(engine: str, tmp_path: Path) -> None:
    notes = _play(["fill-and-die", "open-on-the-full-disk count"], engine, tmp_path)
    assert set(notes.refused) == {"StoreFull"}
    assert set(notes.while_full) <= {"StoreFull", "ok"}
    assert (notes.after, notes.unflushed) == (20, 0)
    _nothing_is_lost(notes)


@pytest.mark.duckdb
@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_the_columns_do_not_move_without_room_and_move_when_there_is(engine: str, tmp_path: Path) -> None:
    notes = _play(["move count"], engine, tmp_path)
    assert set(notes.while_full) == {"StoreFull"}
    assert notes.moved == [engine] * (len(notes.moved) - 1) + ["sqlite" if engine == "duckdb" else "duckdb"]
    assert notes.left == []
    assert notes.read == [True] * len(notes.moved)
    assert len(notes.moved) == 5
    _nothing_is_lost(notes)


@pytest.mark.duckdb
def test_points_are_not_compacted_without_room_and_compacted_when_there_is(tmp_path: Path) -> None:
    notes = _play(["compact count"], "duckdb", tmp_path)
    assert notes.while_full[0] == "StoreFull"
    assert set(notes.while_full) <= {"StoreFull", "ok"}
    assert len(notes.while_full) == 3
    assert notes.read == [True] * 4
    _nothing_is_lost(notes)


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_points_and_records_are_deleted_with_no_byte_free(engine: str, tmp_path: Path) -> None:
    notes = _play(["delete"], engine, tmp_path, "size=24m")
    assert notes.dropped == [16_000, 16_000, 120, 16_120, 8_000, 24_120]
    assert notes.read == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_a_delivery_waits_on_a_full_disk_and_each_point_arrives_once(engine: str, tmp_path: Path) -> None:
    notes = _play(["deliver"], engine, tmp_path, "size=24m")
    assert set(notes.while_full) == {"ok", "StoreFull"}
    assert notes.read == [True], "all is delivered once there is room"
    assert notes.dropped == [OLD_POINTS, 0]


@pytest.mark.duckdb
def test_an_upgrade_without_space_is_refused_at_once_and_rolled_back_if_forced(tmp_path: Path) -> None:
    make_legacy_store(tmp_path / "legacy", 6_000, 1_000)
    notes = _play(["upgrade"], "duckdb", tmp_path, UPGRADE_DISK)
    *reported, without_any_room = notes.refused
    assert all(
        re.search(r"may need [\d,]+ bytes in .*; nothing was changed", message) for message in reported
    )
    assert "no space left" in without_any_room
    assert set(notes.while_full) == {"StoreFull", "ok"}
    assert {"None None", f"{HEAD} {HEAD}"} <= set(notes.moved)
    assert all(notes.read)
    assert len(reported) + 1 == len(notes.moved) == 4
