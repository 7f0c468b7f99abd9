"""A store that the legacy program left has, once upgraded, the very schema of a new one."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from repo import Settings, Store
from repo.store.migrating import migrate_store
from tests.migrations.legacy_store import make_legacy_store
from tests.migrations.structure import structure_of

OpenEngine = Callable[[Path], Engine]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def _copy(source: Path, target: Path) -> None:
    """Copy a sample, which may be packed, with its log."""
    packed = source.with_name(source.name + ".xz")
    if not source.exists() and not packed.exists():
        pytest.skip(f"the legacy samples are not at hand: {source}")
    target.parent.mkdir(exist_ok=True)
    if packed.exists():
        with lzma.open(packed) as content, target.open("wb") as out:
            shutil.copyfileobj(content, out)
    for tail in ("", ".wal", "-wal"):
        if (file := source.with_name(source.name + tail)).exists():
            shutil.copyfile(file, target.with_name(target.name + tail))


def _generated(folder: Path) -> None:
    make_legacy_store(folder, points=500, records=20)


def _empty(folder: Path) -> None:
    make_legacy_store(folder, points=0, records=0)


def _samples(metadata: str, columns: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _copy(DATA / metadata, folder / "offline_buffer.db")
        _copy(DATA / columns, folder / "timeseries.duckdb")

    return make


MADE: dict[str, Callable[[Path], None]] = {
    "generated": _generated,
    "generated, empty": _empty,
    "legacy": _samples("legacy/offline_buffer.db", "legacy/timeseries.duckdb"),
    "legacy with a log": _samples("legacy/offline_buffer_wal.db", "legacy/timeseries.duckdb"),
    "legacy, odd": _samples("legacy/offline_buffer_odd.db", "legacy/timeseries.duckdb"),
    "legacy_store": _samples("legacy_store/offline_buffer.db", "legacy_store/timeseries.duckdb"),
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store, closed."""
    folder = tmp_path_factory.mktemp("fresh") / "store"
    with Store(folder, Settings(engine="duckdb", background=False)) as store:
        store.points.insert("s", "m", 1.0)
        store.flush()  # the columns are made when they are first needed
    return folder


@pytest.mark.parametrize("kind", MADE)
def test_a_legacy_store_that_was_upgraded_in_place_is_made_as_a_new_one_is(
    kind: str, fresh: Path, tmp_path: Path, open_engine: OpenEngine
) -> None:
    folder = tmp_path / "store"
    MADE[kind](folder)
    migrate_store(folder)
    for name in ("offline_buffer.db", "timeseries.duckdb"):
        found, wanted = structure_of(open_engine(folder / name)), structure_of(open_engine(fresh / name))
        assert found.keys() == wanted.keys()
        for what in wanted:
            assert found[what] == wanted[what], f"{name}, {what}"
