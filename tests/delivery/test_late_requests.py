"""A request that an exact destination handles late, after a smaller part was sent instead, is not a fork."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from random import Random

import pytest

from repo import Store
from repo.delivery.forwarder import Backoff, Forwarder, Progress
from repo.delivery.protocol import Batch, Outcome
from repo.errors import SinkRefused, SinkUnreachable, StoreForked
from tests.delivery.memory_sink import MemorySink

NO_WAIT = Backoff(first_s=0.000_1, longest_s=0.000_2)
BAD = -1.0
"""A value that a destination may refuse."""


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
def test_a_batch_that_arrives_after_its_retry_was_too_large_is_not_a_fork(
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


class Judging(MemorySink):
    """Loses its first request for a while. Until `accepts`, it refuses a batch with a bad item as a whole."""

    accepts = False

    def send(self, batch: Batch) -> Outcome:
        if self.sent and not self.accepts and _has_bad(batch):
            self.sent.append(batch)
            raise SinkRefused("422: not that")
        return super().send(batch)

    def arrive(self, late: Batch) -> bool:
        """Let a request arrive that was on its way; returns whether it was stored."""
        before = len(self.destination.batches)
        with suppress(StoreForked):
            self._stored(late, forked=False)
        return len(self.destination.batches) > before


def _has_bad(batch: Batch) -> bool:
    return any(row[3] == BAD for row in batch.rows) or any("bad" in record.data for record in batch.records)


@pytest.mark.parametrize("records", [False, True], ids=["points", "records"])
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "running"])
@pytest.mark.parametrize("before_step", [0, 1, 2, 3, 4, 5, 6, 99])
@pytest.mark.slow_on("duckdb")  # what is sent again, and with which token, does not depend on the engine
def test_a_batch_that_arrives_after_its_parts_were_refused_is_not_a_fork(
    store: Store, before_step: int, records: bool, killed: bool
) -> None:
    """Step 2 puts the bad item into quarantine, and step 3 sends nothing, with the token of the whole batch."""
    for at in range(4):
        if records:
            store.records.add(f"R-{at}", "till", {"text": "bad" if at == 0 else "good"})
        else:
            store.points.insert("S-1", "flow", BAD if at == 0 else 1.0, timestamp=float(at))
    store.sinks.add("memory", "", start="now" if records else "beginning", records=records)
    sink = Judging(faults=["unreachable"])
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    forwarder.step()
    [late] = sink.sent
    was_stored = False
    for step in range(30):
        if step == before_step:
            if killed:
                forwarder.stop()
                forwarder = Forwarder(store, sink, backoff=NO_WAIT)
            sink.accepts = True
            was_stored = sink.arrive(late)
        made = forwarder.step()["memory"]
        assert made.progress is not Progress.FORKED, made
        if made.progress is Progress.IDLE:
            break
    forwarder.stop()
    assert not sink.arrive(late), "the destination is at another token"
    assert was_stored == (before_step < 4)
    info = store.sinks.show("memory")
    assert (info.state, info.behind, info.attempt, store.records.pending()) == ("running", 0, None, [])
    quarantined = store.quarantine.count()
    assert quarantined == (0 if before_step < 3 else 1)
    arrived = Counter(
        item
        for batch in sink.destination.batches
        for item in ([record.record_id for record in batch.records] or [row[-1] for row in batch.rows])
    )
    assert len(arrived) == (4 if was_stored else 3), "nothing is missing"
    assert max(arrived.values()) <= (2 if was_stored else 1), "only what a late request had comes twice"


def _refused_alone(store: Store) -> tuple[Judging, Forwarder, Batch]:
    """Deliver two points until the first is in quarantine, and the token of their batch is still to be sent."""
    store.points.insert_many([("S-1", "flow", 0.0, BAD), ("S-1", "flow", 1.0, 1.0)])
    store.sinks.add("memory", "", start="beginning")
    sink = Judging(faults=["unreachable"])
    forwarder = Forwarder(store, sink, backoff=NO_WAIT)
    forwarder.step()
    [late] = sink.sent
    while store.quarantine.count() == 0:
        forwarder.step()
    attempt = store.sinks.show("memory").attempt
    assert attempt is not None
    assert (attempt.points, attempt.token) == (0, late.tokens.next)
    sink.accepts = True
    return sink, forwarder, late


@pytest.mark.parametrize("is_late", [True, False])
@pytest.mark.slow_on("duckdb")
def test_a_point_that_is_to_be_sent_again_at_once_is_sent(store: Store, is_late: bool) -> None:
    """The batch without items, whose range is that of the point, does not confirm it."""
    sink, forwarder, late = _refused_alone(store)
    assert not is_late or sink.arrive(late)
    [item] = store.quarantine.list()
    store.quarantine.retry(item.id or 0)
    assert forwarder.drain()["memory"].is_empty
    assert store.quarantine.count() == 0
    after = sink.destination.batches[is_late:]
    assert sorted(row[-1] for batch in after for row in batch.rows) == [1, 2]


@pytest.mark.slow_on("duckdb")
def test_a_replay_sends_a_point_that_was_refused_just_before(store: Store) -> None:
    sink, forwarder, _late = _refused_alone(store)
    store.sinks.replay("memory", "beginning")
    assert forwarder.drain()["memory"].is_empty
    assert store.quarantine.count() == 0
    assert len(sink.destination.points) == 2


class Lossy(Judging):
    """Loses requests for a while, and answers, at random. It looks at the token first, or at the items."""

    def __init__(self, chance: Random, *, by_token: bool) -> None:
        super().__init__()
        self.chance = chance
        self.by_token = by_token
        self.late: list[Batch] = []

    def send(self, batch: Batch) -> Outcome:
        self.sent.append(batch)
        if self.chance.random() < 0.25:
            self.late.append(batch)
            raise SinkUnreachable("the link is down")
        key = (batch.store_id, batch.epoch, batch.sink)
        is_known = self.by_token and self.destination.tokens.get(key) == batch.tokens.next
        if not self.accepts and _has_bad(batch) and not is_known:
            raise SinkRefused("422: not that")
        outcome = self._stored(batch, forked=False)
        if self.chance.random() < 0.15:
            raise ConnectionResetError("no answer")
        return outcome


@pytest.mark.parametrize("by_token", [True, False], ids=["token first", "items first"])
@pytest.mark.slow_on("duckdb")
def test_whenever_lost_requests_arrive_nothing_is_missing_or_forked(
    store: Store, seed: int, by_token: bool
) -> None:
    """Writes, overwrites, refusals, retries, restarts and requests that arrive late, in any order."""
    chance = Random(f"{seed}/{by_token}")
    store.sinks.add("memory", "", start="beginning", records=True)
    sink = Lossy(chance, by_token=by_token)
    forwarder = Forwarder(store, sink, backoff=NO_WAIT, batch_points=7)
    written = {}
    for number in range(80):
        match chance.randrange(12):
            case 0:
                values = [BAD if chance.random() < 0.15 else float(number) for _ in range(6)]
                store.points.insert_many(
                    [("S-1", "flow", float(chance.randrange(60)), value) for value in values]
                )
            case 1:
                name, text = f"R-{chance.randrange(9)}", f"{chance.choice(['bad', 'good', 'good'])} {number}"
                store.records.add(name, "till", {"text": text})
                written[name] = f'{{"text":"{text}"}}'
            case 2 if sink.late:
                sink.arrive(sink.late.pop(chance.randrange(len(sink.late))))
            case 3:
                forwarder.stop()
                forwarder = Forwarder(store, sink, backoff=NO_WAIT, batch_points=7)
            case 4:
                store.quarantine.retry([item.id or 0 for item in store.quarantine.list() if item.seq])
            case 5:
                sink.accepts = not sink.accepts
            case _:
                made = forwarder.step()["memory"]
                assert made.progress is not Progress.FORKED, made
    sink.accepts = True
    for late in sink.late:
        sink.arrive(late)
    forwarder.stop()
    assert forwarder.drain(300.0)["memory"].is_empty
    info = store.sinks.show("memory")
    assert (info.state, info.behind, info.attempt, store.records.pending()) == ("running", 0, None, [])
    refused = {item.seq for item in store.quarantine.list()}
    stored = {row[:3]: row[3:] for page in store.points.since(0).tuples() for row in page}
    arrived = sink.destination.values()
    for identity, (*content, seq) in stored.items():
        assert seq in refused or arrived.get(identity) == tuple(content), identity
    kept = {(item.record_id, item.data) for item in store.quarantine.list()}
    for name, data in written.items():
        assert (name, data) in kept or sink.destination.records.get(name) == data, name
