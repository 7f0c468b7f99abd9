"""Reading points: the queries over the columns, the same for every engine. Returns plain rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, func, or_, select
from sqlalchemy.types import NullType

from repo.engines.traits import traits_of
from repo.errors import InvalidQuery
from repo.models import Point
from repo.repositories.buckets import Buckets
from repo.repositories.selection import Selection

__all__ = ["AGGREGATES", "NUMERIC", "Query", "aggregate", "in_seq", "in_time", "newest", "span"]

AGGREGATES = ("avg", "min", "max", "sum", "count", "first", "last")
"""What `aggregate` can compute. All skip rows without a reading; `first` and `last` go by time."""

NUMERIC = frozenset({"avg", "min", "max", "sum"})
"""Those that a text series does not have."""

Pairs = Iterable[tuple[str, str]]

_points: Any = Point.__table__
_c = _points.c
_READING = (_c.timestamp_us, _c.value, _c.value_text, _c.quality, _c.metadata)

MOST_NUMBERED = 1_000
"""The most names that are numbered by a query; more are dearer to find in a list than to fetch as texts."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query for points, and what its columns stand for.

    Columns: [sensor_id, metric_name,] timestamp_us, value, value_text, quality, metadata [, seq].
    """

    statement: Select[Any]
    series: tuple[str, str] | None
    """The one series that all rows are of; its names are then no columns."""
    names: tuple[list[str], list[str]] | None
    """The sensors and metrics, in order, that numbers stand for in place of the names; None: names are texts."""
    sorted_by: str | None
    """The column by which rows have still to be sorted (mostly they are already); None: they are."""


def in_time(connection: Connection, selection: Selection, known: Pairs, *, numbered: bool) -> Query:
    """Ask for points in order of time, then names; with `numbered`, names may come as numbers, without seq."""
    where = selection.where(Point, known)
    if selection.exact is not None:
        return Query(select(*_READING).where(where), selection.exact, None, "timestamp_us")
    names, columns = _name_columns(connection, known, numbered)
    wanted = _READING if numbered else (*_READING, _c.seq)
    statement = select(*columns, *wanted).where(where).order_by(_c.timestamp_us, *columns)
    return Query(statement, None, names, None)


def in_seq(connection: Connection, after: int, through: int, known: Pairs, *, numbered: bool) -> Query:
    """Ask for the points with after < seq <= through in order of seq; `numbered` as above."""
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


def span(connection: Connection, selection: Selection, known: Pairs) -> tuple[int, int] | None:
    """Return the first and last time of the selected points, or None if there are none."""
    first, last = connection.execute(
        select(func.min(_c.timestamp_us), func.max(_c.timestamp_us)).where(selection.where(Point, known))
    ).one()
    return None if first is None else (first, last)


def aggregate(
    connection: Connection,
    selection: Selection,
    known: Pairs,
    aggregates: Sequence[str],
    buckets: Buckets | None,
) -> Sequence[Any]:
    """Return a row per series and bucket: names, [bucket number,] then each aggregate.

    `first` and `last` take two columns each: the number, and the text.
    """
    for name in aggregates:
        if name not in AGGREGATES:
            raise InvalidQuery(f"there is no aggregate {name!r}; there are {', '.join(AGGREGATES)}")
    keys: list[ColumnElement[Any]] = [_c.sensor_id, _c.metric_name]
    if buckets is not None:
        keys.append(buckets.expression(_c.timestamp_us).label("bucket"))
    if {"first", "last"} & set(aggregates) and not traits_of(connection).has_arg_extremes:
        return connection.execute(_joined(selection, known, aggregates, keys)).all()
    columns = [column for name in aggregates for column in _columns(name)]
    query = select(*keys, *columns).where(selection.where(Point, known)).group_by(*keys).order_by(*keys)
    return connection.execute(query).all()


def _columns(name: str) -> list[ColumnElement[Any]]:
    if name == "count":
        return [(func.count(_c.value) + func.count(_c.value_text)).label("count")]
    if name in ("first", "last"):
        pick = func.arg_min if name == "first" else func.arg_max
        return [pick(column, _c.timestamp_us) for column in (_c.value, _c.value_text)]
    return [getattr(func, name)(_c.value).label(name)]


def _joined(
    selection: Selection, known: Pairs, aggregates: Sequence[str], keys: Sequence[ColumnElement[Any]]
) -> Select[Any]:
    """The same by a join with the first and last readings, for engines that have no arg_min."""
    readings = or_(_c.value.is_not(None), _c.value_text.is_not(None))
    at = func.iif(readings, _c.timestamp_us, None)
    plain = [column for name in aggregates if name not in ("first", "last") for column in _columns(name)]
    groups = (
        select(*keys, *plain, func.min(at).label("first_at"), func.max(at).label("last_at"))
        .where(selection.where(Point, known))
        .group_by(*keys)
        .subquery()
    )
    chosen: list[Any] = list(groups.c)[: len(keys)]
    source: Any = groups
    for name in aggregates:
        if name in ("first", "last"):
            edge = _points.alias(name)
            source = source.outerjoin(
                edge,
                and_(
                    edge.c.sensor_id == groups.c.sensor_id,
                    edge.c.metric_name == groups.c.metric_name,
                    edge.c.timestamp_us == groups.c[f"{name}_at"],
                ),
            )
            chosen += [edge.c.value, edge.c.value_text]
        else:
            chosen.append(groups.c[name])
    return select(*chosen).select_from(source).order_by(*list(groups.c)[: len(keys)])
