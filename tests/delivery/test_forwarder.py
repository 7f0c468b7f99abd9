import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.delivery.batch import DeliveryBatch, checksum_of
from repo.delivery.former import Backoff, Forwarder, Outcome
from repo.delivery.sinks import Receipt
from repo.delivery.sinks.http import HttpSink
from repo.demo.process import Child, Inbox
from repo.demo.receiver import Receiver
from repo.demo.receiver_store import Taken, stored_points
from repo.errors import HoldfastError, InvalidSettings, SinkRefused, SinkUnreachable, StoreBusy

NO_WAIT = Backoff(first_s=0.001, longest_s=0.002)


def write(store: Store, first: int, end: int, value: float = 0.0) -> None:
    store.points.insert_many([(f"S-{at % 7}", "flow", 1000.0 + at, value + at) for at in range(first, end)])


def confirmed(store: Store) -> int:
    return store.status().sinks[0].confirmed_seq


def all_points(store: Store) -> Iterator[dict[str, Any]]:
    seq = 0
    while page := store.points.after(seq, 1_000):
        yield from page
        seq = page[-1]["seq"]


def assert_same_on_both_sides(store: Store, receiver: Receiver) -> dict[str, Any]:
    report = receiver.keeping.report()
    assert report["sha256"] == checksum_of(all_points(store))
    assert report["out_of_order"] == report["holes"] == 0
    assert confirmed(store) == store.sinks.last_seq()
    return report


class Crash(BaseException):
    """The process is gone: nothing in the forwarder may catch it."""


def crash(_batch: DeliveryBatch, _receipt: Receipt) -> None:
    raise Crash


class Recorder:
    """A sink that notes the keys of what passes."""

    def __init__(self, sink: HttpSink) -> None:
        self._sink = sink
        self.name = sink.name
        self.batches: list[DeliveryBatch] = []

    def send(self, batch: DeliveryBatch) -> Receipt:
        self.batches.append(batch)
        return self._sink.send(batch)

    @property
    def keys(self) -> list[str]:
        return [batch.key for batch in self.batches]


@pytest.fixture
def sink(receiver: Receiver) -> Iterator[Recorder]:
    with HttpSink(receiver.url, name="there", timeout_s=5) as http:
        yield Recorder(http)


def test_everything_arrives_once_and_in_order(store: Store, receiver: Receiver, sink: Recorder) -> None:
    receiver.listen()
    for first in range(0, 1_000, 130):
        write(store, first, first + 130)
    assert Forwarder(store, sink, batch_points=97).run(threading.Event(), until_empty=True) == 1_040
    report = assert_same_on_both_sides(store, receiver)
    assert (report["points"], report["batches"], report["repeated_batches"]) == (1_040, 11, 0)
    assert [batch.first_seq for batch in sink.batches] == list(range(1, 1_041, 97))


@pytest.mark.slow_on("sqlite")
def test_the_cursor_moves_after_the_receipt_and_not_before(
    store: Store, receiver: Receiver, sink: Recorder
) -> None:
    receiver.listen()
    write(store, 0, 100)
    seen: list[tuple[int, int]] = []

    def look(batch: DeliveryBatch, receipt: Receipt) -> None:
        assert receipt.key == batch.key
        seen.append((receiver.keeping.report()["points"], confirmed(store)))

    forwarder = Forwarder(store, sink, batch_points=60, on_receipt=look)
    assert forwarder.step().outcome is Outcome.DELIVERED
    assert confirmed(store) == forwarder.cursor == 60
    assert forwarder.step().outcome is Outcome.DELIVERED
    assert forwarder.step().outcome is Outcome.IDLE
    assert seen == [(60, 0), (100, 60)]


@pytest.mark.slow_on("sqlite")
def test_while_the_link_is_down_nothing_is_lost_and_the_waits_grow(
    store: Store, receiver: Receiver, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "holdfast.delivery")
    write(store, 0, 50)
    forwarder = Forwarder(store, sink, backoff=Backoff(first_s=1, longest_s=20))
    steps = [forwarder.step() for _ in range(8)]
    assert {step.outcome for step in steps} == {Outcome.RETRY}
    assert all(isinstance(step.error, SinkUnreachable) for step in steps)
    for failures, step in enumerate(steps):
        full = min(20, 2**failures)
        assert full / 2 <= step.wait_s <= full
    assert confirmed(store) == 0
    receiver.listen()
    assert forwarder.run(threading.Event(), until_empty=True) == 50
    assert_same_on_both_sides(store, receiver)
    said = [record.levelname for record in caplog.records if record.name == "holdfast.delivery"]
    assert said == ["WARNING", "INFO"], "a change of state is logged once"


@pytest.mark.slow_on("sqlite")
def test_a_batch_without_a_receipt_is_repeated_unchanged_even_if_points_are_written(
    store: Store, receiver: Receiver, sink: Recorder
) -> None:
    write(store, 0, 10)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    forwarder.step()
    write(store, 5, 30, value=0.5)
    forwarder.step()
    receiver.listen()
    forwarder.run(threading.Event(), until_empty=True)
    assert len(sink.keys) == 4
    assert len(set(sink.keys[:3])) == 1
    assert_same_on_both_sides(store, receiver)


