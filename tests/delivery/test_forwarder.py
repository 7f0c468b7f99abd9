"""The forwarder: its threads, its sinks, and each fault that users of other forwarders report."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Backoff, Forwarder, Progress, Step
from repo.delivery.protocol import Batch, Item, Lane, Outcome
from repo.errors import (
    InvalidQuery,
    InvalidSettings,
    SinkHalted,
    StoreBusy,
    StoreClosed,
    StoreFull,
    StoreReadOnly,
)
from repo.store.claims import Claim
from repo.store.deliveries import Delivery
from tests.conftest import RunPython, Templates
from tests.delivery.memory_sink import Destination, Interrupted, MemorySink

NO_WAIT = Backoff(first_s=0.001, longest_s=0.002)


@pytest.fixture
def store(tmp_path: Path, templates: Templates) -> Iterator[Store]:
    """On SQLite: what depends on the engine is held by the tests of reading."""
    templates.copy("sqlite", 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(background=False)) as opened:
        yield opened


def write(store: Store, count: int, *, first: int = 0, sensor: str = "S", value: float = 0.0) -> None:
    store.points.insert_many([(sensor, "flow", float(first + at), value + at) for at in range(count)])


def two_batches(store: Store) -> tuple[MemorySink, Forwarder]:
    """Write 20 points, and return a sink in memory with its forwarder, which sends 10 at a time."""
    write(store, 20)
    sink = MemorySink()
    return sink, Forwarder(store, sink, batch_points=10, backoff=NO_WAIT)


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline_s, f"gave up waiting until {what}"
        time.sleep(0.005)


def steps(forwarder: Forwarder, most: int = 1_000) -> list[Step]:
    """Make steps until one does not deliver; returns all of them."""
    made: list[Step] = []
    while len(made) < most:
        [step] = forwarder.step().values()
        made.append(step)
        if step.progress not in (Progress.DELIVERED, Progress.SPLIT):
            break
    return made


# --- threads ------------------------------------------------------------------------------------------------


def test_it_delivers_in_the_background_and_stops_at_once(store: Store) -> None:
    write(store, 30)
    sink = MemorySink()
    before = set(threading.enumerate())
    with Forwarder(store, sink, batch_points=10, poll_s=0.02) as forwarder:
        eventually(lambda: len(sink.destination.points) == 30, "the backlog is there")
        write(store, 1, first=100)
        eventually(lambda: len(sink.destination.points) == 31, "a new reading is there")
        assert forwarder.is_running
        assert forwarder.start() is forwarder
        with pytest.raises(StoreBusy, match="delivers in the background"):
            forwarder.step()
    assert not forwarder.is_running
    assert set(threading.enumerate()) <= before  # a thread of an earlier test may have ended, too
    info = store.sinks.show("memory")
    assert (info.confirmed_seq, info.attempt, info.sent_points) == (31, None, 31)
    assert not sink.is_open
    forwarder.stop()


def test_a_stop_during_a_drain_leaves_the_batch_in_hand_its_connection(store: Store) -> None:
    write(store, 30)
    stopped = threading.Thread(target=lambda: forwarder.stop())

    def stop_now(_batch: Batch) -> None:
        stopped.start()
        stopped.join()
        assert sink.is_open

    sink = MemorySink(on_send=stop_now)
    forwarder = Forwarder(store, sink, batch_points=10)
    assert forwarder.drain()["memory"].delivered == 10
    assert not sink.is_open
    sink.on_send = lambda _batch: None
    assert forwarder.drain()["memory"].delivered == 20


def test_a_removed_sink_leaves_no_lock_files(store: Store) -> None:
    def locks() -> list[str]:
        return [path.name for path in store.path.glob("*sink-*")]

    write(store, 3)
    assert Forwarder(store, MemorySink()).drain()["memory"].is_empty
    assert locks()
    store.sinks.remove("memory")
    assert locks() == []
    with Forwarder(store, MemorySink(), start="beginning", poll_s=0.01):
        eventually(lambda: store.sinks.show("memory").behind == 0, "all is there")
        store.sinks.remove("memory")
        eventually(lambda: not locks(), "the thread of the removed sink has ended")
    waiting, first, second = (Claim(store.files, store.now_us, "memory") for _ in range(3))
    first.take()
    first.close(forget=True)
    waiting.take()
    with pytest.raises(StoreBusy):
        second.take()
    for claim in (waiting, second):
        claim.close(forget=True)
    assert locks() == []


def test_a_store_that_is_opened_for_reading_delivers_nothing(store: Store) -> None:
    write(store, 3)
    store.sinks.add("memory", "", start="beginning")
    path = store.path
    store.close()
    with Store(path, read_only=True) as opened:
        for sinks in (None, "memory", MemorySink()):
            with pytest.raises(StoreReadOnly, match="opened for reading only; open it without read_only"):
                Forwarder(opened, sinks)
    assert not list(path.glob("*sink-*"))


def test_stop_waits_for_the_batch_in_hand_and_for_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, 30)
    is_sending, may_answer = threading.Event(), threading.Event()

    def send(_batch: Batch) -> None:
        is_sending.set()
        assert may_answer.wait(300)

    sink = MemorySink(on_send=send)
    forwarder = Forwarder(store, sink, batch_points=10).start()
    [delivering] = forwarder._threads.values()
    assert is_sending.wait(300)
    stopping = threading.Thread(target=forwarder.stop)
    stopping.start()
    eventually(delivering._stop.is_asked, "the delivery is asked to end")
    stopping.join(0.1)  # a stop that does not wait ends sooner
    assert stopping.is_alive()
    may_answer.set()
    stopping.join(300)
    assert not stopping.is_alive()
    info = store.sinks.show("memory")
    assert len(sink.destination.points) == info.confirmed_seq == 10
    assert info.attempt is None

    # A sink that was halted, or is unreachable, waits long; stop does not.
    monkeypatch.setattr("repo.delivery.health.PROBE_S", 1e6)
    sink.on_send = lambda _batch: None
    sink.faults = iter(["halted"])
    forwarder = Forwarder(store, sink, batch_points=10).start()
    eventually(lambda: store.sinks.show("memory").state == "halted", "it is halted")
    stopping = threading.Thread(target=forwarder.stop, daemon=True)
    stopping.start()
    stopping.join(300)
    assert not stopping.is_alive(), "stop waits until the sink is tried again"
    assert store.sinks.show("memory").attempt is not None


def test_sinks_that_are_added_paused_and_removed_are_followed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sinks of the registry; the classes behind it have tests of their own."""
    sinks: dict[str, MemorySink] = {}

    def sink_of(name: str, *_: object) -> MemorySink:
        return sinks.setdefault(name, MemorySink(name=name))

    monkeypatch.setattr("repo.delivery.forwarder.sink_of", sink_of)
    monkeypatch.setattr("repo.delivery.forwarder.CHECK_S", 0.02)
    monkeypatch.setattr("repo.delivery.worker.PAUSE_S", 0.02)
    store.sinks.add("one", "http://one.example/", start="beginning")
    store.sinks.add("mine", "", start="beginning")  # nobody else knows its class
    write(store, 5)

    def has(name: str, count: int) -> Callable[[], bool]:
        return lambda: name in sinks and len(sinks[name].destination.points) == count

    with Forwarder(store, poll_s=0.02):
        eventually(has("one", 5), "the first sink has all")
        store.sinks.add("two", "http://two.example/", start="beginning", filter={"sensor_id": "A*"})
        write(store, 3, sensor="A-1")
        eventually(has("two", 3), "the second sink has what it selects")
        eventually(has("one", 8), "the first sink has all of it, too")
        store.sinks.pause("one")
        eventually(lambda: not sinks["one"].is_open, "the pause has begun")
        write(store, 2, sensor="A-2")
        eventually(has("two", 5), "the second sink has more")
        assert has("one", 8)()
        store.sinks.resume("one")
        eventually(has("one", 10), "the first sink has the rest")
        store.sinks.remove("one")
        eventually(lambda: not sinks["one"].is_open, "the first sink is given up")
        with pytest.raises(InvalidQuery, match="no sink 'one'"):
            Forwarder(store, "one")
    assert "mine" not in sinks


