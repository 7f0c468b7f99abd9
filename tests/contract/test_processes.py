"""Many processes and forks: the columns are handed over, and a child never uses its parent's handle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store, StoreBusy, StoreClosed
from repo.clock import system_clock
from repo.processes.lease import Lease

pytestmark = pytest.mark.closes_columns

# Opens the store named by its arguments; the rest of the script runs with it.
OPEN = """
import sys, time
from repo import Settings, Store
folder, engine = sys.argv[1:3]
store = Store(folder, Settings(background=BACKGROUND, engine=engine, lease_timeout_s=300))
"""
QUIET, BUSY = OPEN.replace("BACKGROUND", "False"), OPEN.replace("BACKGROUND", "True")

HOLD = (
    BUSY
    + """
columns = store._handle.columns
with columns.alone("a very long job"):
    print("held", flush=True)
    sys.stdin.readline()
store.close()
"""
)

ECHO = (
    "BODY"
    + """
for line in sys.stdin:
    at = int(line)
    seen = [row["value"] for row in store.points.range("a", "m")]
    store.points.insert("a", "m", float(at), timestamp=at)
    store.flush()
    print(len(seen), flush=True)
store.close()
"""
)


def ask(process: Any, line: str) -> str:
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, process.stderr.read()
    return str(answer).strip()


@pytest.mark.parametrize(
    ("engine", "body"),
    [
        ("duckdb", QUIET),
        ("sqlite", BUSY),
        pytest.param("duckdb", BUSY, marks=pytest.mark.slow),
        pytest.param("sqlite", QUIET, marks=pytest.mark.slow),
    ],
    ids=[
        *("duckdb without", "sqlite with a background thread"),
        *("duckdb with a background thread", "sqlite without"),
    ],
)
def test_two_processes_take_turns_on_the_columns(
    open_store: Any, spawn: Callable[..., Any], engine: str, body: str
) -> None:
    store = open_store(background=body is BUSY, lease_timeout_s=300)
    other = spawn(ECHO.replace("BODY", body), store.path, engine)
    for at in range(0, 6, 2):
        store.points.insert("a", "m", float(at), timestamp=at)
        assert int(ask(other, str(at + 1))) == at + 1, "the other process sees what was acknowledged here"
        assert len(store.points.range("a", "m").all()) == at + 2, "and we see what was acknowledged there"
    _, err = other.communicate(timeout=300)
    assert (other.returncode, err) == (0, "")
    assert len({row["seq"] for row in store.points.after(0)}) == 6


@pytest.mark.slow_on("sqlite")
def test_a_write_needs_no_lease_and_a_busy_read_names_the_holder(
    open_store: Any, spawn: Callable[..., Any], engine: str
) -> None:
    store = open_store(lease_timeout_s=0.3)
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    holder = spawn(HOLD, store.path, engine)
    assert holder.stdout.readline() == "held\n"
    store.points.insert("a", "m", 2.0, timestamp=2)
    assert store.points.latest("a", "m")[0]["value"] == 2.0
    status = store.status()
    assert status.holder is not None
    assert (status.holder.pid, status.holder.doing) == (holder.pid, "a very long job")
    for _ in range(2):
        with pytest.raises(StoreBusy, match=f"process {holder.pid}.*a very long job") as busy:
            store.points.range("a", "m").all()
        assert busy.value.holder == holder.pid
    ask_and_end(holder)
    assert [row["value"] for row in patiently(store.points.range("a", "m").all)] == [1.0, 2.0]
    assert store.status().holder is None


def ask_and_end(holder: Any) -> None:
    _, err = holder.communicate("\n", timeout=300)
    assert (holder.returncode, err) == (0, "")


def patiently(call: Callable[[], Any]) -> Any:
    """Call again while the columns are busy; a store with a short timeout may be too impatient on a busy machine."""
    deadline = time.monotonic() + 300
    while True:
        try:
            return call()
        except StoreBusy:
            if time.monotonic() > deadline:
                raise


@pytest.mark.slow_on("sqlite")
def test_a_call_that_gave_up_waiting_does_not_keep_the_lease_from_others(
    open_store: Any, spawn: Callable[..., Any], engine: str
) -> None:
    store = open_store(lease_timeout_s=0.2)
    store.points.insert("a", "m", 1.0, timestamp=1)
    holder = spawn(HOLD, store.path, engine)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreBusy):
        store.flush()
    ask_and_end(holder)
    third = Lease(store.path, system_clock)
    third.acquire(60.0, "another process's turn")
    third.close()
    patiently(store.flush)


@pytest.mark.slow_on("sqlite")
def test_a_killed_holder_leaves_the_lease_to_the_next_waiting_process(
    open_store: Any, spawn: Callable[..., Any], engine: str
) -> None:
    store = open_store(lease_timeout_s=300)
    store.points.insert("a", "m", 1.0, timestamp=1)
    holder = spawn(HOLD, store.path, engine)
    assert holder.stdout.readline() == "held\n"
    threading.Timer(0.3, holder.send_signal, [signal.SIGKILL]).start()
    assert store.flush() == 1


@pytest.mark.slow_on("sqlite")
def test_an_idle_holder_gives_way_at_once(open_store: Any, spawn: Callable[..., Any], engine: str) -> None:
    store = open_store(background=True, lease_idle_s=3_600.0)
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    other = spawn(ECHO.replace("BODY", QUIET), store.path, engine)
    started = time.monotonic()
    assert ask(other, "2") == "1"
    assert time.monotonic() - started < 1_000
    other.communicate(timeout=300)


def test_an_idle_holder_releases_the_lease_and_takes_it_again_for_its_checkpoint(open_store: Any) -> None:
    store = open_store(background=True, flush_interval_s=0.05, lease_idle_s=0.2, checkpoint_interval_s=0.6)
    store.points.insert("a", "m", 1.0, timestamp=1)
    # On a busy machine, it may have been idle for long before the next call looks.
    _until(lambda: len(store.points.range("a", "m").all()) == 1 and store.status().holder is not None)
    _until(lambda: store.status().holder is None)
    _until(lambda: store.status().journal_rows == 0)
    _until(lambda: store.status().holder is None)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_handles_of_one_process_share_a_store(open_store: Any) -> None:
    first, second = open_store(), open_store()
    for at in range(4):
        (first, second)[at % 2].points.insert("a", "m", float(at), timestamp=at)
        assert len(first.points.range("a", "m").all()) == len(second.points.range("a", "m").all()) == at + 1


FORK = (
    BUSY
    + """
