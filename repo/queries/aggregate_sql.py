"""The SQL of aggregates, over a whole range or by bucket, and their names. Returns columns, never dicts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from decimal import Decimal
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Label,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
)

from repo.engines.base import Shape
from repo.engines.registry import traits_of
from repo.engines.sqlite.functions import between
from repo.engines.statements import Statement, Template
from repo.errors import InvalidQuery
from repo.inputs.arguments import shown
from repo.models import Point
from repo.queries.buckets import AggregateColumns, BucketKey, Buckets
from repo.queries.selection import Known, Selection, SeriesScope

__all__ = ["AGGREGATES", "aggregate", "check_aggregates", "is_numeric"]

AGGREGATES = ("avg", "min", "max", "sum", "count", "first", "last", "stddev", "median")
"""What `aggregate` can compute, besides percentiles such as `p50` and `p99.9`. All skip rows without a reading.

`first` and `last` are by time. `stddev` is the sample standard deviation (n - 1); None for a single reading.
"""

_OF_TEXTS = frozenset({"count", "first", "last"})
_PERCENTILE = re.compile(r"p([0-9]{1,3}(?:\.[0-9]{1,6})?)")
_PLAIN = {"avg": "avg", "min": "min", "max": "max", "sum": "sum", "stddev": "stddev_samp"}
_EDGES = {"first": "arg_min", "last": "arg_max"}
_INEXACT = frozenset({"avg", "sum", "stddev"})  # the result can be NaN

_points: Any = Point.__table__
_c = _points.c
_CONDITIONS = {
    "sensor_id": _c.sensor_id == bindparam("sensor_id"),
    "metric_name": _c.metric_name == bindparam("metric_name"),
    "start_us": _c.timestamp_us >= bindparam("start_us"),
    "end_us": _c.timestamp_us < bindparam("end_us"),
}
_MOST_TEMPLATES = 500
_templates: dict[Any, tuple[Template, Sequence[str]]] = {}
"""Queries of one series, by the engine, the aggregates, the conditions, and whether there are buckets."""

_readings = or_(_c.value.is_not(None), _c.value_text.is_not(None))


def check_aggregates(wanted: str | Iterable[str]) -> list[str]:
    """Return the requested aggregate names; raises `InvalidQuery` for an unknown one."""
    known = f"{', '.join(AGGREGATES)}, and percentiles such as p95 or p99.9"
    try:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
    except TypeError as error:
        raise InvalidQuery(f"agg = {shown(wanted)}: a name or a list of names; there are {known}") from error
    if not names:
        raise InvalidQuery(f"agg is empty; there are {known}")
    for name in names:
        if not isinstance(name, str) or (name not in AGGREGATES and _fraction(name) is None):
            raise InvalidQuery(f"there is no aggregate {shown(name)}; there are {known}")
    return list(dict.fromkeys(names))


def is_numeric(name: str) -> bool:
    """Return whether the aggregate is defined for numbers only."""
    return name not in _OF_TEXTS


def aggregate(
    connection: Connection, selection: Selection, known: Known, names: Sequence[str], buckets: Buckets | None
) -> AggregateColumns:
    """Compute aggregates, whose names are valid: one row per selected series (and bucket) that has points."""
    traits = traits_of(connection)
    scope = SeriesScope(traits, known, selection.chosen(known))
    if not scope.pairs:
        return AggregateColumns(values=dict.fromkeys(names, ()))
    traits.add_statistics(connection)
    most_readings = sum(known[pair].points for pair in scope.pairs)
    return _AggregateQuery(connection, scope, selection, buckets, names).run(most_readings)


def _fraction(name: str) -> float | None:
    if name == "median":
        return 0.5
    found = _PERCENTILE.fullmatch(name) if isinstance(name, str) else None
    percent = Decimal(found[1]) if found else Decimal(-1)
    return float(percent / 100) if 0 <= percent <= 100 else None


class _AggregateQuery:
    """One aggregate query on one engine."""

    def __init__(
        self,
        connection: Connection,
        scope: SeriesScope,
        selection: Selection,
        buckets: Buckets | None,
        names: Sequence[str],
    ) -> None:
        self._connection = connection
        self._traits = traits_of(connection)
        self._scope = scope
        self._names = names
        self._buckets = buckets
        self._span = selection.start_us, selection.end_us
        most = 1 if buckets is None else buckets.most(buckets.start_us, buckets.end_us)
        self._expected = len(scope.pairs) * most
        self._fractions = sorted({f for f in map(_fraction, names) if f is not None})

    @cached_property
    def _where(self) -> ColumnElement[bool]:
        return self._scope.where(*self._span)

    @cached_property
    def _bucket(self) -> BucketKey | None:
        return None if self._buckets is None else self._buckets.key(_c.timestamp_us)

    @property
    def _keys(self) -> list[ColumnElement[Any]]:
        """The columns that identify a group."""
        return [*self._scope.keys, *([] if self._bucket is None else [self._bucket.number.label("bucket")])]

    @property
    def _groups(self) -> list[ColumnElement[Any]]:
        """What the points are grouped, and sorted, by."""
        return [*self._scope.keys, *([] if self._bucket is None else [self._bucket.group])]

    def run(self, most_readings: int) -> AggregateColumns:
        limit = self._traits.most_in_memory
        apart = bool(self._fractions) and limit is not None and most_readings > limit
        statement, terms = self._kept_statement(apart=apart) or self._new_statement(apart=apart)
        wide = len(self._scope.keys) + (self._buckets is not None)
        # A kept statement has no ORDER BY, which would take DuckDB longer than the caller.
        by = "bucket" if self._buckets is not None and isinstance(statement, Statement) else None
        shape = Shape(self._expected, sorted_by=by)
        table: list[Any] = self._traits.lists(self._connection, statement, shape) or []
        if not wide and not table[0][0]:
            table = [()] * len(terms)  # without GROUP BY, no points still give one row
        found = dict(zip(terms, table[wide:], strict=True))
        if apart:
            groups = list(zip(*table[:wide], strict=True)) if wide else [()] * len(table[0])
            found["percentiles"] = self._percentiles_apart(groups, found["numbers"], limit or 1)
        sensors, metrics, numbers = self._named(table[:wide], len(table[0]))
        return AggregateColumns(sensors, metrics, numbers, self._values(found))

    def _terms(self, *, apart: bool) -> dict[str, ColumnElement[Any]]:
        """Return the expressions to select for each group, by name."""
        terms: dict[str, ColumnElement[Any]] = {}
        if not self._keys:
            terms["rows"] = func.count()
        if apart:
            terms["numbers"] = func.count(_c.value)
        if "count" in self._names:
            terms["count"] = func.count(_c.value) + func.count(_c.value_text)
        for name in self._names:
            if name in _PLAIN:
                terms[name] = getattr(func, _PLAIN[name])(_c.value)
            elif name in _EDGES:
                terms[f"{name} number"] = getattr(func, _EDGES[name])(_c.value, _c.timestamp_us)
                terms[f"{name} text"] = getattr(func, _EDGES[name])(_c.value_text, _c.timestamp_us)
        if self._fractions and not apart:
            terms["percentiles"] = self._traits.percentiles(_c.value, self._fractions)
        return {name: term.label(name) for name, term in terms.items()}

    def _kept_statement(self, *, apart: bool) -> tuple[Statement, Sequence[str]] | None:
        """Return the query of one series, compiled once for its form, and the names of its terms.

        None if its form is not a usual one.
        """
        fixed = {} if self._buckets is None else self._buckets.plain_parameters
        if len(self._scope.pairs) > 1 or apart or fixed is None:
            return None
        if not self._traits.has_arg_extremes and any(name in _EDGES for name in self._names):
            return None
        pair, (start_us, end_us) = self._scope.pairs[0], self._span
        values = {
            "sensor_id": pair[0],
            "metric_name": pair[1],
            "start_us": start_us,
            "end_us": end_us,
            **fixed,
        }
        by = tuple(
            name
            for name, given in (
                ("sensor_id", self._scope.by_sensor),
                ("metric_name", self._scope.by_metric),
                ("start_us", start_us is not None),
                ("end_us", end_us is not None),
            )
            if given
        )
        bucketed = self._buckets is not None
        key = (self._traits.name, tuple(self._names), by, bucketed)
        if key not in _templates:
            terms = self._terms(apart=False)
            bucket = [Buckets.plain_key(_c.timestamp_us)] if bucketed else []
            query: Any = select(*(key.number.label("bucket") for key in bucket), *terms.values())
            query = query.where(*(_CONDITIONS[name] for name in by))
            query = query.group_by(*(key.group for key in bucket))
            if len(_templates) >= _MOST_TEMPLATES:
                _templates.clear()
            _templates[key] = Template(query), tuple(terms)
        template, names = _templates[key]
        return template.filled(self._connection.dialect, **values), names

    def _new_statement(self, *, apart: bool) -> tuple[Select[Any], Sequence[str]]:
        terms = self._terms(apart=apart)
        return self._statement(terms), tuple(terms)

    def _statement(self, terms: Mapping[str, ColumnElement[Any]]) -> Select[Any]:
        edges = [name for name in _EDGES if f"{name} number" in terms]
        if edges and not self._traits.has_arg_extremes:
            return self._joined(terms, edges)
        query = select(*self._keys, *terms.values()).where(self._where)
        return query.group_by(*self._groups).order_by(*self._groups)

    def _joined(self, terms: Mapping[str, ColumnElement[Any]], edges: Sequence[str]) -> Select[Any]:
        """Return the same query with a join to the first and last readings, for engines without arg_min."""
        at = case((_readings, _c.timestamp_us))
        plain = [term for name, term in terms.items() if name.partition(" ")[0] not in edges]
        times = [func.min(at).label("first at"), func.max(at).label("last at")]
        groups = (
            select(*self._keys, *plain, *times).where(self._where).group_by(*self._groups).subquery("groups")
        )
        chosen: dict[str, ColumnElement[Any]] = {term.name: groups.c[term.name] for term in plain}
        source: Any = groups
        for name in edges:
            edge = _points.alias(name)
            same = [
                edge.c[column] == (groups.c[column] if fixed is None else fixed)
                for column, fixed in (("sensor_id", self._scope.sensor), ("metric_name", self._scope.metric))
            ]
            source = source.outerjoin(edge, and_(*same, edge.c.timestamp_us == groups.c[f"{name} at"]))
            chosen |= {f"{name} number": edge.c.value, f"{name} text": edge.c.value_text}
        keys = list(groups.c)[: len(self._keys)]
        return select(*keys, *(chosen[name] for name in terms)).select_from(source).order_by(*keys)

    def _named(self, keys: Sequence[Sequence[Any]], rows: int) -> tuple[Sequence[Any], ...]:
        """Return the sensor, metric and bucket of each row, including names that are the same for all rows."""
        given = iter(keys)
        sensors, metrics = (
            next(given) if same is None else [same] * rows
            for same in (self._scope.sensor, self._scope.metric)
        )
        return sensors, metrics, next(given) if self._buckets is not None else [0] * rows

    def _values(self, found: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {}
        listed = [_listed(value) for value in found.get("percentiles", ())]
        for name in self._names:
            fraction = _fraction(name)
            if fraction is not None:
                at = self._fractions.index(fraction)
                values[name] = [None if value is None else _number(value[at]) for value in listed]
            elif name in _EDGES:
                pairs = zip(found[f"{name} number"], found[f"{name} text"], strict=True)
                values[name] = [text if number is None else number for number, text in pairs]
            elif name in _INEXACT:
                values[name] = [None if value != value else value for value in found[name]]
            else:
                values[name] = found[name]
        return values

    # --- percentiles of more readings than fit in memory ----------------------------------------------

    def _percentiles_apart(self, groups: Sequence[Any], counts: Sequence[int], limit: int) -> list[Any]:
        """Compute the percentiles in parts: large groups one at a time, the others partitioned by hash."""
        found: dict[Any, Any] = {}
        great = [(group, n) for group, n in zip(groups, counts, strict=True) if n > limit // 4]
        for group, count in great:
            found[group] = self._percentiles_sorted(group, count)
        rest = and_(self._where, *(not_(self._is(group)) for group, _ in great))
        parts = (sum(counts) - sum(n for _, n in great)) * 2 // limit + 1
        wide = len(self._keys)
        for part in range(parts if len(great) < len(groups) else 0):
            query = select(*self._keys, self._traits.percentiles(_c.value, self._fractions)).where(rest)
            if self._keys and parts > 1:
                # Literals, not parameters: with a parameter DuckDB divides in 128 bits, ten times slower.
                whole: ColumnElement[int] = func.hash(*self._groups)
                query = query.where(whole % literal_column(str(parts)) == literal_column(str(part)))
            for row in self._fetch(query.group_by(*self._groups)):
                found[tuple(row[:wide])] = row[wide]
        return [found[tuple(group)] for group in groups]

    def _percentiles_sorted(self, group: Any, count: int) -> list[float]:
        """Compute the percentiles of one group from its sorted readings; the engine sorts them on disk."""
        query = select(_c.value).where(self._where, self._is(group), _c.value.is_not(None)).order_by(_c.value)
        found = []
        for fraction in self._fractions:
            place = (count - 1) * fraction
            two = [row[0] for row in self._fetch(query.limit(2).offset(int(place)))]
            found.append(between(two, place - int(place)))
        return found

    def _is(self, group: Any) -> ColumnElement[bool]:
        return and_(true(), *(_plain(key) == value for key, value in zip(self._keys, group, strict=True)))

    def _fetch(self, statement: Select[Any]) -> list[Any]:
        """Return the driver's rows. SQLAlchemy's rows would double the time."""
        with closing(self._connection.execute(statement)) as result:
            return list(result.cursor.fetchall())


def _plain(key: Any) -> Any:
    return key.element if isinstance(key, Label) else key


def _listed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _number(value: float) -> float | None:
    return None if value != value else value
