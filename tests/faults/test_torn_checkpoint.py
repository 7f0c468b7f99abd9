"""A kill in the middle of a CHECKPOINT, which DuckDB 2.0.0 does not survive by itself: it writes in place."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from repo import Settings, Store, StoreCorrupt
from repo.engines import torn

pytestmark = pytest.mark.duckdb

SETTINGS = Settings(background=False, engine="duckdb")
HEADERS = 12_288
BLOCK = 262_144
SECTOR = 512


def fill(folder: Path) -> list[tuple[str, int, float]]:
    """A store with rows in its file, and others in DuckDB's log alone."""
    rows = [(f"s{at % 7}", "m", at, float(at)) for at in range(6000)]
    with Store(folder, SETTINGS) as store:
        store.points.insert_many(rows[:4000])
        store.checkpoint()
        store.points.delete("s3", end=1000)
        store.points.insert_many(rows[4000:])
        store.flush()
    return [(s, at, value) for s, _, at, value in rows if not (s == "s3" and at < 1000)]


@pytest.fixture
def torn_store(tmp_path: Path, seed: int) -> tuple[Path, list[tuple[str, int, float]]]:
    """The store as it is when a checkpoint's data and half of its metadata block are written, not its header."""
    rng = random.Random(seed)
    folder = tmp_path / "store"
    wanted = fill(folder)
    after = tmp_path / "after"
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
    return folder, wanted


def stored(folder: Path) -> list[tuple[str, int, float]]:
    with Store(folder, SETTINGS) as store:
        rows = [
            (r["sensor_id"], r["timestamp_us"] // 10**6, r["value"]) for r in store.points.range(None, None)
        ]
        assert sum(series.points for series in store.series.list()) == len(rows)
        store.checkpoint()
    return sorted(rows, key=lambda row: row[1])


def test_a_checkpoint_torn_by_a_kill_is_mended_and_nothing_is_lost(
    torn_store: tuple[Path, list[tuple[str, int, float]]],
) -> None:
    folder, wanted = torn_store
    torn.note_path(folder / "timeseries.duckdb").write_bytes(b"1")
    for _ in range(2):
        assert stored(folder) == wanted
    assert not torn.is_noted(folder / "timeseries.duckdb")


def test_without_a_checkpoint_under_way_the_same_is_damage(
    torn_store: tuple[Path, list[tuple[str, int, float]]],
) -> None:
    folder, _ = torn_store
    path = folder / "timeseries.duckdb"
    before = path.read_bytes()
    assert not torn.is_noted(path), "the last checkpoint was done"
    with pytest.raises(StoreCorrupt, match="checksum"):
        stored(folder)
    assert path.read_bytes() == before


def test_a_checkpoint_that_was_noted_and_never_began_changes_nothing(tmp_path: Path) -> None:
    wanted = fill(tmp_path)
    torn.note_path(tmp_path / "timeseries.duckdb").write_bytes(b"1")
    assert stored(tmp_path) == wanted


def test_a_checkpoint_that_fails_stays_noted(tmp_path: Path) -> None:
    path = tmp_path / "columns"
    with suppress(ZeroDivisionError), torn.noted(path):
        assert torn.is_noted(path)
        _ = 1 / 0
    assert torn.is_noted(path)
    with torn.noted(path):
        pass
    assert not torn.is_noted(path)