import os, threading
from repo import StoreClosed
store.points.insert("a", "m", 1.0, timestamp=1)
store.points.range("a", "m").all()
stop = threading.Event()

def write():
    at = 10
    while not stop.is_set():
        at += 1
        store.points.insert("a", "m", 1.0, timestamp=at)

writers = [threading.Thread(target=write) for _ in range(2)]
for writer in writers:
    writer.start()

CALLS = {
    "insert": lambda: store.points.insert("a", "m", 1.0),
    "submit": lambda: store.points.submit([("a", "m", 1, 1.0)]),
    "delete": lambda: store.points.delete(everything=True),
    "range": lambda: store.points.range("a", "m").all(),
    "latest": lambda: store.points.latest("a", "m"),
    "after": lambda: store.points.after(0),
    "sql": lambda: store.sql("SELECT 1"),
    "flush": lambda: store.flush(),
    "checkpoint": lambda: store.checkpoint(),
    "status": lambda: store.status(),
    "series": lambda: store.series.list(),
    "record": lambda: store.records.add("r", "s", {"value": 1}),
    "pending": lambda: store.records.pending(),
    "sent": lambda: store.records.mark_sent("r"),
}
for _ in range(3):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        wrong = []
        for name, call in CALLS.items():
            try:
                call()
                wrong.append(name)
            except StoreClosed:
                pass
        store.close()
        if wrong:
            print("no StoreClosed from", wrong, flush=True)
        sys.exit(len(wrong))
    deadline = time.monotonic() + 300
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            sys.exit("the child hung")
        time.sleep(0.005)
    if done[1]:
        sys.exit(f"the child ended with {done[1]}")