def test_a_sender_killed_between_receipt_and_commit_repeats_the_range_with_the_same_key(
    tmp_path: Path, receiver: Receiver, taken: list[Taken]
) -> None:
    receiver.listen()
    with Store(tmp_path / "store", Settings(background=False)) as store:
        write(store, 0, 1_000)
    inbox = Inbox()
    arguments = [str(tmp_path / "store"), receiver.url, "--batch-points", "150"]
    killed = Child("first", "sender", [*arguments, "--hold-after", "3"], inbox, tmp_path)
    while (message := inbox.get(timeout=300)).event != "held":
        message.child.check() if message.event == "ended" else None
    assert killed.kill()
    with Store(tmp_path / "store", Settings(background=False)) as store:
        assert (confirmed(store), receiver.keeping.report()["points"]) == (300, 450)
        write(store, 1_000, 1_100)
    second = Child("second", "sender", arguments, inbox, tmp_path)
    second.order("finish")
    assert second.wait() == 0
    second.stop()
    killed.stop()
    assert [batch.repeat for batch in taken] == [False, False, False, True] + [False] * 5
    assert receiver.keeping.report()["repeated_keys"] == [message.facts["key"]]
    with Store(tmp_path / "store", Settings(background=False)) as store:
        report = assert_same_on_both_sides(store, receiver)
    assert (report["points"], report["dropped_by_seq"]) == (1_100, 0)


@pytest.mark.slow_on("sqlite")
def test_a_last_range_that_has_grown_since_the_crash_is_dropped_by_seq(
    store: Store, receiver: Receiver, sink: Recorder
) -> None:
    receiver.listen()
    write(store, 0, 40)
    with pytest.raises(Crash):
        Forwarder(store, sink, on_receipt=crash).step()
    assert confirmed(store) == 0
    write(store, 40, 60)
    assert Forwarder(store, sink).run(threading.Event(), until_empty=True) == 60
    assert sink.keys[0] != sink.keys[1]
    report = assert_same_on_both_sides(store, receiver)
    assert (report["points"], report["dropped_by_seq"], report["repeated_batches"]) == (60, 40, 0)


def test_points_overwritten_since_the_crash_arrive_with_their_last_value(
    store: Store, receiver: Receiver, sink: Recorder
) -> None:
    receiver.listen()
    write(store, 0, 40)
    with pytest.raises(Crash):
        Forwarder(store, sink, batch_points=20, on_receipt=crash).step()
    write(store, 10, 30, value=0.25)
    Forwarder(store, sink, batch_points=20).run(threading.Event(), until_empty=True)
    first, repeated = sink.batches[:2]
    assert (first.first_seq, len(first)) == (1, 20)
    assert (repeated.first_seq, len(repeated)) == (1, 10)
    report = assert_same_on_both_sides(store, receiver)
    assert (report["points"], report["dropped_by_seq"]) == (40, 10)
    values = {point["timestamp_us"]: point["value"] for point in all_points(store)}
    assert values[(1000 + 15) * 1_000_000] == 15.25


def test_points_overwritten_while_their_batch_is_in_flight_arrive_with_their_last_value(
    store: Store, receiver: Receiver, sink: Recorder
) -> None:
    write(store, 0, 40)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    forwarder.step()
    write(store, 0, 40, value=0.25)
    receiver.listen()
    assert forwarder.run(threading.Event(), until_empty=True) == 80
    report = assert_same_on_both_sides(store, receiver)
    assert report["points"] == 40


def test_deletes_and_overwritten_seqs_do_not_keep_the_cursor_behind(
    store: Store, receiver: Receiver, sink: Recorder
) -> None:
    receiver.listen()
    write(store, 0, 40)
    forwarder = Forwarder(store, sink)
    forwarder.run(threading.Event(), until_empty=True)
    store.points.delete("S-1")
    write(store, 40, 50)
    store.points.delete(start=1000.0 + 40)
    assert forwarder.step().outcome is Outcome.IDLE
    assert confirmed(store) == store.sinks.last_seq() == 52


@pytest.mark.slow_on("sqlite")
def test_a_refused_batch_stays_first_in_the_queue_and_is_reported(
    store: Store, receiver: Receiver, sink: Recorder
) -> None:
    receiver.listen()
    write(store, 0, 20)
    store.sinks.register(sink.name)
    store.sinks.confirm(sink.name, 10)  # a receiver that lost its first points sees that they are missing
    forwarder = Forwarder(store, sink)
    step = forwarder.step()
    assert (step.outcome, confirmed(store)) == (Outcome.REFUSED, 10)
    with pytest.raises(SinkRefused, match="the next seq to come is 1, not 11"):
        forwarder.run(threading.Event(), until_empty=True)
    assert confirmed(store) == 10
    assert receiver.keeping.report()["points"] == 0


