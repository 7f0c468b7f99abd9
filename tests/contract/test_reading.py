"""Range and latest: selection, order, and that reads see every earlier write."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from repo import InvalidQuery, Store, extras
from repo.queries.pages import Lists, TimePages

pytestmark = pytest.mark.shared_stores

T0 = 1_714_521_600
ALL = [(s, m) for s in ("a1", "a2", "b[1]", "b1") for m in ("p", "t")]


def names(rows: Any) -> list[str]:
    return [f"{row['sensor_id']}/{row['metric_name']}" for row in rows]


def test_a_point_comes_back_as_it_was_written(store: Store) -> None:
    at = datetime(2024, 5, 1, 12, 0, 0, 123456, UTC)
    store.points.insert("Pump ø", "p'\";--", 2500.5, at, 42, {"b": [1, None], "a": "æ"})
    assert store.points.range("Pump ø", "p'\";--").all() == [
        {
            "sensor_id": "Pump ø",
            "metric_name": "p'\";--",
            "timestamp": at,
            "timestamp_us": 1_714_564_800_123_456,
            "value": 2500.5,
            "quality": 42,
            "metadata": {"a": "æ", "b": [1, None]},
        }
    ]


def test_answers_are_the_same_with_and_without_numpy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    monkeypatch.setattr(extras, "FEW_ROWS", 0)
    store.points.insert_many(
        [
            (s, "p", T0 + t, None if t % 3 == 0 else t / 7, t % 5, {"t": t} if t == 4 else None)
            for s in "ab"
            for t in range(9)
        ]
        + [("c", "state", T0 + t, f"S{t % 2}") for t in range(4)]
    )
    store.checkpoint()
    store.points.insert_many(
        [("a", "p", T0 - 5, 1.5), ("a", "p", T0 + 4.5, 2), ("b", "p", T0 + 1, float("inf"))]
    )

    def answers() -> str:
        points = store.points
        ranges = (
            points.range("a", "p"),
            points.range("c", "state"),
            points.range(None, None),
            points.since(0),
        )
        found: list[Any] = [
            [result.all(), list(result), *result.tuples(), *result.pages(4)] for result in ranges
        ]
        found.append(points.range("a", "p", newest_first=True, limit=3).all())
        found.append(points.range("nothing", "here").all() + list(points.range("nothing", "here").tuples()))
        found.append(
            points.aggregate(None, None, agg=["count", "min", "last", "p50"], every="2s", tz="+05:30")
        )
        return repr(found)

    with_numpy = answers()
    assert "numpy" in sys.modules
    monkeypatch.setitem(sys.modules, "numpy", None)  # its import fails now
    assert answers() == with_numpy
    assert "np." not in with_numpy


AT_THE_EDGE = (
    (None, None),
    (float("nan"), None),
    (float("inf"), float("inf")),
    (float("-inf"), float("-inf")),
    (-0.0, 0.0),
    (5e-324, 5e-324),
    (2**53, 2.0**53),
    ("OPEN", "OPEN"),
)


@pytest.mark.parametrize("flushed", [False, True])
def test_extreme_values_are_kept_exactly(store: Store, flushed: bool) -> None:
    for number, (given, _) in enumerate(AT_THE_EDGE):
        store.points.insert(f"s{number}", "m", given, timestamp=1)
    if flushed:
        store.checkpoint()
    wanted = [repr(kept) for _, kept in AT_THE_EDGE]
    for rows in (store.points.latest(None), store.points.range(None, None).all(), store.points.after(0)):
        assert [repr(row["value"]) for row in rows] == wanted


def test_a_missing_reading_is_null_in_the_columns(store: Store) -> None:
    store.points.insert_many([("a", "m", 1, None), ("a", "m", 2, float("nan"))])
    query = "SELECT count(*) AS n, count(value) AS v, count(value_text) AS t FROM time_series_data"
    assert store.sql(query) == [{"n": 2, "v": 0, "t": 0}]


def test_range_includes_its_start_and_excludes_its_end(store: Store) -> None:
    store.points.insert_many([("a", "m", at, float(at)) for at in range(10)])

    def read(start: Any, end: Any) -> list[float]:
        return [row["value"] for row in store.points.range("a", "m", start, end)]

    assert read(3, 5) == [3.0, 4.0]
    assert read(None, 2) == [0.0, 1.0]
    assert read(8, None) == [8.0, 9.0]
    assert read(5, 5) == []
    assert read(datetime.fromtimestamp(9, UTC), None) == [9.0]


SELECTIONS: tuple[tuple[Any, Any, list[str]], ...] = (
    ("a1", "p", ["a1/p"]),
    ("a*", "p", ["a1/p", "a2/p"]),
    ("?1", "t", ["a1/t", "b1/t"]),
    ("b[1]", "p", ["b[1]/p"]),
    ("b[12]", "p", ["b1/p"]),
    (["b[1]"], "p", ["b[1]/p"]),
    (["a1", "b1", "nobody"], ["t"], ["a1/t", "b1/t"]),
    (None, "t", ["a1/t", "a2/t", "b1/t", "b[1]/t"]),
    (None, None, sorted(f"{s}/{m}" for s, m in ALL)),
    ("A*", None, []),
    ([], None, []),
    ("nobody", "p", []),
)


@pytest.mark.fresh_stores
def test_names_are_exact_globs_lists_or_all(store: Store) -> None:
    store.points.insert_many([(s, m, 1, 1.0) for s, m in ALL])
    for sensor, metric, found in SELECTIONS:
        assert names(store.points.latest(sensor, metric)) == found  # from the journal
    for sensor, metric, found in SELECTIONS:
        assert names(store.points.range(sensor, metric)) == found
        assert names(store.points.latest(sensor, metric)) == found  # from the copy
        assert names(store.points.latest(sensor, metric, limit=2)) == found  # from the columns
        assert names(store.points.aggregate(sensor, metric, agg="count")) == found
        assert names(store.series.list(sensor, metric)[i]._asdict() for i in range(len(found))) == found


@pytest.mark.parametrize("names_", [5, [5], b"a", {"a": None}.values, "\ud800", ["\udfff"]])
def test_invalid_names_are_refused(unwritten: Store, names_: Any) -> None:
    points = unwritten.points
    for call in (points.range, points.latest, points.delete, points.aggregate):
        with pytest.raises(InvalidQuery):
            call(names_, "m")
        with pytest.raises(InvalidQuery):
            call("a", names_)


def test_a_long_range_comes_in_pages_of_the_same_rows(store: Store) -> None:
    # Four series at the same times: pages end in the middle of one time.
    rows = [(s, m, at, float(at)) for at in range(15) for s in "ab" for m in "pt"]
    store.points.insert_many(rows)
    wanted = [(at * 10**6, s, m) for s, m, at, _ in rows]
    for size in (7, 20, 100):
        pages = list(store.points.range(None, None).pages(size))
        assert all(len(page) <= size for page in pages)
        found = [
            (row["timestamp_us"], row["sensor_id"], row["metric_name"]) for page in pages for row in page
        ]
        assert found == wanted
    one = [row["timestamp_us"] for page in store.points.range("b", "t").pages(7) for row in page]
    assert one == [at * 10**6 for at in range(15)]


def test_pages_continue_while_another_thread_writes_deletes_and_flushes(open_store: Any) -> None:
    store = open_store(background=True, flush_interval_s=0.05, lease_timeout_s=60.0)
    store.points.insert_many([("a", "m", at, 1.0) for at in range(1_500)])
    stop = threading.Event()
    failed: list[BaseException] = []

    def disturb() -> None:
        round_ = 0
        try:
            while round_ < 30 and not stop.wait(
                0.05
            ):  # if flush is slower than this, it catches up at the end
                round_ += 1
                store.points.insert_many([("a", "m", at, 2.0) for at in range(0, 1_500, 97)])
                store.points.insert("b", "m", float(round_), timestamp=round_)
                store.points.delete("b", "m", None, round_ - 5)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        pages = store.points.range("a", "m").pages(150)
        found = [row["timestamp_us"] // 10**6 for page in pages for row in page]
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert found == list(range(1_500))


def test_a_read_sees_every_acknowledged_write_of_another_thread(open_store: Any) -> None:
    store = open_store(background=True)
    written = threading.Barrier(2, timeout=300)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for at in range(30):
                store.points.insert("a", "m", float(at), timestamp=at)
                written.wait()
                written.wait()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    for at in range(30):
        written.wait()
        assert [row["value"] for row in store.points.latest("a", "m")] == [float(at)]
        assert len(store.points.range("a", "m").all()) == at + 1
        assert store.points.aggregate("a", "m", agg="count")[0]["count"] == at + 1
        written.wait()
    thread.join()
    assert not failed


def latest(store: Store) -> dict[str, tuple[int, Any]]:
    rows = store.points.latest(None)
    return {row["sensor_id"]: (row["timestamp_us"] // 10**6, row["value"]) for row in rows}


def test_latest_combines_the_journal_with_flushed_points(store: Store) -> None:
    store.points.insert_many([("newer", "m", 10, 1.0), ("late", "m", 10, 1.0), ("same", "m", 10, 1.0)])
    store.points.insert_many([("still", "m", 10, 1.0), ("gap", "m", 10, 1.0)])
    store.flush()
    store.points.insert_many([("newer", "m", 11, 2.0), ("late", "m", 9, 2.0), ("same", "m", 10, 2.0)])
    store.points.insert_many([("fresh", "m", 3, 3.0), ("fresh", "m", 2, 2.0), ("gap", "m", 11, None)])
    wanted = {
        "newer": (11, 2.0),
        "late": (10, 1.0),
        "same": (10, 2.0),
        "still": (10, 1.0),
        "fresh": (3, 3.0),
        "gap": (11, None),
    }
    assert store.status().unflushed == 6
    assert latest(store) == wanted
    assert store.status().unflushed == 6, "one point a series needs no flush"
    store.flush()
    assert latest(store) == wanted


def test_latest_sees_deletes_that_are_not_flushed(store: Store) -> None:
    store.points.insert_many([("a", "m", 1, 1.0), ("a", "m", 2, 2.0), ("b", "m", 1, 1.0)])
    store.flush()
    store.points.insert("a", "m", 3.0, timestamp=3)
    store.points.delete("a", "m", 2, None)
    store.points.delete("b")
    assert latest(store) == {"a": (1, 1.0)}
    assert store.status().unflushed == 0
    assert latest(store) == {"a": (1, 1.0)}
    store.points.insert("b", "m", 5.0, timestamp=0)
    store.points.delete("a")
    assert latest(store) == {"b": (0, 5.0)}


def test_latest_gives_the_newest_points_of_each_series_newest_first(store: Store) -> None:
    store.points.insert_many([(s, "m", at, float(at)) for at in (3, 1, 2, 5, 4) for s in "ab"])
    found = [(row["sensor_id"], row["value"]) for row in store.points.latest("*", "m", limit=3)]
    assert found == [("a", 5.0), ("a", 4.0), ("a", 3.0), ("b", 5.0), ("b", 4.0), ("b", 3.0)]
    assert [row["value"] for row in store.points.latest("b", "m", limit=2)] == [5.0, 4.0]
    with pytest.raises(InvalidQuery):
        store.points.latest("a", "m", limit=0)


@pytest.mark.fresh_stores
def test_latest_stays_right_after_the_copy_of_summaries_failed(store: Store) -> None:
    store.points.insert_many([("a", "m", 1, 1.0), ("b", "m", 1, 1.0)])
    store.flush()
    metadata = store._handle.metadata
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON latest BEGIN SELECT RAISE(ABORT, 'no copy'); END"
    with metadata.write() as connection:
        connection.exec_driver_sql(refuse)
    store.points.insert("a", "m", 2.0, timestamp=2)
    with pytest.raises(Exception, match="no copy"):
        store.flush()
    with metadata.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER refuse")
    store.points.insert("b", "m", 2.0, timestamp=2)
    store.checkpoint()
    assert latest(store) == {"a": (2, 2.0), "b": (2, 2.0)}
    assert [series.points for series in store.series.list()] == [2, 2]


def test_a_range_whose_start_is_after_its_end_is_refused_and_both_are_named(
    store: Store, tmp_path: Path
) -> None:
    store.points.insert_many([("s", "m", T0 + second, 1.0) for second in range(10)])
    given: dict[str, Any] = {"start": T0 + 5, "end": T0 + 2.5}
    for call in (
        lambda: store.points.range("s", "m", **given),
        lambda: store.points.aggregate("s", "m", agg="avg", **given),
        lambda: store.points.states("s", "m", **given),
        lambda: store.points.delete(**given),
        lambda: store.cleanup(points=True, records=True, **given),
        lambda: store.cleanup(dry_run=True, **given),
        lambda: store.export_parquet(tmp_path / "out.parquet", **given),
        lambda: store.export_ndjson(tmp_path / "out.ndjson.gz", **given),
    ):
        with pytest.raises(InvalidQuery) as refused:
            call()
        assert "start (2024-05-01T00:00:05+00:00) is after end (2024-05-01T00:00:02.500000+00:00)" in str(
            refused.value
        )
    assert not list(tmp_path.glob("out.*"))
    assert len(store.points.range("s", "m").all()) == 10
    assert store.points.range("s", "m", T0 + 5, T0 + 5).all() == []
    store.points.delete(start=T0 + 5, end=T0 + 5)
    assert len(store.points.range("s", "m").all()) == 10


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_page_with_too_many_points_is_read_in_vain_only_once(store: Store, newest_first: bool) -> None:
    class Counted(Lists):
        in_vain = 0

        def fetch(self, *given: Any) -> Any:
            page = super().fetch(*given)
            self.in_vain += page is None
            return page

    burst = [("s", "m", 1_000_000 + at / 100, float(at)) for at in range(2_000)]
    store.points.insert_many([("s", "m", 0, -1.0), *burst, ("s", "m", 2_000_000, -2.0)])
    selection = store._handle.select("s", "m")
    with store._handle.reading("test") as (connection, known):
        pages, form, found = TimePages(selection, 100, newest_first=newest_first), Counted(), []
        while not pages.done:
            page = pages.step(connection, known, form)
            if page is not None:
                assert form.size(page) <= 100
                found += page[1]
    assert found == [-1.0, *(float(at) for at in range(2_000)), -2.0][:: -1 if newest_first else 1]
    assert form.in_vain <= 2


def test_a_read_opens_no_connection_if_another_one_preceded_it(store: Store) -> None:
    store.points.insert_many([("a", "m", T0, 1.0), ("b", "m", T0, 2.0)])

    def read() -> None:
        points = store.points
        assert len(points.range("a", "m").all()) == 1
        assert len(points.range(None, None).all()) == 2
        assert len(points.latest("a", "m", limit=2)) == 1
        assert points.aggregate("a", "m", agg=["avg", "max"], every="1m")[0]["max"] == 1.0

    opened: list[object] = []

    def note(connection: object, _record: object) -> None:
        opened.append(connection)

    read()
    event.listen(Pool, "connect", note)
    try:
        read()
    finally:
        event.remove(Pool, "connect", note)
    assert opened == []
