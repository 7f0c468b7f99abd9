"""Status and series: reports about a store, from SQLite only."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repo import InvalidQuery, Store


def test_a_fresh_store_has_nothing(store: Store, engine: str) -> None:
    status = store.status()
    assert (status.points, status.series, status.last_seq, status.journal_rows, status.records_pending) == (
        0,
    ) * 5
    assert (status.oldest_us, status.newest_us, status.holder) == (None, None, None)
    assert store.series.list() == []
    assert store.points.range(None, None).all() == store.points.latest(None) == store.points.after(0) == []


def test_status_counts_what_was_written_flushed_and_pruned(store: Store, engine: str) -> None:
    store.points.insert_many([("a", "m", at, 1.0) for at in range(10)])
    store.points.delete("a", "m", 0, 3)
    store.records.add("r", "gateway", {"note": "x"})
    status = store.status()
    assert (status.last_seq, status.flushed_seq, status.unflushed, status.journal_seqs) == (11, 0, 11, 11)
    assert (status.records_pending, status.points, status.series) == (1, 0, 1)
    store.flush()
    status = store.status()
    assert (status.engine, status.flushed_seq, status.unflushed, status.points) == (engine, 11, 0, 7)
    assert (status.oldest_us, status.newest_us) == (3_000_000, 9_000_000)
    assert (status.ledger_entries, status.ledger_dropped) == (1, 3)
    store.checkpoint()
    status = store.status()
    assert (status.last_seq, status.pruned_seq, status.journal_rows, status.journal_seqs) == (11, 11, 0, 0)
    assert status.bytes_total == sum(status.bytes_by_file.values()) > 0
    json.dumps(status.as_dict())
    assert store.points.insert("a", "m", 1.0).first_seq == 12, "a pruned journal does not restart its seqs"


def test_sinks_have_cursors_that_only_go_forward(store: Store) -> None:
    store.points.insert_many([("a", "m", at, 1.0) for at in range(10)])
    assert store.sinks.add("cloud", "", start="beginning").confirmed_seq == 0
    store.sinks.confirm("cloud", 7)
    store.sinks.confirm("cloud", 3)
    [sink] = store.status().sinks
    assert (sink.name, sink.confirmed_seq, sink.behind) == ("cloud", 7, 3)
    store.sinks.add("archive", "", start="beginning")
    assert [(one.name, one.confirmed_seq) for one in store.sinks.list()] == [("archive", 0), ("cloud", 7)]


def test_an_unknown_sink_or_an_invalid_seq_is_refused_and_moves_no_cursor(store: Store) -> None:
    store.sinks.add("cloud", "", start="beginning")
    names: list[Any] = [None, 5, "", "a\ud800"]
    for name in names:
        for change in (
            lambda name: store.sinks.add(name, "", start="now"),
            lambda name: store.sinks.confirm(name, 1),
        ):
            with pytest.raises(InvalidQuery, match="the name of a sink"):
                change(name)
    with pytest.raises(InvalidQuery, match="there is no sink 'nobody'"):
        store.sinks.confirm("nobody", 1)
    seqs: list[Any] = [-1, 1 << 63, 1.0, True, "1", None]
    for seq in seqs:
        with pytest.raises(InvalidQuery, match="seq = "):
            store.sinks.confirm("cloud", seq)
    assert [(one.name, one.confirmed_seq) for one in store.sinks.list()] == [("cloud", 0)]


def test_series_are_listed_and_described(open_store: Any) -> None:
    store = open_store()
    store.points.insert_many(
        [("a", "p", 1, 1.0), ("a", "p", 5, 2.0), ("b", "state", 3, "OPEN"), ("c", "x", 1, None)]
    )
    assert [(s.sensor_id, s.kind, s.points) for s in store.series.list()] == [
        ("a", "number", 0),
        ("b", "text", 0),
        ("c", None, 0),
    ]
    store.series.describe("a", "p", unit="bar", labels={"site": "ø"})
    store.series.describe("a", "p", description="inlet")
    store.flush()
    store.close()
    store = open_store()
    [series] = store.series.list("a")
    assert (series.unit, series.description, series.labels) == ("bar", "inlet", {"site": "ø"})
    assert (series.points, series.first_us, series.last_us) == (2, 1_000_000, 5_000_000)
    with pytest.raises(InvalidQuery, match="no series"):
        store.series.describe("nobody", "p", unit="bar")
    with pytest.raises(InvalidQuery, match="JSON"):
        store.series.describe("a", "p", labels={"x": float("nan")})


def test_cursors_from_any_point_see_exactly_the_later_points(open_store: Any) -> None:
    store = open_store(background=True)
    store.points.insert_many([("a", "m", at, 1.0) for at in range(40)])
    store.flush()
    store.points.insert_many([("a", "m", at, 2.0) for at in range(0, 40, 2)])
    store.points.delete("a", "m", 10, 20)
    everything = store.points.after(0)
    seqs = [row["seq"] for row in everything]
    assert seqs == [*range(2, 11, 2), *range(22, 41, 2), *range(41, 46), *range(51, 61)]
    for seq in range(62):
        assert store.points.after(seq) == [row for row in everything if row["seq"] > seq]
    for limit in (1, 2, 7):
        cursor, found = 0, []
        while rows := store.points.after(cursor, limit):
            assert len(rows) <= limit
            found += rows
            cursor = rows[-1]["seq"]
        assert found == everything
    with pytest.raises(InvalidQuery):
        store.points.after(0, limit=0)
