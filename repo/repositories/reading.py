"""Reading points: the queries over the columns, the same for every engine. Returns plain rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from repo.models import Point
from repo.repositories.selection import Selection

__all__ = ["Position", "newest", "page", "window"]

Pairs = Iterable[tuple[str, str]]

_points: Any = Point.__table__
_c = _points.c


class Position(NamedTuple):
    """The last row of a page, from which the next one goes on."""

    timestamp_us: int
    sensor_id: str
    metric_name: str


def page(
    connection: Connection, selection: Selection, known: Pairs, position: Position | None, limit: int
) -> Sequence[Any]:
    """Return the next rows in order of time, then names: all columns of the table."""
    query = select(_points).where(selection.where(Point, known)).limit(limit)
    if selection.exact:
        query = query.order_by(_c.timestamp_us)
    else:
        query = query.order_by(_c.timestamp_us, _c.sensor_id, _c.metric_name)
    if position is not None:
        query = query.where(_c.timestamp_us >= position.timestamp_us, _past(position))
    return connection.execute(query).all()


def _past(position: Position) -> ColumnElement[bool]:
    return or_(
        _c.timestamp_us > position.timestamp_us,
        _c.sensor_id > position.sensor_id,
        and_(_c.sensor_id == position.sensor_id, _c.metric_name > position.metric_name),
    )


def newest(connection: Connection, selection: Selection, known: Pairs, limit: int) -> Sequence[Any]:
    """Return the newest `limit` rows of each selected series, newest first within a series."""
    where = selection.where(Point, known)
    if selection.exact:
        return connection.execute(
            select(_points).where(where).order_by(_c.timestamp_us.desc()).limit(limit)
        ).all()
    rank = func.row_number().over(
        partition_by=(_c.sensor_id, _c.metric_name), order_by=_c.timestamp_us.desc()
    )
    ranked = select(_points, rank.label("rank")).where(where).subquery()
    query = (
        select(*(ranked.c[column.name] for column in _c))
        .where(ranked.c.rank <= limit)
        .order_by(ranked.c.sensor_id, ranked.c.metric_name, ranked.c.timestamp_us.desc())
    )
    return connection.execute(query).all()


def window(connection: Connection, after: int, through: int) -> Sequence[Any]:
    """Return the rows with after < seq <= through in order of seq."""
    return connection.execute(select(_points).where(_c.seq > after, _c.seq <= through).order_by(_c.seq)).all()
