"""Deliveries beside others: late requests of a killed process, rekeys, the quarantine's retries, and cleanups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.delivery import refusals
from repo.delivery.forwarder import Forwarder, Progress
from repo.delivery.protocol import Batch
from repo.store.deliveries import Delivery
from tests.conftest import ENGINES, Templates
from tests.delivery.memory_sink import Destination, Interrupted, MemorySink
from tests.delivery.test_forwarder import NO_WAIT, steps, write


@pytest.fixture
def store(tmp_path: Path, templates: Templates) -> Iterator[Store]:
    templates.copy("sqlite", 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(background=False)) as opened:
        yield opened


def test_records_of_a_killed_process_may_still_arrive_after_its_restart(store: Store) -> None:
    """A receiver continues with a request whose sender was killed: it may store it after it was asked for its token."""
    store.sinks.add("memory", "", start="beginning", records=True)
    store.records.add("R-1", "till", {"n": 1})
    destination = Destination()
    killed = MemorySink(destination, faults=["interrupt"])
    forwarder = Forwarder(store, killed)
    with pytest.raises(Interrupted):
        forwarder.step()
    forwarder.stop()
    [late] = killed.sent
    store.records.add("R-1", "till", {"n": 2})

    def arrive(_batch: Batch) -> None:
        if not destination.batches:
            MemorySink(destination)._stored(late, forked=False)

    with Forwarder(store, MemorySink(destination, on_send=arrive), backoff=NO_WAIT) as forwarder:
        forwarder.stop()
        made = steps(forwarder)
        assert made[-1].progress is Progress.IDLE, made
    assert destination.records == {"R-1": '{"n":2}'}
    assert not store.records.pending()


def test_a_rekey_beside_a_forwarder_is_not_a_fork(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it comes: while the forwarder reads where it is, or after the destination was asked for its token."""
    write(store, 10)
    destination = Destination()
    rekeys = iter([0, 1, 2, 3])

    class Asked(MemorySink):
        def open(self, store_id: str, epoch: int) -> str | None:
            held = super().open(store_id, epoch)
            if next(rekeys, None) is not None:
                destination.tokens[store_id, epoch, self.name] = "f" * 32  # of a copy of this store
                store.sinks.rekey(restored=True)
                return "f" * 32
            return held

    forwarder = Forwarder(store, Asked(destination), backoff=NO_WAIT)
    for _ in range(12):
        [step] = forwarder.step().values()
        assert step.progress is not Progress.FORKED, step
    assert store.sinks.show("memory").state == "running"
    assert len(destination.points) == 10

    read = Delivery.position_and_identity

    def rekeyed_after(delivery: Delivery) -> Any:
        found = read(delivery)
        monkeypatch.undo()
        store.sinks.rekey(restored=True)
        return found

    write(store, 10, first=100)
    monkeypatch.setattr(Delivery, "position_and_identity", rekeyed_after)
    for _ in range(3):
        [step] = forwarder.step().values()
        assert step.progress is not Progress.FORKED, step
    forwarder.stop()
    assert len(destination.points) == 20


def test_a_batch_that_was_answered_while_the_store_was_rekeyed_is_sent_again(store: Store) -> None:
    write(store, 3)
    destination = Destination()

    def rekey(batch: Batch) -> None:
        if batch.epoch == 1:
            store.sinks.rekey(restored=True)

    forwarder = Forwarder(store, MemorySink(destination, on_send=rekey), backoff=NO_WAIT)
    assert forwarder.step()["memory"].items == 3
    assert store.sinks.show("memory").behind == 3
    assert forwarder.drain()["memory"].is_empty
    assert [(batch.epoch, len(batch)) for batch in destination.batches] == [(1, 3), (2, 3)]


