"""Gaps: rows for the buckets in which a series has no reading. Owns their values; reads no table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, get_args

from repo.errors import InvalidQuery
from repo.inputs.arguments import shown
from repo.queries.buckets import AggregateColumns, Buckets

__all__ = ["MOST_ROWS", "Fill", "check_fill", "fill_gaps", "refuse_too_many"]

Fill = Literal["none", "null", "previous", "linear"]

MOST_ROWS = 10_000_000
"""The maximum number of rows that filling may produce (about 3 GB as dicts)."""

Pair = tuple[str, str]
TimeSpan = tuple[int, int]


def check_fill(fill: str | None, every: object) -> Fill | None:
    """Return the fill mode, None for none; raises `InvalidQuery` for an unknown one."""
    if fill is None or (isinstance(fill, str) and fill == "none"):
        return None
    if not isinstance(fill, str) or fill not in get_args(Fill):
        raise InvalidQuery(f"fill = {shown(fill)}: None, {', '.join(map(repr, get_args(Fill)))}")
    if every is None:
        raise InvalidQuery(f"fill = {fill!r} fills buckets; set their width with `every`")
    return fill  # type: ignore[return-value]


def refuse_too_many(buckets: Buckets, spans: Mapping[Pair, TimeSpan]) -> None:
    """Raise `InvalidQuery` if these buckets would produce more than `MOST_ROWS` rows."""
    rows = sum(buckets.most(low, high) for low, high in spans.values())
    if rows > MOST_ROWS:
        raise InvalidQuery(
            f"this query would return about {rows:,} rows; the limit is {MOST_ROWS:,}. Use wider buckets, a "
            "shorter span between start and end, or fewer series"
        )


def fill_gaps(
    found: AggregateColumns,
    buckets: Buckets,
    spans: Mapping[Pair, TimeSpan],
    fill: Fill,
    leading: Mapping[Pair, Any],
) -> AggregateColumns:
    """Return the columns with one row for every bucket of each series' span [low, high].

    `found` must include the aggregate `count`. `leading` has the last reading of series before their span, which
    `previous` treats as a bucket with that single reading.
    """
    rows = _rows_by_series(found)
    filled = AggregateColumns([], [], [], {name: [] for name in found.values})
    cached: dict[TimeSpan, tuple[list[int], list[int]]] = {}
    for pair in sorted(spans):
        span = spans[pair]
        if span not in cached:
            numbers = buckets.numbers(*span)
            cached[span] = numbers, [buckets.start_us_of(number) for number in numbers]
        numbers, starts_us = cached[span]
        own = rows.get(pair, {})
        at = [own.get(number, -1) for number in numbers]
        _extend(filled.sensors, [pair[0]] * len(numbers))
        _extend(filled.metrics, [pair[1]] * len(numbers))
        _extend(filled.numbers, numbers)
        held = list(accumulate(at, _later)) if fill == "previous" else at
        gaps = list(_gaps(at, starts_us)) if fill == "linear" else []
        for name, column in found.values.items():
            if name == "count":
                _extend(filled.values[name], [0 if row < 0 else column[row] for row in at])
                continue
            lead = _of_one(name, leading[pair]) if fill == "previous" and pair in leading else None
            values = [lead if row < 0 else column[row] for row in held]
            for place, left, right, share in gaps:
                values[place] = _between(column[left], column[right], share)
            _extend(filled.values[name], values)
    return filled


def _rows_by_series(found: AggregateColumns) -> dict[Pair, dict[int, int]]:
    """Return for each series the rows of its buckets with readings, by bucket number."""
    rows: dict[Pair, dict[int, int]] = {}
    keys = zip(found.sensors, found.metrics, found.numbers, found.values["count"], strict=True)
    for row, (sensor, metric, number, count) in enumerate(keys):
        if count:
            rows.setdefault((sensor, metric), {})[number] = row
    return rows


def _gaps(at: Sequence[int], starts_us: Sequence[int]) -> Iterator[tuple[int, int, int, float]]:
    """Yield the places between two buckets with readings: place, the rows on either side, the fraction between."""
    left = -1
    for right, row in enumerate(at):
        if row < 0:
            continue
        if left >= 0:
            whole = starts_us[right] - starts_us[left]
            for place in range(left + 1, right):
                yield place, at[left], row, (starts_us[place] - starts_us[left]) / whole
        left = right


def _between(left: Any, right: Any, share: float) -> float | None:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None
    value = left if left == right else left * (1 - share) + right * share
    return None if value != value else value


def _later(held: int, row: int) -> int:
    return held if row < 0 else row


def _of_one(name: str, reading: Any) -> Any:
    """Return an aggregate of a single reading."""
    if name == "stddev" or (isinstance(reading, str) and name not in ("first", "last")):
        return None
    return reading


def _extend(column: Any, values: Sequence[Any]) -> None:
    column.extend(values)
