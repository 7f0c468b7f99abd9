"""The databases of a store, opened one by one while no store is open: for migrations. Takes no lease."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from repo.clock import Clock
from repo.engines import sqlite
from repo.errors import HoldfastError
from repo.files import StoreFiles
from repo.schema.targets import Target
from repo.settings import Settings
from repo.store.backends import Backend, DuckDBBackend, backend_for

__all__ = ["REWRITE_FACTOR", "backend_of", "by_disk", "opened", "typed"]

REWRITE_FACTOR = {"duckdb": 1.0, "sqlite": 3.5}
"""What writing a table anew may take, by the size of the file; SQLite writes it to its log, too, and folds that."""


def by_disk(wanted: Iterable[tuple[Path, int]]) -> dict[Path, int]:
    """Add up the bytes that are wanted in folders, for each file system, by the first of its folders."""
    disks: dict[int, Path] = {}
    needed: dict[Path, int] = {}
    for folder, size_bytes in wanted:
        place = disks.setdefault(folder.stat().st_dev, folder)
        needed[place] = needed.get(place, 0) + size_bytes
    return needed


def backend_of(target: Target, files: StoreFiles, settings: Settings, clock: Clock) -> Backend | None:
    """Return the backend of columns, which sets no damaged log aside; None for the metadata, which have none."""
    if target.database == "metadata":
        return None
    backend = backend_for(target.engine, files, settings, clock)
    if isinstance(backend, DuckDBBackend):
        backend.log_is_spare = False  # of the legacy program's log, no journal has anything
    return backend


@contextmanager
def opened(
    target: Target, backend: Backend | None, settings: Settings, *, looking: bool = False
) -> Iterator[Engine]:
    """Open it for the block; the caller holds the lease. Only columns have a backend."""
    if backend is None:
        engine = sqlite.open_engine(
            target.path, busy_timeout_s=max(30.0, settings.busy_timeout_s), looking=looking
        )
        try:
            yield engine
        finally:
            engine.dispose()
    else:
        engine = backend.open()
        try:
            yield engine
        finally:
            backend.close(engine)


@contextmanager
def typed(target: Target, backend: Backend | None) -> Iterator[None]:
    """Translate what its engine raises."""
    try:
        yield
    except HoldfastError:
        raise
    except Exception as error:
        if backend is None:
            raise sqlite.typed_error(error, target.path) from error
        raise backend.typed_error(error) from error
