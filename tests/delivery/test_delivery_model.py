"""Deliveries under random writes, overwrites, deletes, faults and restarts, against a destination in memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repo import Settings, Store
from repo.delivery.forwarder import Backoff, Forwarder
from tests.conftest import Templates
from tests.delivery.memory_sink import Destination, Interrupted, MemorySink

NO_WAIT = Backoff(first_s=0.000_1, longest_s=0.000_2)
BATCH = 3
"""Points of a batch, so that a backlog of more than 30 seqs has two lanes."""

_points = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), min_size=1, max_size=8)
_faults = st.lists(
    st.sampled_from(
        ["ok", "ok", "unreachable", "lost answer", "halted", "fault", "interrupt", "lost answer, interrupt"]
    ),
    max_size=6,
)
_steps = st.one_of(
    st.tuples(st.just("write"), _points),
    st.tuples(
        st.just("many"), st.tuples(st.integers(31, 60), st.integers(0, 60), st.sampled_from([1, 7, 60]))
    ),
    st.tuples(st.just("delete"), st.integers(0, 2)),
    st.tuples(st.just("deliver"), st.tuples(_faults, st.integers(1, 8))),
    st.tuples(st.just("deliver"), st.tuples(st.just([]), st.integers(1, 8))),
    st.tuples(st.just("restart"), st.none()),
)
_scripts = st.lists(_steps, min_size=1, max_size=14)
_lanes = st.sampled_from([True, False, {"order": "newest"}, {"share": 0.5}])

_OVERWRITTEN = [
    ("many", (60, 0, 1)),
    ("deliver", ([], 3)),
    ("write", [(0, 10), (0, 20)]),
    ("deliver", (["ok", "lost answer"], 4)),
]
"""Points that wait in a page of back-fill are overwritten, and live readings overtake them."""


@contextmanager
def _new_store(templates: Templates, engine: str) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        templates.copy(engine, 1, Path(folder) / "store")
        with Store(Path(folder) / "store", Settings(background=False)) as store:
            yield store


def _run(store: Store, script: list[tuple[str, Any]], lanes: Any, *, exact: bool) -> None:
    destination, values = Destination(), itertools.count(1.0)
    deleted: set[tuple[str, str, int]] = set()
    store.sinks.add("memory", "", start="beginning", lanes=lanes)
    sink = MemorySink(destination, exact=exact)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT, batch_points=BATCH)

    def restart() -> None:
        nonlocal sink, forwarder
        for each in forwarder._workers.values():
            each.claim.close()
        sink = MemorySink(destination, exact=exact)
        forwarder = Forwarder(store, sink, backoff=NO_WAIT, batch_points=BATCH)

    for what, given_ in script:
        match what:
            case "write":
                store.points.insert_many([(f"S-{s}", "flow", float(at), next(values)) for s, at in given_])
            case "many":
                count, begin, stride = (
                    given_  # a permutation of the same times, which overwrites many of them
                )
                times = [float((begin + at * stride) % 61) for at in range(count)]
                store.points.insert_many([("S-0", "flow", time, next(values)) for time in times])
            case "delete":
                deleted.update(
                    (row["sensor_id"], row["metric_name"], row["timestamp_us"])
                    for row in store.points.range(f"S-{given_}", "flow")
                )
                store.points.delete(f"S-{given_}")
            case "restart":
                restart()
            case "deliver":
                faults, count = given_
                sink.faults = iter(faults)
                try:
                    for _ in range(count):
                        forwarder.step()
                except Interrupted:
                    restart()
    sink.faults = iter(())
    drained = forwarder.drain(300.0)["memory"]
    forwarder.stop()
    assert drained.is_empty, drained
    info = store.sinks.show("memory")
    assert (info.confirmed_seq, info.ranges, info.attempt) == (store.sinks.last_seq(), (), None)
    assert info.state == "running"

    stored = {row[:3]: row[3:7] for page in store.points.since(-(2**62)).tuples() for row in page}
    arrived = destination.values()
    assert {identity: arrived.get(identity) for identity in stored} == stored
    assert set(arrived) - set(stored) <= deleted

    seen: set[int] = set()
    last: dict[tuple[str, str, int], int] = {}
    sent_to = 0
    for batch in destination.batches:
        for row in batch.rows:
            identity, seq = row[:3], row[-1]
            if seq in seen:
                assert not exact, "an exact destination stored a write twice"
                assert batch.is_repeat, "a write was repeated in a batch that is not marked"
            assert last.get(identity, seq) <= seq, "an older value was sent after a newer one"
            seen.add(seq)
            last[identity] = seq
        if lanes is False and not batch.is_repeat:
            assert batch.first_seq > sent_to, "one lane is not in order"
        sent_to = max(sent_to, batch.last_seq)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "at-least-once"])
@settings(max_examples=5)
@given(script=_scripts, lanes=_lanes)
@example(script=_OVERWRITTEN, lanes=True)
@example(script=_OVERWRITTEN, lanes={"order": "newest"})
def test_the_destination_equals_the_store_whatever_happens(
    templates: Templates, exact: bool, script: list[tuple[str, Any]], lanes: Any
) -> None:
    with _new_store(templates, "sqlite") as store:
        _run(store, script, lanes, exact=exact)


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "at-least-once"])
@settings(max_examples=150)
@given(script=_scripts, lanes=_lanes)
def test_the_destination_equals_the_store_whatever_happens_many_times(
    templates: Templates, engine: str, exact: bool, script: list[tuple[str, Any]], lanes: Any
) -> None:
    with _new_store(templates, engine) as store:
        _run(store, script, lanes, exact=exact)
