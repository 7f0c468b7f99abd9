"""Reading the batches of a delivery: their ranges, their sizes, and values that are overwritten while it runs."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from typing import Any

import pytest

from repo import MissingExtra, SinkRefused, Store
from repo.cursors import Cursor, Span
from repo.delivery.lanes import LaneWork
from repo.delivery.limits import AS_TEXT
from repo.delivery.protocol import Lane
from repo.delivery.reading import FRESH_S, Cut, Reader
from repo.queries.selection import Selection
from repo.queries.seq_page import PAGE_CHARS
from tests.delivery.sink_batches import batch_of

Row = tuple[Any, ...]


def rows_of(cut: Cut) -> list[Row]:
    return list(zip(*cut.columns, strict=True))


def stored(store: Store, first: int = -(2**62)) -> list[Row]:
    """Return what the store has, in the form of a batch."""
    return [row for page in store.points.since(first - 1).tuples() for row in page]


def all_cuts(
    store: Store,
    reader: Reader,
    lane: Lane = Lane.LIVE,
    *,
    backwards: bool = False,
    first: int = 1,
    **limits: Any,
) -> list[Cut]:
    """Cut batches until no gap is left; the ranges must follow each other."""
    last = store.sinks.last_seq()
    cuts, cursor = [], Cursor(first - 1)
    while gaps := cursor.gaps(last):
        cuts.append(reader.cut(lane, LaneWork(gaps[0], backwards), last, AS_TEXT._replace(**limits)))
        assert len(cuts) < 1_000
        span = cuts[-1].span
        assert (span.last == gaps[0].last) if backwards else (span.first == gaps[0].first)
        assert span.seqs > 0
        for row in rows_of(cuts[-1]):
            assert span.first <= row[-1] <= span.last
        cursor = cursor.confirm(*span)
    return cuts


def test_batches_cover_all_seqs_and_have_all_points(store: Store, seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(12):
        store.points.insert_many(
            [
                (
                    f"S-{random_.randrange(4)}",
                    random_.choice(["flow", "state"]),
                    float(random_.randrange(300)),
                    None,
                )
                for _ in range(random_.randrange(1, 60))
            ]
        )
    store.points.insert_many([("S-9", "state", float(at), "OPEN", 100, {"at": at}) for at in range(50)])
    store.points.delete("S-1")
    expected = stored(store)

    for rows in (1, 7, 10_000):
        cuts = all_cuts(store, Reader(store), points=rows)
        assert [row for cut in cuts for row in rows_of(cut)] == expected
        assert all(cut.points <= rows for cut in cuts)
        backwards = all_cuts(store, Reader(store), backwards=True, points=rows)
        assert [row for cut in reversed(backwards) for row in rows_of(cut)] == expected

    chosen = Selection.of("S-*", ["state"])
    cuts = all_cuts(store, Reader(store, chosen), points=9)
    assert [row for cut in cuts for row in rows_of(cut)] == [row for row in expected if row[1] == "state"]

    span = Span(40, store.sinks.last_seq() - 5)
    again = Reader(store).again(span, store.sinks.last_seq())
    assert again.span == span
    whole = rows_of(again)
    assert whole == [row for row in expected if span.first <= row[-1] <= span.last]
    left, parts = span, []
    while left.seqs > 0:
        part = Reader(store, chosen).again(left, store.sinks.last_seq(), AS_TEXT._replace(points=97))
        assert part.points <= 97
        parts += rows_of(part)
        left = Span(part.span.last + 1, span.last)
    assert parts == [row for row in whole if row[1] == "state"]


def test_long_texts_make_smaller_batches_and_pages(store: Store) -> None:
    store.points.insert_many(
        [
            ("S", "flow", float(at), 1.0, 100, {"about": "x" * 50_000})
            for at in range(2 * PAGE_CHARS // 50_000)
        ]
    )
    page = store.points.page(1, store.sinks.last_seq())
    assert 0 < sum(map(len, page.columns[6])) <= PAGE_CHARS
    assert page.span == (1, page.columns[7][-1])
    backwards = store.points.page(1, store.sinks.last_seq(), backwards=True)
    assert 0 < sum(map(len, backwards.columns[6])) <= PAGE_CHARS
    assert backwards.span == (backwards.columns[7][0], store.sinks.last_seq())

    cuts = all_cuts(store, Reader(store), bytes=120_000)
    assert max(cut.points for cut in cuts) == 2
    assert len(cuts) <= 82  # a page may end with one
    assert all(cut.bytes <= 120_000 for cut in cuts)

    span = Span(1, store.sinks.last_seq())
    for limit in (120_000, PAGE_CHARS * 3 // 2):
        again = Reader(store).again(span, span.last, AS_TEXT._replace(bytes=limit))
        assert again.span == (1, again.columns[7][-1])
        assert limit - 60_000 < again.bytes < limit + 60_000
    # One point that is larger than a batch may be is a batch of its own.
    assert {cut.points for cut in all_cuts(store, Reader(store), bytes=1_000)} == {1}
    assert all_cuts(store, Reader(store), backwards=True, bytes=120_000)[0].span.last == 160


def test_batches_are_arrow_tables_where_pyarrow_is_installed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    store.points.insert_many(
        [
            ("S-1", "flow", 1.0, 1.5),
            ("S-2", "state", 2.0, "OPEN é"),
            ("S-1", "flow", 3.0, None, 7, {"a": 1}),
            ("S-1", "flow", 4.0, float("inf"), None),
        ]
    )
    last = store.sinks.last_seq()
    for selection in (None, Selection.of("S-1", None)):
        cut = Reader(store, selection).cut(Lane.LIVE, LaneWork(Span(1, last)), last)
        table = replace(batch_of([]), columns=cut.columns).arrow()
        expected = store.points.since(0).to_arrow()
        if selection is not None:
            expected = expected.filter([name == "S-1" for name in expected["sensor_id"].to_pylist()])
        assert table.schema == expected.schema
        assert table.to_pylist() == expected.to_pylist()
        assert len(table) == cut.points
    assert replace(batch_of([])).arrow().schema == expected.schema
    with pytest.raises(SinkRefused, match="lone surrogate"):
        batch_of([("\ud800", "m", 1, 1.0)]).arrow()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[arrow\]"):
        batch_of([]).arrow()


def test_ranges_without_points_are_wide(store: Store) -> None:
    store.points.insert_many([("S", "flow", 1.0, float(at)) for at in range(30)])
    store.flush()
    assert [(cut.span, cut.points) for cut in all_cuts(store, Reader(store))] == [((1, 30), 1)]
    far = store.points.page(31, 50_000_000)
    assert list(far.columns[7]) == []
    assert far.span.first == 31
    assert far.span.seqs > 1_000_000


def test_an_old_value_is_never_cut_after_a_newer_one(store: Store) -> None:
    store.points.insert_many([("S", "flow", float(at), 1.0) for at in range(100)])
    now_s = [0.0]
    reader = Reader(store, clock=lambda: now_s[0])
    end = store.sinks.last_seq()
    old = reader.cut(Lane.BACKFILL, LaneWork(Span(1, end)), end, AS_TEXT._replace(points=10))
    assert [row[3] for row in rows_of(old)] == [1.0] * 10

    def live_then_back_fill(first_time: float, value: float) -> tuple[Cut, Cut]:
        before, written = store.sinks.last_seq(), store.points.insert("S", "flow", value, first_time)
        last = store.sinks.last_seq()
        live = reader.cut(Lane.LIVE, LaneWork(Span(before + 1, last)), last)
        assert [row[3] for row in rows_of(live)] == [value]
        assert live.span.last == written.last_seq
        gap = Span(backfilled + 1, end)
        return live, reader.cut(Lane.BACKFILL, LaneWork(gap), last, AS_TEXT._replace(points=10))

    # Newer in time: the page is used on. Overwritten: the page is read again, without the old value.
    backfilled = old.span.last
    _, cut = live_then_back_fill(5_000.0, 2.0)
    assert cut.points == 10
    backfilled = cut.span.last
    _, cut = live_then_back_fill(25.0, 3.0)
    assert 25.0 * 1e6 not in cut.columns[2]
    assert cut.points == 10

    # What was deleted is not sent from a page that is some seconds old.
    backfilled = cut.span.last
    store.points.delete(start=60.0)
    last = store.sinks.last_seq()
    cut = reader.cut(Lane.BACKFILL, LaneWork(Span(backfilled + 1, end)), last, AS_TEXT._replace(points=20))
    now_s[0] += FRESH_S
    rest = reader.cut(
        Lane.BACKFILL, LaneWork(Span(cut.span.last + 1, end)), last, AS_TEXT._replace(points=1_000)
    )
    assert max(*cut.columns[2], *rest.columns[2]) == 59_000_000
    assert rest.span.last == end


def test_a_range_that_begins_far_before_the_first_point_is_read_at_once(store: Store) -> None:
    store.points.insert("S", "flow", 1.5, 0.0)
    for backwards in (False, True):
        cuts = all_cuts(store, Reader(store), backwards=backwards, first=-(2**62))
        assert [cut.points for cut in cuts if cut.points] == [1]
        assert len(cuts) < 5


def test_wrong_ranges_of_a_page_are_refused(store: Store) -> None:
    with pytest.raises(Exception, match="first_seq = 5 is above last_seq = 4"):
        store.points.page(5, 4)
    with pytest.raises(Exception, match="an integer is expected"):
        store.points.page("1", 4)  # type: ignore[arg-type]
