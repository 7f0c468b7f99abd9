"""Cleanup: a dry run reports exactly what is then dropped, the ledger records it, and the disk gets its space back."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repo import HoldfastError, InvalidQuery, Settings, Store, StoreBusy, StoreFull
from repo.disk import space
from repo.repositories.ledger import LedgerRepository, Loss
from tests.conftest import Templates
from tests.contract.test_processes import HOLD, ask_and_end, patiently


def ledger(store: Store) -> list[Loss]:
    with store._handle.metadata.read() as connection:
        return LedgerRepository(connection).list()


def fill(store: Store) -> None:
    """1,000 points of each of three series at 0, 1, ... 999 s, and 30 records of three sources at the same times."""
    store.points.insert_many([(f"s{n}", "m", second, n + 0.5) for n in range(3) for second in range(1000)])
    for n in range(30):
        store.records.add(f"r{n}", f"from-{n % 3}", {"n": n}, timestamp=n)
    store.flush()


def counts(store: Store) -> dict[str, int]:
    return {info.sensor_id: info.points for info in store.series.list() if info.points}


def test_a_dry_run_reports_what_would_be_dropped_and_changes_nothing(store: Store) -> None:
    fill(store)
    store.sinks.add("cloud", "", start="now", hold=False)
    store.points.insert_many([("s1", "m", 2000 + second, 1.0) for second in range(10)])
    chosen: dict[str, Any] = {"sensor_id": "s[12]", "start": 900, "records": True}
    meant = store.cleanup(**chosen, dry_run=True)
    assert meant.dry_run
    assert [(one.sensor_id, one.points, one.unsent, one.first_us) for one in meant.series] == [
        ("s1", 110, 10, 900_000_000),
        ("s2", 100, 0, 900_000_000),
    ]
    assert (meant.points, meant.unsent_points, meant.records) == (210, 10, 0)
    assert (meant.first_us, meant.last_us) == (900_000_000, 2_009_000_000)
    assert meant.bytes is not None
    assert meant.bytes > 0
    assert counts(store) == {"s0": 1000, "s1": 1010, "s2": 1000}
    assert ledger(store) == []
    done = store.cleanup(**chosen)
    assert not done.dry_run
    assert (done.points, done.unsent_points, done.records) == (210, 10, 0)
    assert (done.first_us, done.last_us) == (900_000_000, 2_009_000_000)
    assert counts(store) == {"s0": 1000, "s1": 900, "s2": 900}
    assert store.cleanup(**chosen, dry_run=True).points == 0


def test_records_are_dropped_by_source_time_and_failures(store: Store) -> None:
    fill(store)
    for _ in range(3):
        store.records.mark_failed(["r3", "r4"])
    meant = store.cleanup(points=False, records=True, min_retries=3, dry_run=True)
    assert [(one.source, one.records, one.first_us) for one in meant.sources] == [
        ("from-0", 1, 3_000_000),
        ("from-1", 1, 4_000_000),
    ]
    assert store.cleanup(points=False, records=True, source="from-0", min_retries=3).records == 1
    assert store.cleanup(points=False, records=True, source="from-[01]", start=10, end=20).records == 7
    assert store.cleanup(points=False, records=True, source=["from-1", "from-2"], end=10).records == 6
    left = [record["record_id"] for record in store.records.pending()]
    assert left == [
        f"r{n}"
        for n in range(30)
        if n != 3 and not (10 <= n < 20 and n % 3 < 2) and not (n < 10 and n % 3 > 0)
    ]
    assert counts(store) == {"s0": 1000, "s1": 1000, "s2": 1000}


def test_the_ledger_records_dropped_points_and_records(store: Store) -> None:
    fill(store)
    store.cleanup(records=True, start=5, end=datetime(1970, 1, 1, 0, 0, 15, tzinfo=UTC))
    reported = {loss.what: loss for loss in ledger(store)}
    assert (reported["points"].dropped, reported["records"].dropped) == (30, 10)
    for loss in reported.values():
        assert (loss.first_us, loss.last_us) == (5_000_000, 14_000_000)
    assert reported["records"].reason == "cleanup"
    assert json.loads(reported["records"].detail or "") == {"start_s": 5.0, "end_s": 15.0}
    assert store.status().ledger_dropped == 40


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({}, "delete all points"),
        ({"records": True, "sensor_id": "s0"}, "delete all records"),
        ({"records": True, "source": "from-0"}, "delete all points"),
        ({"points": False}, "neither points nor records"),
        ({"points": False, "records": True, "sensor_id": "s0"}, "select points; set points"),
        ({"min_retries": 3}, "select records; set records"),
    ],
)
def test_a_cleanup_of_more_than_was_stated_is_refused(
    shared_store: Store, chosen: dict[str, Any], message: str
) -> None:
    store = shared_store
    if store.sinks.last_seq() == 0:
        fill(store)
    for dry_run in (True, False):
        with pytest.raises(InvalidQuery, match=message):
            store.cleanup(**chosen, dry_run=dry_run)
    assert counts(store) == {"s0": 1000, "s1": 1000, "s2": 1000}
    assert len(store.records.pending(limit=100)) == 30


def test_everything_is_dropped_if_everything_is_requested(store: Store) -> None:
    fill(store)
    done = store.cleanup(records=True, everything=True)
    assert (done.points, done.records) == (3000, 30)
    assert list(store.points.range(None, None)) == []
    assert store.records.pending() == []
    assert store.points.latest(None) == []


def test_names_with_glob_or_sql_characters_are_names(store: Store) -> None:
    names = ["100%", "a'b", "a[b", 'q"', "ü", "x_y"]
    store.points.insert_many([(name, "m", 1, 1.0) for name in names])
    store.records.add("r", "a'b", {})
    store.records.add("other", "a_b", {})
    store.flush()
    assert store.cleanup(sensor_id=["a[b", "a'b", "100%"]).points == 3
    assert store.cleanup(points=False, records=True, source=["a'b"]).records == 1
    assert sorted(counts(store)) == ['q"', "x_y", "ü"]


@settings(max_examples=5)
@given(
    span=st.tuples(*[st.none() | st.integers(-5, 25)] * 2).filter(
        lambda span: None in span or span[0] <= span[1]
    ),
    sensor=st.sampled_from([None, "s0", "s[01]", "*", "no such", ("s0", "s2")]),
    batches=st.integers(1, 3),
)
def test_any_cleanup_drops_exactly_what_a_filter_would(
    engine: Any,
    tmp_path_factory: pytest.TempPathFactory,
    templates: Templates,
    span: tuple[int | None, int | None],
    sensor: Any,
    batches: int,
) -> None:
    from fnmatch import fnmatchcase

    start, end = span

    def means(name: str, second: int) -> bool:
        named = sensor is None or (fnmatchcase(name, sensor) if isinstance(sensor, str) else name in sensor)
        return named and (start is None or second >= start) and (end is None or second < end)

    rows = [(f"s{n}", "m", second, float(second)) for n in range(3) for second in range(20)]
    folder = tmp_path_factory.mktemp("any") / "store"
    templates.copy(engine, 1, folder)
    with Store(folder, Settings(background=False, engine=engine)) as store:
        store._handle.columns.stays_open = True
        for at in range(batches):
            store.points.insert_many(rows[at::batches])
            if at % 2 == 0:
                store.flush()
        chosen: dict[str, Any] = {"sensor_id": sensor, "start": start, "end": end, "everything": True}
        meant = store.cleanup(**chosen, dry_run=True)
        done = store.cleanup(**chosen)
        left = {(row["sensor_id"], row["timestamp_us"] // 10**6) for row in store.points.range(None, None)}
    gone = [(name, second) for name, _, second, _ in rows if means(name, second)]
    assert (meant.points, done.points) == (len(gone), len(gone))
    assert left == {(name, second) for name, _, second, _ in rows if not means(name, second)}


@pytest.mark.slow_on("sqlite")
@pytest.mark.closes_columns
def test_while_another_process_has_the_columns_points_are_dropped_later_and_records_now(
    open_store: Any, spawn: Callable[..., Any], engine: str
) -> None:
    store = open_store(lease_timeout_s=0.2)
    fill(store)
    holder = spawn(HOLD, store.path, engine)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreBusy):
        store.cleanup(end=500, dry_run=True)
    done = store.cleanup(records=True, end=500)
    assert (done.points, done.records, done.bytes) == (None, 30, None)
    ask_and_end(holder)
    patiently(store.flush)
    assert counts(store) == {"s0": 500, "s1": 500, "s2": 500}


# --- space ----------------------------------------------------------------------------------------------


def test_shrinking_returns_the_space_of_dropped_points_and_keeps_the_rest(store: Store) -> None:
    noise = [(f"s{n}", "m", second, second * 1.1 + n) for n in range(5) for second in range(12_000)]
    store.points.insert_many(noise)
    for n in range(300):
        store.records.add(f"r{n}", "from", {"text": f"{n}" * 3000}, timestamp=n)
    store.checkpoint()
    store.cleanup(records=True, start=1000, points=True)
    store.records.clear("from")
    kept = list(store.points.range(None, None))
    before_files = store.size()  # measured right before, because any commit may grow the log by a page
    reported: list[tuple[int, int]] = []
    shrunk = store.shrink(progress=lambda done, total: reported.append((done, total)))
    assert reported[-1] == (5_000, 5_000)
    after = store.size()
    assert (shrunk.columns_before_bytes, shrunk.metadata_before_bytes) == (
        before_files.columns_bytes,
        before_files.metadata_bytes,
    )
    assert (shrunk.columns_after_bytes, shrunk.metadata_after_bytes) == (
        after.columns_bytes,
        after.metadata_bytes,
    )
    assert shrunk.freed_bytes > 0.6 * before_files.columns_bytes
    assert after.metadata_bytes < 0.5 * before_files.metadata_bytes
    assert list(store.points.range(None, None)) == kept
    assert store.status().generation == 1
    store.points.insert("s0", "m", 1.0, timestamp=10**6)
    assert len(store.points.range("s0", "m", 10**6).all()) == 1


@pytest.mark.slow_on("duckdb")
def test_shrinking_again_changes_nothing(store: Store) -> None:
    fill(store)
    store.shrink()
    again = store.shrink()
    assert again.columns_after_bytes == again.columns_before_bytes
    assert counts(store) == {"s0": 1000, "s1": 1000, "s2": 1000}


STRANGERS = {
    "table notes": "CREATE TABLE notes (a INTEGER)",
    "view daily": "CREATE VIEW daily AS SELECT * FROM time_series_data",
    "column time_series_data.site": "ALTER TABLE time_series_data ADD COLUMN site TEXT",
    "index by_time": "CREATE INDEX by_time ON time_series_data (timestamp_us)",
    "macro twice": "CREATE MACRO twice(a) AS a * 2",
    "sequence counter": "CREATE SEQUENCE counter",
    "type mood": "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "schema other": "CREATE SCHEMA other",
    "trigger watch": "CREATE TRIGGER watch AFTER INSERT ON time_series_data BEGIN SELECT 1; END",
}
"""What another program may create in the column file, as the message names it."""


@pytest.mark.parametrize("dry_run", [False, True])
def test_shrinking_refuses_a_column_file_that_holds_what_others_created(
    open_store: Any, engine: str, columns_file: str, *, dry_run: bool
) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    store.close()
    only_in = {
        "macro": "duckdb",
        "sequence": "duckdb",
        "type": "duckdb",
        "schema": "duckdb",
        "trigger": "sqlite",
    }
    strangers = {
        name: sql for name, sql in STRANGERS.items() if only_in.get(name.partition(" ")[0], engine) == engine
    }
    file: Any
    if engine == "duckdb":
        import duckdb

        file = duckdb.connect(str(store.path / columns_file))
    else:
        file = sqlite3.connect(store.path / columns_file)
    for sql in strangers.values():
        file.execute(sql)
    file.close()
    store = open_store()
    with pytest.raises(HoldfastError, match="did not create") as refused:
        store.shrink(dry_run=dry_run)
    assert ", ".join(sorted(strangers)) in str(refused.value)
    assert [point["value"] for point in store.points.range("a", "m")] == [1.0]


def test_every_odd_value_survives_shrinking_bit_for_bit(store: Store) -> None:
    inf = float("inf")
    values = [0.1, -0.0, inf, -inf, None, 5e-324, 1.7976931348623157e308, 2.0**53]
    store.points.insert_many([("ü'--", "m", -(10**9) + at, value) for at, value in enumerate(values)])
    store.points.insert("v", "state", "läuft", timestamp=1, quality=-(2**31), metadata={"a": [1, None, "☃"]})
    columns = "sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, seq"
    query = f"SELECT {columns} FROM time_series_data ORDER BY 1, 2, 3"
    before, last_seq = store.sql(query), store.sinks.last_seq()
    store.shrink()
    assert repr(store.sql(query)) == repr(before)
    assert store.sinks.last_seq() == last_seq


@pytest.mark.slow_on("duckdb")
def test_writing_continues_while_the_columns_shrink(store: Store) -> None:
    store.points.insert_many([("s", "m", second, float(second)) for second in range(1_000)])
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set():
            store.points.insert("live", "m", 1.0, timestamp=len(written))
            written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        shrunk = 0
        while shrunk < 2 or len(written) <= 10:
            store.shrink()
            shrunk += 1
    finally:
        stop.set()
        writer.join()
    assert len(store.points.range("live", "m").all()) == len(written)
    assert len(store.points.range("s", "m").all()) == 1_000


def test_a_disk_without_room_for_the_new_file_is_reported_before_anything_changes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    monkeypatch.setattr(space, "NEW_FILE_BYTES", 2**62)
    with pytest.raises(StoreFull, match="the file is unchanged"):
        store.shrink()
    assert counts(store) == {"s0": 1000, "s1": 1000, "s2": 1000}
    assert not list(store.path.glob("*.building*"))
    assert len(store.points.range("s0", "m").all()) == 1000


@pytest.mark.slow_on("duckdb")
def test_a_disk_without_room_for_the_vacuum_of_the_metadata_is_reported_before_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    store.records.add("r", "from", {"text": "x" * 1_000_000})
    store.checkpoint()
    monkeypatch.setattr(space, "NEW_FILE_BYTES", 0)
    monkeypatch.setattr(space, "HEADROOM_BYTES", 0)
    needed_bytes = store.shrink(dry_run=True).needed_bytes
    assert needed_bytes > 2_000_000
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed_bytes - 1))
    before = store.size()
    with pytest.raises(
        StoreFull, match=rf"rewriting .*offline_buffer\.db may need {needed_bytes:,} bytes"
    ) as refused:
        store.shrink()
    assert "the file is unchanged" in str(refused.value)
    assert store.size() == before
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed_bytes))
    assert store.shrink().needed_bytes == needed_bytes


def test_a_dry_run_of_shrinking_reports_the_space_needed_and_changes_nothing(store: Store) -> None:
    fill(store)
    store.checkpoint()
    store.cleanup(start=0)
    store.checkpoint()
    before = store.size()
    meant = store.shrink(dry_run=True)
    assert store.size() == before
    assert (meant.freed_bytes, meant.columns_before_bytes) == (0, before.columns_bytes)
    assert 0 < meant.needed_bytes < meant.free_bytes


@pytest.mark.slow_on("duckdb")
def test_sinks_continue_where_they_were_after_a_cleanup_and_a_shrink(store: Store) -> None:
    store.sinks.add("cloud", "", start="beginning", hold=False)
    fill(store)
    page = store.points.after(0, limit=100)
    store.sinks.confirm("cloud", page[-1]["seq"])
    store.cleanup(end=50)
    store.shrink()
    rest = store.points.after(page[-1]["seq"], limit=10_000)
    assert [(row["sensor_id"], row["timestamp_us"] // 10**6) for row in rest] == [
        (f"s{n}", second) for n in range(3) for second in range(1000) if second >= (100 if n == 0 else 50)
    ]
