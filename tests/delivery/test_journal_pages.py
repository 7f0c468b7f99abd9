"""Batches from the journal: the same as from the columns, and read while another user holds these."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repo import Store
from repo.core import journal_pages
from repo.core.journal_pages import KEPT_US, MOST_SEQS, JournalPages
from repo.cursors import Span
from repo.delivery.forwarder import Forwarder, Progress
from repo.queries.seq_page import SeqPage
from tests.conftest import Clock, OpenStore
from tests.delivery.memory_sink import Destination, MemorySink
from tests.delivery.sink_batches import batch_of

Row = tuple[Any, ...]

_points = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 9), st.sampled_from([None, 0, 1, 2, "open"])),
    min_size=1,
    max_size=6,
)
_steps = st.one_of(
    st.tuples(st.just("newer"), st.integers(1, 6)),
    st.tuples(st.just("newer"), st.integers(1, 6)),
    st.tuples(st.just("write"), _points),
    st.tuples(st.just("keep"), _points),
    st.tuples(st.just("bulk"), _points),
    st.tuples(st.just("delete"), st.integers(0, 2)),
    st.tuples(st.sampled_from(["flush", "checkpoint", "read", "read and compare"]), st.none()),
)


_numbers = itertools.count()


def _name(prefix: str, sensor: int, value: object) -> str:
    return f"{prefix}-{sensor}-{'state' if isinstance(value, str) else 'flow'}"


def _columns_of(prefix: str, rows: list[tuple[int, int, Any]]) -> dict[str, list[Any]]:
    numbers = [row for row in rows if not isinstance(row[2], str)]
    return {
        "sensor_id": [_name(prefix, sensor, value) for sensor, _, value in numbers],
        "metric_name": ["m"] * len(numbers),
        "timestamp_us": [at * 1_000_000 for _, at, _ in numbers],
        "value": [value for _, _, value in numbers],
    }


def _run(store: Store, script: list[tuple[str, Any]]) -> None:
    """Run it on series of its own. Each page is compared with the columns: most at once, the others at the end."""
    prefix, pages = f"S{next(_numbers)}", JournalPages(store._handle.metadata)
    begin = read = store.sinks.last_seq()
    found: list[tuple[Span, list[Row]]] = []
    values, times = itertools.count(100), itertools.count(100)
    for what, given_ in script:
        match what:
            case "newer":
                store.points.insert_many(
                    [
                        (f"{prefix}-{at % 3}-flow", "m", float(next(times)), next(values))
                        for at in range(given_)
                    ]
                )
            case "write":
                store.points.insert_many(
                    [(_name(prefix, sensor, value), "m", float(at), value) for sensor, at, value in given_]
                )
            case "keep" | "bulk":
                rows = given_ if what == "keep" else given_ * 5
                if (columns := _columns_of(prefix, rows))["value"]:
                    store.points.insert_table(columns, on_conflict="keep" if what == "keep" else "overwrite")
            case "delete":
                store.points.delete(f"{prefix}-{given_}-*")
            case "flush":
                store.flush()
            case "checkpoint":
                store.checkpoint()
            case _:
                last = store.sinks.last_seq()
                if last == read:
                    continue
                page = pages.page(Span(read + 1, last))
                if page is not None:
                    assert (page.span, page.watermark) == (Span(read + 1, last), last)
                    found.append((page.span, _rows_of(page)))
                    if what == "read and compare":
                        assert found[-1][1] == _stored(store, page.span)
                read = last
    store.flush()
    newest = {row[:3]: row[-1] for row in _stored(store, Span(begin, store.sinks.last_seq()))}
    for span, rows in found:  # what is no longer stored was overwritten later, or deleted
        assert [row for row in rows if newest.get(row[:3]) == row[-1]] == _stored(store, span)
        assert all(newest.get(row[:3], row[-1]) >= row[-1] for row in rows)


def _rows_of(page: SeqPage) -> list[Row]:
    return list(zip(*page.columns, strict=True))


def _stored(store: Store, span: Span) -> list[Row]:
    page = store.points.page(*span)
    assert page.span == span
    return _rows_of(page)


@pytest.fixture
def loading_store(open_store: OpenStore) -> Store:
    """A store in which few rows are a bulk."""
    store = open_store(bulk_rows=5)
    store.sinks.add("any", "https://127.0.0.1:9/", start="now")  # so that the journal keeps its newest rows
    return store


@settings(max_examples=10)
@given(script=st.lists(_steps, min_size=3, max_size=14))
def test_a_page_of_the_journal_is_the_page_of_the_columns(
    loading_store: Store, script: list[tuple[str, Any]]
) -> None:
    _run(loading_store, script)


@pytest.mark.slow
@settings(max_examples=300)
@given(script=st.lists(_steps, min_size=5, max_size=30))
def test_many_pages_of_the_journal_are_the_pages_of_the_columns(
    loading_store: Store, script: list[tuple[str, Any]]
) -> None:
    _run(loading_store, script)


def test_new_points_come_from_the_journal_and_everything_else_from_the_columns(open_store: OpenStore) -> None:
    store = open_store()  # with a clock that does not advance
    store.sinks.add("any", "https://127.0.0.1:9/", start="now")  # so that the journal keeps its newest rows

    def rows(*at: int, value: float = 1.0) -> list[Row]:
        return [("S-1", "flow", float(time), value) for time in at]

    pages, read = JournalPages(store._handle.metadata), 0

    def page() -> list[float] | None:
        nonlocal read
        last = store.sinks.last_seq()
        found = pages.page(Span(read + 1, last))
        read = last
        return None if found is None else [us / 1e6 for us in found.columns[2]]

    store.points.insert_many(rows(10, 11))
    assert page() == [10, 11]
    store.points.insert_many([*rows(20, 14, 12), *rows(14, value=2.0)])
    assert page() == [20, 12, 14]  # out of order, and a point twice
    store.flush()
    store.points.insert_many(rows(21))
    store.flush()
    store.points.insert_many(rows(22))
    assert page() == [21, 22]  # one is in the columns, one is not
    store.points.insert_many(rows(23, 13))
    assert page() is None  # a late one
    store.points.insert_many(rows(24, 22))
    assert page() is None  # one overwrites
    store.points.insert_many([*rows(25), *rows(25, value=2.0), *rows(25)])
    assert page() == [25]  # one returns to its value
    store.points.insert_many(rows(26))
    store.points.delete("S-1", "flow", 26.0)
    assert page() is None
    store.points.insert_many(rows(27))
    assert page() == [27]
    store.points.insert_many(rows(28))
    store.checkpoint()  # prunes it
    assert page() is None
    store.points.insert_many(rows(29))
    assert page() == [29]
    assert pages.page(Span(read, read)) is None  # passed
    store.points.insert_many(rows(*range(30, 30 + MOST_SEQS + 1)))
    assert page() is None  # too many
    store.flush()  # as a read of the columns does
    store.points.insert_many(rows(100_000))
    assert page() == [100_000]


def test_the_names_of_a_page_are_distinct_for_arrow_and_pandas(store: Store) -> None:
    pytest.importorskip("pyarrow")
    store.points.insert_many([("W-1", "flow", 1.0, 1.5), ("W-1", "p", 1.0, 2.5), ("W-2", "flow", 1.0, 3.5)])
    found = JournalPages(store._handle.metadata).page(Span(1, 3))
    assert found is not None
    table = replace(batch_of([]), columns=found.columns).arrow()
    for name, texts in (("sensor_id", ["W-1", "W-1", "W-2"]), ("metric_name", ["flow", "p", "flow"])):
        assert table[name].to_pylist() == texts
        assert table[name].chunk(0).dictionary.to_pylist() == list(dict.fromkeys(texts))


def test_a_reader_in_the_middle_of_a_journal_row_continues_there(store: Store) -> None:
    store.points.insert_many([("S-1", "flow", float(at), 1.0) for at in range(6)])
    page = JournalPages(store._handle.metadata).page(Span(3, 6))
    assert page is not None
    assert list(page.columns[7]) == [3, 4, 5, 6]
    store.points.insert_many(
        [("S-1", "flow", 6.0, 1.0), ("S-1", "flow", 3.0, 2.0), ("S-1", "flow", 9.0, 1.0)]
    )
    assert JournalPages(store._handle.metadata).page(Span(8, 9)) is None  # one was written before the range


def test_a_store_of_very_many_series_is_read_from_the_columns(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_pages, "MOST_SERIES", 2)
    pages = JournalPages(store._handle.metadata)
    for sensor, has_page in (("S-1", True), ("S-2", True), ("S-3", False), ("S-3", False)):
        last = store.points.insert(sensor, "flow", 1.0).last_seq or 0
        assert (pages.page(Span(last, last)) is not None) is has_page


@pytest.fixture
def held(store: Store) -> Iterator[Callable[[], Any]]:
    """Hold the columns of the store, as a process that reads them does."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def hold() -> None:
        begun = threading.Event()

        def run() -> None:
            with store._handle.columns.alone("a test"):
                begun.set()
                ended.wait(300)

        threads.append(threading.Thread(target=run))
        threads[0].start()
        assert begun.wait(300)

    yield hold
    ended.set()
    for thread in threads:
        thread.join()


