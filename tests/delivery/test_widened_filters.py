"""A filter that is widened while a batch is on its way: the range of the batch may be long, and has more points now."""

from __future__ import annotations

import pytest

from repo import Store
from repo.delivery.forwarder import Backoff, Forwarder
from tests.delivery.memory_sink import Destination, Fault, MemorySink

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
    assert delivering.drain(10)["memory"].is_empty
    delivering.stop()

    has_it = exact and fault == "lost answer"
    assert all(len(batch) <= ROWS for batch in sink.sent) or has_it
    stored = {row[2]: row[-1] for batch in destination.batches for row in batch.rows if row[0] == "other"}
    if has_it:  # it is confirmed as it was stored, with the points of the former filter
        assert [len(batch) for batch in destination.batches] == [3]
    else:
        assert len(stored) == 95
    assert destination.repeated() == (3 if fault == "lost answer" and not exact else 0)
