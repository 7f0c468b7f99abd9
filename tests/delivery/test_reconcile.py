"""Reconcile names what a store believes delivered and the destination does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import Receiver, Settings, Store, reconcile
from repo.delivery.forwarder import Forwarder
from repo.errors import InvalidQuery, SinkUnreachable
from tests.conftest import Templates
from tests.delivery.servers.postgresql import PASSWORD, PostgresqlServer


@pytest.fixture
def store(tmp_path: Path, templates: Templates) -> Iterator[Store]:
    templates.copy("sqlite", 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(engine="sqlite", background=False)) as opened:
        yield opened


def write(store: Store, count: int, sensor: str = "W-1", value: Any = 1.5) -> None:
    first = store.sinks.last_seq()
    store.points.insert_many([(sensor, "flow", first + at, value) for at in range(count)])


def drained(store: Store, name: str) -> Any:
    return Forwarder(store, name, batch_points=50).drain(timeout_s=300)


def test_points_that_were_deleted_in_the_hub_are_named_and_refused_or_skipped_ones_are_not(
    store: Store, postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_PASSWORD", PASSWORD)
    write(store, 100)  # before the sink: none of its points
    store.sinks.add(
        "hub", postgresql.url, start="now", user="admin", password="env:HUB_PASSWORD", schema="rec"
    )
    write(store, 300)
    drained(store, "hub")
    write(store, 50)
    store.sinks.skip("hub")
    write(store, 50)
    drained(store, "hub")
    write(store, 5)
    found = reconcile(store, "hub")
    assert (found.checked, found.missing, found.ranges, found.skipped, found.behind) == (400, 0, (), 50, 5)
    store_id = store.status().store_id
    gone = "DELETE FROM rec.points WHERE store_id = %s AND seq BETWEEN 150 AND 159 OR seq = 200"
    postgresql.ask(gone, store_id)
    found = reconcile(store, "hub")
    assert (found.missing, found.ranges) == (11, ((150, 159), (200, 200)))
    store.sinks.replay("hub", seq=150)
    drained(store, "hub")
    found = reconcile(store, "hub")
    assert (found.missing, found.skipped, found.behind) == (0, 0, 0)  # it was sent with the rest
    assert found.as_dict()["ranges"] == []
    store.sinks.rekey(restored=True)
    write(store, 20)
    drained(store, "hub")
    assert reconcile(store, "hub").missing == 0


def test_points_that_were_dropped_from_the_quarantine_were_given_up_and_are_not_missing(
    store: Store, postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_PASSWORD", PASSWORD)
    store.sinks.add(
        "hub", postgresql.url, start="beginning", user="admin", password="env:HUB_PASSWORD", schema="dropped"
    )
    write(store, 10)
    drained(store, "hub")
    postgresql.ask("ALTER TABLE dropped.points ADD CONSTRAINT low CHECK (value < 1000)")
    store.points.insert_many([("W-9", "flow", float(at), 5000.0 if at % 3 else 1.0) for at in range(9)])
    drained(store, "hub")
    found = reconcile(store, "hub")
    assert (found.checked, found.missing, found.quarantined, found.skipped) == (19, 0, 6, 0)
    first, *others = (item.id or 0 for item in store.quarantine.list())
    store.quarantine.drop(others)
    found = reconcile(store, "hub")
    assert (found.missing, found.quarantined, found.skipped) == (0, 1, 5)
    store.quarantine.drop([first])
    assert reconcile(store, "hub").skipped == 6
    postgresql.ask("DELETE FROM dropped.points WHERE seq = 3")
    assert reconcile(store, "hub").ranges == ((3, 3),)


def test_a_receiver_and_a_folder_are_asked_for_their_ranges(
    store: Store, tmp_path: Path, templates: Templates
) -> None:
    templates.copy("sqlite", 1, tmp_path / "there")
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "holdfast-folder.json").touch()
    store.sinks.add("stick", folder.as_uri(), start="beginning", filter={"sensor_id": "W-1"})
    with (
        Store(tmp_path / "there", Settings(engine="sqlite", background=False)) as there,
        Receiver(there) as receiver,
    ):
        there.points.insert("W-1", "mode", "on", timestamp=0)
        store.sinks.add("there", receiver.url, start="beginning")
        write(store, 1_200)
        store.points.insert("W-1", "mode", 1.0, timestamp=1)
        write(store, 10, "W-2")
        for name in ("there", "stick"):
            drained(store, name)
        found = reconcile(store, "there")
        assert (found.checked, found.missing, found.quarantined) == (1_211, 0, 1)
        found = reconcile(store, "stick")
        assert (found.checked, found.missing, found.quarantined) == (1_201, 0, 0)
        assert len(there.points.range(None, None).all()) == 1_211
        write(store, 100)
        store.sinks.confirm("stick", store.sinks.last_seq())  # by hand, though it was not delivered
        found = reconcile(store, "stick")
        assert (found.missing, found.ranges) == (100, ((1_212, 1_311),))
    with pytest.raises(SinkUnreachable):
        reconcile(store, "there")


def test_a_sink_that_keeps_no_position_cannot_be_reconciled(store: Store) -> None:
    store.sinks.add("plain", "http://127.0.0.1:9/", start="now")
    with pytest.raises(InvalidQuery, match="keeps no position"):
        reconcile(store, "plain")
    with pytest.raises(InvalidQuery, match="no sink 'none'"):
        reconcile(store, "none")
