"""The gate of the columns: an interrupt leaves it usable, readers do not starve others, a long flush gives way."""

from __future__ import annotations

import errno
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from repo.core import columns as columns_module
from repo.core import gate as gate_module
from repo.core import handle as handle_module
from repo.core import undisturbed as undisturbed_module
from repo.engines.duckdb.backend import DuckDBBackend
from repo.engines.sqlite.backend import SQLiteBackend
from repo.errors import StoreFull
from repo.repositories.apply import apply
from tests.conftest import move_columns
from tests.interrupts import interrupted

pytestmark = pytest.mark.closes_columns

FILES = tuple(str(module.__file__) for module in (columns_module, gate_module, undisturbed_module))


@pytest.mark.slow_on("duckdb")
@pytest.mark.parametrize("use", ["read", "flush"])
def test_an_interrupt_anywhere_in_the_gate_leaves_it_usable(use: str, open_store: Any) -> None:
    store, other = open_store(lease_timeout_s=60.0), open_store(lease_timeout_s=60.0)
    store.points.insert("a", "m", 1.0, timestamp=1)
    columns = store._handle.columns

    def read() -> None:
        with columns.shared("a test", lambda: True, lambda _: True):
            pass

    def flush() -> None:
        with columns.alone("a test"):
            pass

    call = read if use == "read" else flush
    for nth in range(1, 1_000):
        was_interrupted = interrupted(FILES, nth, call)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(store.flush()))  # noqa: B023
        thread.start()
        thread.join()
        assert found == [1]
        if nth % 10 == 1:
            assert other.flush() == 1
        if not was_interrupted:
            break
    assert nth > 10


def test_a_checkpoint_that_fails_says_so_and_the_next_one_works(
    open_store: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    with monkeypatch.context() as patched:
        patched.setattr(DuckDBBackend if engine == "duckdb" else SQLiteBackend, "checkpoint", full)
        with pytest.raises(StoreFull):
            store.checkpoint()
    assert store.checkpoint() == 1
    assert store.status().journal_rows == 0


def test_a_read_does_not_block_another_read(open_store: Any) -> None:
    store = open_store(background=True, busy_timeout_s=5.0)
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    with store._handle.reading("a long read"):
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(len(store.points.range("a", "m").all())))
        thread.start()
        thread.join(300)
        assert found == [1]


def test_readers_that_overlap_let_another_process_have_its_turn(open_store: Any) -> None:
    store, other = (
        open_store(background=True),
        open_store(lease_timeout_s=300.0),
    )  # flock also works between handles of one process
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with store._handle.reading("a test"):
                time.sleep(0.02)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert other.flush() == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow_on("duckdb")
def test_a_read_during_a_long_flush_waits_for_it_past_its_deadline(
    open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time goes on with the batches of the flush alone, and each lasts until the read has looked for progress."""
    now_s, looks, has_read = 0.0, 0, threading.Event()
    timeout_s, batch_s, batches = 0.4, 0.15, 8
    monkeypatch.setattr(gate_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(handle_module, "PROCESS_TURN_S", 1e6)  # the flush does not give way
    store, other = open_store(flush_batch_points=10), open_store(lease_timeout_s=timeout_s)
    look = other._handle.columns._progress

    def look_and_count() -> object:
        nonlocal looks
        looks += 1
        return look()

    def apply_slowly(*args: Any, **options: Any) -> Any:
        nonlocal now_s
        while not (store._handle.columns.is_awaited(by_processes=True) or has_read.is_set()):
            time.sleep(0.001)
        looked = looks
        now_s += batch_s
        while looks == looked and not has_read.is_set():
            time.sleep(0.001)
        return apply(*args, **options)

    other._handle.columns.watch(look_and_count)
    for start in range(0, batches * 10, 10):
        store.points.insert_many([("a", "m", start + at, 1.0) for at in range(10)])
    monkeypatch.setattr("repo.core.work.apply", apply_slowly)
    thread = threading.Thread(target=store.flush)
    thread.start()
    while not store._handle.columns.is_open and thread.is_alive():
        time.sleep(0.001)
    try:
        assert len(other.points.range("a", "m", 0, 10).all()) == 10
    finally:
        has_read.set()
        thread.join()
    assert now_s == pytest.approx(batches * batch_s)
    assert now_s > timeout_s
    assert store.status().unflushed == 0


@pytest.mark.slow_on("sqlite")
@pytest.mark.duckdb
@pytest.mark.parametrize("job", ["move", "shrink"])
def test_a_job_that_needs_the_columns_alone_gives_way_while_it_flushes(
    open_store: Any, engine: str, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_module, "THREAD_TURN_S", 0.0)
    store = open_store(flush_batch_points=50)
    for start in range(0, 500, 50):
        store.points.insert_many([("a", "m", start + at, 1.0) for at in range(50)])
    columns, flusher = store._handle.columns, store._handle.flusher
    entered_at: list[int] = []

    def enter() -> None:
        with columns.alone("a test"):
            entered_at.append(flusher.watermark)

    waiting = threading.Thread(target=enter)
    commit = flusher.commit

    def commit_while_another_waits(*arguments: Any) -> Any:
        if waiting.ident is None:
            waiting.start()
            while not columns.is_awaited(by_processes=False):
                time.sleep(0.001)
        return commit(*arguments)

    monkeypatch.setattr(flusher, "commit", commit_while_another_waits)
    if job == "shrink":
        store.shrink()
    else:
        move_columns(store)
    waiting.join()
    assert entered_at[0] < 500
    assert len(store.points.range("a", "m").all()) == 500


def test_a_use_that_an_interrupt_kept_from_ending_no_longer_counts() -> None:
    gate = gate_module.Gate(lambda: False)
    cut_off, next_one = gate_module.Ticket(), gate_module.Ticket()
    assert gate.join(cut_off)
    assert not gate.enter_idle(next_one, lambda: True)
    del cut_off
    assert gate.enter_idle(next_one, lambda: True)


def test_a_reader_does_not_pass_one_that_waits_for_exclusive_use() -> None:
    gate = gate_module.Gate(lambda: False)
    reader, waiting, late = (gate_module.Ticket() for _ in range(3))
    assert gate.join(reader)
    thread = threading.Thread(
        target=gate.enter, args=(waiting, gate_module.Patience(60.0)), kwargs={"alone": True}
    )
    thread.start()
    while not gate.is_awaited():
        time.sleep(0.001)
    assert not gate.join(late)
    gate.leave(late)
    gate.leave(reader)
    thread.join()
    assert not gate.join(late)
    gate.leave(waiting)
    assert gate.join(late)
