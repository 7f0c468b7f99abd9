"""A kill in the middle of a CHECKPOINT, which DuckDB does not survive by itself, because it writes in place."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store, StoreCorrupt
from repo.clock import system_clock
from repo.engines.registry import LEGACY, traits_of
from tests.starter import Starter

checkpoint: Any = pytest.importorskip("repo.engines.duckdb.checkpoint")
driver: Any = pytest.importorskip("repo.engines.duckdb.driver")

pytestmark = pytest.mark.duckdb

SETTINGS = Settings(background=False, engine="duckdb")
HEADERS = 12_288
BLOCK = 262_144
SECTOR = 512


def fill(folder: Path) -> list[tuple[str, int, float]]:
    """A store with some rows in its file, and others only in DuckDB's log."""
    rows = [(f"s{at % 7}", "m", at, float(at)) for at in range(6000)]
    with Store(folder, SETTINGS) as store:
        store.points.insert_many(rows[:4000])
        store.checkpoint()
        store.points.delete("s3", end=1000)
        store.points.insert_many(rows[4000:])
        store.flush()
    return [(s, at, value) for s, _, at, value in rows if not (s == "s3" and at < 1000)]


@pytest.fixture
def torn_store(
    _torn: tuple[Path, list[tuple[str, int, float]]], tmp_path: Path
) -> tuple[Path, list[tuple[str, int, float]]]:
    """The store after a checkpoint has written its data and half of its metadata block, but not its header."""
    made, wanted = _torn
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store", wanted


@pytest.fixture(scope="module")
def _torn(tmp_path_factory: pytest.TempPathFactory, seed: int) -> tuple[Path, list[tuple[str, int, float]]]:
    rng = random.Random(seed)
    home = tmp_path_factory.mktemp("torn")
    folder = home / "store"
    wanted = fill(folder)
    after = home / "after"
    shutil.copytree(folder, after)
    with Store(after, SETTINGS) as store:
        store.checkpoint()
    path = folder / "timeseries.duckdb"
    old, new = path.read_bytes(), (after / "timeseries.duckdb").read_bytes()
    image = bytearray(new + old[len(new) :])
    image[:HEADERS] = old[:HEADERS]
    for place in range(HEADERS, HEADERS + BLOCK, SECTOR):
        if rng.random() < 0.5:
            image[place : place + SECTOR] = old[place : place + SECTOR]
    path.write_bytes(image)
    # The checkpoint of the copy began with the same file.
    note = checkpoint.note_path(after / "timeseries.duckdb").read_bytes()
    checkpoint.note_path(path).write_bytes(b"1" + note[1:])
    return folder, wanted


def stored(folder: Path) -> list[tuple[str, int, float]]:
    with Store(folder, SETTINGS) as store:
        store._handle.columns.stays_open = True
        rows = [
            (r["sensor_id"], r["timestamp_us"] // 10**6, r["value"]) for r in store.points.range(None, None)
        ]
        assert sum(series.points for series in store.series.list()) == len(rows)
        store.checkpoint()
    return sorted(rows, key=lambda row: row[1])


@pytest.mark.parametrize("proved", [True, False], ids=["proved", "noted by an earlier version"])
def test_a_checkpoint_torn_by_a_kill_is_repaired_and_nothing_is_lost(
    torn_store: tuple[Path, list[tuple[str, int, float]]], proved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder, wanted = torn_store
    if not proved:
        checkpoint.note_path(folder / "timeseries.duckdb").write_bytes(b"1")
    for _ in range(2):
        assert stored(folder) == wanted
    assert checkpoint.read_note(folder / "timeseries.duckdb") is None
    assert ("damage cannot be ruled out" in caplog.text) is not proved


@pytest.mark.parametrize("command", [["current"], ["upgrade", "head"]], ids=" ".join)
def test_the_alembic_command_repairs_a_torn_checkpoint_as_a_store_does(
    torn_store: tuple[Path, list[tuple[str, int, float]]], command: list[str], starter: Starter
) -> None:
    folder, wanted = torn_store
    done = starter.run(["-m", "alembic", "-x", f"path={folder}", *command])
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkpoint.read_note(folder / "timeseries.duckdb") is None
    assert stored(folder) == wanted


def test_a_checkpoint_after_a_schema_change_is_recorded_with_its_proof(tmp_path: Path) -> None:
    with Store(tmp_path, SETTINGS) as store:
        store.points.insert_many([(f"s{at % 7}", "m", at, float(at)) for at in range(4000)])
        store.checkpoint()
    path = tmp_path / "timeseries.duckdb"
    engine = LEGACY.open(path, tmp_path / "tmp", SETTINGS, system_clock).open()
    try:
        with engine.execution_options(any_option=True).connect() as connection:
            traits_of(connection).checkpoint_ddl(connection)
    finally:
        driver.close_engine(engine)
    note = checkpoint.note_path(path)
    note.write_bytes(b"1" + note.read_bytes()[1:])
    found = checkpoint.read_note(path)
    assert found is not None
    assert found.blocks


def test_a_flipped_bit_is_damage_even_if_a_checkpoint_was_running(
    torn_store: tuple[Path, list[tuple[str, int, float]]], seed: int
) -> None:
    folder, _ = torn_store
    path = folder / "timeseries.duckdb"
    note = checkpoint.read_note(path)
    assert note is not None
    assert note.blocks
    [(block, (used, _))] = note.blocks.items()
    whole = path.read_bytes()
    rng = random.Random(seed)
    for at in (at for at in range(64) if used & 1 << at):
        image = bytearray(whole)
        image[HEADERS + block * BLOCK + 8 + at * 4088 + rng.randrange(4088)] ^= 1 << rng.randrange(8)
        path.write_bytes(image)
        with pytest.raises(StoreCorrupt, match="checksum"):
            stored(folder)
        assert path.read_bytes() == image
    path.write_bytes(whole)
    stored(folder)


def test_an_incomplete_note_is_ignored(torn_store: tuple[Path, list[tuple[str, int, float]]]) -> None:
    folder, _ = torn_store
    note = checkpoint.note_path(folder / "timeseries.duckdb")
    content = note.read_bytes()
    for wrong in (b"", content[:2], content[:-1], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
        note.write_bytes(wrong)
        with pytest.raises(StoreCorrupt, match="checksum"):
            stored(folder)
    note.write_bytes(content)
    stored(folder)


def test_without_a_running_checkpoint_the_same_is_damage(
    torn_store: tuple[Path, list[tuple[str, int, float]]],
) -> None:
    folder, _ = torn_store
    path = folder / "timeseries.duckdb"
    before = path.read_bytes()
    checkpoint.forget(path)
    with pytest.raises(StoreCorrupt, match="checksum"):
        stored(folder)
    assert path.read_bytes() == before


def test_a_checkpoint_that_was_recorded_but_never_began_changes_nothing(tmp_path: Path) -> None:
    wanted = fill(tmp_path)
    checkpoint.note_path(tmp_path / "timeseries.duckdb").write_bytes(b"1")
    assert stored(tmp_path) == wanted


def test_a_failed_checkpoint_stays_recorded(tmp_path: Path) -> None:
    path = tmp_path / "columns"
    with suppress(ZeroDivisionError), checkpoint.noted(path):
        assert checkpoint.read_note(path)
        _ = 1 / 0
    assert checkpoint.read_note(path)
    with checkpoint.noted(path):
        pass
    assert checkpoint.read_note(path) is None
