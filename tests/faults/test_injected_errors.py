"""Unforeseen errors injected into one call: the background thread and the lease continue after them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from repo.core.flush import Flusher
from repo.errors import HoldfastError
from repo.processes.lease import Lease
from repo.settings import Settings
from repo.store.store import Store


def _within(timeout_s: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + timeout_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def test_the_background_flush_continues_after_an_error_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[int] = []
    original = Flusher.through

    def through(self: Flusher, *arguments: Any) -> Any:
        if len(raised) < 2:
            raised.append(1)
            raise RuntimeError("nobody foresaw this")
        return original(self, *arguments)

    monkeypatch.setattr(Flusher, "through", through)
    with Store(tmp_path, Settings(flush_interval_s=0.02)) as store:
        store.points.insert("site", "pressure", 1.0)
        assert _within(300.0, lambda: len(raised) == 2 and store.status().unflushed == 0)


def test_the_lease_is_granted_even_if_its_note_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    lease = Lease(tmp_path, lambda: 0)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", no_space)
        lease.acquire(1.0, "a test")
    assert lease.held
    lease.close()


@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_an_error_of_the_engine_while_opening_is_a_typed_one_and_leaves_nothing_open(
    engine: Any, tmp_path: Path
) -> None:
    with Store(tmp_path, Settings(engine=engine, background=False)) as store:
        store.points.insert("site", "pressure", 1.0)
        store.flush()

        def fail(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if "timeseries_state" in statement:
                raise OperationalError(statement, parameters, Exception("the disk is gone"))

        event.listen(Engine, "before_cursor_execute", fail)
        try:
            with pytest.raises(HoldfastError, match="timeseries"):
                store.flush()
        finally:
            event.remove(Engine, "before_cursor_execute", fail)
        assert store.status().holder is None
        assert len(list(store.points.range("site", "pressure"))) == 1


@pytest.mark.duckdb
def test_an_error_that_invalidates_a_duckdb_instance_is_distinguished_from_others(tmp_path: Path) -> None:
    import duckdb

    from repo.engines.duckdb import driver as engines

    fatal = duckdb.FatalException("FATAL Error: Failed to create checkpoint")
    wrapped = OperationalError("CHECKPOINT", {}, fatal)
    typed = engines.typed_error(wrapped, tmp_path)
    typed.__cause__ = wrapped
    assert all(engines.is_fatal(error) for error in (fatal, wrapped, typed))
    assert not engines.is_fatal(duckdb.IOException("IO Error: No space left on device"))
    assert not engines.is_fatal(ValueError("another"))
