"""The SQL that reads points from the columns, the same for every engine. Returns plain rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, select
from sqlalchemy.types import NullType

from repo.engines.registry import traits_of
from repo.models import Point
from repo.queries.selection import Selection

__all__ = ["Query", "in_seq", "in_time", "newest"]

Pairs = Iterable[tuple[str, str]]

_points: Any = Point.__table__
_c = _points.c
_READING = (_c.timestamp_us, _c.value, _c.value_text, _c.quality, _c.metadata)

MOST_NUMBERED = 1_000
"""The most names that a query numbers; with more, finding them in the list costs more than fetching the texts."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query for points, and the meaning of its columns.

    Columns: [sensor_id, metric_name,] timestamp_us, value, value_text, quality, metadata [, seq].
    """

    statement: Select[Any]
    series: tuple[str, str] | None
    """The series of all rows, if there is only one; its names are then not among the columns."""
    names: tuple[list[str], list[str]] | None
    """The sensors and metrics that numbers in the name columns refer to, in order; None if the names are texts."""
    sorted_by: str | None
    """The column by which the caller must sort the rows, which are mostly in order; None if they are sorted."""


def in_time(connection: Connection, selection: Selection, known: Pairs, *, numbered: bool) -> Query:
    """Query points in order of time, then names. With `numbered`, names may be numbers and seq is left out."""
    where = selection.where(Point, known)
    if selection.exact is not None:
        return Query(select(*_READING).where(where), selection.exact, None, "timestamp_us")
    names, columns = _name_columns(connection, known, numbered)
    wanted = _READING if numbered else (*_READING, _c.seq)
    statement = select(*columns, *wanted).where(where).order_by(_c.timestamp_us, *columns)
    return Query(statement, None, names, None)


def in_seq(connection: Connection, after: int, through: int, known: Pairs, *, numbered: bool) -> Query:
    """Query the points with after < seq <= through in order of seq; `numbered` as in `in_time`."""
    names, columns = _name_columns(connection, known, numbered)
    statement = select(*columns, *_READING, _c.seq).where(_c.seq > after, _c.seq <= through)
    return Query(statement, None, names, "seq")


def _name_columns(
    connection: Connection, known: Pairs, numbered: bool
) -> tuple[tuple[list[str], list[str]] | None, list[ColumnElement[Any]]]:
    if numbered and traits_of(connection).numbers_names:
        pairs = list(known)
        names = sorted({sensor for sensor, _ in pairs}), sorted({metric for _, metric in pairs})
        if max(map(len, names)) <= MOST_NUMBERED:
            return names, [
                (func.list_position(_list_of(listed), column) - 1).label(column.name)
                for listed, column in zip(names, (_c.sensor_id, _c.metric_name), strict=True)
            ]
    return None, [_c.sensor_id, _c.metric_name]


def _list_of(names: list[str]) -> ColumnElement[Any]:
    return bindparam(None, names, type_=NullType(), unique=True)


def newest(connection: Connection, selection: Selection, known: Pairs, limit: int) -> Sequence[Any]:
    """Return the newest `limit` rows of each selected series, newest first within a series."""
    where = selection.where(Point, known)
    if selection.exact:
        query = select(_points).where(where).order_by(_c.timestamp_us.desc()).limit(limit)
        return traits_of(connection).rows(connection, query, -1)
    rank = func.row_number().over(
        partition_by=(_c.sensor_id, _c.metric_name), order_by=_c.timestamp_us.desc()
    )
    ranked = select(_points, rank.label("rank")).where(where).subquery()
    query = (
        select(*(ranked.c[column.name] for column in _c))
        .where(ranked.c.rank <= limit)
        .order_by(ranked.c.sensor_id, ranked.c.metric_name, ranked.c.timestamp_us.desc())
    )
    return traits_of(connection).rows(connection, query, -1)
