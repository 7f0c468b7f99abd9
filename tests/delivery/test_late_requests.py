"""A request that an exact destination handles late, after a smaller part was sent instead, is no fork."""

from __future__ import annotations

import pytest

from repo import Store
from repo.delivery.forwarder import Backoff, Forwarder, Progress
from repo.delivery.protocol import Batch, Outcome
from repo.errors import SinkRefused
from tests.delivery.memory_sink import MemorySink

NO_WAIT = Backoff(first_s=0.000_1, longest_s=0.000_2)


class Limited(MemorySink):
    """Loses its first request for a while. Then it refuses batches of more than three items as a whole."""

    def send(self, batch: Batch) -> Outcome:
        if self.sent and len(batch) > 3:
            raise SinkRefused("413: too large")
        return super().send(batch)


@pytest.mark.parametrize(
    ("records", "killed"),
    [(False, True), (False, False), (True, False)],
    ids=["killed", "timed out", "records"],
)
@pytest.mark.parametrize("before_step", [0, 1, 2, 99])
@pytest.mark.slow_on("duckdb")  # what is sent again, and with which token, does not depend on the engine
def test_a_batch_that_arrives_after_its_retry_was_too_large_is_no_fork(
    store: Store, before_step: int, records: bool, killed: bool
) -> None:
    for at in range(10):
        if records:
            store.records.add(f"R-{at}", "till", {"n": at})
        else:
            store.points.insert("S-1", "flow", 1.0, timestamp=float(at))
    store.sinks.add("memory", "", start="now" if records else "beginning", records=records)
    sink = Limited(faults=["unreachable"])
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    assert forwarder.step()["memory"].progress is Progress.UNREACHABLE
    [late] = sink.sent
    if killed:
        forwarder.stop()
        forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    assert forwarder.step()["memory"].progress is Progress.SPLIT
    for step in range(20):
        held = sink.destination.tokens.get((late.store_id, late.epoch, "memory"))
        if step == before_step and held == late.tokens.committed:
            sink._stored(late, forked=False)
        if forwarder.step()["memory"].progress is Progress.IDLE:
            break
    forwarder.stop()
    assert store.sinks.show("memory").state == "running"
    assert store.sinks.show("memory").behind == 0
    assert len(sink.destination.records if records else sink.destination.points) == 10
    assert store.records.pending() == []


class Changing(MemorySink):
    """Loses its first request for a while. Until `accepts`, it refuses every batch as a whole."""

    accepts = False

    def send(self, batch: Batch) -> Outcome:
        if self.sent and not self.accepts:
            self.sent.append(batch)
            raise SinkRefused("422: not that")
        return super().send(batch)


def test_a_batch_that_arrives_after_its_parts_were_refused_stops_the_sink_and_loses_nothing(
    store: Store,
) -> None:
    """The last item of the halves is in quarantine, so the sink goes on from the token before the whole batch."""
    store.points.insert_many([("S-1", "flow", float(at), 1.0) for at in range(4)])
    store.sinks.add("memory", "", start="beginning")
    sink = Changing(faults=["unreachable"])
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    forwarder.step()
    [late] = sink.sent
    while store.quarantine.count() == 0:
        forwarder.step()
    sink.accepts = True
    sink._stored(late, forked=False)
    assert forwarder.step()["memory"].progress is Progress.FORKED
    assert store.sinks.show("memory").behind == 3  # nothing of it counts as delivered
    forwarder.stop()

    store.sinks.rekey(restored=True)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    assert forwarder.drain()["memory"].is_empty
    forwarder.stop()
    assert [row[-1] for batch in sink.destination.batches[1:] for row in batch.rows] == [2, 3, 4]
    assert [item.seq for item in store.quarantine.list()] == [1]
    assert len(sink.destination.points) == 4
