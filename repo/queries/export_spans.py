"""Spans of time as exports write them: the points of each in order of series, then time. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, func, select

from repo.engines.registry import traits_of
from repo.models import Point
from repo.queries.order import UNSORTED, Order
from repo.queries.point_sql import MOST_NUMBERED
from repo.queries.selection import Selection

__all__ = ["SpanReader", "span_of", "span_reader"]

_c: Any = Point.__table__.c
_UNNAMED = ", ".join(f'"{column.name}"' for column in _c if column.name not in ("sensor_id", "metric_name"))
_NAMED = f"sensor_id, metric_name, {_UNNAMED}"

_MOST_PAIRS = 100_000
"""The maximum number of combinations of a sensor and a metric that a query numbers."""

_PLAIN_BYTES = 40
"""The memory that a point takes in columns, without its texts."""


@dataclass(frozen=True, slots=True)
class SpanReader:
    """Functions by which one engine reads spans of selected series, all on one connection."""

    count: Callable[[Selection], int]
    """The number of points."""
    weight: Callable[[Selection], int]
    """The number of points; if their texts are long, the number of points without text of the same size."""
    last_seq: Callable[[Selection], int | None]
    """The largest seq of the points; None if there are none."""
    first: Callable[[Selection], int | None]
    """The time of the first point."""
    rows: Callable[[Selection], Sequence[Any]]
    """All points."""
    columns: Callable[[Selection], Any] | None
    """All points, as an object with `__arrow_c_stream__`; its column `series` is an index into the list of series.
    None if the engine has no columns."""


def span_reader(
    connection: Connection, series: Sequence[tuple[str, str]], order: Order = UNSORTED
) -> SpanReader:
    """Return the reader for the engine of this connection. `series` are the series to read, in this order.

    `order` is that of the points in the file, which need not be sorted again where they are.
    """
    if traits_of(connection).joins_objects:
        return _scanned(connection, series, order)
    return _sought(connection, series)


def _scanned(connection: Connection, series: Sequence[tuple[str, str]], order: Order) -> SpanReader:
    """Read by scans, which skip data outside the span."""
    driver: Any = connection.connection.driver_connection
    number = _number_of(series)

    def is_sorted(selection: Selection) -> bool:
        """Return whether the points are in order in the file, as part of one slice."""
        if not order.slices:
            return False
        [(first, last)] = driver.execute(
            f"SELECT min(seq), max(seq) FROM time_series_data WHERE true{_within(selection)}"
        ).fetchall()
        inside = None if first is None else order.covering(first)
        return inside is not None and inside.is_sorted and last <= inside.last_seq

    def read(selection: Selection, columns: str) -> Any:
        if number is not None and selection.all_names and is_sorted(selection):
            sql, values = number
            # Not by a join, which does not keep the order.
            return driver.sql(
                f"SELECT {columns} FROM (SELECT *, {sql} AS series FROM time_series_data "
                f"WHERE true{_within(selection)}) WHERE series IS NOT NULL",
                params=values,
            )
        # A number sorts three times faster than names, and takes less memory.
        return driver.sql(
            f"SELECT {columns} FROM time_series_data JOIN (SELECT unnest(?) AS sensor_id, unnest(?) AS metric_name, "
            f"unnest(range({len(series):d}))::INTEGER AS series) USING (sensor_id, metric_name) "
            f"WHERE true{_within(selection)} ORDER BY series, timestamp_us",
            params=[[sensor for sensor, _ in series], [metric for _, metric in series]],
        )

    def one(of: Any, selection: Selection) -> Any:
        return connection.execute(select(of).where(selection.where(Point, series))).scalar_one()

    def weight(selection: Selection) -> int:
        texts = (func.coalesce(func.sum(func.strlen(text)), 0) for text in (_c.value_text, _c.metadata))
        return int(one(func.greatest(func.count(), sum(texts) // _PLAIN_BYTES), selection))

    return SpanReader(
        count=lambda selection: int(one(func.count(_c.timestamp_us), selection)),
        weight=weight,
        last_seq=lambda selection: one(func.max(_c.seq), selection),
        first=lambda selection: one(func.min(_c.timestamp_us), selection),
        rows=lambda selection: read(selection, _NAMED).fetchall(),
        columns=lambda selection: read(selection, f"series, {_UNNAMED}"),
    )


def _number_of(series: Sequence[tuple[str, str]]) -> tuple[str, list[Any]] | None:
    """Return the SQL for the place of a point's series in the list, and its parameters; None if there are too many.

    The place of a series that is not in the list is NULL.
    """
    sensors, metrics = (sorted({pair[at] for pair in series}) for at in (0, 1))
    if max(len(sensors), len(metrics)) > MOST_NUMBERED or len(sensors) * len(metrics) > _MOST_PAIRS:
        return None
    places = {pair: place for place, pair in enumerate(series)}
    table = [places.get((sensor, metric)) for sensor in sensors for metric in metrics]
    sql = (
        f"list_extract(?::INTEGER[], ((list_position(?::VARCHAR[], sensor_id) - 1) * {len(metrics):d} "
        "+ list_position(?::VARCHAR[], metric_name))::BIGINT)"
    )
    return sql, [table, sensors, metrics]


def _sought(connection: Connection, series: Sequence[tuple[str, str]]) -> SpanReader:
    """Seek by the key, one series after the other, because other plans would read the whole table for each span."""
    driver: Any = connection.connection.driver_connection

    def each(what: str, selection: Selection, order: str = "") -> Iterator[Any]:
        sql = f"SELECT {what} FROM time_series_data WHERE sensor_id = ? AND metric_name = ?{_within(selection)}{order}"
        for pair in series:
            yield from driver.execute(sql, pair).fetchall()

    def rows(selection: Selection) -> Sequence[Any]:
        return list(each(_NAMED, selection, " ORDER BY timestamp_us"))

    def count(selection: Selection) -> int:
        return sum(count for (count,) in each("count(*)", selection))

    def first(selection: Selection) -> int | None:
        firsts = [us for (us,) in each("min(timestamp_us)", selection) if us is not None]
        return min(firsts, default=None)

    def last_seq(selection: Selection) -> int | None:
        return max((seq for (seq,) in each("max(seq)", selection) if seq is not None), default=None)

    return SpanReader(count=count, weight=count, last_seq=last_seq, first=first, rows=rows, columns=None)


def _within(selection: Selection) -> str:
    """Return the SQL of the span, to append to another condition."""
    return "".join(
        f" AND timestamp_us {sign} {bound:d}"
        for sign, bound in ((">=", selection.start_us), ("<", selection.end_us))
        if bound is not None
    )


def span_of(selection: Selection, start_us: int, end_us: int) -> Selection:
    """Return the same series in another span."""
    return replace(selection, start_us=start_us, end_us=end_us)
