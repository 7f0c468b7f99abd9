"""`store.sinks`, `store.quarantine` and what a forwarder records: destinations, cursors, attempts, refused items."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repo import HoldfastError, InvalidQuery, InvalidSettings, Store
from repo.errors import InvalidFile, SinkUnreachable
from repo.repositories.attempts import Attempt
from repo.repositories.quarantine import Quarantined
from repo.repositories.sinks import Lanes, MaxBacklog, Totals
from repo.repositories.state import StateRepository
from repo.store.targets import parse_target
from tests.conftest import OpenStore

ENGINE = pytest.mark.parametrize("engine", ["sqlite"])
"""For tests that reach no SQL of the columns."""

BASE_S = 1_700_000_000


def fill(store: Store, points: int, series: str = "a") -> None:
    """Write one reading a second; the first has seq 1 in a new store."""
    store.points.insert_many([(series, "m", BASE_S + at, float(at)) for at in range(points)])


def attempt(first: int, last: int, token: str = "t1") -> Attempt:
    return Attempt(first, last, last - first + 1, "c", token, "live", 1, 5)


def test_a_sink_starts_now_at_the_beginning_or_at_a_time(store: Store) -> None:
    assert store.sinks.add("empty", "", start="beginning").confirmed_seq == 0
    fill(store, 10)
    assert store.sinks.add("now", "", start="now").behind == 0
    assert store.sinks.add("old", "", start="beginning").confirmed_seq == 0
    since = store.sinks.add("since", "", start=BASE_S + 6.5)
    assert (since.confirmed_seq, since.behind) == (7, 3)
    assert store.sinks.add("later", "", start=BASE_S + 60.0).behind == 0
    store.points.delete(end=BASE_S + 4.0)
    assert store.sinks.add("rest", "", start="beginning").confirmed_seq == 4
    wrong: list[Any] = ["", "yesterday", None, True, float("nan"), b"now", object()]
    for start in wrong:
        with pytest.raises(InvalidQuery, match="start"):
            store.sinks.add("x", "", start=start)
    assert [one.name for one in store.sinks.list()] == ["empty", "later", "now", "old", "rest", "since"]


@ENGINE
def test_settings_are_kept_and_can_be_changed(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    fill(store, 1)
    with caplog.at_level(logging.WARNING, "holdfast.delivery"):
        store.sinks.add(
            *("mine", ""),
            start="now",
            filter={"sensor_id": "b*", "metric_name": ["m", "n"]},
            records=True,
            max_backlog={"age": "30d", "bytes": "2GB"},
            rate="500kB/s",
            lanes={"order": "newest"},
        )
    assert "selects none of the series" in caplog.text
    mine = store.sinks.show("mine")
    assert mine.filter is not None
    assert (mine.filter.sensor_id, mine.filter.metric_name) == ("b*", ("m", "n"))
    assert mine.max_backlog == MaxBacklog(30 * 86_400_000_000, None, 2_000_000_000)
    assert mine.rate is not None
    assert (mine.rate.bytes_per_s, mine.lanes, mine.hold) == (500_000, Lanes(True, 0.2, "newest"), True)
    assert (mine.kind, mine.target, mine.state, mine.records) == ("own", "", "running", True)
    json.dumps(mine.as_dict())
    changed = store.sinks.change("mine", rate=None, hold=False, max_backlog=60, lanes=False, filter=None)
    assert (changed.rate, changed.hold, changed.filter) == (None, False, None)
    assert changed.max_backlog == MaxBacklog(60_000_000)
    assert not changed.lanes.two
    assert changed.records, "the others stay as they are"
    with pytest.raises(InvalidQuery, match="'mine' already gets the records"):
        store.sinks.add("other", "", start="now", records=True)
    store.sinks.add("other", "", start="now")
    with pytest.raises(InvalidQuery, match="'mine' already gets the records"):
        store.sinks.change("other", records=True)
    assert store.sinks.selects(changed.filter) == 1


@ENGINE
def test_what_is_wrong_about_a_new_sink_is_refused_and_adds_nothing(store: Store) -> None:
    store.sinks.add("taken", "", start="now")
    names: list[Any] = ["", "n" * 256, "a\nb", "a\x1b[2J", 5, None, "taken"]
    for name in names:
        with pytest.raises(InvalidQuery):
            store.sinks.add(name, "", start="now")
    wrong: list[dict[str, Any]] = [
        {"filter": "a"},
        {"filter": {}},
        {"filter": {"sensor": "a"}},
        {"filter": {"sensor_id": 5}},
        {"records": "yes"},
        {"hold": None},
        {"max_backlog": "30 parsecs"},
        {"max_backlog": {}},
        {"max_backlog": {"points": 0}},
        {"max_backlog": {"bytes": "2 GBit"}},
        {"max_backlog": -1},
        {"max_backlog": True},
        {"rate": "fast"},
        {"rate": -1},
        {"rate": 1.5},
        {"lanes": "two"},
        {"lanes": {"share": 0}},
        {"lanes": {"share": 2**2000}},
        {"lanes": {"order": "random"}},
        {"lanes": {"lane": 1}},
        {"speed": 5},
    ]
    for settings in wrong:
        with pytest.raises((InvalidQuery, InvalidSettings)):
            store.sinks.add("x", "", start="now", **settings)
    assert [one.name for one in store.sinks.list()] == ["taken"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://me:hunter2@host/in", "a user or a password"),
        ("https://hunter2@host/in", "a user or a password"),
        ("postgresql://me:hunter2@host/db", "a user or a password"),
        ("mqtt://me:hunter2@host", "a user or a password"),
        ("kafka://me:hunter2@one:9092,two:9092/topic", "a user or a password"),
        ("kafka://one:9092,two:90920/topic", "'two:90920' where a host and a port"),
        ("kafka://one:9092,,two/topic", "'' where a host and a port"),
        ("kafka://one:x/topic", "'one:x' where a host and a port"),
        ("https://host/in?token=hunter2", "'token'"),
        ("https://host/in?x=1&api_key=hunter2", "'api_key'"),
        ("http://host/write?u=me&p=hunter2", "'p'"),
        ("https://host/in#hunter2", "after #"),
        ("https://", "no host"),
        ("https://host:99999/", "port"),
        ("https://[::1/", "not a URL"),
        ("host/in", "must begin with one of"),
        ("ftp://host/in", "must begin with one of"),
        ("file://other/folder", "file:///PATH"),
        ("file:folder", "must begin with one of"),
        ("https://host/a b", "without spaces"),
        ("https://host/\x00", "control characters"),
        ("https://host/" + "x" * 5000, "at most 2,048"),
        (None, "a text is expected"),
        (b"https://host", "a text is expected"),
    ],
)
def test_a_target_with_a_secret_or_without_a_place_is_refused_and_not_shown(url: Any, said: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        parse_target(url)
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://host:8443/in?db=mydb&precision=u", "http"),
        ("HTTP://10.0.0.1/x", "http"),
        ("https+holdfast://[::1]:9000", "holdfast"),
        ("postgresql://me@host:5432/db?sslmode=verify-full", "postgresql"),
        ("mqtts://broker/site/{sensor_id}", "mqtt"),
        ("kafka://one:9092,two:9092/topic", "kafka"),
        ("kafka://one,[::1]:9092/topic", "kafka"),
        ("file:///media/stick", "folder"),
    ],
)
def test_the_scheme_of_a_target_gives_its_kind(url: str, kind: str) -> None:
    assert parse_target(url).kind == kind


@ENGINE
def test_an_attempt_is_recorded_and_confirmed_with_the_next_one(open_store: OpenStore) -> None:
    store = open_store()  # with a clock that does not advance, on which `points_per_s` depends
    fill(store, 30)
    store.sinks.add("mine", "", start="beginning")
    delivery = store.sinks.delivery("mine")
    first, second = attempt(1, 10, "t1"), attempt(21, 30, "t2")
    delivery.begin(first)
    assert delivery.position().attempt == first
    assert delivery.position().token is None
    delivery.begin(second, first, Totals(points=10, bytes=500))
    now = delivery.position()
    assert (now.confirmed_seq, now.ranges, now.token, now.attempt) == (10, (), "t1", second)
    assert (now.sent_points, now.sent_bytes, now.behind) == (10, 500, 20)
    assert now.points_per_s == pytest.approx(10 / 30)
    delivery.confirm(second, totals=Totals(points=10, repeats=1))
    now = delivery.position()
    assert (now.confirmed_seq, now.ranges, now.token, now.attempt) == (10, ((21, 30),), "t2", None)
    assert (now.behind, now.repeats) == (10, 1)
    delivery.confirm(attempt(11, 20, "t3"))
    now = delivery.position()
    assert (now.confirmed_seq, now.ranges, now.behind) == (30, (), 0)


@ENGINE
def test_a_failure_has_a_beginning_and_ends_with_a_confirmation(store: Store) -> None:
    fill(store, 10)
    store.sinks.add("mine", "", start="beginning")
    delivery = store.sinks.delivery("mine")
    delivery.failed("failing", "no route")
    since_us = delivery.position().since_us
    delivery.failed("failing", "timeout")
    now = delivery.position()
    assert (now.state, now.last_error, now.failures, now.since_us) == ("failing", "timeout", 2, since_us)
    delivery.failed("halted", "401")
    assert delivery.position().state == "halted"
    delivery.confirm(attempt(1, 5))
    now = delivery.position()
    assert (now.state, now.last_error, now.failures, now.since_us) == ("running", None, 0, None)
    store.sinks.pause("mine")
    delivery.failed("failing", "no route")
    delivery.running()
    assert delivery.position().state == "paused", "only an operator ends a pause"
    assert store.sinks.resume("mine").state == "running"


@ENGINE
def test_a_removed_sink_or_another_identity_ends_a_delivery(store: Store) -> None:
    fill(store, 10)
    store.sinks.add("mine", "", start="beginning")
    delivery = store.sinks.delivery("mine")
    delivery.begin(attempt(1, 5))
    with store._handle.metadata.write() as connection:
        StateRepository(connection).set(epoch=2)
    with pytest.raises(SinkUnreachable, match="another id or epoch"):
        delivery.confirm(attempt(1, 5))
    assert delivery.position().confirmed_seq == 0
    assert delivery.epoch_and_id().epoch == 2
    delivery.confirm(attempt(1, 5))
    assert store.sinks.remove("mine", dry_run=True).behind == 5
    assert store.sinks.remove("mine").behind == 5
    store.sinks.add("mine", "", start="now")
    for call in (delivery.position, lambda: delivery.begin(attempt(6, 10)), delivery.running):
        with pytest.raises(InvalidQuery, match="there is no sink 'mine'"):
            call()
    assert store.sinks.show("mine").attempt is None


@ENGINE
def test_skip_gives_up_the_backlog_and_the_ledger_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 30)
    store.sinks.add("mine", "", start="beginning")
    store.sinks.delivery("mine").confirm(attempt(11, 15))
    wanted = store.sinks.skip("mine", 20, dry_run=True)
    assert (wanted.first_seq, wanted.behind_before, wanted.behind) == (21, 25, 10)
    assert store.losses() == []
    store.sinks.skip("mine", 20)
    now = store.sinks.show("mine")
    assert (now.confirmed_seq, now.ranges, now.behind) == (20, (), 10)
    store.sinks.skip("mine")
    assert store.sinks.show("mine").behind == 0
    store.sinks.skip("mine")
    assert [(loss.reason, loss.dropped) for loss in store.losses()] == [("skipped", 10), ("skipped", 15)]
    first = store.losses()[1]
    assert "skipped seqs 1 to 20 for the sink mine" in first.why
    assert (first.first_us, first.last_us) == (BASE_S * 1_000_000, (BASE_S + 19) * 1_000_000)

    fill(store, 5, series="b")
    fill(store, 5, series="c")
    store.sinks.change("mine", filter={"sensor_id": "b"})
    store.sinks.skip("mine")
    assert store.losses()[0].dropped == 5  # the others were not for it
    fill(store, 5, series="b2")
    fill(store, 6, series="c2")
    fill(store, 7, series="e2")
    store.sinks.change("mine", filter={"sensor_id": "[bce]2"})
    with monkeypatch.context() as patched:
        patched.setattr("repo.queries.selection.MOST_NAMES", 2)
        store.sinks.skip("mine")
    assert store.losses()[0].dropped == 18  # however many series it gets
    fill(store, 1, series="d2")
    store.sinks.change("mine", filter={"sensor_id": "none*"})
    store.sinks.skip("mine")
    assert (store.losses()[0].dropped, store.losses()[0].first_us) == (0, None)
    fill(store, 1, series="d")
    ended, begun = threading.Event(), threading.Event()

    def hold() -> None:
        with store._handle.columns.alone("a test"):
            begun.set()
            ended.wait(300)

    holder = threading.Thread(target=hold)
    holder.start()
    assert begun.wait(300)
    store._handle.columns._settings = replace(store.settings, lease_timeout_s=0)
    store.sinks.skip("mine")
    ended.set()
    holder.join()
    assert store.losses()[0].dropped is None  # the columns were in use


@ENGINE
def test_a_text_of_a_filter_is_a_name_if_a_series_had_it_when_the_filter_was_set(store: Store) -> None:
    fill(store, 1, series="temp[1]")
    fill(store, 1, series="temp1")
    info = store.sinks.add("mine", "", start="now", filter={"sensor_id": "temp[1]"})
    assert info.as_dict()["filter"]["sensor_id"] == ["temp[1]"]
    assert store.sinks.selects(info.filter) == 1
    info = store.sinks.change("mine", filter={"sensor_id": "te*"})
    fill(store, 1, series="te*")
    now = store.sinks.show("mine")
    assert (now.filter, store.sinks.selects(now.filter)) == (info.filter, 3)


def test_replay_moves_the_cursor_back_and_says_what_is_gone(store: Store) -> None:
    fill(store, 30)
    store.sinks.add("mine", "", start="now")
    seen = store.sinks.replay("mine", BASE_S + 20.0, dry_run=True)
    assert (seen.first_seq, seen.behind, seen.lost) == (21, 10, 0)
    assert store.sinks.show("mine").behind == 0
    store.sinks.replay("mine", BASE_S + 20.0)
    assert store.sinks.show("mine").confirmed_seq == 20
    store.sinks.delivery("mine").confirm(attempt(26, 30))
    assert store.sinks.replay("mine", seq=28).first_seq == 21
    assert store.sinks.show("mine").ranges == ((26, 27),)
    store.cleanup(end=BASE_S + 10.0)
    seen = store.sinks.replay("mine", "beginning")
    assert (seen.first_seq, seen.lost) == (11, 10)
    assert (seen.lost_first_us, seen.lost_last_us) == (BASE_S * 1_000_000, (BASE_S + 9) * 1_000_000)
    for wrong in (
        {"start": "now"},
        {"start": BASE_S + 99.0},
        {},
        {"start": "beginning", "seq": 1},
        {"seq": "x"},
    ):
        with pytest.raises(InvalidQuery):
            store.sinks.replay("mine", **wrong)


@ENGINE
def test_seqs_are_confirmed_by_hand(store: Store) -> None:
    fill(store, 30)
    store.sinks.add("mine", "", start="beginning")
    store.sinks.confirm("mine", 11, 20)
    assert store.sinks.show("mine").ranges == ((11, 20),)
    store.sinks.confirm("mine", 10)
    assert store.sinks.show("mine").confirmed_seq == 20
    with pytest.raises(InvalidQuery, match="last_seq = 3: at least 5"):
        store.sinks.confirm("mine", 5, 3)


def refused_point(seq: int) -> Quarantined:
    return Quarantined(
        "", "too wide", (BASE_S + seq - 1) * 1_000_000, seq=seq, sensor_id="a", metric_name="m", value=1.0
    )


@ENGINE
def test_a_refused_point_is_kept_with_its_reason_until_it_is_accepted_or_dropped(
    store: Store, tmp_path: Path
) -> None:
    fill(store, 10)
    store.sinks.add("mine", "", start="beginning")
    delivery = store.sinks.delivery("mine")
    delivery.confirm(attempt(1, 10), [refused_point(3), refused_point(7)], Totals(points=8))
    three, seven = store.quarantine.list("mine")
    assert (three.seq, three.reason, three.sink, three.kind) == (3, "too wide", "mine", "refused")
    assert (delivery.quarantined(), delivery.position().refused, delivery.position().behind) == (2, 2, 0)
    assert delivery.next_retry() is None
    assert three.id is not None
    assert seven.id is not None
    assert store.quarantine.retry([three.id]).points == 1
    assert delivery.next_retry() == 3
    delivery.confirm(attempt(3, 3), [refused_point(3)._replace(reason="still too wide")])
    assert delivery.next_retry() is None
    [seven, three] = store.quarantine.list()
    assert (three.seq, three.reason) == (3, "still too wide")
    assert three.id is not None
    store.quarantine.retry(three.id)
    delivery.confirm(attempt(3, 3, "t4"))
    assert [item.seq for item in store.quarantine.list()] == [7]
    assert store.quarantine.export(tmp_path / "refused.ndjson") == 1
    assert json.loads((tmp_path / "refused.ndjson").read_text())["reason"] == "too wide"
    with pytest.raises(InvalidFile, match="cannot be written"):
        store.quarantine.export(tmp_path / "nowhere" / "refused.ndjson")
    assert seven.id is not None
    with pytest.raises(InvalidQuery, match="no item 99"):
        store.quarantine.drop([seven.id, 99])
    assert store.quarantine.drop(seven.id) == 1
    [loss] = store.losses()
    assert (loss.what, loss.dropped, loss.reason) == ("points", 1, "quarantine")
    assert len(store.points.after(0)) == 10, "the store keeps the points"
    wrong: list[Any] = ["3", None, 1.5, [True], object()]
    for ids in wrong:
        with pytest.raises(HoldfastError):
            store.quarantine.drop(ids)
    with pytest.raises(InvalidQuery, match="id = a list: an integer is expected"):
        store.quarantine.show([])  # type: ignore[arg-type]


@ENGINE
def test_records_are_settled_and_quarantined_with_their_batch(store: Store) -> None:
    for name in ("r1", "r2", "r3"):
        store.records.add(name, "gw", {"v": name})
    store.sinks.add("mine", "", start="now", records=True)
    delivery = store.sinks.delivery("mine")
    one, two, three = delivery.records()
    assert len(delivery.records(max_bytes=1)) == len(delivery.records(1)) == 1
    store.records.add("r3", "gw", {"v": "newer"})
    refused = Quarantined(
        "", "no such topic", two.timestamp_us, record_id=two.record_id, source="gw", data=two.data
    )
    sent = [(record.record_id, record.data) for record in (one, three)]
    delivery.confirm(attempt(0, 0), [refused], Totals(records=2), sent)
    assert [record["record_id"] for record in store.records.pending()] == ["r3"], "its data was replaced"
    [item] = store.quarantine.list()
    assert (item.record_id, item.data) == ("r2", two.data)
    assert delivery.position().sent_records == 2
    assert item.id is not None
    assert store.quarantine.retry(item.id).records == 1
    assert [record["data"] for record in store.records.pending()] == [{"v": "newer"}, {"v": "r2"}]
    assert store.quarantine.count() == 0
    delivery.confirm(attempt(0, 0), [refused])
    removed = store.sinks.remove("mine")
    assert (removed.quarantined_points, removed.quarantined_records) == (0, 1)
    [loss] = store.losses()
    assert (loss.what, loss.dropped) == ("records", 1)
    assert store.sinks.list() == []
