"""A sink in memory, exact or not, that fails as a script says; what it has stored outlives its connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from repo.delivery.protocol import Batch, Item, Lane, Outcome
from repo.errors import SinkHalted, SinkRefused, SinkUnreachable, StoreForked

Fault = Literal[
    "ok", "unreachable", "lost answer", "halted", "forked", "fault", "interrupt", "lost answer, interrupt"
]

Identity = tuple[str, str, int]
Stored = tuple[tuple[int, int], tuple[Any, ...]]


class Interrupted(BaseException):
    """Ctrl-C, or the end of the process, while a batch is on its way."""


@dataclass
class Destination:
    """What a receiver has: the newest version of each point, as an exact receiver keeps it."""

    points: dict[Identity, Stored] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    tokens: dict[tuple[str, int, str], str] = field(default_factory=dict)
    arrivals: list[tuple[Identity, int]] = field(default_factory=list)
    """Every point that was stored, in order, with its seq."""
    batches: list[Batch] = field(default_factory=list)
    """Every batch that was stored."""

    def values(self) -> dict[Identity, tuple[Any, ...]]:
        """Return the points without their versions."""
        return {identity: content for identity, (_, content) in self.points.items()}

    def repeated(self) -> int:
        """Return how many points came with a seq that had come before."""
        seqs = [seq for _, seq in self.arrivals]
        return len(seqs) - len(set(seqs))

    def store(self, batch: Batch, refused: set[int], *, exact: bool) -> None:
        """Store a batch without the refused items."""
        self.batches.append(batch)
        if batch.lane is Lane.RECORDS:
            for at, record in enumerate(batch.records):
                if at not in refused:
                    self.records[record.record_id] = record.data
            return
        for at, (sensor, metric, time_us, *content, seq) in enumerate(batch.rows):
            if at in refused:
                continue
            identity, version = (sensor, metric, time_us), (batch.epoch, seq)
            self.arrivals.append((identity, seq))
            known = self.points.get(identity)
            # Only an exact destination knows versions; the others keep what came last.
            if not exact or known is None or known[0] <= version:
                self.points[identity] = version, tuple(content)


class MemorySink:
    """A sink of a `Destination`. `faults` are taken one for each call of `send`; then everything works."""

    takes_records = True

    def __init__(
        self,
        destination: Destination | None = None,
        *,
        name: str = "memory",
        exact: bool = True,
        faults: Sequence[Fault] = (),
        refuses: Callable[[tuple[Any, ...]], str | None] = lambda _row: None,
        by_item: bool = True,
        on_send: Callable[[Batch], object] = lambda _batch: None,
    ) -> None:
        self.name = name
        self.exact = exact
        self.destination = Destination() if destination is None else destination
        self.faults: Iterator[Fault] = iter(faults)
        self.refuses = refuses
        self.by_item = by_item
        self.on_send = on_send
        self.sent: list[Batch] = []
        self.opened = 0
        self.is_open = False

    def open(self, store_id: str, epoch: int) -> str | None:
        self.opened += 1
        self.is_open = True
        return self.destination.tokens.get((store_id, epoch, self.name)) if self.exact else None

    def send(self, batch: Batch) -> Outcome:
        assert self.is_open, "a batch was sent without opening"
        self.sent.append(batch)
        self.on_send(batch)
        fault = next(self.faults, "ok")
        if fault == "unreachable":
            raise SinkUnreachable("the link is down")
        if fault == "halted":
            raise SinkHalted("401: the password is wrong")
        if fault == "fault":
            raise ZeroDivisionError("a fault of the sink")
        if fault == "interrupt":
            raise Interrupted
        outcome = self._stored(batch, forked=fault == "forked")
        if fault == "lost answer":
            raise ConnectionResetError("no answer")
        if fault == "lost answer, interrupt":
            raise Interrupted
        return outcome

    def close(self) -> None:
        self.is_open = False

    def _stored(self, batch: Batch, *, forked: bool) -> Outcome:
        rows: Sequence[Any] = batch.records if batch.lane is Lane.RECORDS else batch.rows
        found = [(at, reason) for at, row in enumerate(rows) if (reason := self.refuses(row)) is not None]
        if found and not self.by_item:
            raise SinkRefused(f"400: {found[0][1]}")
        refused = tuple(Item(at, reason) for at, reason in found)
        if self.exact:
            key = (batch.store_id, batch.epoch, batch.sink)
            held = self.destination.tokens.get(key)
            if held == batch.tokens.next:
                return Outcome(refused, repeat=True)
            if held != batch.tokens.committed or forked:
                raise StoreForked("409: another batch was expected")
            self.destination.tokens[key] = batch.tokens.next
        self.destination.store(batch, {item.row for item in refused}, exact=self.exact)
        return Outcome(refused, sent_bytes=10 * len(batch))
