"""Apply: one batch of changes to the columns in one transaction, whatever the engine. Never commits.

The order of the steps is fixed: deletes on stored rows, comparison with stored rows, removal of those that
are overwritten, append, summaries. Nothing after the append reads or deletes points: DuckDB 2.0.0 doubles
rows or crashes if it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
)
from sqlalchemy.schema import CreateTable

from repo.engines.base import Traits
from repo.engines.registry import traits_of
from repo.models import Point
from repo.queries.rows import Row
from repo.queries.selection import Selection, Summary
from repo.queries.summaries import Summaries
from repo.repositories.series import SummaryRepository

__all__ = ["GAP_US", "MOST_SPANS", "Applied", "DroppedPoints", "apply", "drop", "incoming"]

GAP_US = 3_600_000_000
"""Points more than an hour apart are compared with stored rows separately, so that one late point does not
widen the span to read."""

MOST_SPANS = 8

MOST_NAMED = 20
"""The maximum number of series that the search for new first and last points names one by one."""

_FIRST_WINDOW_US = 3_600_000_000
_WINDOW_GROWTH = 16


@dataclass(frozen=True, slots=True)
class DroppedPoints:
    """What a delete removed: how many points, and their time span."""

    count: int = 0
    first_us: int | None = None
    last_us: int | None = None

    def plus(self, other: DroppedPoints) -> DroppedPoints:
        """Return the sum of both."""
        firsts = [us for us in (self.first_us, other.first_us) if us is not None]
        lasts = [us for us in (self.last_us, other.last_us) if us is not None]
        return DroppedPoints(self.count + other.count, min(firsts, default=None), max(lasts, default=None))


@dataclass(slots=True)
class Applied:
    """What a batch changed: points overwritten and dropped, series touched and gone."""

    known: Summaries
    """The summaries of all series after the batch."""
    overwritten: int = 0
    dropped: DroppedPoints = field(default_factory=DroppedPoints)
    touched: dict[tuple[str, str], Summary] = field(default_factory=dict)
    gone: set[tuple[str, str]] = field(default_factory=set)


_temporary = MetaData()
incoming = Table(
    "holdfast_incoming",
    _temporary,
    Column("sensor_id", String),
    Column("metric_name", String),
    Column("timestamp_us", BigInteger),
    Column("value", Double),
    Column("value_text", String),
    Column("quality", Integer),
    Column("metadata", String),
    Column("seq", BigInteger),
    prefixes=["TEMPORARY"],
)
"""The temporary table that holds rows for the comparison with stored points."""

_points: Any = Point.__table__

_SAME_IDENTITY = and_(
    *(_points.c[name] == incoming.c[name] for name in ("sensor_id", "metric_name", "timestamp_us"))
)
_EQUAL = and_(
    *(
        _points.c[name].is_not_distinct_from(incoming.c[name])
        for name in ("value", "value_text", "quality", "metadata")
    )
)
"""Whether an incoming row equals the stored point of its identity."""


def apply(
    connection: Connection,
    rows: Sequence[Row],
    deletion: Selection | None,
    summaries: Mapping[tuple[str, str], Summary],
    *,
    keep: bool = False,
    returned: Set[int] = frozenset(),
) -> Applied:
    """Apply one deletion (to every stored point) and then `rows` (unique by identity, seqs unique).

    With `keep`, a stored point wins over a row of the same identity. Without, it stays if both are equal, unless the
    row's seq is in `returned`: then another value came between the two. `summaries` has the summaries of all series and
    is not modified; the result has what they are once the transaction is committed.
    """
    traits = traits_of(connection)
    applied = drop(connection, deletion, summaries)
    known = applied.known
    groups = _grouped(rows)
    spans = _spans(rows, groups, known)
    if spans:
        left = _compare(connection, traits, rows, spans, known, applied, keep=keep, returned=returned)
        if len(left) < len(rows):
            rows, groups = left, _grouped(left)
    for pair, group in groups.items():
        applied.touched[pair] = known[pair] = _with_group(known.get(pair), group)
    if rows and not spans:
        traits.load(connection, _points, rows)
    elif rows:
        connection.execute(insert(_points).from_select([c.name for c in incoming.c], select(incoming)))
        connection.execute(delete(incoming))
    applied.gone -= applied.touched.keys()
    SummaryRepository(connection).replace(applied.touched, applied.gone)
    return applied


def drop(
    connection: Connection, deletion: Selection | None, summaries: Mapping[tuple[str, str], Summary]
) -> Applied:
    """Begin a batch with its deletion, if any."""
    applied = Applied(Summaries.copied(summaries))
    for piece in () if deletion is None else list(deletion.pieces(applied.known)):
        _delete(connection, piece, applied.known, applied)
    return applied


class _SeriesRows:
    """The rows of one series in a batch: their number, the first time, and the newest row."""

    __slots__ = ("first_us", "newest", "points")

    def __init__(self, row: Row) -> None:
        self.points = 0
        self.first_us: int = row[2]
        self.newest = row


def _grouped(rows: Iterable[Row]) -> dict[tuple[str, str], _SeriesRows]:
    groups: dict[tuple[str, str], _SeriesRows] = {}
    for row in rows:
        pair = (row[0], row[1])
        group = groups.get(pair)
        if group is None:
            group = groups[pair] = _SeriesRows(row)
        elif row[2] > group.newest[2]:
            group.newest = row
        elif row[2] < group.first_us:
            group.first_us = row[2]
        group.points += 1
    return groups


def _with_group(summary: Summary | None, group: _SeriesRows) -> Summary:
    """Return the summary of a series after these rows are added."""
    newest = group.newest
    if summary is None:
        return Summary(group.points, group.first_us, newest[2], *newest[3:])
    points, first_us = summary.points + group.points, min(summary.first_us, group.first_us)
    if newest[2] >= summary.last_us:
        return Summary(points, first_us, newest[2], *newest[3:])
    return summary._replace(points=points, first_us=first_us)


# --- deletes --------------------------------------------------------------------------------------------


def _delete(connection: Connection, deletion: Selection, known: Summaries, applied: Applied) -> None:
    where = deletion.where(Point, known)
    taken = {
        (sensor, metric): DroppedPoints(count, first_us, last_us)
        for sensor, metric, count, first_us, last_us in connection.execute(
            select(
                _points.c.sensor_id,
                _points.c.metric_name,
                func.count(),
                func.min(_points.c.timestamp_us),
                func.max(_points.c.timestamp_us),
            )
            .where(where)
            .group_by(_points.c.sensor_id, _points.c.metric_name)
        )
    }
    if not taken:
        return
    connection.execute(delete(_points).where(where))
    for dropped in taken.values():
        applied.dropped = applied.dropped.plus(dropped)
    _mend_summaries(connection, taken, known, applied)


def _mend_summaries(
    connection: Connection,
    taken: dict[tuple[str, str], DroppedPoints],
    known: Summaries,
    applied: Applied,
) -> None:
    """Remove the dropped points from the summaries. Dropped first and last points are searched next to the cut."""
    lost_first: dict[tuple[str, str], int] = {}
    lost_last: dict[tuple[str, str], int] = {}
    for pair, dropped in taken.items():
        summary = known[pair]
        assert dropped.first_us is not None
        assert dropped.last_us is not None
        if dropped.count >= summary.points:
            del known[pair]
            applied.touched.pop(pair, None)
            applied.gone.add(pair)
            continue
        known[pair] = applied.touched[pair] = summary._replace(points=summary.points - dropped.count)
        if dropped.first_us <= summary.first_us:
            lost_first[pair] = summary.first_us
        if dropped.last_us >= summary.last_us:
            lost_last[pair] = summary.last_us
    firsts = _nearest(connection, lost_first, known, forward=True)
    lasts = _nearest(connection, lost_last, known, forward=False)
    for pair in (lost_first.keys() - firsts.keys()) | (lost_last.keys() - lasts.keys()):
        # The count was too high; the stored points decide.
        del known[pair], applied.touched[pair]
        applied.gone.add(pair)
    for pair, row in firsts.items():
        if pair in known:
            known[pair] = applied.touched[pair] = known[pair]._replace(first_us=row[2])
    for pair, row in lasts.items():
        if pair in known:
            known[pair] = applied.touched[pair] = known[pair]._replace(
                last_us=row[2],
                last_value=row[3],
                last_value_text=row[4],
                last_quality=row[5],
                last_metadata=row[6],
                last_seq=row[7],
            )


def _nearest(
    connection: Connection,
    lost: dict[tuple[str, str], int],
    known: Summaries,
    *,
    forward: bool,
) -> dict[tuple[str, str], Any]:
    """Find the remaining point of each series that is nearest to its dropped first or last point.

    The windows grow. The last one covers the spans of all series still missing; one not found then has no points.
    """
    found: dict[tuple[str, str], Any] = {}
    window_us = _FIRST_WINDOW_US
    time = _points.c.timestamp_us
    extreme = func.min(time) if forward else func.max(time)
    while missing := [pair for pair in lost if pair not in found]:
        edges = [lost[pair] for pair in missing]
        low, high = (min(edges), max(edges) + window_us) if forward else (min(edges) - window_us, max(edges))
        within = time.between(low, high)
        if len(missing) <= MOST_NAMED:  # with more, searching all series is faster than searching by name
            named = (and_(_points.c.sensor_id == s, _points.c.metric_name == m) for s, m in missing)
            within = and_(within, or_(*named))
        edge = (
            select(_points.c.sensor_id, _points.c.metric_name, extreme.label("timestamp_us"))
            .where(within)
            .group_by(_points.c.sensor_id, _points.c.metric_name)
            .subquery()
        )
        query = select(_points).join(
            edge,
            and_(
                _points.c.sensor_id == edge.c.sensor_id,
                _points.c.metric_name == edge.c.metric_name,
                time == edge.c.timestamp_us,
            ),
        )
        wanted = set(missing)
        for row in connection.execute(query.where(time.between(low, high))):
            if (row[0], row[1]) in wanted:
                found[(row[0], row[1])] = row
        spans = [known[pair] for pair in missing]
        covered = low <= min(s.first_us for s in spans) and high >= max(s.last_us for s in spans)
        if covered:
            return found
        window_us *= _WINDOW_GROWTH
    return found


# --- the comparison with stored rows --------------------------------------------------------------------


def _compare(
    connection: Connection,
    traits: Traits,
    rows: Sequence[Row],
    spans: Iterable[tuple[int, int]],
    known: Summaries,
    applied: Applied,
    *,
    keep: bool,
    returned: Set[int],
) -> Sequence[Row]:
    """Load the rows, drop those equal to stored rows, and delete the stored rows that they overwrite."""
    _load(connection, traits, rows)
    stored = _stored(connection, traits, spans)
    if not stored:
        return rows
    same = {seq for seq, _, equal in stored if keep or (equal and seq not in returned)}
    overwritten = [(seq, rowid) for seq, rowid, _ in stored if seq not in same]
    if same:
        rows = [row for row in rows if row[7] not in same]
        connection.execute(delete(incoming))
        if rows:
            traits.load(connection, incoming, rows)
    if overwritten:
        _remove(connection, traits, [rowid for _, rowid in overwritten])
        seqs = {seq for seq, _ in overwritten}
        for row in rows:
            if row[7] in seqs:
                pair = (row[0], row[1])
                known[pair] = known[pair]._replace(points=known[pair].points - 1)
    applied.overwritten = len(overwritten)
    return rows


def _load(connection: Connection, traits: Traits, rows: Sequence[Row]) -> None:
    # IF NOT EXISTS, not a flag on the connection: a rollback removes the table again.
    connection.execute(CreateTable(incoming, if_not_exists=True))
    traits.load(connection, incoming, rows)


def _spans(
    rows: Sequence[Row],
    groups: dict[tuple[str, str], _SeriesRows],
    known: Summaries,
) -> list[tuple[int, int]]:
    """Return the time spans in which stored rows could have the identity of one of these.

    Rows after the newest stored point of their series cannot collide. That is the normal case, and nothing is
    read then.
    """
    late = {
        pair
        for pair, group in groups.items()
        if (stored := known.get(pair)) is not None
        and group.first_us <= stored.last_us
        and group.newest[2] >= stored.first_us
    }
    if not late:
        return []
    times = sorted({row[2] for row in rows if (row[0], row[1]) in late})
    gaps = sorted((b - a, at) for at, (a, b) in enumerate(pairwise(times), 1) if b - a > GAP_US)
    cuts = sorted(at for _, at in gaps[-(MOST_SPANS - 1) :])
    return [
        (times[start], times[end - 1]) for start, end in zip([0, *cuts], [*cuts, len(times)], strict=True)
    ]


def _stored(
    connection: Connection, traits: Traits, spans: Iterable[tuple[int, int]]
) -> list[tuple[int, Any, bool]]:
    """Return (seq of the incoming row, rowid of the stored row, whether they are equal) for each collision."""
    rowid = literal_column("time_series_data.rowid") if traits.has_rowid else incoming.c.seq
    met: list[tuple[int, Any, bool]] = []
    for low, high in spans:
        query = (
            select(incoming.c.seq, rowid, _EQUAL)
            .join_from(incoming, _points, _SAME_IDENTITY)
            .where(_points.c.timestamp_us.between(low, high), incoming.c.timestamp_us.between(low, high))
        )
        met += [(seq, stored, bool(same)) for seq, stored, same in connection.execute(query)]
    return met


def _remove(connection: Connection, traits: Traits, rowids: list[Any]) -> None:
    """Delete the overwritten rows in one statement."""
    if traits.has_rowid:
        # Row ids that the engine returned as numbers. They are inlined because a parameter list of this length
        # costs more than the delete.
        doomed = ", ".join(str(int(rowid)) for rowid in rowids)
        connection.exec_driver_sql(f"DELETE FROM time_series_data WHERE rowid IN ({doomed})")
        return
    key = (_points.c.sensor_id, _points.c.metric_name, _points.c.timestamp_us)
    twin = select(incoming.c.sensor_id, incoming.c.metric_name, incoming.c.timestamp_us)
    connection.execute(delete(_points).where(tuple_(*key).in_(twin)))
