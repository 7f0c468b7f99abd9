"""Aggregate queries: checks what a caller asks for, and returns the rows as dicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta, tzinfo
from fractions import Fraction
from typing import Any

from sqlalchemy import Connection

from repo.errors import InvalidQuery
from repo.inputs.arguments import check_seconds, shown
from repo.inputs.time_texts import Width, parse_width
from repo.inputs.times import MAX_TIMESTAMP_US, Unfit, zone_named
from repo.queries.aggregate_sql import aggregate, check_aggregates
from repo.queries.buckets import AggregateColumns, Buckets
from repo.queries.gaps import Fill, check_fill, fill_gaps, refuse_too_many
from repo.queries.lookback import before
from repo.queries.selection import Known, Selection

__all__ = ["Aggregates", "Every", "check_width", "check_zone", "make_buckets", "spans_of"]

TimeSpan = tuple[int, int]

Every = str | float | timedelta | None
"""The width of buckets: a text such as `10m`, seconds, or a duration; None for no buckets."""


@dataclass(frozen=True)
class Aggregates:
    """A validated aggregate query. `ask` needs a connection, `dicts` does not."""

    selection: Selection
    names: list[str]
    width: Width | None
    zone: tzinfo
    fill: Fill | None

    @classmethod
    def of(
        cls,
        selection: Selection,
        agg: str | Sequence[str],
        every: Every,
        tz: str | tzinfo,
        fill: str | None,
    ) -> Aggregates:
        """Validate the arguments of a caller; raises `InvalidQuery`."""
        return cls(
            selection, check_aggregates(agg), check_width(every), check_zone(tz), check_fill(fill, every)
        )

    def ask(self, connection: Connection, known: Known) -> tuple[AggregateColumns, Buckets | None]:
        """Compute the result columns, and the buckets that their bucket numbers belong to."""
        spans = spans_of(self.selection, known, beyond=self.fill is not None)
        buckets = make_buckets(self.width, self.zone, spans)
        if self.fill is None or buckets is None:
            return aggregate(connection, self.selection, known, self.names, buckets), buckets
        refuse_too_many(buckets, spans)
        names = list(dict.fromkeys([*self.names, "count"]))
        found = aggregate(connection, self.selection, known, names, buckets)
        leading: dict[tuple[str, str], Any] = {}
        if self.fill == "previous" and self.selection.start_us is not None:
            held = before(connection, known, spans, self.selection.start_us, readings_only=True)
            leading = {pair: last.reading for pair, last in held.items()}
        return fill_gaps(found, buckets, spans, self.fill, leading), buckets

    def dicts(self, columns: AggregateColumns, buckets: Buckets | None) -> list[dict[str, Any]]:
        """Return the columns as the dicts that an application receives."""
        name, *others = self.names
        sensors, metrics, values = columns.sensors, columns.metrics, columns.values
        if buckets is None:
            rows = zip(sensors, metrics, values[name], strict=True)
            dicts = [{"sensor_id": s, "metric_name": m, name: value} for s, m, value in rows]
        else:
            moments = map(buckets.starts_of(columns.numbers).__getitem__, columns.numbers)
            dicts = [
                {"sensor_id": s, "metric_name": m, "bucket": moment, name: value}
                for s, m, moment, value in zip(sensors, metrics, moments, values[name], strict=True)
            ]
        for other in others:
            for row, value in zip(dicts, values[other], strict=True):
                row[other] = value
        return dicts


def check_width(every: Every) -> Width | None:
    """Return a bucket width, given as text, seconds or a `timedelta`; raises `InvalidQuery`."""
    if every is None:
        return None
    if not isinstance(every, str):
        us = Fraction(check_seconds(every, "every")).limit_denominator(10**9) * 10**6
        if us.denominator != 1 or not 0 < us <= MAX_TIMESTAMP_US:
            raise InvalidQuery(
                f"every = {shown(every)}: a positive number of whole microseconds, of at most 292 years"
            )
        return Width(int(us), 0)
    try:
        return parse_width(every)
    except InvalidQuery as error:
        raise InvalidQuery(f"every: {error}") from error


def check_zone(tz: str | tzinfo) -> tzinfo:
    """Return a time zone, given by its name or as a `tzinfo`; raises `InvalidQuery`."""
    if isinstance(tz, tzinfo):
        name = getattr(tz, "zone", None)  # pytz's zones give wrong offsets outside of its own methods
        return check_zone(name) if isinstance(name, str) else tz
    try:
        return zone_named(tz)
    except Unfit as fault:
        raise InvalidQuery(f"tz: {fault}") from fault


def spans_of(selection: Selection, known: Known, *, beyond: bool) -> dict[tuple[str, str], TimeSpan]:
    """Return the first and last requested time of each selected series.

    An open side of the selection ends with the series' points. Without `beyond`, every side does.
    """
    spans = {}
    for pair in selection.chosen(known):
        first, last = known[pair].first_us, known[pair].last_us
        low = first if selection.start_us is None else selection.start_us
        high = last if selection.end_us is None else selection.end_us - 1
        if not beyond:
            low, high = max(low, first), min(high, last)
        if low <= high:
            spans[pair] = (low, high)
    return spans


def make_buckets(width: Width | None, zone: tzinfo, spans: dict[tuple[str, str], TimeSpan]) -> Buckets | None:
    """Return the buckets that cover these spans; None without a width."""
    if width is None:
        return None
    low = min((low for low, _ in spans.values()), default=0)
    return Buckets.over(width, zone, low, max((high for _, high in spans.values()), default=0))
