"""Reconcile: compares what a store believes to be delivered with what an exact destination holds. Changes nothing.

Compared are the points that are in the store now, that the sink's filter selects, and whose seqs the sink has
confirmed. Seqs from before the first batch do not belong to the sink. Points in quarantine were refused;
points that were given up with `skip` or dropped from the quarantine are in the loss ledger. PostgreSQL is
asked for the seqs of its points, so deletions there are noticed. A receiving store and a folder are asked for
the ranges that they have taken, so points that their users delete later do not count as missing.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from repo.cursors import Cursor, Span
from repo.delivery.chain import HeldSeqs
from repo.delivery.protocol import Sink
from repo.delivery.reading import Reader
from repo.delivery.sinks.registry import sink_of
from repo.errors import InvalidQuery
from repo.inputs.arguments import check_text
from repo.repositories.sinks import SinkInfo
from repo.store.store import Store

__all__ = ["Reconcilable", "Reconciled", "reconcile"]

_WINDOW = 131_072
_MOST_RANGES = 1_000


class Reconcilable(Sink, Protocol):
    """An exact sink that can say what its destination holds. It is open when it is asked."""

    def held(self, store_id: str) -> list[HeldSeqs]:
        """Return what was taken from this sink of the store, in every epoch."""
        ...

    # A destination that can be asked for its points also has
    # def held_seqs(self, store_id: str) -> Iterator[tuple[int, int]]:
    #     """Yield the seq and the epoch of each point of the store that the destination holds, in order of seq."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The result. Nothing is missing if `missing` is 0."""

    sink: str
    store_id: str
    epoch: int
    checked: int
    """Points that were compared."""
    missing: int
    """Confirmed points that the destination does not hold."""
    ranges: tuple[tuple[int, int], ...]
    """Ranges of seqs, both ends inclusive, in which confirmed points are missing and none is held; the first 1,000."""
    quarantined: int
    """Points that the sink refused. They are not missing."""
    skipped: int
    """Points that were given up with `skip`, or dropped from the quarantine. They are not missing."""
    behind: int
    """Seqs that are not confirmed yet."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self) | {"ranges": [list(span) for span in self.ranges]}


def reconcile(store: Store, name: str, sink: Sink | None = None) -> Reconciled:
    """Compare the confirmed points of a sink with what its destination holds.

    `sink` is needed for a sink of your own (kind "own"), which must have `held`. Reads the columns page by
    page, and gives way to others between pages. Points that are delivered during the comparison are not
    compared. Raises `InvalidQuery` for an unknown sink, and for one that keeps no position; what `Sink.open`
    raises; and what reading raises.
    """
    info = store.sinks.show(check_text(name, "name"))
    opened: Any = sink_of(info.name, info.kind, info.target, info.options) if sink is None else sink
    if not opened.exact or not hasattr(opened, "held"):
        raise InvalidQuery(
            f"the sink {name!r} keeps no position at its destination, so nothing can be compared; count the points "
            "there instead"
        )
    epoch, store_id = store.sinks.delivery(name).epoch_and_id()
    try:
        opened.open(store_id, epoch)
        return _Comparison(store, info, opened, store_id, epoch).run()
    finally:
        opened.close()


class _Comparison:
    def __init__(self, store: Store, info: SinkInfo, sink: Any, store_id: str, epoch: int) -> None:
        self._store = store
        self._info = info
        self._sink = sink
        self._store_id = store_id
        self._epoch = epoch
        self._stream: Iterator[tuple[int, int]] | None = None
        self._next: tuple[int, int] | None = None

    def run(self) -> Reconciled:
        info = self._info
        epochs = sorted(self._sink.held(self._store_id), reverse=True)
        firsts = [span.first for held in epochs for span in held.taken.ranges[:1]]
        quarantined = {item.seq for item in self._store.quarantine.list(info.name, None)}
        skipped = _given_up(self._store, info.name)
        if hasattr(self._sink, "held_seqs"):
            self._stream = iter(self._sink.held_seqs(self._store_id))
            self._next = next(self._stream, None)
        checked = missing = refused = given_up = 0
        ranges: list[tuple[int, int]] = []
        is_missing = False
        last_seq = self._store.sinks.last_seq()
        reader = Reader(self._store, info.filter)
        for window in _windows(_claimed(info.cursor, min(firsts, default=None))):
            seqs: Sequence[int] = reader.again(window, last_seq).columns[7]
            there = self._held_of(seqs, window, epochs)
            for seq in seqs:
                checked += 1
                if seq in quarantined:  # though the range may be taken
                    refused += 1
                elif seq in there:
                    is_missing = False
                elif _has(skipped, seq):
                    given_up += 1
                else:
                    missing += 1
                    if is_missing:
                        ranges[-1] = (ranges[-1][0], seq)
                    elif len(ranges) < _MOST_RANGES:
                        ranges.append((seq, seq))
                        is_missing = True
        facts = (checked, missing, tuple(ranges), refused, given_up, info.behind)
        return Reconciled(info.name, self._store_id, self._epoch, *facts)

    def _held_of(self, seqs: Sequence[int], window: Span, epochs: Sequence[HeldSeqs]) -> set[int]:
        """Return those of the seqs that the destination holds."""
        if self._stream is None:
            spans = list(_taken(window, epochs))
            return {seq for seq in seqs if any(first <= seq <= last for first, last in spans)}
        parts = dict(_in_epochs(window, epochs))
        found = set()
        while self._next is not None and self._next[0] <= window.last:
            seq, epoch = self._next
            if epoch in parts and parts[epoch].first <= seq <= parts[epoch].last:
                found.add(seq)
            self._next = next(self._stream, None)
        return found


def _claimed(cursor: Cursor, first: int | None) -> Iterator[Span]:
    """Yield the ranges that the cursor claims, from the first seq on that the sink ever sent."""
    if first is None:
        return
    if first <= cursor.low:
        yield Span(first, cursor.low)
    for span in cursor.ranges:
        if span.last >= first:
            yield Span(max(first, span.first), span.last)


def _windows(spans: Iterable[Span]) -> Iterator[Span]:
    for first, last in spans:
        for begin in range(first, last + 1, _WINDOW):
            yield Span(begin, min(begin + _WINDOW - 1, last))


def _in_epochs(window: Span, epochs: Sequence[HeldSeqs]) -> Iterator[tuple[int, Span]]:
    """Yield the parts of a window with the epoch in which they were written: seqs repeat after a restore.

    An epoch began where its first batch did. What was sent again from before that, by a replay, is of it, too.
    """
    before = window.last + 1
    for held in epochs:
        first = held.taken.ranges[0].first if held.taken.ranges else before
        if first < before:
            if window.first < before:
                yield held.epoch, Span(max(first, window.first), before - 1)
            before = first


def _taken(window: Span, epochs: Sequence[HeldSeqs]) -> Iterator[Span]:
    """Yield the ranges of a window that were taken."""
    by_epoch = {held.epoch: held.taken for held in epochs}
    for epoch, part in _in_epochs(window, epochs):
        for span in by_epoch[epoch].ranges:
            if span.first <= part.last and span.last >= part.first:
                yield Span(max(span.first, part.first), min(span.last, part.last))


def _given_up(store: Store, name: str) -> list[Span]:
    """Return the ranges that `skip`, or a drop from the quarantine, gave up for a sink; ascending and disjoint."""
    found: list[tuple[int, int]] = []
    for loss in store.losses():
        if not loss.given_up:
            continue
        facts = json.loads(loss.detail or "{}")
        if facts.get("sink") == name:
            found += [(facts["first_seq"], facts["last_seq"])] if loss.reason == "skipped" else facts["seqs"]
    spans: list[Span] = []
    for first, last in sorted(map(tuple, found)):
        if spans and first <= spans[-1].last + 1:
            spans[-1] = Span(spans[-1].first, max(last, spans[-1].last))
        else:
            spans.append(Span(first, last))
    return spans


def _has(spans: Sequence[Span], seq: int) -> bool:
    at = bisect_right(spans, seq, key=lambda span: span.first)
    return at > 0 and seq <= spans[at - 1].last
