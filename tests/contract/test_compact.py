"""Compaction: it sorts the points on disk in slices, and changes nothing that a caller can see."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from repo import AsyncStore, HoldfastError, InvalidQuery, Settings, Store, StoreFull, StoreReadOnly
from repo.core import background, compaction
from repo.cursors import Span
from repo.queries.order import Order, Slice
from repo.repositories import sorting

ROWS = 100
"""The points of a slice in these tests."""

COLUMNS = "sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, seq"


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SLICE_ROWS", ROWS)


def interleaved(first: int, count: int, sensors: int = 5) -> list[tuple[Any, ...]]:
    return [(f"s{at % sensors}", "m", at, at / 4) for at in range(first, first + count)]


def as_stored(store: Store) -> list[tuple[Any, ...]]:
    """Every point, in the order of the file."""
    with store._handle.reading("test") as (connection, _):
        found = connection.exec_driver_sql(f"SELECT {COLUMNS} FROM time_series_data").all()
    return [tuple(row) for row in found]


def answers(store: Store) -> dict[str, Any]:
    """What callers can ask; it does not depend on the order of the file."""
    points = store.points
    after: list[Any] = []
    while page := points.after(after[-1]["seq"] if after else 0, 120):
        after += page
    return {
        "all": sorted(as_stored(store), key=lambda row: row[:3]),
        "range": points.range(None, None).all(),
        "one": points.range("s1", "m", 50, 250).all(),
        "latest": points.latest(None),
        "average": points.aggregate(None, None, agg=["avg", "count"]),
        "buckets": points.aggregate("s1", "m", agg="sum", every="1m"),
        "after": after,
        "since": points.since(0).to_arrow().to_pylist(),
        "series": store.series.list(),
        "losses": store.losses(),
    }


def slices(store: Store) -> tuple[Slice, ...]:
    with store._handle.reading("test"):
        return store._handle.flusher.order.slices


def is_in_order(store: Store, first: int, last: int) -> bool:
    identities = [row[:3] for row in as_stored(store) if first <= row[7] <= last]
    return identities == sorted(identities)


@pytest.fixture
def filled(store: Store) -> Store:
    """350 points of five series, some overwritten, some deleted, with texts, metadata and missing values."""
    store.points.insert_many(interleaved(0, 300))
    store.points.insert_many([("s1", "m", at, 1.0) for at in range(1, 100, 10)])
    store.points.delete("s2", "m", 20, 60)
    store.points.insert("door", "state", "läuft", timestamp=7, quality=3, metadata={"a": [1, "☃"]})
    store.points.insert_many([(f"s{at % 5}", "m", at, None) for at in range(400, 440)])
    return store


def test_compacting_sorts_the_points_and_no_answer_changes(filled: Store, engine: str) -> None:
    before = answers(filled)
    seen: list[tuple[int, int]] = []
    done = filled.compact(progress=lambda *given: seen.append(given))
    assert answers(filled) == before
    if engine == "sqlite":
        assert (done.sorted_by_key, done.sorted_slices, slices(filled), seen) == (True, 0, (), [])
        return
    assert done.sorted_points == len(before["all"])
    assert (done.sorted_slices, done.noted_slices, done.skipped_slices) == (4, 0, 0)
    assert seen[-1] == (done.sorted_points,) * 2
    assert [one.span for one in slices(filled)] == [(1, 100), (101, 200), (201, 300), (301, 352)]
    for one in slices(filled):
        assert is_in_order(filled, *one.span)
        assert one.rows == sum(one.first_seq <= row[7] <= one.last_seq for row in before["all"])
    order = filled._handle.flusher.order
    assert order.is_sorted(1, 352)
    assert not order.is_sorted(1, 353)
    assert filled.compact().sorted_slices == 0, "all is sorted"
    filled.close()
    with Store(filled.path, filled.settings) as again:
        again._handle.columns.stays_open = True
        assert answers(again) == before


@pytest.mark.duckdb
@pytest.mark.parametrize("engine", ["duckdb"])
class TestOnDuckDB:
    def test_a_dry_run_says_what_would_be_done(self, filled: Store) -> None:
        stored = as_stored(filled)
        planned = filled.compact(dry_run=True)
        assert as_stored(filled) == stored
        assert slices(filled) == ()
        done = filled.compact()
        assert planned.dry_run
        wanted = done.as_dict() | {"dry_run": True, "columns_after_bytes": planned.columns_before_bytes}
        assert planned.as_dict() == wanted

    def test_a_slice_of_thousands_of_series_is_sorted(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compaction, "SLICE_ROWS", 20_000)
        store.points.insert_many(interleaved(0, 15_000, sensors=7_000))
        before = sorted(as_stored(store))
        assert store.compact().sorted_slices == 1
        assert as_stored(store) == before

    def test_a_page_to_deliver_reads_one_slice_only(self, store: Store) -> None:
        store.points.insert_many(interleaved(0, 350))
        store.compact(until=300)
        pages = list(store.points.since(0).tuples(70))
        assert [len(page) for page in pages] == [50] * 6 + [50], "slices of 100 are halved"
        assert [row[7] for page in pages for row in page] == list(range(1, 351))
        pages = list(store.points.since(130).tuples(70))
        assert [len(page) for page in pages] == [70, 50, 50, 50]

    @pytest.mark.parametrize("points", [ROWS, 3 * ROWS])
    def test_an_export_is_in_order_and_the_same_as_before(
        self, store: Store, tmp_path: Path, points: int
    ) -> None:
        store.points.insert_many([("door", "state", 0, "open"), *interleaved(1, points - 1)])
        files = [tmp_path / "before.parquet", tmp_path / "after.parquet"]
        store.export_parquet(files[0])
        assert store.compact().sorted_slices == points // ROWS
        store.export_parquet(files[1])
        before, after = (pq.read_table(file).to_pylist() for file in files)
        assert after == before
        assert [row["sensor_id"] for row in after] == sorted(row["sensor_id"] for row in after)
        assert len(after) == points

    def test_until_leaves_later_points_alone(self, filled: Store) -> None:
        later = [row for row in as_stored(filled) if row[7] > 130]
        assert filled.compact(until=130).through == 130
        assert [one.span for one in slices(filled)] == [(1, 100), (101, 130)]
        assert [row for row in as_stored(filled) if row[7] > 130] == later
        assert filled.compact(until=0).sorted_slices == 0

    def test_a_small_last_slice_grows_with_the_next_points(self, store: Store) -> None:
        for first in range(0, 120, 30):
            store.points.insert_many(interleaved(first, 30))
            store.compact()
        assert [one.span for one in slices(store)] == [(1, 60), (61, 120)]
        assert all(is_in_order(store, *one.span) for one in slices(store))

    def test_points_that_came_in_sorted_are_only_noted(self, store: Store) -> None:
        rows = sorted(interleaved(0, 250))
        store.points.insert_many(rows[:120])
        store.points.insert_many([("z", "one series", at, 1.0) for at in range(100)])
        before = as_stored(store)
        done = store.compact()
        assert (done.sorted_slices, done.noted_slices, done.noted_points) == (0, 3, 220)
        assert as_stored(store) == before

    def test_deletes_and_overwrites_need_no_change_of_the_slices(self, filled: Store) -> None:
        filled.compact()
        noted = slices(filled)
        filled.points.delete("s3", None, 0, 200)
        filled.points.insert_many([("s1", "m", at, 99.0) for at in range(1, 300, 5)])
        assert slices(filled) == noted
        assert all(is_in_order(filled, *one.span) for one in noted)
        before = answers(filled)
        filled.compact()
        assert answers(filled) == before
        assert filled._handle.flusher.order.is_sorted(1, filled.sinks.last_seq())

    def test_seqs_with_wide_gaps_make_full_slices(self, store: Store) -> None:
        for first in range(0, 2_000, 100):
            store.points.insert_many(interleaved(first, 100))
            store.points.delete("s[1234]", "m")
        store.compact()
        made = slices(store)
        assert 4 <= len(made) <= 8
        assert all(50 <= one.rows <= 100 for one in made[:-1])
        assert sum(one.rows for one in made) == 400
        assert all(is_in_order(store, *one.span) for one in made)

    def test_points_of_a_legacy_store_have_negative_seqs_and_are_sorted_too(self, store: Store) -> None:
        store.points.insert_many(interleaved(0, 250))
        store.flush()
        with store._handle.columns.alone("test") as opened, opened.flush_connection.begin():
            opened.flush_connection.exec_driver_sql("UPDATE time_series_data SET seq = seq - 201")
        done = store.compact()
        assert done.sorted_points == 250
        assert [one[:3] for one in slices(store)] == [
            (-200, -101, 100),
            (-100, -1, 100),
            (0, 99, 50),
            (100, 250, 0),
        ]
        assert is_in_order(store, -200, -101)

    def test_columns_that_a_user_added_are_kept(self, filled: Store) -> None:
        filled.flush()
        with filled._handle.columns.alone("test") as opened, opened.flush_connection.begin():
            for statement in (
                'ALTER TABLE time_series_data ADD COLUMN "the ""plant""" VARCHAR',
                "ALTER TABLE time_series_data ADD COLUMN tags VARCHAR[]",
                "ALTER TABLE time_series_data ADD COLUMN unused BLOB",
                'UPDATE time_series_data SET tags = [sensor_id], "the ""plant""" = \'p\' || seq WHERE seq % 2 = 0',
            ):
                opened.flush_connection.exec_driver_sql(statement)

        def own() -> list[Any]:
            return filled.sql("SELECT *, typeof(unused) AS kind FROM time_series_data ORDER BY seq")

        before = own()
        assert filled.compact().sorted_slices == 4
        assert own() == before

    def test_texts_too_large_for_the_memory_limit_are_skipped_and_tried_again(
        self, open_store: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compaction, "_MOST_SORT_BYTES", 20_000)
        store = open_store()
        text = "x" * 2_000
        rows = interleaved(0, 200)
        store.points.insert_many(
            [(*row, 100, {"n": text} if row[2] in range(90, 120) else None) for row in rows]
        )
        before = answers(store)
        done = store.compact()
        assert done.skipped_slices
        assert done.skipped_slices * 24 >= done.skipped_points >= 20
        assert done.skipped_points + done.sorted_points == 200
        assert answers(store) == before
        skipped = [one for one in slices(store) if not one.is_sorted]
        assert [one.sorted_through for one in skipped] == [one.first_seq - 1 for one in skipped]
        assert not store._handle.flusher.order.is_sorted(1, 200)
        monkeypatch.setattr(compaction, "_MOST_SORT_BYTES", 1_000_000)
        again = store.compact()
        assert again.skipped_slices == 0
        assert again.sorted_points >= done.skipped_points
        assert answers(store) == before
        assert store._handle.flusher.order.is_sorted(1, 200)

    def test_a_slice_that_does_not_fit_into_memory_is_made_smaller(
        self, filled: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, rewrite, refused = answers(filled), sorting.rewrite, [0]

        def limited(connection: Any, span: Span, *given: Any) -> None:
            if span.last - span.first >= 50:
                refused[0] += 1
                connection.exec_driver_sql(
                    "CREATE TEMPORARY TABLE large AS SELECT repeat('x', 10000000) || i AS x "
                    "FROM range(100) AS t(i) ORDER BY x"
                )
            rewrite(connection, span, *given)

        monkeypatch.setattr(sorting, "rewrite", limited)
        done = filled.compact()
        assert refused[0]
        assert done.sorted_points + done.noted_points == len(before["all"])
        assert all(one.last_seq - one.first_seq < 50 for one in slices(filled))
        assert answers(filled) == before

    def test_a_shrink_keeps_the_slices_and_a_move_to_the_other_engine_drops_them(self, filled: Store) -> None:
        filled.compact()
        filled.points.insert_many(interleaved(500, 50))
        before, noted = answers(filled), slices(filled)
        filled.shrink()
        assert slices(filled) == noted
        assert all(is_in_order(filled, *one.span) for one in noted)
        filled.demote()
        assert slices(filled) == ()
        filled.promote()
        assert slices(filled) == ()
        done = filled.compact()
        assert done.sorted_points + done.noted_points == len(before["all"])
        assert answers(filled) == before

    def test_a_disk_with_too_little_room_is_refused_before_anything_changes(
        self, filled: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = as_stored(filled)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9 - 10**6, 10**6))
        with pytest.raises(
            StoreFull, match=r"compacting .* may need 16,.* bytes .* Free some space and try again"
        ):
            filled.compact()
        assert as_stored(filled) == before
        assert slices(filled) == ()

    def test_an_error_leaves_the_points_as_they_were(
        self, filled: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, rewrite = answers(filled), sorting.rewrite

        def failing(connection: Any, *given: Any) -> None:
            rewrite(connection, *given)
            connection.exec_driver_sql("SELECT error('at the end')")

        monkeypatch.setattr(sorting, "rewrite", failing)
        with pytest.raises(HoldfastError, match="at the end"):
            filled.compact()
        assert slices(filled) == ()
        assert answers(filled) == before
        monkeypatch.undo()
        filled.points.insert("s1", "m", 2.0, timestamp=1_000)
        assert filled.compact().sorted_slices

    def test_readers_and_writers_continue_beside_it(
        self, filled: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every read sees all points exactly once, whatever slice is being sorted."""
        monkeypatch.setattr(compaction, "SLICE_ROWS", 400)
        filled.points.insert_many(interleaved(1_000, 2_000))
        problems: list[str] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                rows = filled.points.range("s[0-4]", "m", 1_000, 3_000).all()
                if [row["timestamp_us"] // 1_000_000 for row in rows] != list(range(1_000, 3_000)):
                    problems.append(f"{len(rows)} points")
                counted = sum(
                    row["count"] for row in filled.points.aggregate(None, "m", 1_000, 3_000, agg="count")
                )
                if counted != 2_000:
                    problems.append(f"counted {counted}")

        def write() -> None:
            at = 5_000
            while not done.is_set():
                filled.points.insert_many(interleaved(at, 10))
                at += 10
                time.sleep(0.005)

        threads = [threading.Thread(target=work) for work in (read, read, write)]
        for thread in threads:
            thread.start()
        try:
            filled.compact(until=1_100)
            filled.compact(until=2_352)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert problems == []
        assert filled._handle.flusher.order.is_sorted(1, 2_352)

    def test_the_asynchronous_store_compacts_too(self, filled: Store) -> None:
        filled.close()

        async def run() -> Any:
            async with AsyncStore(filled.path, Settings(background=False)) as store:
                return await store.compact(until=100), await store.compact(dry_run=True)

        first, second = asyncio.run(run())
        assert (first.sorted_slices, second.sorted_slices, second.dry_run) == (1, 3, True)

    def test_a_store_opened_for_reading_cannot_be_compacted(self, filled: Store) -> None:
        filled.close()
        with Store(filled.path, read_only=True) as store, pytest.raises(StoreReadOnly):
            store.compact()

    @pytest.mark.parametrize("wrong", [{"until": "now"}, {"until": 1.5}, {"dry_run": "no"}, {"progress": 3}])
    def test_wrong_arguments_are_refused(self, store: Store, wrong: Any) -> None:
        with pytest.raises(InvalidQuery, match=next(iter(wrong))):
            store.compact(**wrong)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_COMPACTION_S", 0.0)
    monkeypatch.setattr(background, "COMPACTION_PAUSE", 0.0)


def until(condition: Any, timeout_s: float = 300.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.duckdb
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("engine", ["duckdb"])
class TestInTheBackground:
    SETTINGS: ClassVar[dict[str, Any]] = {"background": True, "flush_interval_s": 0.01}

    def test_slices_are_compacted_once_as_many_seqs_lie_after_them(self, open_store: Any) -> None:
        store = open_store(**self.SETTINGS)

        def order() -> list[Span]:
            return [one.span for one in store._handle.flusher.order.slices]

        store.points.insert_many(interleaved(0, 199))
        time.sleep(0.2)
        assert order() == []
        store.points.insert_many(interleaved(199, 1))
        until(lambda: order() == [(1, 100)])
        store.points.insert_many(interleaved(200, 250))
        until(lambda: order() == [(1, 100), (101, 200), (201, 300)])
        assert [row["timestamp_us"] // 1_000_000 for row in store.points.range(None, None)] == list(
            range(450)
        )

    def test_it_can_be_switched_off(self, open_store: Any) -> None:
        store = open_store(**self.SETTINGS, compact_background=False)
        store.points.insert_many(interleaved(0, 500))
        time.sleep(0.2)
        assert slices(store) == ()

    def test_an_error_is_logged_once_and_tried_again(
        self, open_store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        usage, free, asked = shutil.disk_usage, [10**6], [0]
        answer = namedtuple("answer", "total used free")

        def disk_usage(path: Any) -> Any:
            asked[0] += 1
            free[0] -= 1
            return answer(10**9, 10**9 - free[0], free[0]) if free[0] > 0 else usage(path)

        monkeypatch.setattr(background, "COMPACTION_RETRY_S", 0.0)
        monkeypatch.setattr(shutil, "disk_usage", disk_usage)
        with caplog.at_level(logging.WARNING, "holdfast"):
            store = open_store(**self.SETTINGS)
            store.points.insert_many(interleaved(0, 500))
            until(lambda: asked[0] > 5)
            assert len(store.points.range(None, None).all()) == 500
            free[0] = 0
            until(lambda: len(store._handle.flusher.order.slices) == 4)
        assert [record.getMessage()[:60] for record in caplog.records] == [
            "compacting in the background failed and will be retried: com"
        ]

    def test_closing_ends_it_at_its_next_step(self, open_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        reached, go_on = threading.Event(), threading.Event()
        weigh = sorting.weigh

        def slow(connection: Any, span: Span) -> Any:
            reached.set()
            assert go_on.wait(60)
            return weigh(connection, span)

        monkeypatch.setattr(sorting, "weigh", slow)
        store = open_store(**self.SETTINGS)
        store.points.insert_many(interleaved(0, 500))
        assert reached.wait(60)
        closing = threading.Thread(target=store.close)
        closing.start()
        until(lambda: store._background is None or store._background._stop.is_asked())
        go_on.set()
        closing.join(60)
        assert not closing.is_alive()
        with Store(store.path, Settings(background=False)) as again:
            assert slices(again) == ()
            assert len(again.points.range(None, None).all()) == 500


def test_the_order_knows_gaps_and_skipped_slices() -> None:
    order = Order([Slice(21, 30, 10, 20), Slice(1, 10, 10, 10), Slice(11, 20, 9, 20)])
    assert list(order.gaps(-5, 40)) == [(-5, 0), (31, 40)]
    assert list(order.gaps(5, 25)) == []
    assert list(order.gaps(5, 40, skipped=True)) == [(21, 40)]
    assert (order.first_seq, order.last_seq) == (1, 30)
    assert order.covering(11) == Slice(11, 20, 9, 20)
    assert order.covering(0) is None
    assert order.covering(31) is None
    assert order.is_sorted(1, 20)
    assert not order.is_sorted(1, 21)
    assert order.is_sorted(0, 5), "no point has a seq before the first slice"
    assert not Order().is_sorted(1, 1)
