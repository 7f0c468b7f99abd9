"""The SQL that reads points from the columns, the same for every engine. Returns plain rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, literal_column, select
from sqlalchemy.types import NullType

from repo.engines.registry import traits_of
from repo.engines.statements import Statement, Template, compiled
from repo.models import Point
from repo.queries.selection import Selection

__all__ = ["Query", "first_seq", "has", "in_seq", "in_time", "newest", "size_in_seq", "time_at"]

Pairs = Iterable[tuple[str, str]]

_points: Any = Point.__table__
_c = _points.c
_READING = (_c.timestamp_us, _c.value, _c.value_text, _c.quality, _c.metadata)
_IS_OF_ONE = (_c.sensor_id == bindparam("sensor_id"), _c.metric_name == bindparam("metric_name"))

MOST_NUMBERED = 1_000
"""The maximum number of names that a query numbers; with more, finding them in the list costs more than the texts."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query for points, and the meaning of its columns.

    Columns: [sensor_id, metric_name,] timestamp_us, value, value_text, quality, metadata [, seq].
    """

    statement: Statement
    series: tuple[str, str] | None
    """The series of all rows, if there is only one; its names are then not among the columns."""
    names: tuple[list[str], list[str]] | None
    """The sensors and metrics that numbers in the name columns refer to, in order; None if the names are texts."""
    sorted_by: str | None
    """The column by which the caller must sort the rows, which are mostly in order; None if they are sorted."""


def in_time(connection: Connection, selection: Selection, known: Pairs, *, with_seq: bool) -> Query:
    """Query points in order of time, then names; only those of several series may be `with_seq`."""
    dialect, exact = connection.dialect, selection.exact
    if exact is not None:
        start_us, end_us = selection.start_us, selection.end_us
        statement = _of_one(start_us is not None, end_us is not None).filled(
            dialect, sensor_id=exact[0], metric_name=exact[1], start_us=start_us, end_us=end_us
        )
        return Query(statement, exact, None, "timestamp_us")
    names = _numbered(connection, known)
    columns = _name_columns(names)
    query = select(*columns, *_READING, *([_c.seq] if with_seq else [])).where(selection.where(Point, known))
    query = query.order_by(_c.timestamp_us, *columns)
    return Query(compiled(query, dialect), None, names, None)


def time_at(
    connection: Connection, selection: Selection, known: Pairs, place: int, *, newest_first: bool
) -> int:
    """Return the time of the point that has `place` points before it in order of time; there must be one."""
    at = _c.timestamp_us
    query = select(at).where(selection.where(Point, known)).order_by(at.desc() if newest_first else at)
    return int(connection.execute(query.limit(1).offset(place)).scalar_one())


def in_seq(connection: Connection, after: int, through: int, known: Pairs) -> Query:
    """Query the points with after < seq <= through, in order of seq."""
    names = _numbered(connection, known)
    sensors, metrics = names or (None, None)
    only = (False, False) if names is None else (len(names[0]) == 1, len(names[1]) == 1)
    statement = _after_seq(names is not None, only).filled(
        connection.dialect, sensors=sensors, metrics=metrics, after=after, through=through
    )
    return Query(statement, None, names, "seq")


def has(connection: Connection, sensor_id: str, metric_name: str, timestamp_us: int) -> bool:
    """Return whether there is a point of this series and time."""
    point = (_c.sensor_id == sensor_id, _c.metric_name == metric_name, _c.timestamp_us == timestamp_us)
    return connection.execute(select(_c.seq).where(*point).limit(1)).first() is not None


def first_seq(connection: Connection) -> int:
    """Return the lowest seq of all points; 0 if there are none."""
    return connection.execute(select(func.min(_c.seq))).scalar_one() or 0


def size_in_seq(connection: Connection, after: int, through: int) -> tuple[int, int]:
    """Return the number of points with after < seq <= through, and the characters of their texts and metadata."""
    statement = _size_in_seq().filled(connection.dialect, after=after, through=through)
    points, chars = connection.exec_driver_sql(statement.sql, statement.parameters).one()
    return points, int(chars or 0)


@cache
def _size_in_seq() -> Template:
    chars = func.coalesce(func.length(_c.value_text), 0) + func.coalesce(func.length(_c.metadata), 0)
    sizes: list[ColumnElement[Any]] = [func.count().label("points"), func.sum(chars).label("chars")]
    return Template(select(*sizes).where(_c.seq > bindparam("after"), _c.seq <= bindparam("through")))


@cache
def _of_one(from_start: bool, to_end: bool) -> Template:
    query = select(*_READING).where(*_IS_OF_ONE)
    if from_start:
        query = query.where(_c.timestamp_us >= bindparam("start_us"))
    if to_end:
        query = query.where(_c.timestamp_us < bindparam("end_us"))
    return Template(query)


@cache
def _newest_of_one() -> Template:
    query = select(_points).where(*_IS_OF_ONE)
    return Template(query.order_by(_c.timestamp_us.desc()).limit(bindparam("limit")))


@cache
def _after_seq(numbered: bool, only: tuple[bool, bool]) -> Template:
    columns = _name_columns(([], []) if numbered else None)
    columns = [
        literal_column("0").label(column.name) if the_only_name else column
        for column, the_only_name in zip(columns, only, strict=True)
    ]
    return Template(
        select(*columns, *_READING, _c.seq).where(_c.seq > bindparam("after"), _c.seq <= bindparam("through"))
    )


def _numbered(connection: Connection, known: Pairs) -> tuple[list[str], list[str]] | None:
    """Return the names by which the query may number the sensors and metrics; None if it should return them."""
    if not traits_of(connection).numbers_names:
        return None
    pairs = list(known)
    names = sorted({sensor for sensor, _ in pairs}), sorted({metric for _, metric in pairs})
    return names if max(map(len, names)) <= MOST_NUMBERED else None


def _name_columns(names: tuple[list[str], list[str]] | None) -> list[ColumnElement[Any]]:
    columns = [_c.sensor_id, _c.metric_name]
    if names is None:
        return columns
    lists = (
        bindparam(key, listed, type_=NullType())
        for key, listed in zip(("sensors", "metrics"), names, strict=True)
    )
    return [
        (func.list_position(listed, column) - 1).label(column.name)
        for listed, column in zip(lists, columns, strict=True)
    ]


def newest(connection: Connection, selection: Selection, known: Pairs, limit: int) -> Sequence[Any]:
    """Return the newest `limit` rows of each selected series, whenever they are from, newest first within a series."""
    exact, dialect = selection.exact, connection.dialect
    if exact is not None:
        statement = _newest_of_one().filled(dialect, sensor_id=exact[0], metric_name=exact[1], limit=limit)
        return traits_of(connection).rows(connection, statement, -1)
    rank = func.row_number().over(
        partition_by=(_c.sensor_id, _c.metric_name), order_by=_c.timestamp_us.desc()
    )
    ranked = select(_points, rank.label("rank")).where(selection.where(Point, known)).subquery()
    query = (
        select(*(ranked.c[column.name] for column in _c))
        .where(ranked.c.rank <= limit)
        .order_by(ranked.c.sensor_id, ranked.c.metric_name, ranked.c.timestamp_us.desc())
    )
    return traits_of(connection).rows(connection, compiled(query, dialect), -1)
