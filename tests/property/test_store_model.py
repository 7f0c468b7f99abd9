"""Random lives of a store against a plain dict: whatever the interleaving, reads equal the model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from repo import Settings, Store
from repo.core import compaction
from tests.conftest import Templates

SENSORS = ("a", "b", "c*")
NUMBERS = st.sampled_from([None, 0.0, 1.0, -2.5, float("inf")])
TEXTS = st.sampled_from([None, "OPEN", "SHUT", "ø"])
# Close together, and far apart: comparisons with stored rows run by spans of time.
TIMES = st.one_of(st.integers(0, 12), st.sampled_from([-10_000_000, 3_600 * 5, 86_400 * 30, 4_000_000_000]))
Span = tuple[int | None, int | None]


def _in_order(span: Span) -> Span:
    start, end = span
    return (end, start) if start is not None and end is not None and start > end else span


SPANS = st.tuples(st.none() | TIMES, st.none() | TIMES).map(_in_order)
POINTS = st.one_of(
    st.tuples(st.sampled_from(SENSORS), st.just("n"), TIMES, NUMBERS, st.sampled_from([100, 7])),
    st.tuples(st.sampled_from(SENSORS), st.just("t"), TIMES, TEXTS),
)
NAMES = st.sampled_from([None, "a", "?", "[bc]*", ["a", "c*"], ["c*"], [], "nobody"])
Key = tuple[str, str, int]


def matches(names: Any, name: str) -> bool:
    if names is None or (isinstance(names, str) and names in ("?", "[bc]*")):
        return names is None or (len(name) == 1 if names == "?" else name[0] in "bc")
    return name in names if isinstance(names, list) else name == names


class Life(RuleBasedStateMachine):
    """Writes, deletes, flushes, checkpoints, compactions, closings; a sink that polls now and then."""

    engine = "sqlite"
    templates: Templates

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-life-"))
        self.model: dict[Key, tuple[Any, int]] = {}
        self.seqs: dict[Key, int] = {}
        self.first_seqs: list[int] = []
        self.dropped: list[int] = []
        self.mirror: dict[Key, tuple[Any, int]] = {}
        self.cursor = 0
        self.records: dict[str, Any] = {}
        self.store: Store | None = None
        self.next_seq = 1

    @initialize(batch=st.sampled_from([1, 4, 65_536]))
    def begin(self, batch: int) -> None:
        self.batch = batch
        self.templates.copy(self.engine, 1, self.folder / "store")
        self.open()

    def open(self) -> None:
        self.store = Store(
            self.folder / "store",
            Settings(engine=self.engine, background=False, flush_batch_points=self.batch),  # type: ignore[arg-type]
        )
        self.store._handle.columns.stays_open = True  # keeps the columns open, as with a background thread

    def take(self, seq: int, sensor: str, metric: str, at: int, value: Any, quality: int = 100) -> None:
        key = (sensor, metric, at)
        if self.model.get(key) != (value, quality):  # otherwise the point keeps its seq
            self.model[key], self.seqs[key] = (value, quality), seq

    @rule(rows=st.lists(POINTS, max_size=12))
    def insert_many(self, rows: list[Any]) -> None:
        assert self.store is not None
        written = self.store.points.insert_many(rows)
        assert written.accepted == len(rows)
        if rows:
            assert written.first_seq == self.next_seq
            assert written.last_seq == self.next_seq + len(rows) - 1
            for seq, row in enumerate(rows, self.next_seq):
                self.take(seq, *row)
            self.next_seq += len(rows)

    @rule(row=POINTS)
    def insert(self, row: Any) -> None:
        assert self.store is not None
        sensor, metric, at, value, *quality = row
        written = self.store.points.insert(sensor, metric, value, at, *quality)
        assert written.first_seq == self.next_seq
        self.take(self.next_seq, *row)
        self.next_seq += 1

    @rule(
        sensor=NAMES,
        metric=st.sampled_from([None, "n", "t"]),
        span=SPANS,
    )
    def delete(self, sensor: Any, metric: Any, span: Span) -> None:
        assert self.store is not None
        start, end = span
        written = self.store.points.delete(sensor, metric, start, end, everything=True)
        assert written.last_seq == self.next_seq
        self.next_seq += 1
        for key in list(self.model):
            inside = (start is None or key[2] >= start) and (end is None or key[2] < end)
            if inside and matches(sensor, key[0]) and metric in (None, key[1]):
                del self.model[key], self.seqs[key]

    @rule(name=st.sampled_from("xyz"), value=st.sampled_from([1.0, 2.0]), at=st.integers(0, 5))
    def add_record(self, name: str, value: float, at: int) -> None:
        assert self.store is not None
        data = {"sensor_id": name, "metric_name": "n", "value": value, "timestamp": at}
        self.store.records.add(name, "gateway", data)
        if self.records.get(name) == data:
            return  # it was there, and its points with it
        self.records[name] = data
        self.take(self.next_seq, name, "n", at, value)
        self.next_seq += 1

    @rule(names=st.lists(st.sampled_from("xyz"), unique=True))
    def mark_sent(self, names: list[str]) -> None:
        assert self.store is not None
        assert self.store.records.mark_sent(names) == sum(
            self.records.pop(name, None) is not None for name in names
        )

    @rule()
    def flush(self) -> None:
        assert self.store is not None
        assert self.store.flush() == self.next_seq - 1

    @rule()
    def checkpoint(self) -> None:
        assert self.store is not None
        assert self.store.checkpoint() == self.next_seq - 1
        assert self.store.status().journal_rows == 0

    @rule(rows=st.sampled_from([3, 8, 1000]), through=st.none() | st.integers(0, 60))
    def compact(self, rows: int, through: int | None) -> None:
        assert self.store is not None
        compaction.SLICE_ROWS = rows
        done = self.store.compact(until=through)
        if self.engine == "duckdb":
            seqs = [row[7] for page in self.store.points.since(0).tuples() for row in page]
            # Where no point is left, no slice is made.
            if min(seqs, default=done.through + 1) <= done.through:
                assert self.store._handle.flusher.order.is_sorted(1, done.through)

    @rule(log=st.sampled_from(["kept", "kept", "removed", "cut", "flipped", "zeroed"]), where=st.floats(0, 1))
    def close_and_open(self, log: str, where: float) -> None:
        assert self.store is not None
        self.store.close()
        path = self.folder / "store" / "timeseries.duckdb.wal"
        if log != "kept" and path.exists():
            content = bytearray(path.read_bytes())
            at = round(where * max(0, len(content) - 1))
            note(f"log of {len(content)} bytes {log} at {at}")
            if log == "removed":
                path.unlink()
            elif log == "cut":
                path.write_bytes(content[:at])
            elif log == "zeroed":
                path.write_bytes(content[:at] + bytes(len(content) - at))
            elif content:
                # The head is a format's magic: other bytes there mean another program's file, which is refused.
                at = max(at, min(4, len(content) - 1))
                content[at] ^= 0x11
                path.write_bytes(content)
        self.open()

    @rule(limit=st.sampled_from([1, 3, 1000]))
    def deliver(self, limit: int) -> None:
        assert self.store is not None
        rows = self.store.points.after(self.cursor, limit)
        seqs = [row["seq"] for row in rows]
        assert len(rows) <= limit
        assert seqs == sorted(set(seqs))
        assert not seqs or seqs[0] > self.cursor
        for row in rows:
            key = (row["sensor_id"], row["metric_name"], row["timestamp_us"] // 1_000_000)
            self.mirror[key] = (row["value"], row["quality"])
        if rows:
            self.cursor = seqs[-1]

    @rule(sensor=NAMES, span=SPANS)
    def read_range(self, sensor: Any, span: Span) -> None:
        assert self.store is not None
        start, end = span
        found = [
            (
                row["timestamp_us"] // 1_000_000,
                row["sensor_id"],
                row["metric_name"],
                row["value"],
                row["quality"],
            )
            for page in self.store.points.range(sensor, None, start, end).pages(3)
            for row in page
        ]
        assert found == sorted(
            (
                (at, s, m, value, quality)
                for (s, m, at), (value, quality) in self.model.items()
                if matches(sensor, s) and (start is None or at >= start) and (end is None or at < end)
            ),
            key=lambda row: row[:3],
        )

    @rule()
    def read_latest(self) -> None:
        self.see_latest()

    @rule()
    def read_counts(self) -> None:
        assert self.store is not None
        counts = {
            (row["sensor_id"], row["metric_name"]): row["count"]
            for row in self.store.points.aggregate(None, None, agg="count")
        }
        wanted: dict[tuple[str, str], int] = {}
        for (sensor, metric, _), (value, _) in self.model.items():
            wanted[sensor, metric] = wanted.get((sensor, metric), 0) + (value is not None)
        assert counts == wanted

    @rule()
    def read_after_any_point(self) -> None:
        assert self.store is not None
        rows = self.store.points.after(0)
        found = {
            (row["sensor_id"], row["metric_name"], row["timestamp_us"] // 1_000_000): row["seq"]
            for row in rows
        }
        assert found.keys() == self.model.keys()
        for key, seq in found.items():
            assert seq == self.seqs[key], key
        for row in rows[:: max(1, len(rows) // 4)]:
            assert self.store.points.after(row["seq"]) == [
                other for other in rows if other["seq"] > row["seq"]
            ]

    def see_latest(self) -> None:
        assert self.store is not None
        newest: dict[tuple[str, str], tuple[int, Any]] = {}
        for (sensor, metric, at), point in self.model.items():
            if (sensor, metric) not in newest or newest[sensor, metric][0] < at:
                newest[sensor, metric] = (at, point)
        found = {
            (row["sensor_id"], row["metric_name"]): (
                row["timestamp_us"] // 1_000_000,
                (row["value"], row["quality"]),
            )
            for row in self.store.points.latest(None)
        }
        assert found == newest

    def see_slices_in_order(self) -> None:
        assert self.store is not None
        with self.store._handle.reading("test") as (connection, _):
            stored = connection.exec_driver_sql(
                "SELECT sensor_id, metric_name, timestamp_us, seq FROM time_series_data"
            ).all()
            for one in self.store._handle.flusher.order.slices:
                found = [tuple(row[:3]) for row in stored if one.first_seq <= row[3] <= one.last_seq]
                assert found == sorted(found), one

    @invariant()
    def records_wait_whole(self) -> None:
        if self.store is not None:
            assert {r["record_id"]: r["data"] for r in self.store.records.pending()} == self.records

    def teardown(self) -> None:
        if self.store is None:
            return
        try:
            self.see_latest()
            self.read_range(None, (None, None))
            self.read_counts()
            self.read_after_any_point()
            self.see_slices_in_order()
            self.deliver(100_000)
            assert {key: self.mirror[key] for key in self.model} == self.model, (
                "the sink has every point's last value"
            )
            counted = {(s.sensor_id, s.metric_name): s for s in self.store.series.list() if s.points}
            times: dict[tuple[str, str], list[int]] = {}
            for sensor, metric, at in self.model:
                times.setdefault((sensor, metric), []).append(at * 1_000_000)
            assert {pair: (s.points, s.first_us, s.last_us) for pair, s in counted.items()} == {
                pair: (len(found), min(found), max(found)) for pair, found in times.items()
            }
        finally:
            self.store.close()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize(("engine", "lives"), [("duckdb", 4), ("sqlite", 5)])
def test_any_life_of_a_store_equals_a_dict(
    engine: str, lives: int, templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SLICE_ROWS", 3)  # each life sets it, too
    machine = type("Life", (Life,), {"engine": engine, "templates": templates})
    run_state_machine_as_test(
        machine,
        settings=settings(
            settings.get_profile("holdfast"),
            max_examples=lives,
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
        ),
    )
