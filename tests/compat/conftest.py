"""Buffers and storages by the documented classes, on both engines; all are shut down at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import DuckDBTimeSeriesStorage, OfflineBufferManager
from tests.conftest import Templates

MakeBuffer = Callable[..., OfflineBufferManager]
MakeStorage = Callable[..., DuckDBTimeSeriesStorage]

VARIABLES = (
    "USE_DUCKDB",
    "DUCKDB_STORAGE_PATH",
    "DUCKDB_MAX_SIZE_MB",
    "OFFLINE_BUFFER_PATH",
    "OFFLINE_BUFFER_MAX_SIZE",
    "OFFLINE_BUFFER_MAX_SIZE_MB",
    "OFFLINE_BUFFER_CLEANUP_INTERVAL",
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    # The background thread of a buffer may flush for longer than a call waits by default, on a busy machine.
    monkeypatch.setenv("HOLDFAST_LEASE_TIMEOUT_S", "60")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_buffer(tmp_path: Path, engine: str, templates: Templates) -> Iterator[MakeBuffer]:
    """Make buffers; a new one is a copy of an empty store."""
    made: list[OfflineBufferManager] = []

    def make(name: str = "buffer", **arguments: Any) -> OfflineBufferManager:
        given = {"use_duckdb": engine == "duckdb"} | arguments
        if not (tmp_path / name).exists():
            templates.copy("duckdb" if given["use_duckdb"] else "sqlite", len(made) + 1, tmp_path / name)
        made.append(OfflineBufferManager(tmp_path / name, **given))
        return made[-1]

    yield make
    for buffer in made:
        buffer.shutdown()


@pytest.fixture
def buffer(make_buffer: MakeBuffer) -> OfflineBufferManager:
    return make_buffer()


class StorageTemplates:
    """Empty storages, made when they are first needed and copied from then on, like `Templates`."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def copy(self, engine: str, number: int, path: Path) -> None:
        """Put an empty storage where none is; `HOLDFAST_ENGINE` is set to the engine."""
        template = self._home / f"{engine}-{number}"
        if not template.exists():
            storage = DuckDBTimeSeriesStorage(str(template / "template.duckdb"))
            storage.query_latest("nobody")  # creates the columns
            storage.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in template.iterdir():
            if file.suffix != ".lock":
                shutil.copyfile(file, path.parent / file.name.replace("template", path.stem, 1))


@pytest.fixture(scope="session")
def storage_templates(tmp_path_factory: pytest.TempPathFactory) -> StorageTemplates:
    """The templates of this test process."""
    return StorageTemplates(tmp_path_factory.mktemp("storage-templates"))


@pytest.fixture
def make_storage(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch, storage_templates: StorageTemplates
) -> Iterator[MakeStorage]:
    """Make storages; on SQLite as where DuckDB does not exist."""
    monkeypatch.setenv("HOLDFAST_ENGINE", engine)
    made: list[DuckDBTimeSeriesStorage] = []

    def make(name: str = "edge/points.duckdb", **arguments: Any) -> DuckDBTimeSeriesStorage:
        path = tmp_path / name
        if not path.with_name(f"{path.name}.meta.db").exists():
            storage_templates.copy(engine, len(made) + 1, path)
        made.append(DuckDBTimeSeriesStorage(str(path), **arguments))
        return made[-1]

    yield make
    for storage in made:
        storage.close()


@pytest.fixture
def storage(make_storage: MakeStorage) -> DuckDBTimeSeriesStorage:
    return make_storage()
