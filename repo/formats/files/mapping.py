"""Mapping: assigns the columns of a file to the fields of a point, and checks their types. Reads no file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from pathlib import Path
from typing import NamedTuple

from repo.errors import InvalidFile, InvalidQuery
from repo.inputs.arguments import shown
from repo.inputs.fields import name_of
from repo.inputs.times import UNIX_EXPONENTS, Unfit, zone_named

__all__ = ["FIELDS", "NO_QUALITY", "ColumnType", "ReadOptions", "ReadPlan", "WideColumn", "plan_of"]

FIELDS = {
    "sensor_id": ("text",),
    "metric_name": ("text",),
    "timestamp": ("moment", "naive", "text", "float", "integer"),
    "timestamp_us": ("integer",),
    "value": ("float", "integer", "decimal", "bool", "text", "null"),
    "value_text": ("text", "null"),
    "quality": ("integer", "float", "null"),
    "metadata": ("text", "null"),
}
"""The fields that a file may have, and the families of types that each may have."""

_READINGS = ("float", "integer", "decimal", "bool", "text")
"""The families of the columns of a wide file that are read as metrics."""

_TYPE_NAMES = {
    "text": "text",
    "moment": "times",
    "naive": "times without a zone",
    "float": "numbers",
    "integer": "integers",
    "decimal": "decimals",
    "bool": "booleans",
    "null": "nothing",
}
_TIME_FAMILIES = ("moment", "naive")
_USUAL_TIMES = ("time", "datetime", "date", "index", "__index_level_0__")
"""Names of a time column that other programs use; the last two are those of a pandas index."""
NO_QUALITY = 2**40
"""Represents a quality that is not an integer; a store refuses it."""

_OURS = frozenset({"seq"})
"""Written by exports but not read: a store numbers its writes itself."""


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type of a column: its family (from `FIELDS`, or `bool`, or `other`), and its name in the file."""

    family: str
    name: str


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read files: which column is which field, and what their times mean. `of` checks a caller's arguments."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of each field that is named otherwise."""
    time_format: str = "unix"
    """The unit of numbers in the time column, one of `UNIX_EXPONENTS`."""
    zone: tzinfo = UTC
    """The zone of times without a zone or an offset."""
    sensor: str | None = None
    """The sensor of every row, instead of a column."""
    metric: str | None = None
    """The metric of every row, instead of a column."""
    metrics: Mapping[str, str] | None = None
    """For a wide file: the column of each metric to read. None reads every column that is not a field."""
    ignored: tuple[str, ...] = ()
    """For a wide file: columns that are not metrics."""

    @classmethod
    def of(
        cls,
        columns: Mapping[str, str] | None = None,
        time_format: str = "unix",
        zone: str = "UTC",
        sensor: str | None = None,
        metric: str | None = None,
        only: Mapping[str, str] | str | Sequence[str] | None = None,
        ignored: Sequence[str] = (),
    ) -> ReadOptions:
        """Check the arguments of a caller; raises `InvalidQuery`."""
        mapping = _checked(columns, time_format)
        metrics = _metrics(only)
        if metric is not None and metrics is not None:
            raise InvalidQuery(
                "metric names the metric of every row, only the columns of a wide file; give one"
            )
        for what, name in (("sensor", sensor), ("metric", metric)):
            try:
                if name is not None:
                    name_of(name)
            except Unfit as fault:
                raise InvalidQuery(f"{what} {fault}") from fault
        try:
            found = zone_named(zone)
        except Unfit as fault:
            raise InvalidQuery(f"zone: {fault}") from fault
        return cls(mapping, time_format, found, sensor, metric, metrics, tuple(ignored))


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What to read from a file: the column and type of each field. `ignored` has the other columns."""

    columns: dict[str, str]
    types: dict[str, ColumnType]
    ignored: tuple[str, ...]
    us_per_count: int = 1_000_000
    """The unit of numbers in the column `timestamp`, in microseconds."""
    zone: tzinfo = UTC
    sensor: str | None = None
    """The sensor of every row, if there is no column."""
    metric: str | None = None
    wide: tuple[WideColumn, ...] = ()
    """The columns of a wide file that are metrics. It has no columns for metric and value."""

    def read_columns(self) -> list[str]:
        """Return the columns that are read, each once."""
        return list(dict.fromkeys([*self.columns.values(), *(one.column for one in self.wide)]))


class WideColumn(NamedTuple):
    """A column of a wide file, and the metric that it is."""

    metric: str
    column: str
    kind: ColumnType


def _metrics(only: Mapping[str, str] | str | Sequence[str] | None) -> dict[str, str] | None:
    if only is None:
        return None
    if isinstance(only, str):
        return {only: only}
    named = only if isinstance(only, Mapping) else None
    if named is None and (isinstance(only, bytes) or not isinstance(only, Iterable)):
        raise InvalidQuery(
            f"only = {shown(only)}: a column, a list of columns, or a dict of metrics and columns is expected"
        )
    try:
        pairs = list(named.items()) if named is not None else [(name, name) for name in only]
    except TypeError as error:
        raise InvalidQuery(f"only = {shown(only)}: cannot be read as a list of columns: {error}") from error
    for metric, column in pairs:
        try:
            name_of(metric)
        except Unfit as fault:
            raise InvalidQuery(f"only: the metric {shown(metric)} {fault}") from fault
        if not isinstance(column, str):
            raise InvalidQuery(f"only: the column of {metric} is a name, not {type(column).__name__}")
    return dict(pairs)


def _checked(columns: Mapping[str, str] | None, time_format: str) -> dict[str, str]:
    if columns is not None and not isinstance(columns, Mapping):
        raise InvalidQuery(f"columns = {shown(columns)}: a dict of fields and column names is expected")
    mapping = dict(columns or {})
    if time_format not in UNIX_EXPONENTS:
        raise InvalidQuery(f"time_format = {time_format!r}: one of {', '.join(UNIX_EXPONENTS)}")
    if "timestamp_us" in mapping and time_format not in ("unix", "unix_us"):
        raise InvalidQuery(f"columns: timestamp_us counts microseconds; with {time_format} map timestamp")
    for field_name, column in mapping.items():
        if field_name not in FIELDS:
            raise InvalidQuery(
                f"columns: there is no field {shown(field_name)}; there are {', '.join(FIELDS)}"
            )
        if not isinstance(column, str):
            raise InvalidQuery(f"columns: the column of {field_name} is a name, not {type(column).__name__}")
    if {"timestamp", "timestamp_us"} <= mapping.keys():
        raise InvalidQuery("columns: give timestamp or timestamp_us, not both")
    return mapping


def plan_of(types: Mapping[str, ColumnType], options: ReadOptions, path: Path) -> ReadPlan:
    """Assign the columns of a file to the fields; `InvalidFile`, naming it, for a missing column or a wrong type.

    A file without columns for metric and value is wide: its other columns are metrics.
    """
    columns, wide = _assigned(types, options)
    _refuse_missing(types, options, columns, wide, path)
    found = {field_name: types[column] for field_name, column in columns.items()}
    _refuse_other_types(found, columns, wide, path)
    if "value" in found and found["value"].family == "text":
        if "value_text" in found and found["value_text"].family == "text":
            raise InvalidFile(f"{path}: both value and value_text are text", path=path)
        columns["value_text"], found["value_text"] = columns.pop("value"), found.pop("value")
    known = {*columns.values(), *FIELDS, *_OURS, *(one.column for one in wide)}
    ignored = tuple(name for name in types if name not in known)
    us_per_count = 10 ** (6 + UNIX_EXPONENTS[options.time_format])
    return ReadPlan(
        columns, found, ignored, us_per_count, options.zone, options.sensor, options.metric, tuple(wide)
    )


def _assigned(
    types: Mapping[str, ColumnType], options: ReadOptions
) -> tuple[dict[str, str], list[WideColumn]]:
    """Return the column of each field, which the file may lack, and the metrics of a wide file."""
    mapping = options.columns
    columns = {name: name for name in FIELDS if name in types} | dict(mapping)
    if "timestamp_us" in mapping or ("timestamp_us" in columns and "timestamp" not in mapping):
        columns.pop("timestamp", None)
    else:
        columns.pop("timestamp_us", None)
        if "timestamp" not in columns and (time := _time_column(types)) is not None:
            columns["timestamp"] = time
    for field_name, given in (("sensor_id", options.sensor), ("metric_name", options.metric)):
        if given is not None:
            columns.pop(field_name, None)
    wide = _wide(types, options, columns)
    if wide:
        for field_name in ("metric_name", "value", "value_text"):
            columns.pop(field_name, None)
    return columns, wide


def _refuse_missing(
    types: Mapping[str, ColumnType],
    options: ReadOptions,
    columns: Mapping[str, str],
    wide: Sequence[WideColumn],
    path: Path,
) -> None:
    missing = [column for column in columns.values() if column not in types]
    missing += [one.column for one in wide if one.column not in types]
    missing += [
        field_name
        for field_name, given in (("sensor_id", options.sensor), ("metric_name", options.metric or wide))
        if field_name not in columns and not given
    ]
    if not columns.keys() & {"timestamp", "timestamp_us"}:
        missing.append("timestamp")
    if not wide and not columns.keys() & {"value", "value_text"}:
        missing.append("value")
    if missing:
        raise InvalidFile(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {_listed(types)}. Assign its columns to "
            f"fields with `columns` (--column FIELD=COLUMN){_advice(missing, wide)}",
            path=path,
        )


def _refuse_other_types(
    found: Mapping[str, ColumnType], columns: Mapping[str, str], wide: Sequence[WideColumn], path: Path
) -> None:
    for one in wide:
        if one.kind.family not in (*_READINGS, "null"):
            raise InvalidFile(
                f"{path}: the column {one.column!r} is {one.kind.name}, not numbers or text", path=path
            )
    for field_name, kind in found.items():
        if kind.family not in FIELDS[field_name]:
            expected = " or ".join(_TYPE_NAMES[family] for family in FIELDS[field_name] if family != "null")
            raise InvalidFile(
                f"{path}: the column {columns[field_name]!r} is {kind.name}; {field_name} must be {expected}",
                path=path,
            )


def _time_column(types: Mapping[str, ColumnType]) -> str | None:
    """Return the time column of a file that has no `timestamp`: the only one with times, or one with a usual name."""
    times = [name for name, kind in types.items() if kind.family in _TIME_FAMILIES]
    usual = [name for name in types if name.lower() in _USUAL_TIMES]
    if len(times) == 1:
        return times[0]
    return next((name for name in usual if name in times or not times), None)


def _wide(
    types: Mapping[str, ColumnType], options: ReadOptions, columns: Mapping[str, str]
) -> list[WideColumn]:
    """Return the metrics of a wide file; none if the file is long, or has texts and they are not named."""
    other = ColumnType("other", "missing")
    if options.metrics is not None:
        return [WideColumn(metric, name, types.get(name, other)) for metric, name in options.metrics.items()]
    if options.metric is not None or columns.keys() & {"metric_name", "value", "value_text"}:
        return []
    used = {*columns.values(), *FIELDS, *_OURS, *options.ignored}
    others = {name: kind for name, kind in types.items() if name not in used}
    if any(kind.family == "text" for kind in others.values()):
        return []  # it may name the sensor or the metric of a long file
    return [WideColumn(name, name, kind) for name, kind in others.items() if kind.family in _READINGS]


def _advice(missing: Sequence[str], wide: Sequence[WideColumn]) -> str:
    if wide and "sensor_id" in missing:
        return ", or, as it has a column for each metric, name its sensor: `sensor` (--sensor)"
    if not wide and {"metric_name", "value"} <= {*missing}:
        return ", or, if it has a column for each metric, name these columns: `only` (--only)"
    return ""


def _listed(types: Mapping[str, ColumnType]) -> str:
    names = [repr(name[:40]) for name in types]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"
