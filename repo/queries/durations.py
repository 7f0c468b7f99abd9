"""Durations: how long each series held each of its readings. Owns the query for changes, and their sums."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from sqlalchemy import Connection, func, or_, select

from repo.engines.registry import traits_of
from repo.inputs.time_texts import Width
from repo.models import Point
from repo.queries.aggregate import Every, check_width, check_zone, make_buckets, spans_of
from repo.queries.buckets import Buckets
from repo.queries.gaps import refuse_too_many
from repo.queries.lookback import before
from repo.queries.selection import Known, Selection, SeriesScope

__all__ = ["States"]

_MOST_POINTS = 500_000
"""The maximum number of points that one query sorts; more are read by several queries, a few series each."""

Pair = tuple[str, str]
State = float | str | None
Change = tuple[int, State]

_c: Any = Point.__table__.c


@dataclass(frozen=True)
class States:
    """A validated query for the time spent in each state."""

    selection: Selection
    width: Width | None
    zone: tzinfo

    @classmethod
    def of(cls, selection: Selection, every: Every, tz: str | tzinfo) -> States:
        """Validate the arguments of a caller; raises `InvalidQuery`."""
        return cls(selection, check_width(every), check_zone(tz))

    def ask(self, connection: Connection, known: Known) -> list[dict[str, Any]]:
        """Return one row per series (and bucket) and state, longest first."""
        start_us, end_us = self.selection.start_us, self.selection.end_us
        spans = {
            pair: span
            for pair, span in spans_of(self.selection, known, beyond=True).items()
            if self.selection.named or known[pair].last_value is None
        }
        buckets = make_buckets(self.width, self.zone, spans)
        if buckets is not None:
            refuse_too_many(buckets, spans)
        held: dict[Pair, State] = {}
        if start_us is not None:
            earlier = before(connection, known, spans, start_us, readings_only=False)
            held = {pair: last.reading for pair, last in earlier.items()}
        rows: list[dict[str, Any]] = []
        for batch in _batches(list(spans), known):
            changes = self._changes(connection, known, batch)
            for pair in batch:
                if not self.selection.named and any(isinstance(state, float) for _, state in changes[pair]):
                    continue
                low, high = spans[pair]
                until_us = high if end_us is None else end_us
                if low < until_us:
                    lasting = [(low, held.get(pair)), *changes[pair]]
                    rows += _rows(pair, lasting, until_us, buckets)
        return rows

    def _changes(
        self, connection: Connection, known: Known, pairs: Sequence[Pair]
    ) -> dict[Pair, list[Change]]:
        """Read the points whose reading differs from that of the previous point of the series."""
        scope = SeriesScope(traits_of(connection), known, pairs)
        earlier = {"partition_by": (_c.sensor_id, _c.metric_name), "order_by": _c.timestamp_us}
        columns = (_c.timestamp_us, _c.value, _c.value_text)
        points = (
            select(
                _c.sensor_id,
                _c.metric_name,
                *columns,
                *(func.lag(column).over(**earlier).label(f"last_{column.name}") for column in columns),
            )
            .where(scope.where(self.selection.start_us, self.selection.end_us))
            .subquery()
        )
        p = points.c
        query = (
            select(p.sensor_id, p.metric_name, p.timestamp_us, p.value, p.value_text)
            .where(
                or_(
                    p.last_timestamp_us.is_(None),
                    p.value.is_distinct_from(p.last_value),
                    p.value_text.is_distinct_from(p.last_value_text),
                )
            )
            .order_by(p.sensor_id, p.metric_name, p.timestamp_us)
        )
        found: dict[Pair, list[Change]] = {pair: [] for pair in pairs}
        for sensor, metric, us, value, text in connection.execute(query):
            if (sensor, metric) in found:
                found[sensor, metric].append((us, value if text is None else text))
        return found


def _batches(pairs: Sequence[Pair], known: Known) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    points = 0
    for pair in pairs:
        if batch and points + known[pair].points > _MOST_POINTS:
            yield batch
            batch, points = [], 0
        batch.append(pair)
        points += known[pair].points
    if batch:
        yield batch


def _rows(
    pair: Pair, changes: Sequence[Change], until_us: int, buckets: Buckets | None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one series, which stays in the state of each change until the next change."""
    names = {"sensor_id": pair[0], "metric_name": pair[1]}
    low = changes[0][0]
    if buckets is None:
        for state, us, share in _shares(_pieces(changes, [(low, 0)], until_us).get(0, {})):
            yield {**names, "state": state, "seconds": us / 1e6, "share": share}
        return
    totals = _pieces(changes, buckets.pieces(low, until_us - 1), until_us)
    for number in sorted(totals):
        moment = buckets.start_of(number)
        for state, us, share in _shares(totals[number]):
            yield {**names, "bucket": moment, "state": state, "seconds": us / 1e6, "share": share}


def _pieces(
    changes: Sequence[Change], pieces: Sequence[tuple[int, int]], until_us: int
) -> dict[int, dict[State, int]]:
    """Sum the time in µs by bucket and state."""
    totals: dict[int, dict[State, int]] = {}
    cuts = sorted({us for us, _ in changes} | {us for us, _ in pieces} | {until_us})
    states, numbers = dict(changes), dict(pieces)
    state, number = changes[0][1], pieces[0][1]
    for us, after in itertools.pairwise(cuts):
        state, number = states.get(us, state), numbers.get(us, number)
        total = totals.setdefault(number, {})
        total[state] = total.get(state, 0) + after - us
    return totals


def _shares(total: dict[State, int]) -> Iterator[tuple[State, int, float]]:
    whole = sum(total.values())
    for state, us in sorted(total.items(), key=lambda item: -item[1]):
        yield state, us, us / whole
