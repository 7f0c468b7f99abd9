"""Batches for tests of sinks and encodings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repo.delivery.protocol import Batch, Columns, Lane, RecordItem, Tokens

STORE = "ab" * 16
START_US = 1_714_521_600_000_000

Point = tuple[str, str, int, float | str | None]


def columns_of(points: Sequence[Sequence[Any]], first_seq: int = 1) -> Columns:
    """Columns of points (sensor, metric, µs, value[, quality[, metadata]])."""
    filled = [(*point, *(100, None)[len(point) - 4 :]) for point in points]
    return (
        [point[0] for point in filled],
        [point[1] for point in filled],
        [point[2] for point in filled],
        [None if isinstance(point[3], str) else point[3] for point in filled],
        [point[3] if isinstance(point[3], str) else None for point in filled],
        [point[4] for point in filled],
        [point[5] for point in filled],
        list(range(first_seq, first_seq + len(filled))),
    )


def batch_of(
    points: Sequence[Sequence[Any]],
    first_seq: int = 1,
    *,
    lane: Lane = Lane.LIVE,
    attempt: int = 1,
    records: Sequence[RecordItem] = (),
) -> Batch:
    """A batch of these points, which follow each other."""
    last = first_seq + max(len(points), 1) - 1
    return Batch(
        STORE,
        1,
        "there",
        first_seq,
        last,
        lane,
        Tokens(None, f"{last:032x}"),
        columns_of(points, first_seq),
        records,
        attempt,
    )
