"""Reading a store without writing to it: the same answers as a writer gets, and not a byte changed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repo import HoldfastError, Settings, Store, StoreMissing, StoreReadOnly
from tests.conftest import OpenStore, RunPython

SENSORS = ("a", "b", "c[1]")
ON_DUCKDB = pytest.mark.slow_on("sqlite")


def _answers(store: Store) -> dict[str, Any]:
    """What every kind of query says; `after` with seqs."""
    points = store.points
    return {
        "all": points.range(None, None).all(),
        "one": points.range("a", "m", 20.0, 60.0).all(),
        "tuples": list(points.range("b", "m").tuples(30)),
        "arrow": points.range(None, None).to_arrow().to_pylist(),
        "latest": points.latest(None),
        "newest three": points.latest("a", "m", limit=3),
        "sums": points.aggregate(None, None, agg=["count", "min", "max", "first", "last"]),
        "buckets": points.aggregate("a", "m", agg=["avg", "count"], every="10s"),
        "after": points.after(0),
        "sql": store.sql(
            "SELECT sensor_id, count(*) AS n, sum(value) AS v FROM time_series_data GROUP BY 1 ORDER BY 1"
        ),
        "counts": store.sql("SELECT sensor_id, count FROM series ORDER BY 1"),
    }


def _bytes(folder: Path) -> dict[str, bytes]:
    """The files of the store; SQLite's shared memory is no file of its own right."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


def _act(store: Store, chance: random.Random) -> None:
    """Do something that overwrites, yields to, or deletes some of what is there."""
    kind = chance.choice(("rows", "rows", "keep", "delete", "glob"))
    if kind == "glob":
        store.points.delete("*", None, 90.0, 95.0)
    elif kind == "delete":
        start = float(chance.randrange(100))
        store.points.delete(chance.choice(SENSORS), "m", start, start + chance.randrange(30))
    else:
        times = [float(chance.randrange(100)) for _ in range(30)]
        rows = {
            "sensor_id": [chance.choice(SENSORS) for _ in times],
            "metric_name": ["m"] * len(times),
            "timestamp": times,
            "value": [float(chance.randrange(3)) for _ in times],
        }
        store.points.insert_table(rows, on_conflict="keep" if kind == "keep" else "overwrite")


