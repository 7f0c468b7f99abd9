"""Forks: a child opens its parent's store and uses it, whatever the parent does next, or is refused in clear words."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store, StoreClosed
from repo.processes import forks
from repo.repositories.apply import apply
from tests.conftest import OpenStore, RunPython, Templates
from tests.forks.children import PATIENT, in_child, started, until


def opened_in_child(store: Store, work: Callable[[Store], Any]) -> Callable[[], Any]:
    """Return what opens the store once more and runs `work` on it."""

    def run() -> Any:
        settings = Settings(background=False, engine=store.settings.engine, **PATIENT)
        with Store(store.path, settings) as own:
            return work(own)

    return run


def insert(series: str, at: int = 0) -> Callable[[Store], Any]:
    """Return what inserts one point."""
    return lambda store: store.points.insert(series, "m", float(at), timestamp=at).accepted


def count(store: Store, series: str) -> int:
    """Return how many points the series has."""
    return len(store.points.range(series, "m").all())


@contextmanager
def running(*works: Callable[[], Any]) -> Iterator[None]:
    """Run them again and again, each in a thread; an error in one fails the test."""
    stop, errors = threading.Event(), []

    def run(work: Callable[[], Any]) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:  # noqa: BLE001  reported below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(300)
    assert not errors


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_fork_after_a_store_was_closed_warns_of_nothing(
    open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    store.points.insert("parent", "m", 1.0)
    store.close()
    assert in_child(lambda: 1) == 1
    assert [message for message in caplog.messages if str(store.path) in message] == []


@pytest.mark.parametrize("background", [False, True], ids=["without", "with a background thread"])
def test_what_a_child_was_acknowledged_stays_when_the_parent_closes(
    open_store: OpenStore, background: bool
) -> None:
    store = open_store(background=background, **PATIENT)
    store.points.insert("parent", "m", 1.0, timestamp=1)
    store.points.range("parent", "m").all()
    store.points.latest("parent", "m")
    closed_reading, closed_writing = os.pipe()

    def work(own: Store) -> int:
        for at in range(10):
            own.points.insert("child", "m", 1.0, timestamp=at)
        os.close(closed_writing)
        os.read(closed_reading, 1)  # until the parent has closed
        for at in range(10, 20):
            own.points.insert("child", "m", 1.0, timestamp=at)
        return count(own, "child")

    wait = started(opened_in_child(store, work))
    until(lambda: store.sinks.last_seq() > 10)
    store.close()
    os.close(closed_writing)
    assert wait() == 20
    os.close(closed_reading)
    again = open_store()
    assert (count(again, "child"), count(again, "parent")) == (20, 1)


def test_parent_and_child_write_at_the_same_time(open_store: OpenStore) -> None:
    store = open_store(background=True, wal_checkpoint_bytes=65_536, **PATIENT)

    def write(series: str) -> Callable[[Store], int]:
        def work(own: Store) -> int:
            for start in range(0, 1_000, 50):
                own.points.insert_many([(series, "m", at, 1.0) for at in range(start, start + 50)])
            return count(own, series)

        return work

    waits = [started(opened_in_child(store, write(f"child {n}"))) for n in range(2)]
    assert write("parent")(store) == 1_000
    assert [wait() for wait in waits] == [1_000, 1_000]
    store.close()
    again = open_store()
    assert [count(again, series) for series in ("parent", "child 0", "child 1")] == [1_000] * 3


@pytest.mark.slow_on("sqlite")
def test_threads_that_write_and_read_without_a_pause_do_not_keep_a_process_from_forking(
    open_store: OpenStore,
) -> None:
    store = open_store(background=True, **PATIENT)
    for series in "ab":
        store.points.insert(series, "m", 1.0, timestamp=0)
    rows = [("a", "m", at, 1.0) for at in range(200)]
    slowest_s = 0.0
    with running(
        lambda: store.points.insert_many(rows),
        lambda: store.points.insert("b", "m", 1.0),
        lambda: store.points.latest("a", "m"),
        lambda: store.points.range("a", "m").all(),
    ):
        for number in range(5):
            started_s = time.monotonic()
            wait = started(opened_in_child(store, insert("child", number)))
            slowest_s = max(slowest_s, time.monotonic() - started_s)
            assert wait() == 1, "not refused"
    assert slowest_s < forks.WAIT_S
    assert count(store, "child") == 5


def test_the_newest_points_are_right_in_the_parent_after_a_child_wrote(open_store: OpenStore) -> None:
    store = open_store(background=True, **PATIENT)
    for at in range(5):
        store.points.insert("a", "m", 1.0, timestamp=2 * at)
        assert store.points.latest("a", "m")[0]["timestamp_us"] == 2_000_000 * at
        assert in_child(opened_in_child(store, insert("a", 2 * at + 1))) == 1
        assert store.points.latest("a", "m")[0]["timestamp_us"] == 2_000_000 * at + 1_000_000


def test_a_fork_from_inside_a_call_is_refused_the_store_in_the_child_and_harms_nobody(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "WAIT_S", 300.0)  # which it does not wait
    store, other = open_store(), open_store("other")
    store.points.insert("a", "m", 1.0, timestamp=1)
    other.points.insert("a", "m", 1.0, timestamp=1)
    started_s = time.monotonic()
    with store._handle.columns.alone("a callback"):
        refused = in_child(opened_in_child(store, insert("a", 2)))
    assert isinstance(refused, StoreClosed)
    assert "spawn" in str(refused)
    assert time.monotonic() - started_s < forks.WAIT_S
    store.points.insert("a", "m", 2.0, timestamp=2)
    assert count(store, "a") == 2
    assert in_child(opened_in_child(store, insert("a", 3))) == 1, "the next fork is as any other"


INSIDE = """
import ctypes, os, sys
from repo import Settings, Store, StoreClosed

