"""A process that runs out of descriptors or threads gets a typed error, and continues when they are available again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RunPython

PROGRAM = """
import os, resource, sys, threading, traceback
from repo import HoldfastError, Settings, Store

folder, engine, taken = sys.argv[1:]
settings = Settings(engine=engine, background=False, lease_timeout_s=5, busy_timeout_s=5)
store = Store(folder, settings)
store.points.insert("a", "m", 0.0, timestamp=1)
store.points.range("a", "m").all()
at = 1

def table():
    store.points.insert_table({"sensor_id": ["a"], "metric_name": ["m"], "timestamp_us": [2_000_000], "value": [2.0]})

def opened():
    Store(folder, settings).close()

def submit():
    store.points.submit([("a", "m", 3, 3.0)]).result(300)

ACTS = {
    "submit": submit, "insert": lambda: store.points.insert("a", "m", 1.0, timestamp=1),
    "flush": lambda: (store.points.insert("b", "m", 1.0, timestamp=1), store.flush()),
    "read": lambda: store.points.range("a", "m").all(), "latest": lambda: store.points.latest("a", "m"),
    "delete": lambda: store.points.delete("b", "m"), "table": table, "checkpoint": lambda: store.checkpoint(),
    "open": opened, "close": lambda: store.close(),
}

def without_descriptors(act):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    hog = []
    try:
        while True:
            hog.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        act()
    finally:
        for descriptor in hog:
            os.close(descriptor)

def without_threads(act):
    start = threading.Thread.start
    def refuse(self):
        raise RuntimeError("can't start new thread")
    threading.Thread.start = refuse
    try:
        act()
    finally:
        threading.Thread.start = start

take = without_descriptors if taken == "descriptors" else without_threads
for name, act in ACTS.items():
    try:
        take(act)
        said = "ok"
    except HoldfastError as error:
        said = type(error).__name__
    except BaseException as error:
        print("BARE", name, repr(error))
        traceback.print_exc()
        said = "bare"
    if name == "close":
        store.close()
        store = Store(folder, settings)
    at += 10
    try:
        store.points.insert("c", "m", float(at), timestamp=at)
        found = [row["value"] for row in store.points.range("c", "m")]
        assert found[-1] == at, found
        store.points.latest("c", "m")
        store.checkpoint()
        submit()
        opened()
    except BaseException as error:
        print("STUCK", name, repr(error))
    print("reported", name, said)
store.close()
"""


@pytest.mark.parametrize(
    ("engine", "taken"),
    [
        ("duckdb", "descriptors"),
        ("sqlite", "threads"),
        pytest.param("duckdb", "threads", marks=pytest.mark.slow),
        pytest.param("sqlite", "descriptors", marks=pytest.mark.slow),
    ],
)
def test_a_temporary_refusal_of_the_system_is_a_typed_error_and_then_everything_works(
    engine: str, taken: str, tmp_path: Path, run_python: RunPython
) -> None:
    done = run_python(PROGRAM, tmp_path / "store", engine, taken)
    assert [line for line in done.stdout.splitlines() if not line.startswith("reported")] == [], done.stderr[
        -2000:
    ]
    assert len(done.stdout.splitlines()) == 10, done.stderr[-2000:]
