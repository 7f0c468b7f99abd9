"""One database of a store, opened by itself: for migrations, while no store is open on it. Takes no lease."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from repo.engines import sqlite
from repo.errors import HoldfastError
from repo.schema.targets import Target
from repo.settings import Settings
from repo.store.backends import Backend

__all__ = ["opened", "typed"]


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