store = Store(sys.argv[1], Settings(engine="duckdb", background=False))
store.points.insert("a", "m", 1.0, timestamp=1)
with store._handle.columns.alone("a call that a signal handler interrupts"):
    child = os.fork()
if child:
    assert len(store.points.range("a", "m").all()) == 1
    store.close()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
store.close()
try:
    store.points.range("a", "m").all()
except StoreClosed:
    ctypes.pythonapi.Py_Exit(7)  # as an interpreter ends, which the processes of the starter do not
"""


@pytest.mark.duckdb
def test_a_child_that_leaves_the_call_it_was_forked_in_ends_as_any_process(
    tmp_path: Path, templates: Templates, run_python: RunPython
) -> None:
    templates.copy("duckdb", 1, tmp_path / "store")
    done = run_python(INSIDE, tmp_path / "store")
    assert (done.returncode, done.stdout) == (7, ""), done.stderr


@pytest.mark.slow_on("sqlite")
def test_a_thread_that_does_not_come_to_an_end_holds_a_fork_up_for_a_bounded_time(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "WAIT_S", 0.3)
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store._handle.columns.alone("a long job"):
            inside.set()
            leave.wait(300)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(300)
    try:
        refused = in_child(opened_in_child(store, insert("a", 2)))
        nested = in_child(lambda: in_child(opened_in_child(store, insert("a", 2))))
    finally:
        leave.set()
        holder.join(300)
    for error in (refused, nested):
        assert isinstance(error, StoreClosed), error
    assert count(store, "a") == 1
    assert in_child(opened_in_child(store, insert("a", 3))) == 1


def test_a_long_flush_lets_a_fork_pass(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[int] = []

    def apply_and_note(*args: Any, **options: Any) -> Any:
        if not applied:
            until(forks.is_awaited)
        applied.append(1)
        return apply(*args, **options)

    def work(own: Store) -> int:
        own.points.insert("child", "m", 1.0, timestamp=0)
        return len(applied)  # as it was at the fork

    monkeypatch.setattr("repo.core.work.apply", apply_and_note)
    store = open_store(flush_batch_points=10)
    for start in range(0, 80, 10):
        store.points.insert_many([("a", "m", at, 1.0) for at in range(start, start + 10)])
    flush = threading.Thread(target=store.flush)
    flush.start()
    until(lambda: store._handle.columns.is_open)
    assert in_child(opened_in_child(store, work)) == 1
    flush.join(300)
    assert len(applied) == 8
    assert (count(store, "a"), count(store, "child")) == (80, 1)


def test_a_child_of_a_child_opens_the_store(open_store: OpenStore) -> None:
    store = open_store(background=True, **PATIENT)
    store.points.insert("a", "m", 1.0, timestamp=1)

    def work(own: Store) -> int:
        own.points.insert("a", "m", 1.0, timestamp=2)
        count(own, "a")
        assert in_child(opened_in_child(own, insert("a", 3))) == 1
        own.points.insert("a", "m", 1.0, timestamp=4)
        return count(own, "a")

    assert in_child(opened_in_child(store, work)) == 4
    assert count(store, "a") == 4


@pytest.mark.slow_on("sqlite")
def test_forks_while_other_threads_open_close_and_fork(open_store: OpenStore) -> None:
    store = open_store(background=True, **PATIENT)
    store.points.insert("a", "m", 1.0, timestamp=1)

    def open_and_close() -> None:
        settings = Settings(background=False, engine=store.settings.engine, **PATIENT)
        with Store(store.path, settings) as own:
            own.points.insert("b", "m", 1.0)

    with running(open_and_close, open_and_close, lambda: in_child(lambda: None)):
        for number in range(4):
            assert in_child(opened_in_child(store, insert("child", number))) == 1
    assert count(store, "child") == 4


INTERRUPTED = """
import os, signal, sys, threading, time
from repo import Settings, Store, StoreClosed
from repo.processes import forks

