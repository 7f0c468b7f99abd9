"""Records: adding one again, settling many at once, paging through long backlogs, and drops that are never silent."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from sqlalchemy import Engine, event

from repo import InvalidQuery, InvalidRecord, RecordRepository, Store
from repo.engines.sqlite import driver as sqlite
from repo.repositories.ledger import LedgerRepository, Loss
from repo.schema import runner

pytestmark = pytest.mark.slow_on("duckdb")  # records are in SQLite, whatever the engine of the columns


def ledger(store: Store) -> list[Loss]:
    with store._handle.metadata.read() as connection:
        return LedgerRepository(connection).list()


def ids(records: list[dict[str, Any]]) -> list[str]:
    return [record["record_id"] for record in records]


def fill(store: Store, count: int, **data: Any) -> None:
    with store.transaction() as transaction:
        for n in range(count):
            transaction.records.add(f"r{n}", f"source-{n % 3}", {"n": n} | data, timestamp=1000 + n)


def test_a_backlog_is_read_in_pages_even_if_records_are_settled_in_between(store: Store) -> None:
    fill(store, 25)
    seen: list[str] = []
    after = 0
    while page := store.records.pending(limit=10, after_id=after):
        after = page[-1]["id"]
        seen += ids(page)
        store.records.mark_sent(ids(page)[:5])
    assert seen == [f"r{n}" for n in range(25)]
    assert len(store.records.pending()) == 10


def test_pages_of_one_source_contain_only_that_source(store: Store) -> None:
    fill(store, 9)
    first = store.records.pending("source-1", limit=2)
    assert ids(first) == ["r1", "r4"]
    assert ids(store.records.pending("source-1", limit=2, after_id=first[-1]["id"])) == ["r7"]


@pytest.mark.parametrize("source", [None, "source-1"])
def test_a_later_page_costs_no_more_than_the_first(store: Store, source: str | None) -> None:
    asked: list[tuple[str, Any]] = []
    engine = store._handle.metadata.engine
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2:4]))
    store.records.pending(source, after_id=5)
    query, values = asked[-1]
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
    reported = " ".join(row[3] for row in plan)
    assert "rowid>?" in reported, "the page begins at its place"
    assert "TEMP B-TREE" not in reported, "nothing is sorted"


def test_records_that_failed_often_can_be_excluded(store: Store) -> None:
    fill(store, 3)
    for _ in range(2):
        store.records.mark_failed("r1")
    assert ids(store.records.pending(max_retries=2)) == ["r0", "r2"]
    assert ids(store.records.pending(max_retries=3)) == ["r0", "r1", "r2"]
    assert store.records.pending(limit=0) == []
    with pytest.raises(InvalidQuery):
        store.records.pending(limit=-1)


def test_a_failed_attempt_can_be_recorded_without_counting_it(store: Store, clock: Any) -> None:
    fill(store, 1)
    assert store.records.mark_failed("r0", increment_retry=False) == 1
    [record] = store.records.pending()
    assert (record["retry_count"], record["last_retry"]) == (0, clock() / 1e6)
    store.records.mark_failed("r0")
    assert store.records.pending()[0]["retry_count"] == 1


def test_any_number_of_records_is_marked_sent_in_one_commit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 3000)
    commits: list[Any] = []
    metadata = store._handle.metadata
    inner = metadata.journal

    def counted(work: Any, outcome: Any) -> None:
        commits.append(work)
        inner(work, outcome)

    monkeypatch.setattr(metadata, "journal", counted)
    assert store.records.mark_sent(f"r{n}" for n in range(2, 5000)) == 2998
    assert len(commits) == 1
    assert ids(store.records.pending()) == ["r0", "r1"]
    assert store.records.mark_sent([]) == 0
    assert len(commits) == 1


def test_threads_that_settle_at_once_share_commits_and_each_gets_its_own_count(store: Store) -> None:
    fill(store, 40)
    found: list[int] = [0] * 8
    writer = store._handle.writer

    def settle(thread: int) -> None:
        mine = [f"r{n}" for n in range(thread * 5, thread * 5 + 5)]
        found[thread] = store.records.mark_sent([*mine, "nobody", *mine[:thread]])

    threads = [threading.Thread(target=settle, args=(n,)) for n in range(8)]
    with store._handle.metadata.write():  # the first thread waits for it, and the others queue behind it
        for queued, thread in enumerate(threads):
            thread.start()
            while not writer._leading.locked() or len(writer._queue) != queued:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert found == [5] * 8
    assert store.records.count() == 0


@pytest.mark.parametrize("bad", [5, None, b"r0", "\ud800"], ids=repr)
def test_an_invalid_record_id_is_refused_and_nothing_is_settled(store: Store, bad: Any) -> None:
    fill(store, 2)
    for settle in (store.records.mark_sent, store.records.mark_failed):
        with pytest.raises(InvalidRecord):
            settle(["r0", bad])
    assert [record["retry_count"] for record in store.records.pending()] == [0, 0]


def test_the_same_data_again_adds_no_point_even_at_another_time(store: Store, clock: Any) -> None:
    store.records.add("r", "s", {"value": 1.5})
    clock.advance(10)
    assert store.records.add("r", "s", {"value": 1.5}).accepted == 0
    assert len(store.points.range("s", None).all()) == 1
    assert store.records.add("r", "s", {"value": 2.5}).accepted == 1
    assert [row["value"] for row in store.points.range("s", None)] == [1.5, 2.5]
    store.records.mark_sent("r")
    assert store.records.add("r", "s", {"value": 2.5}).accepted == 1, "one that left is new again"


def test_unsent_records_that_are_dropped_have_one_ledger_entry_per_day(store: Store, clock: Any) -> None:
    now_s = clock() / 1e6
    for n, age in enumerate((10, 200, 300)):
        store.records.add(f"old{n}", "s", {"n": n}, timestamp=now_s - age)
    for _ in range(3):
        store.records.mark_failed("old0")
    assert store.records.drop_old(max_age_s=250, max_retries=4) == 1
    assert store.records.drop_old(max_age_s=250, max_retries=4) == 0
    store.records.add("old3", "s", {}, timestamp=now_s - 400)
    assert store.records.drop_old(max_age_s=250, max_retries=3) == 2
    assert ids(store.records.pending()) == ["old1"]
    assert {
        (loss.what, loss.reason, loss.dropped, round(now_s - loss.first_us / 1e6), loss.last_us is not None)
        for loss in ledger(store)
        if loss.first_us is not None
    } == {("records", "age", 2, 400, True), ("records", "retries", 1, 10, True)}
    clock.advance(86_400)
    assert store.records.clear("nobody") == 0
    assert store.records.clear("s") == 1
    assert {loss.reason for loss in ledger(store)} == {"age", "retries", "clear"}
    assert store.status().ledger_dropped == 4


def test_counts_have_sources_retries_and_the_oldest(store: Store) -> None:
    assert store.records.counts() == (0, {}, {}, None)
    fill(store, 4)
    store.records.mark_failed("r0")
    assert store.records.counts() == (4, {"source-0": 2, "source-1": 1, "source-2": 1}, {0: 3, 1: 1}, 1000.0)
    assert store.records.count() == 4
    assert store.records.has("r0")
    assert not store.records.has("nobody")


@pytest.fixture
def metadata(tmp_path: Any) -> Any:
    engine = sqlite.open_engine(tmp_path / "own.db")
    runner.upgrade(engine, "metadata", path=tmp_path / "own.db")
    yield engine
    engine.dispose()


def test_records_on_the_callers_connection_behave_like_those_of_a_store(
    metadata: Engine, store: Store
) -> None:
    with metadata.begin() as connection:
        own = RecordRepository(connection, clock=store._handle.clock)
        for records in (own, store.records):
            records.add("a", "s", {"n": 1})
            records.add("b", source="t", data={"n": 2}, timestamp=5)
            records.add("b", source="t", data={"n": 3}, timestamp=6)
            records.add("c", "t", {"n": 4})
            assert records.mark_failed(["b", "x"]) == 1
            assert records.mark_sent("a") == 1
        assert not own.add("b", source="t", data={"n": 3})
        assert own.pending() == store.records.pending()
        assert own.pending("t", 1, after_id=2) == store.records.pending("t", 1, after_id=2)
        assert own.counts() == store.records.counts()


def test_a_repository_begins_the_transaction_that_its_caller_ends(metadata: Engine) -> None:
    with metadata.connect() as connection:
        RecordRepository(connection).add("a", "s", {})
        connection.rollback()
        assert RecordRepository(connection).pending() == []


@pytest.mark.slow
def test_a_hundred_thousand_records_are_added_and_sent(store: Store) -> None:
    fill(store, 100_000, value=1.0)
    seen, after = 0, 0
    started = time.perf_counter()
    while page := store.records.pending(limit=1000, after_id=after):
        after, seen = page[-1]["id"], seen + len(page)
    paged_s = time.perf_counter() - started
    started = time.perf_counter()
    assert store.records.mark_sent(f"r{n}" for n in range(100_000)) == 100_000
    sent_s = time.perf_counter() - started
    assert seen == 100_000
    print(f"100,000 records: paged in {paged_s:.2f} s, marked sent in {sent_s:.2f} s")
