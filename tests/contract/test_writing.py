"""Writing: what is acknowledged, how it is numbered, and that a refusal affects nothing else."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from repo import InvalidPoint, InvalidQuery, InvalidRecord, Store, TransactionRule, Written

pytestmark = pytest.mark.slow_on("duckdb")  # a write ends in the journal, whatever the engine of the columns


def count(store: Store) -> int:
    return int(store.sql("SELECT count(*) AS n FROM time_series_data")[0]["n"])


def test_seqs_follow_the_order_of_the_writes(store: Store) -> None:
    assert store.points.insert("a", "m", 1.0) == Written(1, 1, 1)
    assert store.points.insert_many([("a", "m", at, 1.0) for at in range(5)]) == Written(2, 6, 5)
    assert store.points.delete("nobody") == Written(7, 7, 0)
    assert store.points.insert_many([]) == Written(None, None, 0)
    assert store.points.submit([("a", "m", 9, 1.0)]).result() == Written(8, 8, 1)


def test_a_point_without_a_time_gets_the_current_time(store: Store, clock: Any) -> None:
    store.points.insert("a", "m", 1.0)
    clock.advance(1.5)
    store.points.insert_many([{"sensor_id": "a", "metric_name": "m", "value": 2.0}])
    assert [row["timestamp_us"] for row in store.points.range("a", "m")] == [clock() - 1_500_000, clock()]


def test_rows_may_be_dicts_tuples_and_dataclasses(store: Store) -> None:
    @dataclass
    class Reading:
        sensor_id: str
        metric_name: str
        value: float
        timestamp: float

    store.points.insert_many(
        row
        for row in (
            {"sensor_id": "a", "metric_name": "m", "value": 1.0, "timestamp_us": 1_000_000},
            ("a", "m", 2, 2.0, 50, {"k": 1}),
            Reading("a", "m", 3.0, 3),
        )
    )
    assert [(row["value"], row["quality"]) for row in store.points.range("a", "m")] == [
        (1.0, 100),
        (2.0, 50),
        (3.0, 100),
    ]


def test_a_batch_with_one_bad_row_writes_nothing(store: Store) -> None:
    with pytest.raises(InvalidPoint) as refused:
        store.points.insert_many([("a", "m", 1, 1.0), ("", "m", 2, 2.0), ("a", "m", 3, True)])
    assert [(refusal.row, refusal.field) for refusal in refused.value.refusals] == [
        (1, "sensor_id"),
        (2, "value"),
    ]
    assert count(store) == 0
    assert store.status().last_seq == 0


def test_skipping_bad_rows_writes_the_good_ones(store: Store) -> None:
    rows = [("a", "m", 1, 1.0), ("", "m", 2, 2.0), ("a", "m", 3, 3.0)]
    written = store.points.insert_many(rows, on_error="skip")
    assert (written.first_seq, written.last_seq, written.accepted, written.rejected) == (1, 2, 2, 1)
    assert [(refusal.row, refusal.field) for refusal in written.refusals] == [(1, "sensor_id")]
    assert count(store) == 2
    with pytest.raises(InvalidQuery):
        store.points.insert_many(rows, on_error="ignore")  # type: ignore[arg-type]


def test_a_large_batch_is_split_and_keeps_its_order(store: Store) -> None:
    rows = [("a", "m", at, float(at), 100, {"n": "x" * 600}) for at in range(8_000)]
    written = store.points.insert_many(rows)
    assert store.status().journal_rows > 1
    assert (written.first_seq, written.last_seq) == (1, 8_000)
    found = [row["value"] for row in store.points.after(0)]
    assert found == [float(at) for at in range(8_000)]


@pytest.mark.parametrize("first", [1.0, "OPEN"])
@pytest.mark.parametrize("flushed", [False, True])
def test_a_series_keeps_the_kind_of_its_first_reading_until_it_is_empty(
    open_store: Any, first: Any, flushed: bool
) -> None:
    store = open_store()
    other: Any = "OPEN" if first == 1.0 else 1.0
    store.points.insert("a", "m", None, timestamp=1)
    store.points.insert("a", "m", first, timestamp=2)
    if flushed:
        store.checkpoint()
    with pytest.raises(InvalidPoint, match="holds"):
        store.points.insert("a", "m", other, timestamp=3)
    store.points.insert("a", "m", None, timestamp=4)
    store.points.delete(everything=True)
    store.close()
    store = open_store()
    store.points.insert("a", "m", other, timestamp=5)  # it is empty, so the kind is free
    assert count(store) == 1


def test_the_log_of_the_metadata_keeps_its_size_after_a_checkpoint(open_store: Any) -> None:
    store = open_store("small-log", wal_checkpoint_bytes=65_536)
    log = store.path / "offline_buffer.db-wal"
    for at in range(100):
        store.points.insert("a", "m", 1.0, timestamp=at)
    store._handle.metadata.checkpoint()
    store.points.insert("a", "m", 1.0, timestamp=100)  # the first commit after it may truncate the file
    assert 15 / 16 * 65_536 <= log.stat().st_size < 65_536, (
        "commits overwrite it, which is faster than extending it"
    )


def test_seqs_continue_after_what_another_handle_wrote_and_pruned(open_store: Any) -> None:
    store, other = open_store(), open_store()
    assert store.points.insert("a", "m", 1.0, timestamp=1).last_seq == 1
    assert store.points.insert("a", "m", 2.0, timestamp=2).last_seq == 2
    assert [other.points.insert("a", "m", 3.0, timestamp=at).last_seq for at in (3, 4)] == [3, 4]
    other.checkpoint()
    assert other.status().journal_rows == 0
    assert [store.points.insert("a", "m", 4.0, timestamp=at).last_seq for at in (5, 6)] == [5, 6]


def test_a_mismatch_of_kinds_fails_alone_in_a_shared_commit(open_store: Any) -> None:
    open_store().points.insert("a", "m", 1.0, timestamp=0)
    store = open_store()  # it has not cached the series
    metadata, writer = store._handle.metadata, store._handle.writer
    results: list[Any] = [None] * 12

    def write(at: int) -> None:
        sensor, value = ("other", 1.0) if at == 0 else ("a", "TEXT" if at % 3 == 1 else float(at))
        try:
            results[at] = store.points.insert(sensor, "m", value, timestamp=at)
        except InvalidPoint as error:
            results[at] = error

    threads = [threading.Thread(target=write, args=(at,)) for at in range(12)]
    with (
        metadata.write()
    ):  # the journal is locked: the first thread waits for it, and the others queue behind it
        for queued, thread in enumerate(threads):
            thread.start()
            while not writer._leading.locked() or len(writer._queue) != queued:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    rows = store.status().journal_rows
    assert rows == 3, "one of the other handle, one of the first, one of all the others"
    assert [at for at in range(12) if isinstance(results[at], InvalidPoint)] == [1, 4, 7, 10]
    assert count(store) == 1 + 8


def test_of_two_kinds_for_a_new_series_in_one_commit_the_first_wins(store: Store) -> None:
    first = store.points.submit([("new", "m", 1, 1.0)])
    second = store.points.submit([("new", "m", 2, "OPEN")])
    third = store.points.submit([("new", "m", 3, 3.0)])
    assert first.result().accepted == third.result().accepted == 1
    with pytest.raises(InvalidPoint):
        second.result()
    assert [row["value"] for row in store.points.range("new", "m")] == [1.0, 3.0]


def test_many_threads_write_singly_and_every_point_has_a_seq_of_its_own(open_store: Any) -> None:
    store = open_store(background=True)
    seqs: list[list[int]] = [[] for _ in range(8)]

    def write(thread: int) -> None:
        for at in range(20):
            seq = store.points.insert(f"s{thread}", "m", float(at), timestamp=at).first_seq
            assert seq is not None
            seqs[thread].append(seq)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in seqs)
    assert sorted(seq for mine in seqs for seq in mine) == list(range(1, 161))
    assert {row["seq"] for row in store.points.after(0)} == set(range(1, 161))


def test_submitted_rows_are_durable_when_their_future_is_done(open_store: Any) -> None:
    store = open_store(submit_queue_points=100)
    futures: list[Future[Written]] = [
        store.points.submit([("a", "m", n * 10 + at, 1.0) for at in range(10)]) for n in range(50)
    ]
    assert sum(future.result().accepted for future in futures) == 500
    assert count(store) == 500
    assert store.points.submit([("b", "m", at, 1.0) for at in range(1000)]).result().accepted == 1000

    async def wait() -> Written:
        return await asyncio.wrap_future(store.points.submit([("c", "m", 1, 1.0)]))

    assert asyncio.run(wait()).accepted == 1
    with pytest.raises(InvalidPoint):
        store.points.submit([("", "m", 1, 1.0)])


def test_a_transaction_commits_points_deletes_and_records_as_one(store: Store) -> None:
    store.points.insert("old", "m", 1.0, timestamp=1)
    with store.transaction() as transaction:
        assert transaction.points.insert("a", "m", 1.0, timestamp=1) == Written(None, None, 1)
        transaction.points.delete(["a", "old"])
        transaction.points.insert("a", "m", 2.0, timestamp=2)
        transaction.records.add("r", "gateway", {"metric_name": "p", "value": 3.0, "timestamp": 5})
        assert store.records.pending() == []
        assert count(store) == 1
    assert transaction.written == Written(2, 5, 3)
    assert [(row["sensor_id"], row["value"]) for row in store.points.range(None, None)] == [
        ("a", 2.0),
        ("gateway", 3.0),
    ]
    assert [record["record_id"] for record in store.records.pending()] == ["r"]


def test_a_failed_transaction_writes_nothing_and_accepts_nothing_more(store: Store) -> None:
    def fail_in_the_block() -> Any:
        with store.transaction() as transaction:
            left.append(transaction)
            transaction.points.insert("a", "m", 1.0, timestamp=1)
            transaction.records.add("r", "s", {"value": 1})
            raise KeyError

    def fail_at_the_commit() -> None:
        with store.transaction() as transaction:
            transaction.records.add("r", "s", {})
            transaction.points.insert_many([("a", "m", 1, 1.0)])
            transaction.points.insert_many([("a", "m", 1, "TEXT")])

    left: list[Any] = []
    with pytest.raises(KeyError):
        fail_in_the_block()
    with pytest.raises(TransactionRule):
        left[0].points.insert("a", "m", 1.0)
    with pytest.raises(InvalidPoint):
        fail_at_the_commit()
    assert store.records.pending() == []
    assert count(store) == 0
    assert store.status().last_seq == 0


def test_a_record_is_kept_whole_with_every_number_as_a_point(store: Store, clock: Any) -> None:
    data = {
        "well_name": "W-1",
        "pressure": 10.5,
        "temperature": 20,
        "flowRate": None,
        "value": 7.0,
        "metric": "level",
        "quality": 42,
        "timestamp": 100.25,
        "note": {"deep": ["ø", None, True]},
    }
    store.records.add("r1", "gateway", data)
    [record] = store.records.pending()
    assert record["data"] == data
    assert record["timestamp"] == clock() / 1e6
    assert {
        (row["sensor_id"], row["metric_name"], row["value"]) for row in store.points.range(None, None)
    } == {
        ("W-1", "pressure", 10.5),
        ("W-1", "temperature", 20.0),
        ("W-1", "level", 7.0),
    }
    assert {(row["timestamp_us"], row["quality"]) for row in store.points.range(None, None)} == {
        (100_250_000, 42)
    }


def test_a_record_without_numbers_is_a_record_only(store: Store) -> None:
    assert store.records.add("r", "s", {"status": "ok"}) == Written(None, None, 0)
    assert len(store.records.pending()) == 1
    assert count(store) == 0


def test_the_same_record_again_changes_nothing_and_other_data_replaces_it(store: Store) -> None:
    store.records.add("r", "s", {"value": 1}, timestamp=1)
    assert store.records.mark_failed(["r", "nobody"]) == 1
    store.records.add("r", "s", {"value": 1}, timestamp=1)
    store.records.add("q", "s", {"value": 1}, timestamp=0)
    store.records.add("r", "s", {"value": 2}, timestamp=1)
    r, q = store.records.pending()
    assert (r["record_id"], r["data"], r["retry_count"]) == ("r", {"value": 2}, 1)
    assert q["retry_count"] == 0
    assert [record["record_id"] for record in store.records.pending(limit=1)] == ["r"]
    assert store.records.pending(source="other") == []
    assert store.records.mark_sent(["r", "r", "nobody"]) == 1
    assert store.records.mark_sent("q") == 1
    assert count(store) == 2, "points stay as history"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"value": float("nan")}, InvalidRecord),
        ({"value": 2**53 + 1}, InvalidPoint),
        ({"value": 1, "metric_name": ["a"]}, InvalidPoint),
        ({"value": 1, "metric_name": {"a": 1}}, InvalidPoint),
        ({"value": 1, "sensor_id": 5}, InvalidPoint),
        ({"value": 1, "timestamp": 1e18}, InvalidPoint),
        ({"text": "\ud800"}, InvalidRecord),
        ({"set": {1}}, InvalidRecord),
        (["value", 1], InvalidRecord),
        (None, InvalidRecord),
    ],
    ids=repr,
)
def test_a_record_that_cannot_be_stored_exactly_is_refused(
    unwritten: Store, data: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        unwritten.records.add("r", "s", data)
    assert unwritten.records.pending() == []
    assert unwritten.status().last_seq == 0


def test_with_skip_a_row_of_another_kind_is_refused_with_its_place_and_the_rest_is_written(
    store: Store,
) -> None:
    store.points.insert("valve", "state", "OPEN", timestamp=0)
    rows = [("", "m", 1, 1.0), ("a", "m", 1, 1.0), ("valve", "state", 2, 7.0), ("valve", "state", 3, None)]
    for written in (
        store.points.insert_many(rows, on_error="skip"),
        store.points.submit(rows, on_error="skip").result(300),
    ):
        assert (written.accepted, [refusal.row for refusal in written.refusals]) == (2, [0, 2])
    with pytest.raises(InvalidPoint, match="holds text values"):
        store.points.insert_many([("b", "m", 1, 1.0), *rows[2:]])
    assert store.points.range("b", "m").all() == []
    assert [row["value"] for row in store.points.range("valve", "state")] == ["OPEN", None]


def test_a_callback_of_a_submission_may_submit_again_at_a_full_queue(open_store: Any) -> None:
    store = open_store(submit_queue_points=10)
    left, done = [5], threading.Event()

    def again(_future: Any) -> None:
        left[0] -= 1
        if not left[0]:
            done.set()
            return
        store.points.submit([("a", "m", left[0] * 10 + at, 1.0) for at in range(8)]).add_done_callback(again)

    store.points.submit([("a", "m", 0, 1.0)]).add_done_callback(again)
    assert done.wait(300)
    store.close()


def test_an_interrupt_while_another_writes_leaves_the_store_usable(store: Store) -> None:
    store.points.insert("a", "m", 0.0, timestamp=0)
    database = store.path / "offline_buffer.db"
    other = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    ended = threading.Event()

    def disturb() -> None:
        while not (store._handle.writer._leading.locked() or ended.is_set()):
            time.sleep(0.001)
        if not ended.wait(0.1):  # the insert waits for the other transaction
            signal.raise_signal(signal.SIGINT)
        ended.wait(0.4)
        other.execute("ROLLBACK")

    disturbing = threading.Thread(target=disturb)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background
    disturbing.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            store.points.insert("a", "m", 1.0, timestamp=1)
    finally:
        ended.set()
        disturbing.join()
        signal.signal(signal.SIGINT, before)
    other.close()
    store.points.insert("a", "m", 2.0, timestamp=2)
    assert {0.0, 2.0} <= {row["value"] for row in store.points.range("a", "m")}
