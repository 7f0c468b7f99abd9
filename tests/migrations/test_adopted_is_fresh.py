"""A store that the legacy program left has, once upgraded, the very schema of a new one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from repo import Settings, Store
from repo.schema.upgrade import migrate_store
from tests.assets.unpack import LEGACY, unpack
from tests.migrations.legacy_store import make_legacy_store
from tests.migrations.structure import structure_of

OpenEngine = Callable[[Path], Engine]


def _generated(folder: Path) -> None:
    make_legacy_store(folder, points=500, records=20)


def _empty(folder: Path) -> None:
    make_legacy_store(folder, points=0, records=0)


def _samples(metadata: str, columns: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        unpack(LEGACY / metadata, folder / "offline_buffer.db")
        unpack(LEGACY / columns, folder / "timeseries.duckdb")

    return make


def _whole_store(folder: Path) -> None:
    """Copy the large store that lies beside some checkouts."""
    source = Path(__file__).resolve().parents[3] / "shared" / "data" / "legacy_store"
    if not source.exists():
        pytest.skip(f"the legacy store is missing: {source}")
    folder.mkdir()
    for name in ("offline_buffer.db", "timeseries.duckdb"):
        shutil.copyfile(source / name, folder / name)


MADE: dict[str, Callable[[Path], None]] = {
    "generated": _generated,
    "generated, empty": _empty,
    "legacy": _samples("offline_buffer.db", "timeseries.duckdb"),
    "legacy with a log": _samples("offline_buffer_wal.db", "timeseries.duckdb"),
    "legacy, odd": _samples("offline_buffer_odd.db", "timeseries.duckdb"),
    "written by the legacy program": _whole_store,
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
def test_a_legacy_store_that_was_upgraded_in_place_has_the_layout_of_a_new_one(
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
