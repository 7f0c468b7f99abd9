"""What a batch may hold: the sink says it, by the form in which it takes points, and the operator may lower it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repo import Store
from repo.delivery.forwarder import Backoff, Forwarder, Progress
from repo.delivery.limits import AS_COLUMNS, AS_TEXT, BatchLimits, Form
from repo.delivery.sinks.folder import FolderSink
from repo.delivery.sinks.holdfast import HoldfastSink
from repo.delivery.sinks.http import HttpSink
from repo.engines.registry import duckdb_is_installed
from tests.delivery.memory_sink import Destination, MemorySink

NO_WAIT = Backoff(first_s=0.000_1, longest_s=0.000_2)
LONG = "S-1/" + "x" * 96
POINTS = 60


class Limited(MemorySink):
    """Takes points within `limits`."""

    def __init__(self, limits: Any, *more: Any, **options: Any) -> None:
        super().__init__(*more, **options)
        self.limits = limits


@pytest.fixture
def filled(store: Store) -> Store:
    store.points.insert_many([(LONG, "flow", float(at), 1.0) for at in range(POINTS)])
    return store


def sizes(store: Store, sink: MemorySink, **options: Any) -> list[int]:
    assert Forwarder(store, sink, start="beginning", **options).drain()["memory"].is_empty
    return [len(batch) for batch in sink.sent]


def test_a_batch_has_as_many_points_as_the_sink_takes(filled: Store) -> None:
    assert sizes(filled, Limited(BatchLimits(Form.COLUMNS, 25, 10**6))) == [25, 25, 10]


def test_bytes_are_counted_in_the_form_of_the_sink(filled: Store) -> None:
    """As text each point has its name of 100 characters; as columns it has a number for it."""
    assert sizes(filled, Limited(BatchLimits(Form.TEXT, 10**6, 3_500), name="memory")) == [20, 20, 20]
    filled.sinks.remove("memory")
    assert sizes(filled, Limited(BatchLimits(Form.COLUMNS, 10**6, 3_500))) == [60]


def test_metadata_counts_as_columns_hold_it(store: Store) -> None:
    store.points.insert_many([("S-1", "flow", float(at), 1.0, 100, {"a": at}) for at in range(10)])
    assert sizes(store, Limited(BatchLimits(Form.COLUMNS, 10**6, 330))) == [3, 3, 3, 1]


def test_the_points_that_an_operator_sets_hold_for_every_form(filled: Store) -> None:
    assert sizes(filled, Limited(AS_COLUMNS), batch_points=40) == [40, 20]


def test_a_limit_of_bytes_per_second_makes_smaller_batches(filled: Store) -> None:
    filled.sinks.add("memory", "", start="beginning", rate="4096B/s")
    sink = Limited(BatchLimits(Form.TEXT, 10**6, 10**6))
    step = Forwarder(filled, sink).step()["memory"]
    assert (step.progress, step.items) == (Progress.DELIVERED, 23)


def test_a_batch_on_its_way_keeps_its_range_when_the_limits_are_lower_after_a_restart(filled: Store) -> None:
    destination = Destination()
    first = Limited(BatchLimits(Form.COLUMNS, 50, 10**6), destination, faults=["lost answer"])
    forwarder = Forwarder(filled, first, start="beginning", backoff=NO_WAIT)
    forwarder.step()
    forwarder.stop()
    assert sizes(filled, MemorySink(destination), batch_points=7)[:2] == [50, 7]
    assert destination.repeated() == 0
    assert len(destination.points) == POINTS


@pytest.mark.parametrize(
    "wrong", [None, 5, ("text", 1, 1), BatchLimits(Form.TEXT, 0, 1), BatchLimits(Form.TEXT, 1, True)]
)
def test_limits_that_are_none_halt_the_sink_and_skip_nothing(filled: Store, wrong: Any) -> None:
    step = Forwarder(filled, Limited(wrong), start="beginning").step()["memory"]
    assert step.progress is Progress.HALTED
    assert "limits" in str(step.error)
    assert filled.sinks.show("memory").behind == POINTS


def test_the_sinks_that_take_columns_have_larger_batches(tmp_path: Path) -> None:
    folder = tmp_path.as_uri()
    assert HoldfastSink("http+holdfast://there:1", name="a").limits == AS_COLUMNS
    assert FolderSink(folder, name="a").limits == AS_TEXT
    parquet = FolderSink(folder, name="a", format="parquet")
    assert parquet.limits == (AS_COLUMNS._replace(points=12_288) if duckdb_is_installed() else AS_TEXT)
    assert not hasattr(HttpSink("http://there:1/", name="a"), "limits")
