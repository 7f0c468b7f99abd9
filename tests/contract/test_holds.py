"""Holds: a cleanup keeps what a sink has not confirmed, up to the limits of the sink, and the status names the sink."""

from __future__ import annotations

from typing import Any

import pytest

from repo import Settings, Store
from repo.core.changes import DeleteChange, Submission
from repo.cursors import Cursor
from repo.queries.selection import Selection
from repo.repositories.attempts import Attempt
from repo.repositories.positions import Position, PositionRepository
from tests.conftest import Clock, OpenStore

DAY_S = 86_400.0

pytestmark = pytest.mark.slow_on("duckdb")  # the model of holds runs on both engines


def attempt(first: int, last: int) -> Attempt:
    return Attempt(first, last, last - first + 1, "c", "t", "live", 1, 5)


def fill(store: Store, clock: Clock, days: int = 10) -> None:
    """A point a day of two series, the newest now: seqs 1 to 2 * days, oldest first."""
    now_s = clock() / 1e6
    store.points.insert_many(
        [
            (name, "m", now_s - (days - 1 - day) * DAY_S, float(day))
            for day in range(days)
            for name in ("a", "b")
        ]
    )


def seqs(store: Store) -> list[int]:
    return [row["seq"] for row in store.points.after(0)]


def test_a_cleanup_keeps_what_the_sink_that_is_furthest_behind_has_not_confirmed(
    store: Store, clock: Clock
) -> None:
    fill(store, clock)
    for name, hold, through in (("far", True, 6), ("near", True, 18), ("careless", False, 2)):
        store.sinks.add(name, "", start="beginning", hold=hold)
        store.sinks.confirm(name, through)
    store.sinks.add("done", "", start="now", hold=True)
    meant = store.cleanup(end=clock() / 1e6 - 4.5 * DAY_S, dry_run=True)
    assert (meant.points, meant.held_points, meant.held_by) == (6, 4, ("far", "near"))
    done = store.cleanup(end=clock() / 1e6 - 4.5 * DAY_S)
    assert (done.points, done.unsent_points, done.held_points) == (6, 4, 4), "one sink asks for no hold"
    assert seqs(store) == list(range(7, 21))
    assert {one.sensor_id: (one.points, one.first_us) for one in store.series.list()} == {
        name: (7, (clock() - 6 * 86_400_000_000)) for name in ("a", "b")
    }
    [loss] = store.losses()
    assert (loss.dropped, loss.reason) == (6, "cleanup")
    assert store.cleanup(everything=True).held_points == 14
    store.sinks.remove("far")
    assert store.cleanup(everything=True).points == 12, "a removed sink holds nothing"
    assert store.cleanup(everything=True, even_unsent=True).points == 2
    assert seqs(store) == []


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        ({"age": "5d"}, range(9, 21)),
        ({"points": 8}, range(13, 21)),
        ({"age": "5d", "points": 8}, range(13, 21)),
        ({"bytes": 2**60}, range(5, 21)),
    ],
    ids=str,
)
def test_the_limits_of_a_sink_end_its_hold_and_the_ledger_says_so(
    store: Store, clock: Clock, limit: dict[str, Any], left: range
) -> None:
    fill(store, clock)
    store.sinks.add("far", "", start="beginning", max_backlog=limit)
    store.sinks.confirm("far", 4)
    done = store.cleanup(end=clock() / 1e6 + 1)
    wanted = list(left)
    if "age" in limit and "points" not in limit:
        wanted = [seq for seq in range(1, 21) if seq > 4 and (seq - 1) // 2 >= 4]
    assert seqs(store) == wanted
    assert done.points == 20 - len(wanted)
    undelivered = 16 - len(wanted)
    noted = [loss for loss in store.losses() if loss.reason == "max-backlog"]
    assert len(noted) == (undelivered > 0)
    if noted:
        assert noted[0].why == (
            f"the backlog of the sink far exceeded its max_backlog, so a cleanup dropped {undelivered} points that "
            "it had not confirmed"
        )
        assert sum(loss.dropped or 0 for loss in store.losses()) == done.points


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_status_of_a_receiver_shows_who_delivers_to_it(store: Store, clock: Clock) -> None:
    with store._handle.metadata.write() as connection:
        PositionRepository(connection).put(Position("ab", 2, "cloud", "t", Cursor(50), 45, clock()))
    [sender] = store.status().senders
    assert (sender.store_id, sender.epoch, sender.sink, sender.points) == ("ab", 2, "cloud", 45)
    assert sender.updated_us == clock()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_limit_of_bytes_and_a_delete_go_before_every_hold(store: Store, clock: Clock) -> None:
    fill(store, clock)
    store.sinks.add("far", "", start="beginning")
    store.points.delete_selected(Selection(end_us=clock() - 8 * 86_400_000_000, reason="size"))
    assert seqs(store) == list(range(3, 21))
    store.points.delete("a")
    assert seqs(store) == list(range(4, 21, 2))
    assert store.sinks.show("far").behind == 22


@pytest.mark.closes_columns
def test_a_held_cleanup_that_waits_in_the_journal_is_the_same_for_readers(
    open_store: OpenStore, clock: Clock, engine: Any
) -> None:
    store = open_store()
    fill(store, clock)
    store.checkpoint()
    store.points.insert("a", "m", 5.0, timestamp=clock() / 1e6 - 20 * DAY_S)
    store._handle.writer.commit(Submission((DeleteChange(Selection(through_seq=7)),)))
    store.close()
    with Store(store.path, Settings(background=False, engine=engine), read_only=True) as reader:
        assert reader.status().deletions_waiting == 1
        assert seqs(reader) == list(range(8, 22))
        assert reader.points.latest("b", "m")[0]["value"] == 9.0
    store = open_store()
    assert seqs(store) == list(range(8, 22))
    assert {one.sensor_id: one.points for one in store.series.list()} == {"a": 7, "b": 7}


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_status_shows_who_holds_and_who_is_stalled(store: Store, clock: Clock) -> None:
    begun_us = clock()
    store.sinks.add("far", "", start="now")
    fill(store, clock)
    store.sinks.add("near", "", start="now")
    far, near = store.status().sinks
    assert (far.behind, far.state, near.behind, near.oldest_unsent_us) == (20, "running", 0, None)
    assert far.oldest_unsent_us is not None
    assert begun_us <= far.oldest_unsent_us <= clock()
    hold = store.status().hold
    assert hold is not None
    assert (hold.sink, hold.seqs) == ("far", 20)
    assert store.status().warnings == ()
    clock.advance(700)
    [stalled] = store.status().warnings
    assert stalled.code == "sink-stalled"
    assert "the sink far is 20 seqs behind and has confirmed nothing since" in stalled.message
    assert "no forwarder may be running" in stalled.message
    delivery = store.sinks.delivery("far")
    delivery.failed("failing", "no route to host")
    assert store.status().warnings == (), "an outage is what the store is for"
    assert (store.status().sinks[0].state, store.status().sinks[0].since_us) == ("failing", clock())
    delivery.failed("halted", "401 Unauthorized")
    [halted] = store.status().warnings
    assert (halted.code, "401 Unauthorized" in halted.message) == ("sink-refuses", True)
    delivery.failed("stopped", "ZeroDivisionError: division by zero")
    assert [one.code for one in store.status().warnings] == ["sink-stopped"]
    delivery.failed("forked", "another token")
    assert [one.code for one in store.status().warnings] == ["sink-forked"]
    store.sinks.pause("far")
    assert store.status().warnings == (), "a pause is what an operator wanted; the hold is shown"
    assert store.status().hold is not None
    store.sinks.resume("far")
    delivery.confirm(attempt(1, 20))
    status = store.status()
    assert (status.warnings, status.hold) == ((), None)
    assert status.sinks[0].confirmed_us is not None
