"""Apply a table: merges a chunk of a table into the columns, as a set, in one DuckDB transaction. Never commits.

It takes the same steps as `apply` does for rows, in the same order, for the same reason: nothing after the append
reads or deletes points.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, delete, func, insert, select
from sqlalchemy.schema import CreateTable

from repo.models import Point
from repo.queries.selection import Summary
from repo.repositories.apply import EQUAL, SAME_IDENTITY, Applied, incoming
from repo.repositories.series import SummaryRepository

__all__ = ["Part", "merge"]

_points: Any = Point.__table__
_COLUMNS = ", ".join(f'"{column.name}"' for column in _points.c)


class Part(NamedTuple):
    """One series in a chunk: the number of rows, their span, and the newest row as the end of a summary."""

    points: int
    first_us: int
    last_us: int
    newest: tuple[Any, ...]
    """value, value_text, quality, metadata, seq."""


def merge(
    connection: Connection,
    table: tuple[str, Any],
    chosen: str,
    parts: Mapping[tuple[str, str], Part],
    summaries: Mapping[tuple[str, str], Summary],
    *,
    first_seq: int,
    unique: bool,
    keep: bool,
) -> Applied:
    """Merge the rows that `chosen` selects from `table`: a name and the object that the driver registers under it.

    The rows get seqs from `first_seq` on, in their order. Among rows of equal identity the last one wins. It also
    overwrites a stored point, unless both are equal or `keep` is set. `parts` describes every series in the rows.
    `summaries` has the summaries of all series and is not modified; the new ones are returned.
    """
    driver: Any = connection.connection.driver_connection
    name, source = table
    numbered = f"SELECT *, {first_seq:d} - 1 + row_number() OVER () AS seq FROM ({chosen})"
    known = dict(summaries)
    met = _met(parts, known)
    applied = Applied(known)
    driver.register(name, source)
    if unique and met is None:
        with _in_whole_row_groups(connection):
            connection.exec_driver_sql(f"INSERT INTO {_points} ({_COLUMNS}) {numbered}")
    else:
        connection.execute(CreateTable(incoming, if_not_exists=True))
        connection.exec_driver_sql(f"INSERT INTO {incoming} ({_COLUMNS}) {numbered}")
        if not unique:
            _keep_last(connection)
        lost = {} if met is None else _settle(connection, *met, keep=keep)
        parts = _parts_of(connection)
        for pair, count in lost.items():
            known[pair] = known[pair]._replace(points=known[pair].points - count)
        applied.overwritten = sum(lost.values())
        with _in_whole_row_groups(connection):
            connection.execute(insert(_points).from_select([c.name for c in incoming.c], select(incoming)))
        connection.execute(delete(incoming))
    driver.unregister(name)  # nothing to undo after an error: the connection is closed then
    for pair, part in parts.items():
        applied.touched[pair] = known[pair] = _with_part(known.get(pair), part)
    SummaryRepository(connection).replace(applied.touched)
    return applied


@contextmanager
def _in_whole_row_groups(connection: Connection) -> Iterator[None]:
    """Append with one thread. With several, DuckDB 2.0 writes pieces that the next checkpoint compresses again.

    That doubled the time of a load of 10 million points. After an error the connection is closed, with its settings.
    """
    threads = connection.exec_driver_sql("SELECT current_setting('threads')").scalar_one()
    connection.exec_driver_sql("SET threads = 1")
    yield
    connection.exec_driver_sql(f"SET threads = {threads:d}")


def _met(
    parts: Mapping[tuple[str, str], Part], known: Mapping[tuple[str, str], Summary]
) -> tuple[int, int] | None:
    """Return the span in which stored points could have the same identities, or None."""
    spans = [
        (max(part.first_us, known[pair].first_us), min(part.last_us, known[pair].last_us))
        for pair, part in parts.items()
        if pair in known
    ]
    spans = [(low, high) for low, high in spans if low <= high]
    return (min(low for low, _ in spans), max(high for _, high in spans)) if spans else None


def _keep_last(connection: Connection) -> None:
    identity = (incoming.c.sensor_id, incoming.c.metric_name, incoming.c.timestamp_us)
    last = select(func.max(incoming.c.seq)).group_by(*identity)
    connection.execute(delete(incoming).where(incoming.c.seq.not_in(last)))


def _settle(connection: Connection, low: int, high: int, *, keep: bool) -> dict[tuple[str, str], int]:
    """Remove rows equal to stored points; delete the stored points that are overwritten, and count them."""
    within = and_(
        SAME_IDENTITY, _points.c.timestamp_us.between(low, high), incoming.c.timestamp_us.between(low, high)
    )
    standing = select(incoming.c.seq).join_from(incoming, _points, within)
    if not keep:
        standing = standing.where(EQUAL)
    connection.execute(delete(incoming).where(incoming.c.seq.in_(standing)))
    if keep:
        return {}
    names = (incoming.c.sensor_id, incoming.c.metric_name)
    counted = select(*names, func.count()).join_from(incoming, _points, within).group_by(*names)
    lost = {(sensor, metric): count for sensor, metric, count in connection.execute(counted)}
    if lost:
        connection.exec_driver_sql(
            f"DELETE FROM {_points} WHERE rowid IN (SELECT p.rowid FROM {_points} AS p JOIN {incoming} AS i ON "
            "p.sensor_id = i.sensor_id AND p.metric_name = i.metric_name AND p.timestamp_us = i.timestamp_us "
            f"WHERE p.timestamp_us BETWEEN {low:d} AND {high:d} AND i.timestamp_us BETWEEN {low:d} AND {high:d})"
        )
    return lost


def _parts_of(connection: Connection) -> dict[tuple[str, str], Part]:
    c = incoming.c
    newest = func.row(c.value, c.value_text, c.quality, c.metadata, c.seq)
    query = select(
        c.sensor_id,
        c.metric_name,
        func.count(),
        func.min(c.timestamp_us),
        func.max(c.timestamp_us),
        func.arg_max(newest, c.timestamp_us),
    ).group_by(c.sensor_id, c.metric_name)
    rows: Iterable[Any] = connection.execute(query)
    return {(row[0], row[1]): Part(row[2], row[3], row[4], tuple(row[5])) for row in rows}


def _with_part(summary: Summary | None, part: Part) -> Summary:
    """Return the summary of a series after these points are added."""
    if summary is None:
        return Summary(part.points, part.first_us, part.last_us, *part.newest)
    points, first_us = summary.points + part.points, min(summary.first_us, part.first_us)
    if part.last_us >= summary.last_us:
        return Summary(points, first_us, part.last_us, *part.newest)
    return summary._replace(points=points, first_us=first_us)
