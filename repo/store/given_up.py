"""Counts the points that a sink gives up with `skip`. They stay in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, or_, select

from repo.core.handle import Handle
from repo.cursors import Span
from repo.errors import EngineMissing, FlushFailed, StoreBusy, StoreFull
from repo.models import Point
from repo.queries.selection import Selection

__all__ = ["GivenUp", "count_given_up"]

_c: Any = Point.__table__.c


class GivenUp(NamedTuple):
    """How many points, and their first and last time in µs since 1970 UTC."""

    points: int
    first_us: int | None
    last_us: int | None


def count_given_up(handle: Handle, gaps: Sequence[Span], chosen: Selection | None) -> GivenUp | None:
    """Count the points of ranges of seqs that the filter of a sink selects; None if the columns cannot be read now."""
    in_gaps = or_(*(_c.seq.between(*gap) for gap in gaps))
    query = select(
        func.count().label("points"),
        func.min(_c.timestamp_us).label("first_us"),
        func.max(_c.timestamp_us).label("last_us"),
    ).where(in_gaps)
    try:
        with handle.reading("counting what a sink skips") as (connection, known):
            pieces = (chosen or Selection()).pieces(known)
            found = [connection.execute(query.where(piece.where(Point, known))).one() for piece in pieces]
    except (StoreBusy, EngineMissing, FlushFailed, StoreFull):
        return None
    counts = [count for count in found if count.points]
    return GivenUp(
        sum(count.points for count in counts),
        min((count.first_us for count in counts), default=None),
        max((count.last_us for count in counts), default=None),
    )
