"""Extents: how many points a selection means, series by series, from when to when, and how many wait to be sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, false, func, select

from repo.models import Point
from repo.repositories.selection import Selection

__all__ = ["Extent", "extents"]

_c: Any = Point.__table__.c


class Extent(NamedTuple):
    """Points of one series; times in µs since 1970 UTC."""

    sensor_id: str
    metric_name: str
    points: int
    unsent: int
    """How many of them lie past the seq that was asked for."""
    first_us: int
    last_us: int


def extents(
    connection: Connection, selection: Selection, known: Iterable[tuple[str, str]], sent_through: int | None
) -> list[Extent]:
    """Count the stored points of a selection by series, in order of names; series without one are left out.

    `sent_through` is the seq through which everything was sent; None where nothing is to be sent.
    """
    waits = false() if sent_through is None else _c.seq > sent_through
    unsent = func.count(case((waits, 1)))
    query = select(
        _c.sensor_id,
        _c.metric_name,
        func.count(),
        unsent,
        func.min(_c.timestamp_us),
        func.max(_c.timestamp_us),
    ).group_by(_c.sensor_id, _c.metric_name)
    known = list(known)
    return sorted(
        Extent(*row)
        for piece in selection.pieces(known)
        for row in connection.execute(query.where(piece.where(Point, known)))
    )
