"""Sorting: rewrites the points of a span of seqs in order of series, then time, in DuckDB. Never commits.

The order of the steps is fixed: a sorted copy in a temporary table, the delete, the append. Nothing after the append
reads or deletes points: DuckDB 2.0.0 doubles rows or crashes if it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Connection

from repo.cursors import Span
from repo.errors import FlushFailed
from repo.models import Point
from repo.repositories.apply_table import single_threaded

__all__ = ["Weight", "count", "first_seq", "is_sorted", "rewrite", "weigh"]

_points: Any = Point.__table__
_KEY = ("sensor_id", "metric_name")

_PROBE_SEQS = 4_096
"""Points that arrived interleaved are out of order within this many seqs, so only a few have to be read."""

_NAMES = "holdfast_names"
_SORTED = "holdfast_sorted"
_LISTS = "holdfast_lists"
_NUMBER = "holdfast_series"
"""The column with the number of the series. No user should have a column with such a name, nor with those of the
lists."""

# The columns of the table, with those that a user added.
_COLUMNS = """
    SELECT column_name, data_type FROM duckdb_columns()
    WHERE database_name = current_database() AND schema_name = current_schema() AND table_name = 'time_series_data'
    ORDER BY column_index
"""


class Weight(NamedTuple):
    """What the points of a span take in memory: their number, the bytes of their texts, the columns with content."""

    rows: int
    text_bytes: int
    columns: tuple[tuple[str, bool], ...]
    """The quoted columns except the names of the series, and whether any of the points has a value there."""


def first_seq(connection: Connection) -> int | None:
    """Return the smallest seq of all points."""
    found = connection.exec_driver_sql(f"SELECT min(seq) FROM {_points}").scalar_one()
    return None if found is None else int(found)


def count(connection: Connection, span: Span) -> int:
    """Return the number of points in a span."""
    return int(connection.exec_driver_sql(f"SELECT count(*) FROM {_points} {_within(span)}").scalar_one())


def weigh(connection: Connection, span: Span) -> Weight:
    """Return what the points of a span take in memory."""
    columns = [
        ('"' + name.replace('"', '""') + '"', kind)
        for name, kind in connection.exec_driver_sql(_COLUMNS)
        if name not in _KEY
    ]
    texts = [
        f"coalesce(sum({'strlen' if kind == 'VARCHAR' else 'octet_length'}({name})), 0)"
        for name, kind in columns
        if kind in ("VARCHAR", "BLOB")
    ]
    counts = ", ".join(f"count({name})" for name, _ in columns)
    row = connection.exec_driver_sql(
        f"SELECT count(*), {' + '.join(texts) or 0}, {counts} FROM {_points} {_within(span)}"
    ).one()
    filled = ((name, found > 0) for (name, _), found in zip(columns, row[2:], strict=True))
    return Weight(int(row[0]), int(row[1]), tuple(filled))


def is_sorted(connection: Connection, span: Span) -> bool:
    """Return whether the points of a span already are in order in the table. Reads few points of most that are not."""
    probe = Span(span.first, min(span.last, span.first + _PROBE_SEQS))
    return _is_sorted(connection, probe) and (probe == span or _is_sorted(connection, span))


def _is_sorted(connection: Connection, span: Span) -> bool:
    # A window without ORDER BY streams the rows in the order of the table.
    before = ", ".join(f"lag({name}) OVER () AS {alias}" for name, alias in _LAGGED)
    return not connection.exec_driver_sql(
        f"SELECT count(*) FROM (SELECT sensor_id, metric_name, timestamp_us, {before} FROM {_points} {_within(span)}) "
        "WHERE s > sensor_id OR (s = sensor_id AND (m > metric_name OR (m = metric_name AND t > timestamp_us)))"
    ).scalar_one()


_LAGGED = (("sensor_id", "s"), ("metric_name", "m"), ("timestamp_us", "t"))


def rewrite(connection: Connection, span: Span, weight: Weight, step: Callable[[], object]) -> None:
    """Rewrite the points of a span in order. `weight` is that of the span; `step` is called between statements.

    The caller's transaction must not read or delete points afterwards. After an error the connection must be closed.
    """
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE {_NAMES} AS SELECT *, (row_number() OVER (ORDER BY sensor_id, metric_name))::INTEGER "
        f"AS {_NUMBER} FROM (SELECT DISTINCT sensor_id, metric_name FROM {_points} {_within(span)})"
    )
    step()
    # A number sorts faster than names, and takes less memory, as do columns without content.
    kept = ", ".join(name for name, filled in weight.columns if filled)
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE {_SORTED} AS SELECT {_NUMBER}, {kept} FROM {_points} "
        f"JOIN {_NAMES} USING (sensor_id, metric_name) {_within(span)} ORDER BY {_NUMBER}, timestamp_us"
    )
    step()
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE {_LISTS} AS SELECT list(sensor_id ORDER BY {_NUMBER}) AS holdfast_sensors, "
        f"list(metric_name ORDER BY {_NUMBER}) AS holdfast_metrics FROM {_NAMES}"
    )
    [(copied,)] = connection.exec_driver_sql(f"SELECT count(*) FROM {_SORTED}")
    [(deleted,)] = connection.exec_driver_sql(f"DELETE FROM {_points} {_within(span)}")
    step()
    names = ", ".join(name for name, _ in weight.columns)
    values = ", ".join(name if filled else "NULL" for name, filled in weight.columns)
    with single_threaded(connection):
        # The product with one row keeps the order, which a join with the names need not do. As constants of the
        # statement, long lists would be copied again and again: 4 s for 100,000 series.
        [(appended,)] = connection.exec_driver_sql(
            f"INSERT INTO {_points} (sensor_id, metric_name, {names}) "
            f"SELECT holdfast_sensors[{_NUMBER}], holdfast_metrics[{_NUMBER}], {values} FROM {_SORTED}, {_LISTS}"
        )
    if not copied == deleted == appended == weight.rows:
        raise FlushFailed(
            f"{weight.rows} points of the seqs {span.first} to {span.last} were counted, {copied} copied, {deleted} "
            f"deleted and {appended} appended; nothing was changed"
        )
    for table in (_SORTED, _NAMES, _LISTS):
        connection.exec_driver_sql(f"DROP TABLE temp.{table}")


def _within(span: Span) -> str:
    return f"WHERE seq BETWEEN {span.first:d} AND {span.last:d}"
