"""Selections: the series and the time span of a query or a delete, and the shortest SQL for them. Reads no table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, false, true

from repo.engines.base import Traits
from repo.errors import InvalidQuery
from repo.inputs.arguments import check_flag, shown
from repo.inputs.times import bound_us, to_datetime
from repo.models import Point
from repo.queries.summaries import Summaries, Summary

__all__ = [
    "Known",
    "Names",
    "Selection",
    "SeriesScope",
    "Summary",
    "Time",
    "check_selection",
    "chosen_names",
    "select_deleted",
    "select_points",
]

Names = str | Sequence[str] | None
"""None means every name. A text with `*`, `?` or `[` is a glob, unless a series has this text as its name. Any other
text, and each item of a list, is exact."""

MOST_NAMES = 20_000
"""The maximum number of names in one statement: SQLite takes at most 32,766 parameters."""

Time = float | datetime | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Series by sensor and metric names, and a span [start_us, end_us); None leaves a side open."""

    sensor_id: str | tuple[str, ...] | None = None
    metric_name: str | tuple[str, ...] | None = None
    start_us: int | None = None
    end_us: int | None = None
    reason: str | None = field(default=None, compare=False)
    """For a delete: why, in one word for the loss ledger; None if the application asked for it."""
    through_seq: int | None = None
    """Only points with a seq up to this one; None for all. For deletes that keep what a sink has not confirmed."""
    exact: tuple[str, str] | None = field(init=False, compare=False, repr=False)
    """The one selected series, if the names alone determine it."""

    def __post_init__(self) -> None:
        sensor, metric = _only(self.sensor_id), _only(self.metric_name)
        # A frozen dataclass can set a field only like this.
        object.__setattr__(self, "exact", None if sensor is None or metric is None else (sensor, metric))

    @classmethod
    def of(
        cls, sensor_id: Names, metric_name: Names, start_us: int | None = None, end_us: int | None = None
    ) -> Selection:
        """Validate the arguments of a caller; raises `InvalidQuery` for names that are not text, or too many."""
        selection = cls(_names(sensor_id, "sensor_id"), _names(metric_name, "metric_name"), start_us, end_us)
        lists = [names for names in (selection.sensor_id, selection.metric_name) if isinstance(names, tuple)]
        _refuse_too_many(sum(map(len, lists)))
        return selection

    def __str__(self) -> str:
        names = (
            "all" if names is None else repr(names) if isinstance(names, str) else f"{len(names):,} names"
            for names in (
                _only(self.sensor_id) or self.sensor_id,
                _only(self.metric_name) or self.metric_name,
            )
        )
        span = "".join(
            f" {word} {to_datetime(us).isoformat()}"
            for word, us in (("from", self.start_us), ("to", self.end_us))
            if us is not None
        )
        through = "" if self.through_seq is None else f" up to seq {self.through_seq}"
        return f"{' '.join(names)}{span}{through}"

    @property
    def has_glob(self) -> bool:
        """Whether a text has glob characters; see `as_names`."""
        return _is_glob(self.sensor_id) or _is_glob(self.metric_name)

    @property
    def everything(self) -> bool:
        """Whether it selects every point of every series."""
        return self.all_names and (self.start_us, self.end_us, self.through_seq) == (None, None, None)

    @property
    def all_names(self) -> bool:
        """Whether it selects every series."""
        return all(names is None or _is_stars(names) for names in (self.sensor_id, self.metric_name))

    def as_names(self, is_name: Callable[[Literal["sensor_id", "metric_name"], str], bool]) -> Selection:
        """Treat a text with glob characters as an exact name if `is_name` says that a series has this name."""
        sensor, metric = self.sensor_id, self.metric_name
        if isinstance(sensor, str) and _is_glob(sensor) and is_name("sensor_id", sensor):
            sensor = (sensor,)
        if isinstance(metric, str) and _is_glob(metric) and is_name("metric_name", metric):
            metric = (metric,)
        if sensor is self.sensor_id and metric is self.metric_name:
            return self
        return replace(self, sensor_id=sensor, metric_name=metric)

    @property
    def named(self) -> bool:
        """Whether exact names give all selected series."""
        return not any(names is None or _is_glob(names) for names in (self.sensor_id, self.metric_name))

    def names(self, sensor_id: str, metric_name: str) -> bool:
        """Return whether the series is selected."""
        return _matches(self.sensor_id, sensor_id) and _matches(self.metric_name, metric_name)

    def chosen(self, known: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the selected ones of the known series, in order of their names."""
        if self.exact is not None and isinstance(known, Mapping):
            return [self.exact] if self.exact in known else []
        pairs = list(known)
        sensors = chosen_names(self.sensor_id, {s for s, _ in pairs})
        metrics = chosen_names(self.metric_name, {m for _, m in pairs})
        return sorted(pair for pair in pairs if pair[0] in sensors and pair[1] in metrics)

    def spans(self, timestamp_us: int) -> bool:
        """Return whether the time is selected."""
        return (self.start_us is None or timestamp_us >= self.start_us) and (
            self.end_us is None or timestamp_us < self.end_us
        )

    def where(self, table: Any, known: Iterable[tuple[str, str]]) -> ColumnElement[bool]:
        """Build the condition on a table of points; globs are resolved among the `known` series.

        The engines therefore only compare names for equality; their own globs differ in details.
        """
        parts: list[ColumnElement[bool]] = []
        known = list(known) if self.has_glob else ()
        listed = 0
        for column, wanted, found in (
            (table.sensor_id, self.sensor_id, {s for s, _ in known}),
            (table.metric_name, self.metric_name, {m for _, m in known}),
        ):
            if wanted is None:
                continue
            if isinstance(wanted, str) and not _is_glob(wanted):
                parts.append(column == wanted)
                continue
            chosen = sorted(n for n in found if _matches(wanted, n)) if isinstance(wanted, str) else wanted
            listed += len(chosen)
            _refuse_too_many(listed)
            parts.append(column.in_(chosen) if chosen else false())
        if self.start_us is not None:
            parts.append(table.timestamp_us >= self.start_us)
        if self.end_us is not None:
            parts.append(table.timestamp_us < self.end_us)
        if self.through_seq is not None:
            parts.append(table.seq <= self.through_seq)
        return and_(true(), *parts)

    def pieces(self, known: Iterable[tuple[str, str]]) -> Iterator[Selection]:
        """Yield selections that together equal this one, however many `known` names the globs match."""
        known = list(known)
        for sensors in _pieces(self.sensor_id, {s for s, _ in known}):
            for metrics in _pieces(self.metric_name, {m for _, m in known}):
                yield replace(self, sensor_id=sensors, metric_name=metrics)

    def as_dict(self) -> dict[str, Any]:
        """Return the names and the span as plain values, as a manifest has them."""
        sensor, metric = (list(n) if isinstance(n, tuple) else n for n in (self.sensor_id, self.metric_name))
        return {"sensor_id": sensor, "metric_name": metric, "start_us": self.start_us, "end_us": self.end_us}

    def to_json(self) -> bytes:
        """Return the form that a journal row stores."""
        fields = [self.sensor_id, self.metric_name, self.start_us, self.end_us, self.reason, self.through_seq]
        while len(fields) > 4 and fields[-1] is None:
            fields.pop()
        return json.dumps(fields, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, payload: bytes) -> Selection:
        """Parse the form that a journal row stores."""
        sensor_id, metric_name, start_us, end_us, *rest = json.loads(payload)
        return cls(
            tuple(sensor_id) if isinstance(sensor_id, list) else sensor_id,
            tuple(metric_name) if isinstance(metric_name, list) else metric_name,
            start_us,
            end_us,
            *rest,
        )


def check_selection(value: object, name: str) -> Selection:
    """Return a selection; anything else raises `InvalidQuery`."""
    if not isinstance(value, Selection):
        raise InvalidQuery(f"{name} = {shown(value)}: a selection is expected")
    return value


def _names(names: Names, field: str) -> str | tuple[str, ...] | None:
    if names is None or isinstance(names, str):
        return names if names is None else _encodable(names, field)
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise InvalidQuery(
            f"{field}: expected a name, a glob, a list of names or None, not {type(names).__name__}"
        )
    try:
        listed = tuple(names)
    except TypeError as error:
        raise InvalidQuery(f"{field}: {type(names).__name__} is not a list of names: {error}") from error
    for name in listed:
        if not isinstance(name, str):
            raise InvalidQuery(f"{field}: every name must be text, not {type(name).__name__}")
        _encodable(name, field)
    return tuple(dict.fromkeys(listed))


def _encodable(name: str, field: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidQuery(f"{field}: {name[:40]!r} contains a lone surrogate, which names cannot") from error
    return name


def _refuse_too_many(names: int) -> None:
    if names > MOST_NAMES:
        raise InvalidQuery(
            f"{names} names are selected; the limit is {MOST_NAMES} per call. Narrow the selection"
        )


def _pieces(wanted: str | tuple[str, ...] | None, found: set[str]) -> list[Any]:
    if not _is_glob(wanted):
        return [wanted]
    chosen = sorted(name for name in found if _matches(wanted, name))
    step = MOST_NAMES // 2
    return [tuple(chosen[start : start + step]) for start in range(0, len(chosen), step)]


def chosen_names(wanted: Names, found: set[str]) -> set[str]:
    """Return the wanted names among those found. A glob that equals a found name selects only that name."""
    if wanted is not None and not isinstance(wanted, str):
        return found.intersection(wanted)
    if wanted in found:
        return {wanted}
    return {name for name in found if _matches(wanted, name)}


def _is_glob(names: str | tuple[str, ...] | None) -> bool:
    return isinstance(names, str) and ("*" in names or "?" in names or "[" in names)


def _is_stars(names: str | tuple[str, ...]) -> bool:
    return isinstance(names, str) and set(names) == {"*"}


def _only(names: str | tuple[str, ...] | None) -> str | None:
    """Return the only selected name, if it is known without looking up names."""
    if isinstance(names, tuple):
        return names[0] if len(names) == 1 else None
    return None if _is_glob(names) else names


def _matches(wanted: str | tuple[str, ...] | None, name: str) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, tuple):
        return name in wanted
    return fnmatchcase(name, wanted) if _is_glob(wanted) else name == wanted


def select_points(sensor_id: Names, metric_name: Names, start: Time, end: Time) -> Selection:
    """Return the selection for the names and times of a caller; raises `InvalidQuery`.

    A start after the end is an error, as both were most likely swapped. Equal ones give an empty span.
    """
    start_us = None if start is None else bound_us(start, "start")
    end_us = None if end is None else bound_us(end, "end")
    if start_us is not None and end_us is not None and start_us > end_us:
        first, last = (to_datetime(us).isoformat() for us in (start_us, end_us))
        raise InvalidQuery(f"start ({first}) is after end ({last})")
    return Selection.of(sensor_id, metric_name, start_us, end_us)


def select_deleted(
    sensor_id: Names, metric_name: Names, start: Time, end: Time, *, everything: bool
) -> Selection:
    """Return the selection of a delete; raises `InvalidQuery` as `select_points` does.

    All points are selected only if `everything` says so: without it, a forgotten argument would delete them.
    """
    everything = check_flag(everything, "everything")
    selection = select_points(sensor_id, metric_name, start, end)
    if not selection.everything:
        return selection
    if not everything:
        raise InvalidQuery(
            "this would delete every point of the store: name a sensor, a metric or a time, or pass everything=True"
        )
    return Selection()


Pair = tuple[str, str]
Known = Mapping[Pair, Summary]
"""The summaries of all series that have points."""

_c: Any = Point.__table__.c


class SeriesScope:
    """Some of the known series, as names to filter and to group by.

    DuckDB reads a column for each kind of name that a query mentions, so the query mentions only those that
    distinguish these series from the others. Tables keyed by series get every name, to seek the rows by it.
    """

    def __init__(self, traits: Traits, known: Known, pairs: Iterable[Pair]) -> None:
        self.pairs = list(pairs)
        sensors, metrics = ({pair[at] for pair in self.pairs} for at in (0, 1))
        # Without checking each known series: there may be 100,000 of them, of which one is requested.
        of_sensor, of_metric = (known if isinstance(known, Summaries) else Summaries.copied(known)).names()
        own = len(self.pairs)
        by_metric = sum(map(of_sensor.__getitem__, sensors)) > own
        by_sensor = sum(map(of_metric.__getitem__, metrics)) > own or (len(known) > own and not by_metric)
        few = traits.keyed_by_series and len(sensors) + len(metrics) <= MOST_NAMES
        self._sensors = tuple(sorted(sensors)) if by_sensor or few else None
        self._metrics = tuple(sorted(metrics)) if by_metric or few else None
        self.sensor = next(iter(sensors)) if len(sensors) == 1 else None
        self.metric = next(iter(metrics)) if len(metrics) == 1 else None

    @property
    def by_sensor(self) -> bool:
        """Whether the sensors distinguish these series from others."""
        return self._sensors is not None

    @property
    def by_metric(self) -> bool:
        """Whether the metrics distinguish these series from others."""
        return self._metrics is not None

    @property
    def keys(self) -> list[ColumnElement[Any]]:
        """The name columns whose values differ among these series."""
        return [
            column
            for column, same in ((_c.sensor_id, self.sensor), (_c.metric_name, self.metric))
            if same is None
        ]

    def where(self, start_us: int | None, end_us: int | None) -> ColumnElement[bool]:
        """Return the condition that a point belongs to these series and lies in [start_us, end_us)."""
        return Selection(self._sensors, self._metrics, start_us, end_us).where(Point, ())