stop.set()
for writer in writers:
    writer.join()
store.points.insert("b", "m", 2.0, timestamp=1)
assert store.points.range("b", "m").all()[0]["value"] == 2.0
seqs = [row["seq"] for row in store.points.after(0)]
assert len(seqs) == len(set(seqs))
store.close()
again = Store(folder, Settings(background=False, engine=engine))
assert again.points.range("b", "m").all()[0]["value"] == 2.0
again.close()
"""
)


@pytest.mark.slow_on("sqlite")
def test_a_forked_child_is_refused_and_the_parent_continues(
    tmp_path: Path, engine: str, run_python: Any
) -> None:
    done = run_python(FORK, tmp_path / "store", engine)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_close_is_quick_and_may_be_called_twice(open_store: Any) -> None:
    before = set(threading.enumerate())  # a thread of an earlier test may still be ending
    for background in (False, True):
        store = open_store(f"b{background}", background=background)
        store.points.insert_many([("a", "m", at, 1.0) for at in range(10_000)])
        store.points.range("a", "m").all()
        future = store.points.submit([("b", "m", 1, 1.0)])
        started_s = time.process_time()  # without the time of other processes
        store.close()
        store.close()
        assert time.process_time() - started_s < 20.0
        assert future.result(timeout=0).accepted == 1, "what was submitted is written first"
        left = set(threading.enumerate()) - before
        assert not [t.name for t in left if t.name.startswith("holdfast")]


def test_a_closed_store_refuses_everything(open_store: Any) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    rows = store.points.range("a", "m")
    store.close()
    calls: list[Callable[[], Any]] = [
        lambda: store.points.insert("a", "m", 1.0),
        lambda: store.points.insert_many([("a", "m", 1, 1.0)]),
        lambda: store.points.submit([("a", "m", 1, 1.0)]),
        lambda: store.points.delete(everything=True),
        rows.all,
        lambda: store.points.latest("a", "m"),
        lambda: store.points.latest("a", "m", limit=2),
        lambda: store.points.aggregate("a", "m"),
        lambda: store.points.after(0),
        lambda: store.records.add("r", "s", {}),
        lambda: store.records.pending(),
        lambda: store.series.list(),
        lambda: store.sql("SELECT 1"),
        store.flush,
        store.checkpoint,
        store.status,
    ]
    for number, call in enumerate(calls):
        with pytest.raises(StoreClosed):
            pytest.fail(f"call {number} gave {call()!r}")


def test_a_process_that_ends_without_closing_loses_nothing(
    tmp_path: Path, engine: str, run_python: Any, open_store: Any
) -> None:
    script = (
        BUSY
        + "\nstore.points.insert('a', 'm', 1.0, timestamp=1)\nstore.points.submit([('a', 'm', 2, 2.0)])\n"
    )
    done = run_python(script, tmp_path / "store", engine)
    assert done.returncode == 0, done.stderr
    assert len(open_store().points.range("a", "m").all()) == 2
    assert os.path.exists(tmp_path / "store" / "lease.lock")


def test_a_process_that_ends_with_the_columns_open_makes_no_other_one_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lose the lease before DuckDB's lock, as the kernel takes them one after the other."""
    pytest.importorskip("duckdb")
    from repo.engines.duckdb import driver

    monkeypatch.setattr(driver, "_ENDING_S", 60.0)
    with Store(tmp_path / "s", Settings(engine="duckdb", background=False)) as store:
        store.points.insert("a", "m", 1.0, timestamp=1.0)
        store.flush()
    holds = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path / "s" / "timeseries.duckdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdout.readline()
    ending = threading.Timer(0.05, other.kill)
    ending.start()
    try:
        with Store(tmp_path / "s") as store:
            assert [row["value"] for row in store.points.range("a", "m")] == [1.0]
    finally:
        ending.join()
        other.kill()
        other.communicate()