@pytest.mark.parametrize(
    "error", [SinkRefused("401"), ConnectionResetError("gone"), TimeoutError("late")], ids=repr
)
def test_run_continues_after_refusals_and_broken_connections(store: Store, error: Exception) -> None:
    stop = threading.Event()
    seen: list[dict[str, Any] | None] = []

    class Moody:
        name = "moody"
        asked = 0

        def send(self, batch: DeliveryBatch) -> Receipt:
            seen.append(store.status().sinks[0].failure)
            self.asked += 1
            if self.asked < 4:
                raise error
            stop.set()
            return Receipt(batch.key)

    write(store, 0, 5)
    forwarder = Forwarder(store, Moody(), backoff=Backoff(first_s=0.001, longest_s=0.001))
    assert forwarder.run(stop) == 5
    assert confirmed(store) == 5
    first, *others = seen
    assert first is None
    assert others[0] == others[1] == others[2]
    assert others[0] is not None
    assert others[0]["kind"] == ("refused" if isinstance(error, SinkRefused) else "unreachable")
    assert str(error) in others[0]["reason"]
    assert store.status().sinks[0].failure is None


def test_status_warns_of_a_refusal_until_a_batch_is_delivered(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed:
        name = "closed"
        error: HoldfastError | None = SinkUnreachable("no route")

        def send(self, batch: DeliveryBatch) -> Receipt:
            if self.error is not None:
                raise self.error
            return Receipt(batch.key)

    write(store, 0, 5)
    sink = Closed()
    assert Forwarder(store, sink).step().outcome is Outcome.RETRY
    assert store.status().warnings == ()  # an outage is no reason for an alarm
    assert "closed cannot be reached; the points stay in the store: no route" in caplog.text
    sink.error = StoreBusy("the columns are held")
    assert Forwarder(store, sink).step().outcome is Outcome.RETRY
    assert "the store is busy, so the delivery to closed waits: the columns are held" in caplog.text
    sink.error = SinkRefused("401 Unauthorized")
    Forwarder(store, sink).step()
    [warning] = store.status().warnings
    assert warning.code == "sink-refuses"
    assert "the sink closed has refused a batch since" in warning.message
    assert "401 Unauthorized" in warning.message
    sink.error = None
    assert Forwarder(store, sink).step().outcome is Outcome.DELIVERED
    assert store.status().warnings == ()


@pytest.mark.slow_on("sqlite")
def test_a_receipt_for_another_batch_does_not_count(store: Store) -> None:
    class Confused:
        name = "confused"

        def send(self, batch: DeliveryBatch) -> Receipt:
            return Receipt(batch.key.replace("holdfast-1", "holdfast-9"))

    write(store, 0, 5)
    step = Forwarder(store, Confused()).step()
    assert (step.outcome, confirmed(store)) == (Outcome.RETRY, 0)


@pytest.mark.slow_on("sqlite")
def test_retry_after_of_the_receiver_is_honoured_within_bounds(store: Store) -> None:
    class Weary:
        name = "weary"

        def send(self, batch: DeliveryBatch) -> Receipt:
            raise SinkUnreachable("later", retry_after_s=5 if len(batch) < 10 else 86_400)

    write(store, 0, 5)
    assert Forwarder(store, Weary(), backoff=Backoff(first_s=0.1, longest_s=30)).step().wait_s == 5
    write(store, 5, 15)
    assert Forwarder(store, Weary(), backoff=Backoff(first_s=0.1, longest_s=30)).step().wait_s == 30


@pytest.mark.slow_on("sqlite")
def test_run_stops_when_the_event_is_set(store: Store, sink: Recorder) -> None:
    write(store, 0, 5)
    stop = threading.Event()
    thread = threading.Thread(target=Forwarder(store, sink, backoff=Backoff(first_s=60)).run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(timeout=300)
    assert not thread.is_alive()


@pytest.mark.slow_on("sqlite")
def test_invalid_settings_are_refused(store: Store, sink: Recorder) -> None:
    with pytest.raises(InvalidSettings, match="batch_points"):
        Forwarder(store, sink, batch_points=0)
    with pytest.raises(InvalidSettings, match="backoff"):
        Backoff(first_s=0)


def test_the_receiver_has_the_points_of_the_store_with_every_field(
    store: Store, receiver: Receiver, sink: Recorder
) -> None:
    receiver.listen()
    store.points.insert_many(
        [
            ("A", "state", 1.0, "OPEN", 100, {"by": "hånd", "n": [1, 2.5, None]}),
            ("A", "level", 2.0, float("inf")),
            ("A", "level", 3.0, float("nan"), 0),
            ("A", "level", 4.0, -0.0),
        ]
    )
    Forwarder(store, sink).run(threading.Event(), until_empty=True)
    assert_same_on_both_sides(store, receiver)
    there = list(stored_points(receiver.keeping._database, "seq"))
    assert [point["value"] for point in there] == ["OPEN", float("inf"), None, 0.0]
    assert there[0]["metadata"] == {"by": "hånd", "n": [1, 2.5, None]}
