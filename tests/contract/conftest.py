"""Fixtures of several contract test modules."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from tests.conftest import Clock, Templates
from tests.contract.test_parquet_export import fill


@pytest.fixture(scope="module")
def _exported(tmp_path_factory: pytest.TempPathFactory, templates: Templates) -> Callable[[Any], Path]:
    home = tmp_path_factory.mktemp("exported")

    def made(engine: Any) -> Path:
        """A folder with a store and its bundle, created once per module."""
        place: Path = home / engine
        if not place.exists():
            templates.copy(engine, 1, place / "source")
            with Store(place / "source", Settings(engine=engine, background=False)) as source:
                fill(source)
                source.export_parquet(place / "bundle", partition="day")
        return place

    return made


@pytest.fixture
def bundle(_exported: Callable[[Any], Path], engine: str, tmp_path: Path) -> Path:
    """A bundle of three files, next to its closed store, `source`."""
    shutil.copytree(_exported(engine), tmp_path, dirs_exist_ok=True)
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def _stores_of_the_module() -> Iterator[dict[str, Store]]:
    stores: dict[str, Store] = {}
    yield stores
    for store in stores.values():
        store.close()


@pytest.fixture
def shared_store(
    _stores_of_the_module: dict[str, Store],
    tmp_path_factory: pytest.TempPathFactory,
    templates: Templates,
    engine: Any,
) -> Store:
    """A store that the tests of a module share; they change nothing that another test would see."""
    if engine not in _stores_of_the_module:
        folder = tmp_path_factory.mktemp("shared") / "store"
        templates.copy(engine, 1, folder)
        store = Store(folder, Settings(engine=engine, background=False), clock=Clock())
        store._handle.columns.stays_open = True
        _stores_of_the_module[engine] = store
    return _stores_of_the_module[engine]


@pytest.fixture
def unwritten(shared_store: Store) -> Iterator[Store]:
    """An empty store that the tests of refusals in a module share; it is empty after each test."""
    assert shared_store.sinks.last_seq() == 0
    yield shared_store
    assert shared_store.sinks.last_seq() == 0
    assert shared_store.records.count() == 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the combinations of engine and `bulk_rows` that cover little more than the others.

    SQLite has only one write path for tables. The forms of tables and of their cells are read before the write path is
    chosen: straight to the columns on DuckDB, and through the journal on SQLite, cover each path once.
    """
    for item in items:
        parameters = getattr(item, "callspec", None)
        of_the_test = {mark.args[0] for mark in item.iter_markers("parametrize")}
        if parameters is None or "bulk_rows" in of_the_test:
            continue
        combination = (parameters.params.get("engine"), parameters.params.get("bulk_rows"))
        if combination == ("sqlite", 1) or (
            combination == ("duckdb", 100_000) and not of_the_test.isdisjoint({"form", "case"})
        ):
            item.add_marker(pytest.mark.slow)
