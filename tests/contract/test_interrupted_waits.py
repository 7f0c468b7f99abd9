"""Ctrl-C leaves no lock on which another thread waits forever, and no open statement that blocks a checkpoint."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
from sqlalchemy.pool import impl
from sqlalchemy.util import queue

from repo.core import background, keep_open, metadata, stop, undisturbed
from repo.core.stop import Stop
from repo.engines import bare, base
from repo.engines.sqlite import pool
from tests.conftest import OpenStore
from tests.interrupts import interrupted

pytestmark = pytest.mark.closes_columns


def files_of(*modules: ModuleType) -> set[str]:
    return {str(module.__file__) for module in modules}


def ends(work: Callable[[], object]) -> bool:
    """Run the work in another thread; False if it hangs."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()


def test_an_interrupted_read_of_the_metadata_leaves_other_threads_free_to_read(open_store: OpenStore) -> None:
    store = open_store()
    files = files_of(threading, impl, queue, pool, bare, metadata)
    for nth in itertools.count(1):
        was_interrupted = interrupted(files, nth, store.status)
        assert ends(store.status), nth
        if not was_interrupted:
            assert nth > 2
            return


@pytest.mark.slow_on("duckdb")
def test_an_interrupted_read_does_not_block_a_checkpoint(open_store: OpenStore) -> None:
    store = open_store()
    store._handle.columns.stays_open = True
    store.points.insert_many([("a", "m", float(second), 1.0) for second in range(300)])
    read = store.points.range("a", "m").all
    gc.disable()  # it would close what an interrupt leaves open
    try:
        for nth in itertools.count(1):
            was_interrupted = interrupted(files_of(base, bare), nth, read)
            store.points.insert("a", "m", 2.0, timestamp=300.0 + nth)
            store.checkpoint()
            if not was_interrupted:
                assert nth > 5
                break
    finally:
        gc.enable()
    assert store.points.aggregate("a", "m", agg="count")[0]["count"] == 300 + nth


def test_a_thread_ends_even_if_the_request_to_end_was_interrupted() -> None:
    for nth in itertools.count(1):
        asked = Stop()
        was_interrupted = interrupted(files_of(threading, stop), nth, asked.ask)
        asked.ask()
        assert ends(partial(asked.wait, 600.0)), nth
        if not was_interrupted:
            return


@pytest.mark.slow_on("duckdb")
def test_a_job_and_a_store_end_their_threads_even_if_their_start_was_interrupted(
    open_store: OpenStore,
) -> None:
    files = files_of(threading, background, keep_open, undisturbed)

    def job() -> None:
        with keep_open.kept_open(store._handle.columns):
            pass

    for nth in itertools.count(1):
        store = open_store()
        was_interrupted = interrupted(files, nth, job)
        assert ends(store.close), nth
        if not was_interrupted:
            assert nth > 10
            return
