"""On a full disk writes raise `StoreFull`, nothing acknowledged is lost, and writes work again when there is space.

The disk is a tmpfs of a few megabytes that only the processes of the test see.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from repo.schema.version import HEAD
from tests.faults.full_disk import NO_TINY_DISK, OLD_POINTS, SEED, Notes
from tests.faults.judge import Expected, judge
from tests.migrations.legacy_store import make_legacy_store
from tests.starter import Starter

DISK = "8m"
SMALL_DISK = "6656k"
"""It is full after some fifty operations."""
UPGRADE_DISK = "32m"


Play = Callable[..., Notes]


@pytest.fixture
def play(starter: Starter, tmp_path: Path) -> Play:
    """Run processes with their acts on a tiny disk, and return their notes."""

    def run(*processes: str, engine: str = "duckdb", size: str = DISK) -> Notes:
        folder, path = tmp_path / "disk", tmp_path / "notes"
        folder.mkdir()
        done = starter.run(["-m", "tests.faults.full_disk", size, folder, engine, path, *processes])
        if done.returncode == NO_TINY_DISK:
            pytest.skip(f"a tiny disk needs user and mount namespaces: {done.stderr}")
        assert done.returncode == 0, done.stderr[-4000:]
        assert "Traceback" not in done.stderr
        notes = pickle.loads(path.read_bytes())
        assert isinstance(notes, Notes)
        return notes

    return run


def _nothing_is_lost(notes: Notes) -> None:
    assert notes.counted is not None
    # A refused operation must not be stored, so only the acknowledged state is valid, and no later one.
    verdict = judge(notes.counted, {0: Expected(notes.state, notes.next_index)}, SEED, HEAD)
    assert verdict.problems == []
    assert verdict.standing[0].points == notes.state.points


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_a_full_disk_refuses_writes_and_works_again_with_space(engine: str, play: Play) -> None:
    notes = play("fill-and-go-on count", engine=engine, size=SMALL_DISK)
    assert notes.acknowledged > 20
    assert set(notes.refused) == {"StoreFull"}
    assert set(notes.while_full) <= {"StoreFull", "ok"}
    assert (notes.after, notes.unflushed) == (20, 0)
    _nothing_is_lost(notes)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", "duckdb"])
def test_a_process_killed_on_a_full_disk_loses_nothing(engine: str, play: Play) -> None:
    notes = play("fill-and-die", "open-on-the-full-disk count", engine=engine)
    assert set(notes.refused) == {"StoreFull"}
    assert set(notes.while_full) <= {"StoreFull", "ok"}
    assert (notes.after, notes.unflushed) == (20, 0)
    _nothing_is_lost(notes)


@pytest.mark.duckdb
@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_the_columns_do_not_move_without_room_and_move_when_there_is(engine: str, play: Play) -> None:
    notes = play("move count", engine=engine)
    assert set(notes.while_full) == {"StoreFull"}
    assert notes.moved == [engine] * (len(notes.moved) - 1) + ["sqlite" if engine == "duckdb" else "duckdb"]
    assert notes.left == []
    assert notes.read == [True] * len(notes.moved)
    assert len(notes.moved) == 5
    _nothing_is_lost(notes)


@pytest.mark.duckdb
def test_points_are_not_compacted_without_room_and_compacted_when_there_is(play: Play) -> None:
    notes = play("compact count")
    assert notes.while_full[0] == "StoreFull"
    assert set(notes.while_full) <= {"StoreFull", "ok"}
    assert len(notes.while_full) == 3
    assert notes.read == [True] * 4
    _nothing_is_lost(notes)


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_points_and_records_are_deleted_with_no_byte_free(engine: str, play: Play) -> None:
    notes = play("delete", engine=engine, size="24m")
    assert notes.dropped == [16_000, 16_000, 120, 16_120, 8_000, 24_120]
    assert notes.read == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_a_delivery_waits_on_a_full_disk_and_each_point_arrives_once(engine: str, play: Play) -> None:
    notes = play("deliver", engine=engine, size="24m")
    assert set(notes.while_full) == {"ok", "StoreFull"}
    assert notes.read == [True], "all is delivered once there is room"
    assert notes.dropped == [OLD_POINTS, 0]


@pytest.mark.duckdb
def test_an_upgrade_without_space_is_refused_at_once_and_rolled_back_if_forced(
    play: Play, tmp_path: Path
) -> None:
    make_legacy_store(tmp_path / "legacy", 6_000, 1_000)
    notes = play("upgrade", size=UPGRADE_DISK)
    *reported, without_any_room = notes.refused
    assert all(
        re.search(r"may need [\d,]+ bytes in .*; nothing was changed", message) for message in reported
    )
    assert "no space left" in without_any_room
    assert set(notes.while_full) == {"StoreFull", "ok"}
    assert {"None None", f"{HEAD} {HEAD}"} <= set(notes.moved)
    assert all(notes.read)
    assert len(reported) + 1 == len(notes.moved) == 4
