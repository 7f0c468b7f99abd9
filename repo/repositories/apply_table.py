"""Apply a table: merges many points into the columns, as a set, in one DuckDB transaction. Never commits.

It takes the same steps as `apply` does for rows, in the same order, for the same reason: nothing after the append
reads or deletes points.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.schema import CreateTable

from repo.errors import HoldfastError
from repo.models import Point
from repo.queries.selection import Selection, Summary
from repo.repositories.apply import GAP_US, MOST_SPANS, Applied, drop, incoming
from repo.repositories.series import SummaryRepository

__all__ = ["ROW_GROUP_ROWS", "Arriving", "Part", "merge", "single_threaded", "survey"]

ROW_GROUP_ROWS = 122_880
"""Rows per row group of DuckDB. A transaction that fills one writes it straight to the file."""

_points: Any = Point.__table__
_COLUMNS = ", ".join(f'"{column.name}"' for column in _points.c)
_MET = "holdfast_met"
"""Which incoming rows (by seq) have the identity of a stored point (by rowid), and whether both are the same."""


class Part(NamedTuple):
    """One series in a table: the number of rows, their span, and the newest row as the end of a summary."""

    points: int
    first_us: int
    last_us: int
    newest: tuple[Any, ...]
    """value, value_text, quality, metadata, seq."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """Points to merge."""

    name: str
    source: Any
    """The object that the driver registers under this name."""
    select: str
    """SQL for the columns of a stored point, with unique seqs, in the order of the rows."""
    rows: int
    parts: Mapping[tuple[str, str], Part]
    """Every series in the rows."""
    unique: bool
    """Whether all identities are distinct. If not, the row with the highest seq counts."""
    returned: Set[int] = frozenset()
    """The seqs of rows that are stored even if they equal the stored points; see `apply`."""


def merge(
    connection: Connection,
    arriving: Arriving,
    deletion: Selection | None,
    summaries: Mapping[tuple[str, str], Summary],
    *,
    keep: bool,
) -> Applied:
    """Apply one deletion (to every stored point), and then merge the arriving points.

    An arriving point overwrites the stored one of its identity, unless both are equal or `keep` is set; see `apply`.
    `summaries` has the summaries of all series and is not modified; the new ones are returned.
    """
    applied = drop(connection, deletion, summaries)
    known, parts, rows = applied.known, arriving.parts, arriving.rows
    driver: Any = connection.connection.driver_connection
    driver.register(arriving.name, arriving.source)
    source = f"({arriving.select})"
    if not arriving.unique:
        _hold(connection, source, "true")
        rows, source = _keep_last(connection), str(incoming)
    span = _span(parts, known)
    left_out = 0
    if span is not None:
        if arriving.unique:
            _hold(connection, source, "timestamp_us BETWEEN {} AND {}".format(*span))
        left_out, lost = _meet(connection, *span, keep=keep, returned=arriving.returned)
        for pair, count in lost.items():
            known[pair] = known[pair]._replace(points=known[pair].points - count)
        applied.overwritten = sum(lost.values())
        if left_out:
            source = f"(SELECT * FROM {source} WHERE seq NOT IN (SELECT seq FROM {_MET} WHERE same))"
    if left_out or not arriving.unique:
        parts = _parts_of(connection, source)
    with single_threaded(connection) if rows >= ROW_GROUP_ROWS else nullcontext():
        added = connection.exec_driver_sql(
            f"INSERT INTO {_points} ({_COLUMNS}) SELECT {_COLUMNS} FROM {source}"
        ).scalar_one()
    if added != rows - left_out:
        raise HoldfastError(
            f"DuckDB added {added:,} of {rows - left_out:,} points; the transaction is undone"
        )
    if span is not None or not arriving.unique:
        _release(connection)
    driver.unregister(arriving.name)  # nothing to undo after an error: the connection is closed then
    for pair, part in parts.items():
        applied.touched[pair] = known[pair] = _with_part(known.get(pair), part)
    applied.gone -= applied.touched.keys()
    SummaryRepository(connection).replace(applied.touched, applied.gone)
    return applied


def survey(
    connection: Connection, name: str, source: Any
) -> tuple[list[tuple[int, int, int, int, int]], bool]:
    """Read points whose series are numbered: the columns series, timestamp_us and seq of `source`.

    Returns for each series its number, its points, the first and last time, and the seq of the newest point; and
    whether all identities are distinct, False if that is uncertain.
    """
    driver: Any = connection.connection.driver_connection
    driver.register(name, source)
    found = connection.exec_driver_sql(
        "SELECT series, count(*), min(timestamp_us), max(timestamp_us), arg_max(seq, timestamp_us) "
        f"FROM {name} GROUP BY series"
    ).all()
    # By hash, which is faster; two identities with equal hashes count as one.
    distinct = connection.exec_driver_sql(
        f"SELECT count(DISTINCT hash(series, timestamp_us)) FROM {name}"
    ).scalar_one()
    driver.unregister(name)
    groups = [(number, points, first, last, seq) for number, points, first, last, seq in found]
    return groups, distinct == sum(group[1] for group in groups)


@contextmanager
def single_threaded(connection: Connection) -> Iterator[None]:
    """Append with one thread. With several, DuckDB 2.0 writes pieces that the next checkpoint compresses again.

    That doubled the time of a load of 10 million points. After an error the connection is closed, with its settings.
    """
    threads = connection.exec_driver_sql("SELECT current_setting('threads')").scalar_one()
    connection.exec_driver_sql("SET threads = 1")
    yield
    connection.exec_driver_sql(f"SET threads = {threads:d}")


def _span(
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


def _hold(connection: Connection, source: str, condition: str) -> None:
    """Copy rows to a temporary table, which DuckDB joins better than a stream, as it knows its size."""
    # IF NOT EXISTS, not a flag on the connection: a rollback removes the table again.
    connection.execute(CreateTable(incoming, if_not_exists=True))
    connection.exec_driver_sql(
        f"INSERT INTO {incoming} ({_COLUMNS}) SELECT {_COLUMNS} FROM {source} WHERE {condition}"
    )


def _release(connection: Connection) -> None:
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS temp.{incoming}")
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS temp.{_MET}")


def _keep_last(connection: Connection) -> int:
    """Remove all but the last row of each identity, and return the number of rows that are left."""
    connection.exec_driver_sql(
        f"DELETE FROM {incoming} WHERE seq NOT IN "
        f"(SELECT max(seq) FROM {incoming} GROUP BY sensor_id, metric_name, timestamp_us)"
    )
    return int(connection.exec_driver_sql(f"SELECT count(*) FROM {incoming}").scalar_one())


def _meet(
    connection: Connection, low: int, high: int, *, keep: bool, returned: Set[int]
) -> tuple[int, dict[tuple[str, str], int]]:
    """Compare the held rows with the stored points, and delete those that are overwritten.

    Returns how many rows are to be left out, as they change nothing, and the deleted points by series.
    """
    same = (
        "true"
        if keep
        else " AND ".join(
            f"p.{name} IS NOT DISTINCT FROM i.{name}"
            for name in ("value", "value_text", "quality", "metadata")
        )
    )
    connection.exec_driver_sql(
        f"CREATE OR REPLACE TEMPORARY TABLE {_MET} (seq BIGINT, stored BIGINT, same BOOLEAN)"
    )
    for first, last in _spans(connection, low, high):
        connection.exec_driver_sql(
            f"INSERT INTO {_MET} SELECT i.seq, p.rowid, {same} FROM {_points} AS p JOIN {incoming} AS i ON "
            "p.sensor_id = i.sensor_id AND p.metric_name = i.metric_name AND p.timestamp_us = i.timestamp_us "
            f"WHERE p.timestamp_us BETWEEN {first:d} AND {last:d} AND i.timestamp_us BETWEEN {first:d} AND {last:d}"
        )
    if returned and not keep:
        same_seqs = set(connection.exec_driver_sql(f"SELECT seq FROM {_MET} WHERE same").scalars())
        if again := ", ".join(map(str, same_seqs & returned)):
            connection.exec_driver_sql(f"UPDATE {_MET} SET same = false WHERE seq IN ({again})")
    met, left_out = connection.exec_driver_sql(
        f"SELECT count(*), count(*) FILTER (WHERE same) FROM {_MET}"
    ).one()
    if met == left_out:
        return left_out, {}
    counted = connection.exec_driver_sql(
        f"SELECT sensor_id, metric_name, count(*) FROM {incoming} WHERE seq IN "
        f"(SELECT seq FROM {_MET} WHERE NOT same) GROUP BY ALL"
    )
    lost = {(sensor, metric): count for sensor, metric, count in counted}
    connection.exec_driver_sql(
        f"DELETE FROM {_points} WHERE timestamp_us BETWEEN {low:d} AND {high:d} AND rowid IN "
        f"(SELECT stored FROM {_MET} WHERE NOT same)"
    )
    return left_out, lost


def _spans(connection: Connection, low: int, high: int) -> list[tuple[int, int]]:
    """Divide a span at the largest gaps between the times of the held rows, so that one late row does not widen it."""
    if high - low <= GAP_US:
        return [(low, high)]
    within = f"{incoming} WHERE timestamp_us BETWEEN {low:d} AND {high:d}"
    gaps = connection.exec_driver_sql(
        "SELECT before_us, timestamp_us FROM (SELECT timestamp_us, lag(timestamp_us) OVER (ORDER BY timestamp_us) AS "
        f"before_us FROM {within}) WHERE timestamp_us - before_us > {GAP_US} "
        f"ORDER BY timestamp_us - before_us DESC LIMIT {MOST_SPANS - 1}"
    ).all()
    edges = [low, *(edge for gap in sorted(tuple(gap) for gap in gaps) for edge in gap), high]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _parts_of(connection: Connection, source: str) -> dict[tuple[str, str], Part]:
    rows: Iterable[Any] = connection.exec_driver_sql(
        "SELECT sensor_id, metric_name, count(*), min(timestamp_us), max(timestamp_us), "
        f"arg_max(row(value, value_text, quality, metadata, seq), timestamp_us) FROM {source} GROUP BY ALL"
    )
    return {(row[0], row[1]): Part(row[2], row[3], row[4], tuple(row[5])) for row in rows}


def _with_part(summary: Summary | None, part: Part) -> Summary:
    """Return the summary of a series after these points are added."""
    if summary is None:
        return Summary(part.points, part.first_us, part.last_us, *part.newest)
    points, first_us = summary.points + part.points, min(summary.first_us, part.first_us)
    if part.last_us >= summary.last_us:
        return Summary(points, first_us, part.last_us, *part.newest)
    return summary._replace(points=points, first_us=first_us)
