"""Sinks that do not keep the contract: its tests fail, and say in a sentence what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from repo.delivery.protocol import Batch, Item, Outcome, Sink
from repo.testing import Batches, Destination, SinkContract


class Table(Destination):
    """What is stored: points and a token."""

    def __init__(self, kind: type[RightSink]) -> None:
        self.kind = kind
        self.stored: list[tuple[Any, ...]] = []
        self.token: str | None = None

    def sink(self) -> Sink:
        return self.kind(self)

    def points(self) -> Iterable[Any]:
        return [row[:4] for row in self.stored]


class RightSink:
    name, exact, takes_records = "table", True, False

    def __init__(self, table: Table) -> None:
        self.table = table

    def open(self, _store_id: str, _epoch: int) -> str | None:
        return self.table.token

    def send(self, batch: Batch) -> Outcome:
        if batch.tokens.next == self.table.token:
            return Outcome(repeat=True)
        self.store(batch)
        return Outcome()

    def store(self, batch: Batch) -> None:
        self.table.stored, self.table.token = [*self.table.stored, *batch.rows], batch.tokens.next

    def close(self) -> None:
        pass


class PointsFirst(RightSink):
    def store(self, batch: Batch) -> None:
        self.table.stored += batch.rows
        self.table.token = batch.tokens.next


class TokenFirst(RightSink):
    def store(self, batch: Batch) -> None:
        self.table.token = batch.tokens.next
        self.table.stored += batch.rows


class PointByPoint(RightSink):
    def store(self, batch: Batch) -> None:
        for row in batch.rows:
            self.table.stored.append(row)
        self.table.token = batch.tokens.next


class Forgetful(RightSink):
    def store(self, batch: Batch) -> None:
        self.table.stored, self.table.token = [*self.table.stored, *batch.rows[1:]], batch.tokens.next


class Twice(RightSink):
    def send(self, batch: Batch) -> Outcome:
        self.store(batch)
        return Outcome()


class Picky(RightSink):
    def send(self, batch: Batch) -> Outcome:
        return Outcome((Item(0, "I do not like it"),)) if len(batch) else super().send(batch)


CRASH = "test_a_crash_leaves_a_batch_stored_with_its_token_or_not_at_all"
WHOLE = "test_a_batch_arrives_whole"
AGAIN = "test_a_batch_that_is_sent_again_leaves_nothing_out"
WRONG: dict[tuple[type[RightSink], str], str] = {
    (PointsFirst, CRASH): "has 2 of the batch's 2 points without its token: they are stored again",
    (
        TokenFirst,
        CRASH,
    ): "has the token of the batch, but 0 of its 2 points: the others are lost; store the points and",
    (PointByPoint, CRASH): "points without its token",
    (Forgetful, WHOLE): r"\('W-0', 'pressure', \d+, 0.0\) is missing at the destination",
    (Twice, AGAIN): "the destination has this batch, so its repeat needs Outcome",
    (Picky, WHOLE): "ordinary items were refused.*I do not like it",
}


@pytest.mark.parametrize(("kind", "test"), WRONG, ids=str)
def test_a_wrong_sink_is_found(kind: type[RightSink], test: str) -> None:
    table = Table(kind)
    sink = table.sink()
    with pytest.raises((AssertionError, pytest.fail.Exception), match=WRONG[kind, test]):
        getattr(SinkContract(), test)(table, sink, Batches(sink.name))


@pytest.mark.parametrize("test", [CRASH, WHOLE, AGAIN])
def test_a_right_sink_passes(test: str) -> None:
    table = Table(RightSink)
    sink = table.sink()
    getattr(SinkContract(), test)(table, sink, Batches(sink.name))
