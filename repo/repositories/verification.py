"""Verification: whether the summaries match the stored points, and what they should be. Never commits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, func, insert, select

from repo.models import Point, StorageMetadata
from repo.queries.selection import Summary
from repo.repositories.series import SummaryRepository

__all__ = ["VerificationRepository", "corrections"]

_KEY = "holdfast.counts_verified"

_NOTE = select(StorageMetadata.key).where(StorageMetadata.key == _KEY)

_points: Any = Point.__table__


class VerificationRepository:
    """The note that the counts of a file were verified, and changed since then only by code that keeps them right."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def is_noted(self) -> bool:
        """Return whether the note exists."""
        return self._connection.execute(_NOTE).first() is not None

    def note(self) -> None:
        """Add the note, unless it exists."""
        if not self.is_noted():
            self._connection.execute(insert(StorageMetadata).values(key=_KEY, value="1"))


def corrections(connection: Connection) -> tuple[dict[tuple[str, str], Summary], set[tuple[str, str]]]:
    """Return corrected summaries for the series whose summary is wrong, and the series that have no points.

    Reads names and times of all points once, and the other columns only for series with a wrong summary.
    """
    known = SummaryRepository(connection).all()
    sensor, metric, time = _points.c.sensor_id, _points.c.metric_name, _points.c.timestamp_us
    counted = (
        select(
            sensor,
            metric,
            func.count().label("points"),
            func.min(time).label("first"),
            func.max(time).label("last"),
        )
        .group_by(sensor, metric)
        .subquery()
    )
    newest = select(counted.c.points, counted.c.first, _points).join(
        counted,
        and_(sensor == counted.c.sensor_id, metric == counted.c.metric_name, time == counted.c.last),
    )
    wrong: dict[tuple[str, str], Summary] = {}
    found: set[tuple[str, str]] = set()
    for points, first_us, s, m, *point in connection.execute(newest):
        found.add((s, m))
        summary = Summary(points, first_us, *point)
        if known.get((s, m)) != summary:
            wrong[(s, m)] = summary
    return wrong, known.keys() - found
