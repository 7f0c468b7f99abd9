"""Slices: the points of a span in order of series, then time, as exports write them. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Select, and_, func, select

from repo.engines.traits import traits_of
from repo.models import Point, SeriesSummary
from repo.repositories.selection import Selection

__all__ = ["SliceReader", "slices_on", "span_of"]

_points: Any = Point.__table__
_series: Any = SeriesSummary.__table__
_c = _points.c


@dataclass(frozen=True, slots=True)
class SliceReader:
    """How one engine reads spans of a selection of series, on a connection of its own."""

    count: Callable[[Selection], int]
    """How many points there are."""
    last_seq: Callable[[Selection], int | None]
    """The largest seq of theirs; None if none has one."""
    first: Callable[[Selection], int | None]
    """The time of the first of them."""
    read: Callable[[Selection], Any]
    """All of them: an object with `__arrow_c_stream__` if `columnar`, else rows."""
    columnar: bool


def slices_on(connection: Connection, known: Iterable[tuple[str, str]]) -> SliceReader:
    """Return the reader for the engine under this connection; `known` are the series that have points."""
    reader = _scanned if traits_of(connection).name == "duckdb" else _sought
    return reader(connection, list(known))


def _scanned(connection: Connection, known: list[tuple[str, str]]) -> SliceReader:
    """By scans, which skip what lies outside the span."""

    def read(selection: Selection) -> Any:
        # Numbers sort three times faster than names; a series that were unknown would come last, not be lost.
        rank = func.row_number().over(order_by=(_series.c.sensor_id, _series.c.metric_name)).label("rank")
        ranks = select(_series.c.sensor_id, _series.c.metric_name, rank).subquery()
        same = and_(_c.sensor_id == ranks.c.sensor_id, _c.metric_name == ranks.c.metric_name)
        query = (
            select(_points)
            .join_from(_points, ranks, same, isouter=True)
            .where(selection.where(Point, known))
            .order_by(ranks.c.rank, _c.timestamp_us)
        )
        return _relation(connection, query)

    def one(of: Any, selection: Selection) -> Any:
        return connection.execute(select(of).where(selection.where(Point, known))).scalar_one()

    return SliceReader(
        count=lambda selection: int(one(func.count(_c.timestamp_us), selection)),
        last_seq=lambda selection: one(func.max(_c.seq), selection),
        first=lambda selection: one(func.min(_c.timestamp_us), selection),
        read=read,
        columnar=True,
    )


def _relation(connection: Connection, query: Select[Any]) -> Any:
    """Return the query as a relation of the driver, which gives its rows as Arrow."""
    compiled = query.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    driver: Any = connection.connection.driver_connection
    return driver.sql(str(compiled), params=[compiled.params[name] for name in compiled.positiontup or ()])


def _sought(connection: Connection, known: list[tuple[str, str]]) -> SliceReader:
    """By the key, a series after the other: any other way would read the whole table for each span."""
    driver: Any = connection.connection.driver_connection
    names = ", ".join(f'"{column.name}"' for column in _c)

    def each(what: str, selection: Selection, order: str = "") -> Iterator[Any]:
        span = "".join(
            f" AND timestamp_us {sign} {bound:d}"
            for sign, bound in ((">=", selection.start_us), ("<", selection.end_us))
            if bound is not None
        )
        sql = f"SELECT {what} FROM time_series_data WHERE sensor_id = ? AND metric_name = ?{span}{order}"
        for pair in sorted(known):
            if selection.names(*pair):
                yield from driver.execute(sql, pair).fetchall()

    def read(selection: Selection) -> Sequence[Any]:
        return list(each(names, selection, " ORDER BY timestamp_us"))

    def first(selection: Selection) -> int | None:
        firsts = [us for (us,) in each("min(timestamp_us)", selection) if us is not None]
        return min(firsts, default=None)

    def last_seq(selection: Selection) -> int | None:
        return max((seq for (seq,) in each("max(seq)", selection) if seq is not None), default=None)

    return SliceReader(
        last_seq=last_seq,
        count=lambda selection: sum(count for (count,) in each("count(*)", selection)),
        first=first,
        read=read,
        columnar=False,
    )


def span_of(selection: Selection, start_us: int, end_us: int) -> Selection:
    """Return the same series in another span."""
    return replace(selection, start_us=start_us, end_us=end_us)
