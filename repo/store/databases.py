"""The databases of a store, opened one by one while no store is open: for migrations. Takes no lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from repo.clock import Clock
from repo.engines import sqlite
from repo.errors import HoldfastError
from repo.files import StoreFiles
from repo.schema.targets import Target
from repo.settings import Settings
from repo.store.backends import Backend, DuckDBBackend, backend_for

__all__ = ["REWRITE_FACTOR", "backend_of", "in_pieces", "opened", "typed"]

REWRITE_FACTOR = {"duckdb": 1.0, "sqlite": 3.5}
"""What writing a table anew may take, by the size of the file; SQLite writes it to its log, too, and folds that."""


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


def in_pieces(total_bytes: int, progress: Callable[[int, int], object]) -> Callable[[int], None]:
    """Return what is told the bytes of each piece of a job, and tells `progress` how many of how many are done."""
    done_bytes = 0

    def tell(piece_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes = min(total_bytes, done_bytes + piece_bytes)
        progress(done_bytes, total_bytes)

    return tell
