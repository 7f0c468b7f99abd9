"""Each identity is stored once, with its last acknowledged value; a delete covers what was written before it."""

from __future__ import annotations

from typing import Any

import pytest

from repo import InvalidQuery, Store
from repo.queries import selection

pytestmark = pytest.mark.shared_stores

FLUSHES = pytest.mark.parametrize("flushed", [False, True], ids=["in one flush", "flushed between"])


def values(store: Store, sensor: str = "a", metric: str = "m") -> dict[int, Any]:
    return {row["timestamp_us"] // 1_000_000: row["value"] for row in store.points.range(sensor, metric)}


def seqs(store: Store) -> dict[tuple[str, int], int]:
    return {(row["sensor_id"], row["timestamp_us"] // 1_000_000): row["seq"] for row in store.points.after(0)}


@FLUSHES
def test_the_last_write_of_an_identity_wins(store: Store, flushed: bool) -> None:
    for value in (1.0, 2.0, 3.0):
        store.points.insert("a", "m", value, timestamp=10)
        store.points.insert("b", "m", -value, timestamp=10)
        if flushed:
            store.flush()
    assert values(store) == {10: 3.0}
    assert values(store, "b") == {10: -3.0}
    assert store.sql("SELECT count(*) AS n FROM time_series_data") == [{"n": 2}]


def test_within_one_batch_the_last_row_of_an_identity_wins(store: Store) -> None:
    store.points.insert_many([("a", "m", 1, 1.0), ("a", "m", 2, 5.0), ("a", "m", 1, 2.0)])
    assert values(store) == {1: 2.0, 2: 5.0}


@pytest.mark.fresh_stores
@FLUSHES
def test_an_equal_write_changes_nothing_and_keeps_its_seq(store: Store, flushed: bool) -> None:
    points: list[Any] = [
        (1.5, 10, 100, None),
        ("OPEN", 10, 7, {"b": 1, "a": "ø"}),
        (None, 10, 100, {}),
        (float("inf"), 10, -1, None),
    ]
    first = {
        (f"s{n}", 10): store.points.insert(f"s{n}", "m", *point).first_seq for n, point in enumerate(points)
    }
    if flushed:
        store.flush()
    for n, point in enumerate(points):
        store.points.insert(f"s{n}", "m", *point)
    store.points.insert("later", "m", 1.0, 11)
    assert seqs(store) == {**first, ("later", 11): 9}


@pytest.mark.fresh_stores
def test_a_write_that_differs_in_any_field_takes_the_new_seq(store: Store) -> None:
    point: dict[str, Any] = {"value": 1.0, "quality": 100, "metadata": {"k": 1}}
    changes: list[dict[str, Any]] = [
        {"value": 2.0},
        {"value": None},
        {"quality": 99},
        {"metadata": {"k": 2}},
        {"metadata": None},
    ]
    for n in range(len(changes)):
        store.points.insert(f"s{n}", "m", timestamp=10, **point)
    store.flush()
    for n, change in enumerate(changes):
        store.points.insert(f"s{n}", "m", timestamp=10, **(point | change))
    rows = store.points.after(0)
    assert [(row["sensor_id"], row["seq"]) for row in rows] == [(f"s{n}", 6 + n) for n in range(len(changes))]
    assert [{name: row[name] for name in point} for row in rows] == [point | change for change in changes]


@pytest.mark.fresh_stores
@FLUSHES
def test_a_delete_covers_what_was_written_before_it_and_nothing_after(store: Store, flushed: bool) -> None:
    store.points.insert_many([("a", "m", at, 1.0) for at in range(10)])
    if flushed:
        store.flush()
    store.points.delete("a", "m", 2, 8)
    if flushed:
        store.flush()
    store.points.insert_many([("a", "m", 3, 9.0), ("a", "m", 4, 1.0)])
    assert values(store) == {0: 1.0, 1: 1.0, 3: 9.0, 4: 1.0, 8: 1.0, 9: 1.0}
    [series] = store.series.list()
    assert (series.points, series.first_us, series.last_us) == (6, 0, 9_000_000)


@FLUSHES
def test_many_deletes_between_writes_apply_in_their_order(store: Store, flushed: bool) -> None:
    for round_ in range(8):
        store.points.insert_many([("a", "m", at, float(round_)) for at in range(8)])
        store.points.delete("a", "m", round_, None if round_ % 2 else round_ + 3)
        if flushed:
            store.flush()
    assert values(store) == dict.fromkeys(range(7), 7.0)


@pytest.mark.fresh_stores
def test_a_deleted_point_written_again_is_delivered_again(store: Store) -> None:
    store.points.insert("a", "m", 1.0, timestamp=10)
    store.flush()
    store.points.delete(everything=True)
    store.points.insert("a", "m", 1.0, timestamp=10)
    assert seqs(store) == {("a", 10): 3}


@pytest.mark.fresh_stores
def test_the_ledger_counts_the_points_of_each_delete(store: Store) -> None:
    store.points.insert_many([(sensor, "m", at, 1.0) for sensor in "abc" for at in range(10)])
    store.flush()
    store.points.delete("a", None, 0, 4)
    store.points.delete("nobody")
    store.points.insert("a", "m", 5.0, timestamp=0)
    store.points.delete(["a", "b"], "m", None, 2)
    store.flush()
    status = store.status()
    assert (status.ledger_entries, status.ledger_dropped) == (2, 4 + 1 + 2)
    assert status.points == 30 - 4 - 3 + 0 + 1 - 1 + 1


@pytest.mark.fresh_stores
def test_a_ledger_entry_is_counted_once_however_often_the_store_is_opened(open_store: Any) -> None:
    store = open_store()
    store.points.insert_many([("a", "m", at, 1.0) for at in range(10)])
    store.points.delete("a")
    store.checkpoint()
    for _ in range(3):
        store.close()
        store = open_store()
        store.points.insert("b", "m", 1.0)
        store.flush()
    assert store.status().ledger_dropped == 10


@pytest.mark.parametrize(
    ("sensor", "metric", "left"),
    [
        ("a*", None, {"b/p", "b/t"}),
        ("?1", "p", {"a1/t", "a2/p", "a2/t", "b/p", "b/t"}),
        (["b", "a2"], "[tx]", {"a1/p", "a1/t", "a2/p", "b/p"}),
        (["a*"], None, {"a1/p", "a1/t", "a2/p", "a2/t", "b/p", "b/t"}),
        ([], None, {"a1/p", "a1/t", "a2/p", "a2/t", "b/p", "b/t"}),
    ],
)
def test_a_delete_accepts_globs_lists_and_none(
    store: Store, sensor: Any, metric: Any, left: set[str]
) -> None:
    store.points.insert_many([(s, m, 1, 1.0) for s in ("a1", "a2", "b") for m in "pt"])
    store.points.delete(sensor, metric)
    assert {f"{row['sensor_id']}/{row['metric_name']}" for row in store.points.range(None, None)} == left


def test_a_delete_of_more_names_than_a_statement_takes_is_refused_at_once(store: Store) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1)
    with pytest.raises(InvalidQuery, match="20001 names"):
        store.points.delete([f"s{n}" for n in range(20_001)])
    with pytest.raises(InvalidQuery, match="24000 names"):
        store.points.delete([f"s{n}" for n in range(12_000)], [f"m{n}" for n in range(12_000)])
    assert values(store) == {1: 1.0}


@pytest.mark.fresh_stores
def test_a_glob_that_matches_more_names_than_a_statement_takes_still_deletes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.points.insert_many([(f"s{n}", f"m{n % 7}", 1, 1.0) for n in range(25)] + [("other", "m1", 1, 1.0)])
    store.flush()
    store.points.delete("s*", "m?")
    monkeypatch.setattr(selection, "MOST_NAMES", 8)
    store.flush()
    assert [row["sensor_id"] for row in store.points.range(None, None)] == ["other"]
    assert store.status().ledger_dropped == 25


@pytest.mark.fresh_stores
def test_a_delete_finds_the_edges_that_remain_far_from_the_cut(store: Store) -> None:
    day = 86_400
    store.points.insert_many(
        [("a", "m", at * day, float(at)) for at in (-20_000, -3, 0, 1, 2, 3, 9_000, 90_000)]
    )
    store.flush()
    store.points.delete("a", "m", -30_000 * day, 2 * day)
    store.points.delete("a", "m", 3 * day + 1, None)
    [latest] = store.points.latest("a", "m")
    [series] = store.series.list()
    assert (latest["value"], latest["timestamp_us"]) == (3.0, 3 * day * 10**6)
    assert (series.points, series.first_us, series.last_us) == (2, 2 * day * 10**6, 3 * day * 10**6)
