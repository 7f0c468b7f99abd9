"""Counts: how many points a selection has, by series, and how many of a batch are already stored. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, case, func, null, select

from repo.engines.registry import traits_of
from repo.models import Point
from repo.queries.selection import Selection, Summary

__all__ = ["Brought", "SeriesExtent", "extents", "present"]

_NAME = "holdfast_brought"


class Brought(Protocol):
    """A batch of incoming points: as an object that the engine's driver can register, or as identities."""

    def table(self) -> Any:
        """Return the points with all columns of a stored point except seq."""

    def identities(self) -> Iterable[tuple[str, str, int]]:
        """Return sensor, metric and time in µs of each point."""


def present(
    connection: Connection,
    known: Mapping[tuple[str, str], Summary],
    spans: Mapping[tuple[str, str], tuple[int, int]],
    brought: Brought,
) -> int:
    """Return how many of the incoming points have the series and time of a stored point.

    `known` has the summaries of the stored series, `spans` the first and last time of each incoming series.
    Repeated identities count once.
    """
    met = [
        (max(first_us, known[pair].first_us), min(last_us, known[pair].last_us))
        for pair, (first_us, last_us) in spans.items()
        if pair in known
    ]
    met = [(low, high) for low, high in met if low <= high]
    if not met:
        return 0
    low, high = min(low for low, _ in met), max(high for _, high in met)
    if traits_of(connection).joins_objects:
        return _joined(connection, low, high, brought)
    return _sought(connection, low, high, brought)


def _joined(connection: Connection, low: int, high: int, brought: Brought) -> int:
    driver: Any = connection.connection.driver_connection
    driver.register(_NAME, brought.table())
    try:
        [(count,)] = connection.exec_driver_sql(
            f"SELECT count(DISTINCT p.rowid) FROM {_NAME} AS b JOIN time_series_data AS p ON "
            "b.sensor_id = p.sensor_id AND b.metric_name = p.metric_name AND b.timestamp_us = p.timestamp_us "
            f"WHERE p.timestamp_us BETWEEN {low:d} AND {high:d}"
        ).all()
    finally:
        driver.unregister(_NAME)
    return int(count)


def _sought(connection: Connection, low: int, high: int, brought: Brought) -> int:
    driver: Any = connection.connection.driver_connection
    sql = "SELECT 1 FROM time_series_data WHERE sensor_id = ? AND metric_name = ? AND timestamp_us = ?"
    return sum(
        driver.execute(sql, identity).fetchone() is not None
        for identity in brought.identities()
        if low <= identity[2] <= high
    )


_c: Any = Point.__table__.c


class SeriesExtent(NamedTuple):
    """Points of one series; times in µs since 1970 UTC."""

    sensor_id: str
    metric_name: str
    points: int
    unsent: int | None
    """How many of them not every sink has confirmed; None if there is no sink."""
    first_us: int
    last_us: int


def extents(
    connection: Connection, selection: Selection, known: Iterable[tuple[str, str]], sent_through: int | None
) -> list[SeriesExtent]:
    """Count the stored points of a selection by series, in order of names; series without points are left out.

    Everything up to the seq `sent_through` was sent; None if there is no sink.
    """
    unsent = null() if sent_through is None else func.count(case((_c.seq > sent_through, 1)))
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
        SeriesExtent(*row)
        for piece in selection.pieces(known)
        for row in connection.execute(query.where(piece.where(Point, known)))
    )
