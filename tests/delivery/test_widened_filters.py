"""A filter that is widened while a batch is on its way: the range of the batch may be long, and has more points now."""

from __future__ import annotations

from typing import Any

import pytest

from repo import Store
from repo.delivery.forwarder import Backoff, Forwarder
from tests.delivery.memory_sink import Destination, Fault, Interrupted, MemorySink

NO_WAIT = Backoff(first_s=0.000_1, longest_s=0.000_2)
ROWS = 10


@pytest.mark.parametrize(
    "restarts",
    [
        pytest.param(True, id="restarted", marks=pytest.mark.slow_on("duckdb")),
        pytest.param(False, id="running"),
    ],
)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "at least once"])
@pytest.mark.parametrize("fault", ["unreachable", "lost answer"])
def test_a_batch_on_its_way_does_not_grow_when_the_filter_is_widened(
    store: Store, fault: Fault, exact: bool, restarts: bool
) -> None:
    store.points.insert_many([("chosen", "flow", float(at), 1.0) for at in (0, 99)])
    store.points.insert_many([("other", "flow", float(at), 1.0) for at in range(95)])
    store.points.insert("chosen", "flow", 2.0, timestamp=50.0)
    store.sinks.add("memory", "", start="beginning", filter={"sensor_id": "chosen"}, lanes=False)
    destination = Destination()

    def forwarder() -> Forwarder:
        return Forwarder(store, sink, batch_points=ROWS, backoff=NO_WAIT)

    sink = MemorySink(destination, exact=exact, faults=[fault])
    delivering = forwarder()
    delivering.step()
    attempt = store.sinks.show("memory").attempt
    assert attempt is not None
    assert (attempt.first_seq, attempt.last_seq, attempt.points) == (1, 98, 3)
    store.sinks.change("memory", filter=None)
    if restarts:
        delivering.stop()
        sink = MemorySink(destination, exact=exact)
        delivering = forwarder()
    assert delivering.drain(300)["memory"].is_empty
    delivering.stop()

    has_it = exact and fault == "lost answer"
    assert max(len(batch) for batch in sink.sent) <= ROWS
    stored = {row[2]: row[-1] for batch in destination.batches for row in batch.rows if row[0] == "other"}
    if has_it:  # it is confirmed as it was stored, with the points of the former filter
        assert [len(batch) for batch in destination.batches] == [3]
    else:
        assert len(stored) == 95
    assert destination.repeated() == (3 if fault == "lost answer" and not exact else 0)


@pytest.mark.parametrize("restarts", [True, False], ids=["restarted", "running"])
@pytest.mark.slow_on("duckdb")
def test_a_destination_that_has_a_batch_names_what_it_refused_of_it_part_by_part(
    store: Store, restarts: bool
) -> None:
    """It is killed between the parts, too. Nothing is stored twice, and nothing of a wider filter is stored."""
    store.points.insert_many([("chosen", "flow", float(at), float(at == 94)) for at in (0, 94)])
    store.points.insert_many([("other", "flow", float(at), 1.0) for at in range(95)])
    store.points.insert("chosen", "flow", 2.0, timestamp=50.0)
    store.sinks.add("memory", "", start="beginning", filter={"sensor_id": "chosen"}, lanes=False)
    destination = Destination()

    def refuses(row: tuple[Any, ...]) -> str | None:
        return "too high" if row[0] == "chosen" and row[3] == 2.0 else None

    sink = MemorySink(destination, faults=["lost answer"], refuses=refuses)
    forwarder = Forwarder(store, sink, batch_points=ROWS, backoff=NO_WAIT)
    forwarder.step()
    store.sinks.change("memory", filter=None)
    store.points.insert("chosen", "flow", 3.0, timestamp=99.0)
    if restarts:
        forwarder.stop()
        sink = MemorySink(
            destination, refuses=refuses, faults=["ok", "lost answer, interrupt", "ok", "unreachable"]
        )
        forwarder = Forwarder(store, sink, batch_points=ROWS, backoff=NO_WAIT)
        forwarder.step()
        with pytest.raises(Interrupted):
            forwarder.step()
        forwarder.stop()
        forwarder = Forwarder(store, sink, batch_points=ROWS, backoff=NO_WAIT)
    assert forwarder.drain(300)["memory"].is_empty
    assert max(len(batch) for batch in sink.sent) <= ROWS
    assert [[row[-1] for row in batch.rows] for batch in destination.batches] == [[1, 2, 98], [99]]
    assert [(item.seq, item.reason) for item in store.quarantine.list()] == [(98, "too high")]
    info = store.sinks.show("memory")
    assert (info.behind, info.attempt, info.repeats, info.refused) == (0, None, 1, 1)
    assert len(destination.points) == 3