@pytest.mark.parametrize(
    "case", [0, pytest.param(1, marks=ON_DUCKDB), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_reader_gets_the_answers_of_a_writer_and_changes_no_byte(
    case: int, open_store: OpenStore, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed + case)
    with open_store() as store:
        settings = store.settings
        for _ in range(6 if case else 2):  # each query of a store that was never flushed applies all of them
            _act(store, chance)
        if case:
            store.flush()
        if case == 1:
            store.checkpoint()
        for _ in range(6 if case in (1, 2) else 0):
            _act(store, chance)
    before = _bytes(tmp_path / "store")
    with Store(tmp_path / "store", settings, read_only=True) as reader:
        reader._handle.columns.stays_open = True  # opening applies the journal
        seen = _answers(reader)
        assert reader.status().last_seq > 0
    assert _bytes(tmp_path / "store") == before
    with open_store() as store:
        assert _answers(store) == seen


def test_what_would_change_a_store_that_is_only_read_is_refused(
    open_store: OpenStore, tmp_path: Path
) -> None:
    with open_store() as store:
        settings = store.settings
        store.points.insert("a", "m", 1.0, 1.0)
        store.records.add("x", "a", {})
    before = _bytes(tmp_path / "store")
    changes: list[Callable[[Store], object]] = [
        lambda store: store.points.insert("a", "m", 2.0),
        lambda store: store.points.insert_many([("a", "m", 1.0, 2.0)]),
        lambda store: store.points.insert_table(
            {"sensor_id": ["a"], "metric_name": ["m"], "timestamp": [1.0], "value": [1.0]}
        ),
        lambda store: store.points.submit([("a", "m", 1.0, 2.0)]).result(),
        lambda store: store.points.delete("a"),
        lambda store: store.records.add("x", "a", {}),
        lambda store: store.records.clear(),
        lambda store: store.series.describe("a", "m", unit="bar"),
        lambda store: store.sinks.add("s", "", start="now"),
        lambda store: store.cleanup(everything=True),
        lambda store: store.flush(),
        lambda store: store.checkpoint(),
        lambda store: store.shrink(),
        lambda store: store.demote(),
    ]
    with Store(tmp_path / "store", settings, read_only=True) as reader:
        for change in changes:
            with pytest.raises(StoreReadOnly, match="for reading only"):
                change(reader)
        assert len(reader.points.range("a", "m").all()) == 1
    assert _bytes(tmp_path / "store") == before


def test_a_reader_and_a_writer_take_turns(
    open_store: OpenStore, tmp_path: Path, run_python: RunPython
) -> None:
    store = open_store(background=True, lease_timeout_s=300)
    store.points.insert("a", "m", 1.0, 1.0)
    store.flush()
    store.points.insert("a", "m", 2.0, 2.0)
    script = """
import sys
from repo import Settings, Store
with Store(sys.argv[1], Settings(lease_timeout_s=300), read_only=True) as store:
    print(len(store.points.range("a", "m").all()), len(store.points.latest("a")))
"""
    assert run_python(script, tmp_path / "store").stdout.split() == ["2", "1"]
    store.points.insert("a", "m", 3.0, 3.0)
    with Store(tmp_path / "store", Settings(background=False, lease_timeout_s=300), read_only=True) as reader:
        assert len(reader.points.range("a", "m").all()) == 3
    assert len(store.points.range("a", "m").all()) == 3


def test_a_reader_creates_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="there is no store"):
        Store(tmp_path / "none", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_applies_the_waiting_points_once_for_many_pages(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store() as store:
        store.flush()
        store.points.insert_many([("a", "m", float(second), 1.0) for second in range(3_000)])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = set(threading.enumerate())  # a thread of an earlier test may still be ending
    with Store(tmp_path / "store", replace(store.settings, lease_idle_s=60.0), read_only=True) as reader:
        folders = {tuple(scratch.iterdir()) for _ in reader.points.range("a", "m").pages(1_024)}
        assert [len(names) for names in folders] == [1]  # one temporary database, in one folder
        with open_store() as writer:  # which is closed for a process that waits
            assert len(writer.points.range("a", "m").all()) == 3_000
        assert list(scratch.iterdir()) == []
        assert len(reader.points.range("a", "m").all()) == 3_000
    assert list(scratch.iterdir()) == []
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name == "holdfast-keep-open"]


def test_the_temporary_folder_of_a_killed_reader_is_removed_by_the_next_one(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_python: RunPython
) -> None:
    with open_store() as store:
        store.points.insert("a", "m", 1.0, 1.0)
        store.flush()
    scratch = tmp_path / "scratch"
    (scratch / "holdfast-of-another-program").mkdir(parents=True)
    script = """
import os, sys, tempfile
from repo import Store
tempfile.tempdir = sys.argv[2]
store = Store(sys.argv[1], read_only=True)
with store._handle.reading("test"):
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    print(len(os.listdir(sys.argv[2])), flush=True)
    os._exit(0)
"""
    assert run_python(script, tmp_path / "store", scratch).stdout.split() == ["2"]
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with Store(tmp_path / "store", store.settings, read_only=True) as reader:
        assert len(reader.points.range("a", "m").all()) == 1
    assert [path.name for path in scratch.iterdir()] == ["holdfast-of-another-program"]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with (
        Store(tmp_path / "store", store.settings, read_only=True) as reader,
        pytest.raises(HoldfastError, match=r"none.*TMPDIR"),
    ):
        reader.points.range("a", "m").all()


def test_readers_that_wait_for_each_other_do_not_make_each_other_begin_again(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store() as store:
        store.flush()
        for second in range(20):
            store.points.insert("a", "m", 1.0, float(second))
    monkeypatch.setattr("repo.core.handle.THREAD_TURN_S", 0.0)
    monkeypatch.setattr("repo.core.handle.PROCESS_TURN_S", 0.0)
    settings = replace(store.settings, flush_batch_points=1)
    readers = [Store(tmp_path / "store", settings, read_only=True) for _ in range(2)]
    found: list[int] = []
    threads = [
        threading.Thread(
            target=lambda reader=reader: found.append(len(reader.points.range("a", "m").all())), daemon=True
        )
        for reader in readers * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert found == [20] * 4
    for reader in readers:
        reader.close()