folder, engine = sys.argv[1:]
forks.WAIT_S = 300.0  # the interrupt comes in this time
store = Store(folder, Settings(engine=engine))
store.points.insert("a", "m", 1.0, timestamp=1)
inside, leave, main = threading.Event(), threading.Event(), threading.get_ident()

def hold():
    with store._handle.columns.alone("a long job"):
        inside.set()
        leave.wait(300)

def interrupt():
    while main not in forks._forking:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

def child(at):
    try:
        with Store(folder, Settings(engine=engine, background=False)) as own:
            own.points.insert("a", "m", 1.0, timestamp=at)
        return 0
    except StoreClosed:
        return 7

def start_slowly(thread):
    start(thread)
    if sys._getframe(1).f_code is forks._after_in_parent.__code__:
        time.sleep(0.1)  # as on a busy machine: the interrupt must not come where Python discards it

start, threading.Thread.start = threading.Thread.start, start_slowly
threads = [threading.Thread(target=work, daemon=True) for work in (hold, interrupt)]
threads[0].start()
inside.wait(300)
threads[1].start()
came = False
try:
    if os.fork() == 0:
        os._exit(child(2))
    time.sleep(300)
except KeyboardInterrupt:
    came = True
refused = os.waitstatus_to_exitcode(os.wait()[1]) == 7
leave.set()
threads[0].join()
assert came
assert refused
if os.fork() == 0:
    os._exit(child(3))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert len(store.points.range("a", "m").all()) == 2
store.close()
"""


def test_an_interrupt_while_a_fork_waits_comes_after_it_and_leaves_nothing_behind(
    tmp_path: Path, engine: str, run_python: RunPython
) -> None:
    done = run_python(INTERRUPTED, tmp_path / "store", engine)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_store_that_nobody_uses_is_closed_and_opened_again_within_a_moment(open_store: OpenStore) -> None:
    store = open_store(background=True, **PATIENT)
    store.points.insert("a", "m", 1.0, timestamp=1)
    took_s = []
    for _ in range(5):
        count(store, "a")
        store.points.latest("a", "m")
        started_s = time.monotonic()
        wait = started(lambda: None)
        took_s.append(time.monotonic() - started_s)
        wait()
    assert min(took_s) < forks.WAIT_S / 2  # as for a thread that does not come to an end