@pytest.mark.parametrize("exact", [True, False])
def test_refused_points_that_are_sent_again_neither_delay_nor_halt_a_delivery(
    store: Store, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(refusals, "MOST_REFUSED", 20)
    monkeypatch.setattr(refusals, "MOST_QUARANTINED", 20)
    write(store, 20, value=-20.0)
    write(store, 1, first=50)  # or a sink that keeps no position would be halted
    sink = MemorySink(exact=exact, by_item=exact, refuses=lambda row: "negative" if row[3] < 0 else None)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    steps(forwarder)
    ids = [item.id or 0 for item in store.quarantine.list()]
    assert len(ids) == 20
    store.quarantine.retry(ids)
    write(store, 5, first=100)
    for _ in range(2):
        forwarder.step()
    assert len(sink.destination.points) == 6, "new readings do not wait for twenty batches"
    made = steps(forwarder)
    assert made[-1].progress is Progress.IDLE, made
    assert sum(step.refused for step in made) >= 18
    assert store.quarantine.count() == 20
    forwarder.stop()


def test_a_refused_point_that_a_cleanup_dropped_stays_in_quarantine_with_its_value(store: Store) -> None:
    write(store, 10)
    sink = MemorySink(exact=False, refuses=lambda row: "bad" if row[3] in (3.0, 5.0, 7.0) else None)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    steps(forwarder)
    dropped, overwritten, kept = (item.id or 0 for item in store.quarantine.list())
    store.points.delete("S", "flow", 3.0, 4.0)
    store.points.insert("S", "flow", 50.0, timestamp=5.0)
    sink.refuses = lambda _row: None
    for _ in range(2):
        store.quarantine.retry([item.id or 0 for item in store.quarantine.list()])
        assert steps(forwarder)[-1].progress is Progress.IDLE
    [item] = store.quarantine.list()
    assert (item.value, item.retry) == (3.0, False)
    assert item.reason == "it is no longer stored, so it cannot be sent again; it was refused: bad"
    values = {time_us: content[0] for (_, _, time_us), content in sink.destination.values().items()}
    assert (values[5_000_000], values[7_000_000]) == (50.0, 7.0)
    assert dropped < overwritten < kept
    forwarder.stop()


def test_an_older_value_is_not_sent_after_a_newer_one_was_confirmed_by_hand(store: Store) -> None:
    write(store, 30)
    sink = MemorySink(exact=False)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT, batch_points=10)
    forwarder.step()
    store.points.insert("S", "flow", 99.0, timestamp=25.0)
    store.sinks.confirm("memory", store.sinks.last_seq(), store.sinks.last_seq())
    assert steps(forwarder)[-1].progress is Progress.IDLE
    assert ("S", "flow", 25_000_000) not in sink.destination.points
    assert len(sink.destination.points) == 29
    forwarder.stop()


def test_a_refused_point_leaves_the_quarantine_when_a_replay_delivers_it(store: Store) -> None:
    write(store, 20)
    write(store, 5, sensor="D")
    bad: set[str] = {"S", "D"}
    sink = MemorySink(refuses=lambda row: "too high" if row[0] in bad and row[2] % 4_000_000 == 0 else None)
    forwarder = Forwarder(store, sink, batch_points=10)
    assert forwarder.drain()["memory"].refused == 7
    bad.remove("S")
    store.points.insert("S", "flow", -1.0, timestamp=4.0)  # in place of one that was refused
    store.points.delete("D")
    store.sinks.replay("memory", "beginning")
    assert forwarder.drain()["memory"].is_empty
    left = [(item.sensor_id, item.timestamp_us // 1_000_000) for item in store.quarantine.list()]
    assert left == [("S", 4), ("D", 0), ("D", 4)], "the old value and the deleted points were not sent"
    bad.add("S")
    store.sinks.replay("memory", "beginning")
    assert forwarder.drain()["memory"].refused == 5
    assert store.quarantine.count() == 8


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_limit_of_a_backlog_drops_is_not_sent_any_more(
    tmp_path: Path, templates: Templates, engine: str
) -> None:
    """The forwarder has read it already, and continues; the ledger counts what it had not confirmed."""
    templates.copy(engine, 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(background=False)) as store:
        destination = Destination()
        store.sinks.add("memory", "", start="beginning", max_backlog={"points": 15})
        write(store, 400)
        confirmed: set[int] = set()
        batches = 0

        def drop(_batch: Batch) -> None:
            nonlocal batches
            batches += 1
            if batches == 5:
                confirmed.update(seq for _, seq in destination.arrivals)
                write(store, 10, first=400)
                assert store.cleanup(end=10_000.0).points == 395

        forwarder = Forwarder(store, MemorySink(destination, on_send=drop), batch_points=20)
        made = steps(forwarder)
        assert made[-1].progress is Progress.IDLE
        forwarder.stop()
        in_hand = made[4]
        late = {seq for _, seq in destination.arrivals if not in_hand.first_seq <= seq <= in_hand.last_seq}
        assert late - confirmed == set(range(396, 411)) - confirmed, (
            "of what was dropped, only the batch in hand"
        )
        assert confirmed & set(range(396, 411)), "there are two lanes"
        [noted] = [loss for loss in store.losses() if loss.reason == "max-backlog"]
        undelivered = len(set(range(1, 396)) - confirmed)
        assert f"dropped {undelivered} points that it had not confirmed" in noted.why
