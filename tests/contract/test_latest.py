"""The newest points in memory are right while others write, delete, flush, prune, close or fork."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from sqlalchemy.engine import default

from repo import InvalidQuery, Settings, Store, StoreClosed
from repo.core import latest
from repo.engines.sqlite import driver as sqlite
from repo.queries.selection import Summary
from repo.repositories.journal import JournalRepository
from repo.repositories.series import LatestRepository
from repo.repositories.state import StateRepository
from tests.conftest import Templates
from tests.interrupts import interrupted

OpenStore = Callable[..., Store]

WRITER = """
import sys
from repo import Settings, Store
store = Store(sys.argv[1], Settings(background=False, engine=sys.argv[2]))
for line in sys.stdin:
    command, *numbers = line.split()
    if command == "insert":
        store.points.insert("a", "m", float(numbers[1]), timestamp=float(numbers[0]))
    elif command == "delete":
        store.points.delete("a", "m", float(numbers[0]), None)
    else:
        getattr(store, command)()
    print("done", flush=True)
store.close()
"""


def newest(store: Store, sensor: Any = "a", metric: Any = "m") -> list[tuple[float, Any]]:
    return [(row["timestamp"].timestamp(), row["value"]) for row in store.points.latest(sensor, metric)]


def test_series_that_are_loaded_one_by_one_keep_their_stored_points_when_late_ones_arrive(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latest, "FEW", 2)
    monkeypatch.setattr(latest, "MOST_SINGLE", 3)
    writer, reader = open_store(), open_store()
    writer.points.insert_many([(f"s{number}", "m", 10, float(number)) for number in range(9)])
    writer.flush()
    assert newest(reader, "s0") == [(10, 0.0)], "only this series is loaded"
    writer.points.insert("s1", "m", -1.0, timestamp=5)
    assert newest(reader, "s0") == [(10, 0.0)]
    assert newest(reader, "s1") == [(10, 1.0)], "a late point does not hide the stored one"
    writer.flush()
    assert newest(reader, "s2") == [(10, 2.0)], "loaded from a later copy than the others"
    writer.points.insert_many([(f"s{number}", "m", 7, -1.0) for number in range(2, 8)])
    writer.points.insert("s8", "m", 20.0, timestamp=20)
    assert newest(reader, "s8") == [(20, 20.0)]
    assert newest(reader, None) == [(10, float(number)) for number in range(8)] + [(20, 20.0)]


def test_the_newest_point_follows_writes_overwrites_late_points_and_deletes(store: Store) -> None:
    points = store.points
    assert newest(store) == []
    points.insert("a", "m", 1.0, timestamp=10)
    assert newest(store) == [(10, 1.0)]
    points.insert("a", "m", 2.0, timestamp=20)
    assert newest(store) == [(20, 2.0)]
    points.insert("a", "m", 3.0, timestamp=20)
    assert newest(store) == [(20, 3.0)]
    points.insert("a", "m", 4.0, timestamp=15)
    assert newest(store) == [(20, 3.0)]
    points.delete("a", "m", 16, None)
    assert newest(store) == [(15, 4.0)]
    points.insert("a", "m", None, timestamp=16)
    assert newest(store) == [(16, None)]
    store.checkpoint()
    assert newest(store) == [(16, None)]
    points.delete(everything=True)
    assert newest(store) == []
    points.insert("a", "m", 5.0, timestamp=1)
    assert newest(store) == [(1, 5.0)]


def test_one_batch_may_hold_many_series_and_times_out_of_order(store: Store) -> None:
    rows: list[Any] = [("b", "m", 3, 1.0), ("a", "m", 9, 2.0), ("b", "m", 5, 3.0), ("a", "m", 1, 4.0)]
    rows += [("a", "m", 9, 5.0, 7, {"k": [1]}), ("b", "t", 2, "OPEN")]
    store.points.insert_many(rows)
    expected = [
        ("a", "m", 9, 5.0, 7, {"k": [1]}),
        ("b", "m", 5, 3.0, 100, None),
        ("b", "t", 2, "OPEN", 100, None),
    ]
    for _ in range(2):
        found = [
            (
                p["sensor_id"],
                p["metric_name"],
                p["timestamp_us"] // 10**6,
                p["value"],
                p["quality"],
                p["metadata"],
            )
            for p in store.points.latest(None)
        ]
        assert found == expected
        assert [p["sensor_id"] for p in store.points.latest("b*", ["m", "t"])] == ["b", "b"]
        store.flush()


def test_a_caller_may_modify_its_result(store: Store) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1, metadata={"k": [1]})
    for names in (("a", "m"), ("a", "m"), (None, None), (None, None)):
        answer = store.points.latest(*names)[0]
        assert answer["metadata"] == {"k": [1]}
        answer["metadata"]["k"].append(2)
        answer["value"] = None
        answer.clear()
    assert store.points.latest("a", "m")[0]["value"] == 1.0


def test_a_text_with_glob_characters_is_a_name_as_soon_as_a_series_has_it(store: Store) -> None:
    store.points.insert("b1", "m", 2.0, timestamp=1)
    for _ in range(2):
        assert [p["sensor_id"] for p in store.points.latest("b[1]", "m")] == ["b1"]
    store.points.insert("b[1]", "m", 1.0, timestamp=1)
    for _ in range(2):
        assert [p["sensor_id"] for p in store.points.latest("b[1]", "m")] == ["b[1]"]
        assert [p["sensor_id"] for p in store.points.latest(["b[1]"], "m")] == ["b[1]"]
    with pytest.raises(InvalidQuery):
        store.points.latest("a", "m", limit=0)


@pytest.mark.closes_columns
def test_writes_of_another_process_are_visible_at_once(
    store: Store, engine: str, spawn: Callable[..., Any]
) -> None:
    other = spawn(WRITER, store.path, engine)

    def do(command: str) -> None:
        other.stdin.write(f"{command}\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n", other.stderr.read()

    for step, expected in [
        ("insert 10 1", [(10, 1.0)]),
        ("insert 20 2", [(20, 2.0)]),
        ("insert 20 3", [(20, 3.0)]),
        ("insert 5 9", [(20, 3.0)]),
        ("flush", [(20, 3.0)]),
        ("insert 30 4", [(30, 4.0)]),
        ("delete 15", [(10, 1.0)]),
        ("insert 12 5", [(12, 5.0)]),
        ("checkpoint", [(12, 5.0)]),
        ("delete 0", []),
        ("insert 1 6", [(1, 6.0)]),
    ]:
        do(step)
        assert newest(store) == expected, step
    # What was written, deleted, flushed and pruned between two calls is no longer in any journal row.
    for step in ("insert 40 7", "delete 35", "checkpoint", "insert 2 8", "checkpoint"):
        do(step)
    assert newest(store) == [(2, 8.0)]
    assert newest(store, None, None) == [(2, 8.0)]


def test_points_that_bypass_the_journal_are_visible_with_the_copy_of_their_summaries(store: Store) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    metadata = store._handle.metadata
    loaded = 101

    def reserve(connection: Connection) -> None:
        journal = JournalRepository(connection)
        assert journal.last_seq() + 100 == loaded
        journal.append(loaded, 100, "bulk", b"", 0)

    metadata.journal(reserve)
    store.points.insert("b", "m", 2.0, timestamp=2)
    assert newest(store, None, None) == [(1, 1.0), (2, 2.0)]
    with metadata.write() as connection:
        LatestRepository(connection).replace(
            {("a", "m"): Summary(101, 1, 9_000_000, 9.0, None, 100, None, loaded)}
        )
        StateRepository(connection).set(copied_through=loaded)
    assert newest(store, None, None) == [(9, 9.0), (2, 2.0)]


@pytest.mark.own_store
def test_columns_restored_from_a_backup_reset_the_newest_points(
    open_store: OpenStore, columns_file: str
) -> None:
    first = open_store()
    first.points.insert("a", "m", 1.0, timestamp=1)
    first.checkpoint()
    backup = (first.path / columns_file).read_bytes()
    first.points.insert("a", "m", 2.0, timestamp=2)
    first.checkpoint()
    assert newest(first) == [(2, 2.0)]
    for left in first.path.glob(f"{columns_file}*"):
        left.unlink()
    (first.path / columns_file).write_bytes(backup)
    first.points.range("a", "m").all()
    assert newest(first) == [(1, 1.0)]


def test_threads_see_their_own_writes_while_others_write_delete_and_flush(open_store: OpenStore) -> None:
    store = open_store(background=True, flush_interval_s=0.05)
    failed: list[BaseException] = []

    def live(sensor: str) -> None:
        try:
            for at in range(40):
                store.points.insert(sensor, "m", float(at), timestamp=at)
                assert newest(store, sensor) == [(at, float(at))]
                if at % 20 == 19:
                    store.points.delete(sensor, "m", at, None)
                    assert newest(store, sensor) == [(at - 1, float(at - 1))]
                assert all(len(row) == 7 for row in store.points.latest(None))
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=live, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]


def test_no_transaction_outlives_the_call(store: Store) -> None:
    """An open snapshot would keep the WAL from being checkpointed completely, so that it grows without bound."""
    store.points.insert("a", "m", 1.0, timestamp=1)
    newest(store)
    store.points.insert("a", "m", 2.0, timestamp=2)
    assert newest(store) == [(2, 2.0)]
    checkpointed = sqlite.checkpoint_wal(store._handle.metadata.engine)
    assert checkpointed.done_pages == checkpointed.log_pages > 0


def test_a_closed_store_refuses_and_leaves_no_log_behind(open_store: OpenStore) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    newest(store)
    store.close()
    with pytest.raises(StoreClosed):
        store.points.latest("a", "m")
    assert not list(store.path.glob("offline_buffer.db-*"))


@pytest.mark.slow_on("duckdb")
def test_a_child_of_fork_is_refused_even_during_a_call_of_another_thread(store: Store) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1)
    newest(store)
    with store.points._newest._lock:
        child = os.fork()
        if child == 0:
            refused = 0
            try:
                for names in (("a", "m"), (None, None)):
                    try:
                        store.points.latest(*names)
                    except StoreClosed:
                        refused += 1
            finally:
                os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert newest(store) == [(1, 1.0)]


TIMES = st.integers(0, 6)
STEPS = st.one_of(
    st.tuples(
        st.just("insert"),
        st.lists(
            st.tuples(st.sampled_from("abc"), st.just("m"), TIMES, st.sampled_from([None, 1.0, 2.0])),
            max_size=6,
        ),
    ),
    st.tuples(st.just("delete"), st.sampled_from([None, "a", "[bc]"]), TIMES, TIMES).filter(
        lambda step: step[2] <= step[3]
    ),
    st.tuples(st.sampled_from(["flush", "checkpoint", "reopen", "look"])),
)


@settings(max_examples=5)
@given(steps=st.lists(st.tuples(st.integers(0, 1), STEPS), max_size=12))
def test_two_handles_on_one_store_always_agree_with_a_plain_dict(
    engine: Any, templates: Templates, steps: list[Any]
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-latest-"))
    templates.copy(engine, 1, folder / "store")
    options = Settings(background=False, engine=engine, flush_batch_points=4)
    model: dict[tuple[str, int], Any] = {}
    stores = [Store(folder / "store", options) for _ in range(2)]
    try:
        for who, (what, *details) in steps:
            store = stores[who]
            if what == "insert":
                store.points.insert_many(details[0])
                model |= {(sensor, at): value for sensor, _, at, value in details[0]}
            elif what == "delete":
                names, start, end = details
                store.points.delete(names, "m", start, end)
                doomed = "abc" if names is None else names
                model = {k: v for k, v in model.items() if k[0] not in doomed or not start <= k[1] < end}
            elif what == "reopen":
                store.close()
                stores[who] = Store(folder / "store", options)
            elif what != "look":
                getattr(store, what)()
            expected = []
            for sensor in "abc":
                times = [at for name, at in model if name == sensor]
                if times:
                    expected.append((max(times), model[sensor, max(times)]))
            # Not both at every step, so that a handle also has to catch up with many changes.
            assert newest(stores[who], None, None) == expected
    finally:
        for store in stores:
            store.close()
        shutil.rmtree(folder)


@pytest.mark.slow_on("duckdb")
def test_an_interrupted_call_leaves_the_next_result_right(store: Store) -> None:
    files = {str(module.__file__) for module in (latest, default)}
    for nth in itertools.count(1):
        store.points.insert("a", "m", float(nth), timestamp=nth)
        was_interrupted = interrupted(files, nth, lambda: store.points.latest("a", "m"))
        assert [point["value"] for point in store.points.latest("a", "m")] == [nth]
        if not was_interrupted:
            assert nth > 20
            return