def test_two_forwarders_on_one_sink_are_refused_with_the_process(store: Store, run_python: RunPython) -> None:
    write(store, 5)
    with Forwarder(store, MemorySink()) as first:
        other = Forwarder(store, MemorySink())
        with pytest.raises(StoreBusy, match=r"another forwarder in process \d+ delivers to 'memory'"):
            other.start()
        with pytest.raises(StoreBusy, match="another forwarder"):
            other.step()
        Forwarder(store, MemorySink(name="another")).drain()
        store.sinks.show("another")
        found = run_python(
            "import sys\n"
            "from repo import Store\n"
            "from repo.delivery.forwarder import Forwarder\n"
            "from tests.delivery.memory_sink import MemorySink\n"
            "with Store(sys.argv[1]) as store:\n"
            "    try:\n"
            "        Forwarder(store, MemorySink()).start()\n"
            "    except Exception as error:\n"
            "        print(type(error).__name__, error.holder)\n",
            str(store.path),
        )
        first.stop()
        assert found.stdout.split() == ["StoreBusy", str(os.getpid())], found.stderr
    other.step()
    other.stop()


def test_a_closed_store_ends_the_delivery(store: Store) -> None:
    forwarder = Forwarder(store, MemorySink(), poll_s=0.01).start()
    store.close()
    forwarder.stop()
    with pytest.raises(StoreClosed):
        Forwarder(store, "memory")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sinks": 7}, "a name, a list of names, or a sink is expected"),
        ({"sinks": [7]}, "sinks = 7"),
        ({"start": "now"}, "start is only for a sink of your own"),
        ({"batch_points": 0}, "batch_points = 0: at least 1"),
        ({"poll_s": -1}, "poll_s"),
        ({"backoff": 3}, "a Backoff is expected"),
        ({"on_step": 3}, "on_step"),
    ],
)
def test_wrong_arguments_are_refused(store: Store, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        Forwarder(store, **arguments)


def test_what_on_step_raises_reaches_the_caller_of_step(store: Store) -> None:
    write(store, 5)

    def fail(_name: str, _step: Step) -> None:
        raise ZeroDivisionError

    sink = MemorySink()
    forwarder = Forwarder(store, sink, on_step=fail)
    with pytest.raises(ZeroDivisionError):
        forwarder.step()
    forwarder.stop()
    assert store.sinks.show("memory").confirmed_seq == 5
    assert Forwarder(store, sink).drain()["memory"].delivered == 0


# --- faults of the sink -------------------------------------------------------------------------------------


def test_nothing_is_skipped_while_a_sink_rejects_everything(store: Store) -> None:
    write(store, 25)
    sink = MemorySink(faults=["ok", "halted", "halted", "fault"])
    forwarder = Forwarder(store, sink, batch_points=10)
    first, halted = steps(forwarder)
    assert (first.items, halted.progress, halted.wait_s) == (10, Progress.HALTED, 60.0)
    assert isinstance(halted.error, SinkHalted)
    info = store.sinks.show("memory")
    assert (info.state, info.last_error) == ("halted", "401: the password is wrong")
    assert (info.confirmed_seq, info.failures) == (10, 1)
    assert (info.attempt.first_seq, info.attempt.last_seq) == (11, 20)  # type: ignore[union-attr]
    forwarder.step()
    since_us = store.sinks.show("memory").since_us
    assert since_us == info.since_us
    assert forwarder.step()["memory"].progress is Progress.HALTED  # an error that nobody expected
    assert store.sinks.show("memory").state == "stopped"
    assert "ZeroDivisionError" in (store.sinks.show("memory").last_error or "")
    assert forwarder.drain()["memory"].is_empty
    info = store.sinks.show("memory")
    assert (info.state, info.last_error, info.failures, info.confirmed_seq) == ("running", None, 0, 25)
    assert [batch.first_seq for batch in sink.sent] == [1, 11, 11, 11, 11, 21]
    assert len({batch.tokens.next for batch in sink.sent[1:5]}) == 1, "a range keeps its token"
    forwarder.stop()


def test_drain_gives_an_unreachable_sink_up_or_tries_for_the_given_time(store: Store) -> None:
    write(store, 5)
    sink = MemorySink(faults=["unreachable"] * 5)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    assert forwarder.drain()["memory"].last.progress is Progress.UNREACHABLE
    assert store.sinks.show("memory").state == "failing"
    drained = forwarder.drain(300.0)["memory"]
    assert (drained.is_empty, drained.delivered) == (True, 5)
    sink.faults = iter(["halted"])
    write(store, 1, first=9)
    assert forwarder.drain(300.0)["memory"].last.progress is Progress.HALTED
    forwarder.stop()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("by_item", [True, False])
def test_one_bad_item_is_quarantined_and_the_others_arrive(store: Store, exact: bool, by_item: bool) -> None:
    write(store, 1_000)
    bad = {137.0, 138.0, 901.0}
    sink = MemorySink(
        exact=exact, by_item=by_item, refuses=lambda row: "not above the limit" if row[3] in bad else None
    )
    forwarder = Forwarder(store, sink, batch_points=400)
    drained = forwarder.drain()["memory"]
    assert (drained.is_empty, drained.delivered, drained.refused) == (True, 997, 3)
    items = store.quarantine.list("memory")
    assert sorted(item.value for item in items) == sorted(bad)  # type: ignore[type-var]
    assert {(item.sensor_id, item.metric_name, item.kind) for item in items} == {("S", "flow", "refused")}
    assert all("not above the limit" in item.reason for item in items)
    assert len(sink.destination.points) == 997
    assert sink.destination.repeated() == 0
    assert len(sink.sent) < 100, "the items are found by halving"

    # Mended at the destination, they are sent again.
    sink.refuses = lambda _row: None
    store.quarantine.retry([item.id for item in items if item.id is not None])
    assert forwarder.drain()["memory"].delivered == 3
    assert store.quarantine.list("memory") == []
    assert len(sink.destination.points) == 1_000
    forwarder.stop()


def test_a_refused_point_that_is_not_sent_again_stays_in_quarantine(store: Store) -> None:
    write(store, 2)
    write(store, 2, sensor="T", value=2.0)
    sink = MemorySink(refuses=lambda _row: "too large")
    forwarder = Forwarder(store, sink)
    assert forwarder.drain()["memory"].refused == 4
    store.points.delete("S", end=1.0)
    store.sinks.change("memory", filter={"sensor_id": "S"})
    sink.refuses = lambda _row: None
    store.quarantine.retry([item.id for item in store.quarantine.list() if item.id is not None])
    store.sinks.replay("memory", seq=1)  # its range has those that are not sent, too
    assert forwarder.drain()["memory"].delivered == 1
    assert [content[0] for content in sink.destination.values().values()] == [1.0]
    kept = {item.value: item.reason.partition(";")[0] for item in store.quarantine.list()}
    filtered = "the filter of the sink no longer selects its series, so it is not sent again"
    assert kept == {
        0.0: "it is no longer stored, so it cannot be sent again",
        2.0: filtered,
        3.0: filtered,
    }


def test_a_sink_that_refuses_too_much_is_halted(store: Store) -> None:
    write(store, 3_000)
    sink = MemorySink(exact=False, refuses=lambda _row: "wrong table")
    forwarder = Forwarder(store, sink, batch_points=400)
    made = steps(forwarder)
    assert made[-1].progress is Progress.HALTED
    assert "refuses more than 1,000 of 100,000 items" in str(made[-1].error)
    info = store.sinks.show("memory")
    assert (info.state, info.confirmed_seq, len(store.quarantine.list("memory"))) == ("halted", 800, 800)
    assert forwarder.step()["memory"].progress is Progress.HALTED
    assert len(store.quarantine.list("memory")) == 800
    sink.refuses = lambda _row: None
    assert forwarder.drain()["memory"].delivered == 2_200
    forwarder.stop()


def test_a_destination_that_answers_for_rows_that_were_not_sent_is_a_fault(store: Store) -> None:
    write(store, 3)

    class Wrong(MemorySink):
        def send(self, batch: Batch) -> Outcome:
            return Outcome((Item(len(batch), "not mine"),))

    sink = Wrong()
    forwarder = Forwarder(store, sink)
    assert "row 3 was refused, of a batch of 3 items" in str(forwarder.step()["memory"].error)
    assert store.sinks.show("memory").confirmed_seq == 0
    forwarder.stop()


# --- forks --------------------------------------------------------------------------------------------------


def test_a_restored_copy_delivers_nothing_until_it_is_rekeyed(
    tmp_path: Path, templates: Templates, store: Store
) -> None:
    destination = Destination()
    write(store, 10)
    Forwarder(store, MemorySink(destination)).drain()
    store.close()
    shutil.copytree(store.path, tmp_path / "copy", ignore=shutil.ignore_patterns("*.lock"))
    with Store(store.path, Settings(background=False)) as original:
        write(original, 10, first=10)
        with Forwarder(original, MemorySink(destination)):
            pass
        forwarder = Forwarder(original, MemorySink(destination))
        forwarder.drain()
        forwarder.stop()
    with Store(tmp_path / "copy", Settings(background=False)) as copy:
        write(copy, 5, first=50)
        sink = MemorySink(destination)
        forwarder = Forwarder(copy, sink)
        drained = forwarder.drain(300.0)["memory"]
        assert drained.last.progress is Progress.FORKED
        assert "sinks rekey" in str(drained.last.error)
        assert sink.sent == []
        assert copy.sinks.show("memory").state == "forked"
        assert copy.sinks.show("memory").confirmed_seq == 10
        assert forwarder.step()["memory"].progress is Progress.FORKED

        copy.sinks.rekey(restored=True)
        assert forwarder.drain()["memory"].is_empty
        assert ("S", "flow", 54_000_000) in destination.points
        forwarder.stop()


def test_a_destination_that_lost_its_data_is_a_fork(store: Store) -> None:
    write(store, 10)
    Forwarder(store, MemorySink()).drain()
    write(store, 1, first=20)
    forwarder = Forwarder(store, MemorySink(Destination()))
    step = forwarder.step()["memory"]
    assert step.progress is Progress.FORKED
    assert "has lost what it had" in str(step.error)
    forwarder.stop()


# --- lanes, limits, filters ---------------------------------------------------------------------------------


def test_new_readings_overtake_a_long_backlog(store: Store) -> None:
    write(store, 200)
    sink = MemorySink()
    forwarder = Forwarder(store, sink, batch_points=10)
    order = [forwarder.step()["memory"] for _ in range(4)]
    assert order[0].lane is Lane.LIVE
    assert (order[0].first_seq, order[0].last_seq) == (191, 200)
    assert [step.lane for step in order[1:]] == [Lane.BACKFILL] * 3
    write(store, 2, first=500)
    step = forwarder.step()["memory"]
    assert (step.lane, step.first_seq, step.last_seq) == (Lane.LIVE, 201, 202)
    assert forwarder.step()["memory"].lane is Lane.BACKFILL
    assert store.sinks.show("memory").ranges == ((191, 202),)
    forwarder.drain()
    assert store.sinks.show("memory").ranges == ()
    assert sink.destination.repeated() == 0
    forwarder.stop()


def test_a_limit_is_kept_and_can_be_changed_while_it_runs(store: Store) -> None:
    class Large(MemorySink):
        """Sends so much that the limit is reached for hours, whatever the test takes."""

        def send(self, batch: Batch) -> Outcome:
            return replace(super().send(batch), sent_bytes=10**6)

    write(store, 200)
    sink = Large()
    store.sinks.add("memory", "", start="beginning", rate="100B/s", lanes=False)
    forwarder = Forwarder(store, sink, batch_points=50)
    assert forwarder.step()["memory"].progress is Progress.DELIVERED
    limited = forwarder.step()["memory"]
    assert (limited.progress, limited.wait_s) == (Progress.LIMITED, 1.0)
    assert store.sinks.show("memory").confirmed_seq == 50
    store.sinks.change("memory", rate=None)
    assert forwarder.drain()["memory"].is_empty
    store.sinks.change("memory", rate="0")
    write(store, 1, first=500)
    drained = forwarder.drain()["memory"]  # at once
    assert drained.last.progress is Progress.LIMITED
    assert "its rate is 0, so nothing is sent" in str(drained.last.error)
    forwarder.stop()


def test_a_filter_confirms_what_it_leaves_out(store: Store) -> None:
    store.sinks.add("memory", "", start="beginning", filter={"sensor_id": "A*"})
    write(store, 50)
    sink = MemorySink(exact=False)
    forwarder = Forwarder(store, sink, batch_points=10)
    assert forwarder.drain()["memory"].is_empty
    assert (store.sinks.show("memory").confirmed_seq, sink.sent) == (50, [])
    write(store, 3, sensor="A-1")
    write(store, 3)
    assert forwarder.drain()["memory"].delivered == 3
    assert store.sinks.show("memory").confirmed_seq == 56
    store.sinks.change("memory", filter=None)
    write(store, 1, first=99)
    assert forwarder.drain()["memory"].delivered == 1
    forwarder.stop()


def test_an_exact_sink_is_not_asked_at_every_poll_about_what_the_filter_leaves_out(store: Store) -> None:
    store.sinks.add("memory", "", start="beginning", filter={"sensor_id": "A*"})
    sink = MemorySink()
    forwarder = Forwarder(store, sink)
    for at in range(5):
        write(store, 5, first=10 * at)
        forwarder.step()
    assert [len(batch) for batch in sink.sent] == [0]
    write(store, 1, sensor="A-1")
    assert forwarder.step()["memory"].items == 1
    assert store.sinks.show("memory").confirmed_seq == 26
    forwarder.stop()


def test_a_replay_sends_again_what_follows(store: Store) -> None:
    write(store, 30)
    sink = MemorySink()
    forwarder = Forwarder(store, sink, batch_points=10)
    forwarder.drain()
    store.sinks.replay("memory", 20.0)
    assert forwarder.drain()["memory"].delivered == 10
    assert sink.destination.repeated() == 10
    store.sinks.replay("memory", "beginning")
    assert forwarder.drain()["memory"].delivered == 30
    assert len(sink.destination.points) == 30
    forwarder.stop()


# --- records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_records_are_delivered_settled_and_quarantined(store: Store, exact: bool) -> None:
    store.sinks.add("memory", "", start="beginning", records=True)
    for at in range(40):
        store.records.add(f"R-{at}", "gw", {"value": at, "sensor_id": "S", "metric_name": "m"}, float(at))
    sink = MemorySink(
        exact=exact, by_item=False, refuses=lambda row: "bad record" if row[0] in ("R-7", "R-31") else None
    )
    forwarder = Forwarder(store, sink, batch_points=10)
    drained = forwarder.drain()["memory"]
    assert drained.is_empty
    assert store.records.pending() == []
    assert len(sink.destination.records) == 38
    assert len(sink.destination.points) == 40
    items = store.quarantine.list("memory")
    assert sorted(item.record_id or "" for item in items) == ["R-31", "R-7"]
    info = store.sinks.show("memory")
    assert (info.sent_records, info.sent_points, info.refused) == (38, 40, 2)
    forwarder.stop()


@pytest.mark.parametrize("exact", [True, False])
def test_a_record_that_is_replaced_on_its_way_is_sent_again(store: Store, exact: bool) -> None:
    store.sinks.add("memory", "", start="beginning", records=True)
    store.records.add("R", "gw", {"note": "old"})
    destination = Destination()
    sink = MemorySink(destination, exact=exact, faults=["lost answer, interrupt"])
    forwarder = Forwarder(store, sink)
    with pytest.raises(Interrupted):
        forwarder.step()
    forwarder.stop()
    store.records.add("R", "gw", {"note": "new"})
    forwarder = Forwarder(store, MemorySink(destination, exact=exact))
    assert forwarder.drain()["memory"].is_empty
    assert store.records.pending() == []
    assert "new" in destination.records["R"]
    forwarder.stop()


# --- what users of other forwarders report ------------------------------------------------------------------


def test_refused_items_are_still_there_after_a_restart(store: Store) -> None:
    write(store, 10)
    sink = MemorySink(refuses=lambda row: "no" if row[3] == 4.0 else None)
    Forwarder(store, sink).drain()
    store.close()
    with Store(store.path, Settings(background=False)) as again:
        assert [item.value for item in again.quarantine.list("memory")] == [4.0]
        assert Forwarder(again, MemorySink(sink.destination)).drain()["memory"].is_empty
        assert [item.reason for item in again.quarantine.list("memory")] == ["no"]


def test_a_backlog_is_sent_after_a_restart_and_an_outage_though_nothing_new_is_written(store: Store) -> None:
    write(store, 200)
    sink = MemorySink(faults=["ok", "unreachable", "unreachable", "lost answer"])
    with Forwarder(store, sink, batch_points=10, backoff=NO_WAIT):
        eventually(lambda: len(sink.destination.points) == 200, "the backlog is there")
    store.close()
    with Store(store.path, Settings(background=False)) as again:
        write(again, 50, first=1_000)
    with Store(store.path, Settings(background=False)) as again:
        sink = MemorySink(sink.destination)
        with Forwarder(again, sink, batch_points=10):
            eventually(lambda: len(sink.destination.points) == 250, "the rest is there")


def test_a_full_disk_delays_a_delivery_and_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The full disk itself is simulated: how SQLite reports one is tested with the faults of the store."""
    sink, forwarder = two_batches(store)
    forwarder.step()
    full = [True]
    begin = Delivery.begin

    def fail(self: Delivery, *args: Any) -> None:
        if full[0]:
            raise StoreFull("no space left")
        begin(self, *args)

    monkeypatch.setattr(Delivery, "begin", fail)
    step = forwarder.step()["memory"]
    assert (step.progress, len(sink.sent)) == (Progress.BUSY, 1)
    assert store.sinks.show("memory").last_error == "no space left"
    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "failed", fail)  # nor can the reason be stored
        forwarder.step()
    assert caplog.messages == ["the delivery to memory waits for the store: no space left"]
    full[0] = False
    assert forwarder.drain()["memory"].is_empty
    assert (len(sink.destination.points), sink.destination.repeated()) == (20, 0)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the store be busy at so many confirmations; how SQLite says so is tested with its lock."""
    left = [0]
    confirm = Delivery.confirm

    def fail(self: Delivery, *args: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise StoreBusy("process 1 has been writing for 10 s")
        confirm(self, *args)

    monkeypatch.setattr(Delivery, "confirm", fail)
    return left


def test_a_store_that_is_busy_at_the_confirmation_delays_a_step(store: Store, busy: list[int]) -> None:
    sink, forwarder = two_batches(store)
    busy[0] = 1
    step = forwarder.step()["memory"]
    assert (step.progress, step.items, type(step.error)) == (Progress.BUSY, 10, StoreBusy)
    assert step.wait_s > 0
    assert store.sinks.show("memory").behind == 20
    busy[0] = 0
    assert forwarder.step()["memory"].items == 10
    assert store.sinks.show("memory").behind == 0, "the first batch is confirmed with the second"
    assert (len(sink.sent), sink.destination.repeated()) == (2, 0)
    forwarder.stop()


def test_a_drain_waits_for_a_busy_store_as_for_a_sink(store: Store, busy: list[int]) -> None:
    sink, forwarder = two_batches(store)
    busy[0] = 1_000
    drained = forwarder.drain()["memory"]
    assert (drained.is_empty, drained.delivered, drained.last.progress) == (False, 20, Progress.BUSY)
    assert store.sinks.show("memory").behind == 10
    busy[0] = 3
    assert forwarder.drain(300.0)["memory"].is_empty
    assert (len(sink.destination.points), sink.destination.repeated()) == (20, 0)


def test_a_batch_that_a_busy_store_does_not_confirm_before_the_stop_is_sent_again(
    store: Store, busy: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 10)
    sink = MemorySink()
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    busy[0] = 2
    forwarder.step()
    forwarder.stop()
    assert "the last batch to memory is not confirmed, so it is sent again" in caplog.text
    step = forwarder.step()["memory"]
    assert (step.items, step.repeat) == (10, True)
    assert store.sinks.show("memory").behind == 0
    forwarder.stop()


def test_a_busy_store_is_no_fault_of_a_background_delivery(
    store: Store, busy: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 10)
    busy[0] = 2
    with Forwarder(store, MemorySink(), backoff=NO_WAIT, poll_s=0.02):
        eventually(lambda: not store.sinks.show("memory").behind, "the batch is confirmed")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_child_of_a_fork_has_no_forwarder_and_the_parent_keeps_its_own(store: Store) -> None:
    write(store, 5)
    sink = MemorySink()
    with Forwarder(store, sink, poll_s=0.02) as forwarder:
        eventually(lambda: len(sink.destination.points) == 5, "the first points are there")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert not forwarder.is_running
                forwarder.stop()
                with pytest.raises(StoreClosed):
                    forwarder.step()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        write(store, 5, first=10)
        eventually(lambda: len(sink.destination.points) == 10, "the parent goes on")