def test_live_readings_are_delivered_while_the_columns_are_in_use(
    store: Store, held: Callable[[], Any]
) -> None:
    destination = Destination()
    forwarder = Forwarder(store, MemorySink(destination))
    store.points.insert("S-1", "flow", 1.0, timestamp=1.0)
    assert forwarder.step()["memory"].progress is Progress.DELIVERED
    store.flush()
    held()
    for at in (2.0, 3.0):
        store.points.insert("S-1", "flow", at, timestamp=at)
        assert forwarder.step()["memory"].progress is Progress.DELIVERED
    assert forwarder.step()["memory"].progress is Progress.IDLE
    assert [row[2:4] for batch in destination.batches for row in batch.rows] == [
        (at * 1_000_000, float(at)) for at in (1, 2, 3)
    ]
    forwarder.stop()


def test_a_sink_that_gets_nothing_of_what_is_written_leaves_the_columns_alone(
    store: Store, held: Callable[[], Any]
) -> None:
    destination = Destination()
    forwarder = Forwarder(store, MemorySink(destination))
    store.sinks.change("memory", filter={"sensor_id": "S-2"})
    forwarder.step()
    held()
    for at in range(3):
        store.points.insert("S-1", "flow", 1.0, timestamp=float(at))
        assert forwarder.step()["memory"].progress in (Progress.IDLE, Progress.DELIVERED)
        assert forwarder.step()["memory"].progress is Progress.IDLE
    store.points.insert("S-2", "flow", 1.0, timestamp=1.0)
    assert forwarder.step()["memory"].items == 1
    assert forwarder.step()["memory"].progress is Progress.IDLE
    forwarder.stop()


def _journal_rows(store: Store) -> int:
    return store.status().journal_rows


def test_the_newest_rows_stay_in_the_journal_for_seconds_and_no_sink_keeps_them_longer(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store(checkpoint_log_bytes=0)  # DuckDB checkpoints with each flush

    def write() -> None:
        store._handle.flusher._pruned_s -= 60  # as if a minute had passed
        store.points.insert("S-1", "flow", 1.0, timestamp=clock.now_us / 1e6)
        store.flush()

    write()
    assert _journal_rows(store) == 0  # nobody delivers
    store.sinks.add("slow", "https://127.0.0.1:9/", start="beginning")
    for seconds, rows in ((0, 1), (1, 2), (1, 3), (KEPT_US / 1e6 - 1, 3), (60, 1)):
        clock.advance(seconds)
        write()
        assert _journal_rows(store) == rows
    assert store.status().points_waiting == 0
    store.checkpoint()
    assert _journal_rows(store) == 0
