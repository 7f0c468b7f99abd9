"""A destination that has accepted nothing yet refuses an item: is it the item, or everything that is sent there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Forwarder, Progress
from tests.conftest import Templates
from tests.delivery.memory_sink import Interrupted, MemorySink
from tests.delivery.servers.scripted import Reply, Scripted
from tests.delivery.test_forwarder import NO_WAIT, steps, write

MOST_TRIED = 8


@pytest.fixture
def store(tmp_path: Path, templates: Templates) -> Iterator[Store]:
    templates.copy("sqlite", 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(background=False)) as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


def wrong() -> MemorySink:
    """A receiver that gives everything the same answer."""
    return MemorySink(exact=False, by_item=False, refuses=lambda _row: "no such table")


def add_records(store: Store, count: int) -> None:
    store.sinks.add("memory", "", start="beginning", records=True)
    for at in range(count):
        store.records.add(f"R-{at}", "gw", {"n": at})


@pytest.mark.parametrize("records", [False, True], ids=["points", "records"])
def test_one_that_refuses_everything_is_halted_and_nothing_is_in_quarantine(
    store: Store, records: bool
) -> None:
    if records:
        add_records(store, 100)
    else:
        write(store, 100)
    sink = wrong()
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    made = steps(forwarder)
    assert (made[-1].progress, sum(step.items + step.refused for step in made)) == (Progress.HALTED, 0)
    assert "accepted nothing yet, and refuses 8 items that were sent alone" in str(made[-1].error)
    info = store.sinks.show("memory")
    assert (info.state, info.attempt, info.refused, store.quarantine.count()) == ("halted", None, 0, 0)
    assert len(sink.sent) < 20
    alone = [batch for batch in sink.sent if len(batch) == 1]
    assert len(alone) == MOST_TRIED
    if not records:
        times = [batch.rows[0][2] // 1_000_000 for batch in alone]
        assert times == sorted(set(times))
        assert times[-1] > 80, "they are taken from the whole backlog"

    sink.sent.clear()
    steps(forwarder)
    assert {len(batch) for batch in sink.sent} == {1}, "a probe is small"
    assert len(sink.sent) <= MOST_TRIED

    sink.refuses = lambda _row: None
    assert forwarder.drain()["memory"].is_empty
    assert len(sink.destination.records if records else sink.destination.points) == 100
    assert (sink.destination.repeated(), store.quarantine.count()) == (0, 0)


@pytest.mark.parametrize("records", [False, True], ids=["points", "records"])
def test_the_first_items_are_refused_once_another_one_is_accepted(store: Store, records: bool) -> None:
    sink = MemorySink(exact=False, by_item=False)
    if records:
        add_records(store, 40)
        sink.refuses = lambda row: "too wide" if row[0] in ("R-0", "R-1", "R-2") else None
    else:
        write(store, 20, value=-20.0)  # more than are tried
        write(store, 100, first=100)
        sink.refuses = lambda row: "negative" if row[3] < 0 else None
    drained = Forwarder(store, sink, backoff=NO_WAIT).drain()["memory"]
    refused = 3 if records else 20
    assert (drained.is_empty, drained.refused) == (True, refused)
    assert drained.delivered == (37 if records else 100)
    info = store.sinks.show("memory")
    assert (info.refused, store.quarantine.count(), info.ranges, info.state) == (
        refused,
        refused,
        (),
        "running",
    )
    assert {item.reason for item in store.quarantine.list()} == {
        f"400: {'too wide' if records else 'negative'}"
    }
    assert sink.destination.repeated() == 0
    assert store.records.pending() == []


def test_a_single_item_waits_for_another_one(store: Store) -> None:
    """Nothing can be compared with it, so nobody knows yet what is wrong."""
    write(store, 1, value=-1.0)
    sink = MemorySink(exact=False, by_item=False, refuses=lambda row: "negative" if row[3] < 0 else None)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    made = steps(forwarder)
    assert made[-1].progress is Progress.HALTED
    assert "accepted nothing yet, and refuses 1 item that was sent alone" in str(made[-1].error)
    assert store.quarantine.count() == 0
    write(store, 1, first=10)
    assert steps(forwarder)[-1].progress is Progress.IDLE
    assert (store.quarantine.count(), len(sink.destination.points)) == (1, 1)
    assert store.sinks.show("memory").state == "running"
    write(store, 1, first=20, value=-1.0)
    assert steps(forwarder)[-1].progress is Progress.IDLE
    assert store.quarantine.count() == 2, "it has accepted something since"
    forwarder.stop()


@pytest.mark.parametrize("before_call", [6, 7, 8, 9])
def test_a_restart_among_the_first_refusals_loses_nothing(store: Store, before_call: int) -> None:
    write(store, 3, value=-3.0)
    write(store, 30, first=100)
    sink = MemorySink(exact=False, by_item=False, refuses=lambda row: "negative" if row[3] < 0 else None)

    def interrupt(_batch: object) -> None:
        if len(sink.sent) == before_call:
            raise Interrupted

    sink.on_send = interrupt
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    try:
        steps(forwarder)
    except Interrupted:
        forwarder.stop()
        forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    assert forwarder.drain()["memory"].is_empty
    info = store.sinks.show("memory")
    assert (info.refused, store.quarantine.count(), info.behind) == (3, 3, 0)
    assert len(sink.destination.points) == 30


def test_a_receiver_of_json_at_a_wrong_path_gets_nothing_into_quarantine(
    store: Store, server: Scripted
) -> None:
    server.answer = lambda _asked: Reply(400, b"unknown endpoint")
    write(store, 40)
    store.sinks.add("there", server.url + "/x", start="beginning", receipts=False)
    halted = Forwarder(store, "there").drain()["there"]
    assert (halted.delivered, halted.refused, halted.last.progress) == (0, 0, Progress.HALTED)
    assert "400" in str(halted.last.error)
    assert "check the URL and the options of the sink" in str(halted.last.error)
    server.answer = lambda _asked: Reply(204, b"")
    done = Forwarder(store, "there").drain()["there"]
    assert (done.delivered, done.refused, done.is_empty) == (40, 0, True)
    assert store.quarantine.count() == 0
