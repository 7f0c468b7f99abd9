"""Checks points: turns callers' rows into columns. Never touches a file or a clock.

Two paths lead to the same columns. The fast path checks whole columns and handles only the common case. Everything else
takes the slow path, row by row; only the slow path refuses a row and states the reason. One or two rows take it, too,
because preparing whole columns takes longer.
"""

from __future__ import annotations

import struct
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from itertools import compress, count, repeat
from math import isfinite, nan
from operator import add, attrgetter, eq, itemgetter, ne
from typing import Any, Final

from repo.errors import InvalidPoint, Refusal
from repo.inputs.batch import KIND_NUMBER, KIND_TEXT, Batch, CheckedPoint
from repo.inputs.fields import (
    DEFAULT_QUALITY,
    QUALITY_RANGE,
    described,
    metadata_json,
    name_of,
    number_of,
    quality_of,
    text_of,
)
from repo.inputs.times import (
    EXACT_FLOAT_S,
    MAX_TIMESTAMP_US,
    MIN_TIMESTAMP_US,
    Unfit,
    checked_us,
    moment_us,
    to_datetime,
)

__all__ = ["KindsOf", "check_columns", "check_point", "check_rows", "rows_listed"]

_FIELDS: Final = ("sensor_id", "metric_name", "timestamp", "timestamp_us", "value", "quality", "metadata")
_KNOWN: Final = frozenset(_FIELDS)
_REQUIRED: Final = ("sensor_id", "metric_name", "value")
_POSITIONS: Final = ("sensor_id", "metric_name", "timestamp", "value", "quality", "metadata")

_FEW = 2
"""Up to this number of rows, the slow path is the faster one."""

_MINUS_ZERO = struct.pack("=d", -0.0)


def check_point(
    sensor_id: object,
    metric_name: object,
    value: object,
    timestamp: object,
    quality: object,
    metadata: object,
    *,
    accept_bool: bool,
    now_us: int,
) -> CheckedPoint:
    """Check one point; raises `InvalidPoint`, which names the first invalid field.

    `timestamp` is Unix seconds or an aware datetime, None for `now_us`. A `quality` of None is 100.
    """
    try:
        return _check_fields(
            (sensor_id, metric_name, timestamp, None, value, quality, metadata), accept_bool, now_us
        )
    except _Refused as refused:
        raise InvalidPoint([Refusal(None, refused.field, refused.reason)]) from refused.__cause__


KindsOf = Callable[[Iterable[tuple[str, str]]], Mapping[tuple[str, str], str | None]]
"""Returns the kinds of the series that are stored already."""


def check_rows(
    rows: Iterable[Any],
    *,
    accept_bool: bool,
    now_us: int,
    skip: bool = False,
    kinds_of: KindsOf | None = None,
) -> tuple[Batch, tuple[Refusal, ...]]:
    """Return the rows as columns, and the refused rows; without `skip`, any refusal raises `InvalidPoint`.

    A row is a mapping or a dataclass with the fields sensor_id, metric_name, value, and optionally timestamp (Unix
    seconds or aware datetime) or timestamp_us (int), quality, metadata; or a tuple or list (sensor, metric, timestamp,
    value[, quality[, metadata]]). The forms may be mixed; an iterator is consumed once. A bad row has one refusal, for
    its first invalid field. If a series has both numbers and texts, its first reading decides the kind, and rows of
    the other kind are refused; with `kinds_of`, the kind of the stored series decides, if there is one.
    """
    listed = rows_listed(rows)
    batch = _fast_path(listed, now_us) if len(listed) > _FEW else None
    if batch is not None:
        return batch, ()
    batch, refusals, mixed = _slow_path(listed, accept_bool, now_us, {})
    if mixed and kinds_of is not None:
        known = {pair: kind for pair, kind in kinds_of(mixed).items() if kind is not None}
        batch, refusals, _ = _slow_path(listed, accept_bool, now_us, known)
    if refusals and not skip:
        raise InvalidPoint(refusals)
    return batch, tuple(refusals)


def check_columns(
    columns: Mapping[str, Sequence[Any]],
    *,
    accept_bool: bool,
    skip: bool = False,
    kinds_of: KindsOf | None = None,
) -> tuple[Batch, tuple[Refusal, ...]]:
    """Check points that are given as columns, whose names are in `_FIELDS`; otherwise like `check_rows`."""
    rows = len(next(iter(columns.values())))
    try:
        batch = _batch_of(dict(columns), rows, 0) if rows else None
    except _NOT_ORDINARY:
        batch = None
    if batch is not None:
        return batch, ()
    listed = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return check_rows(listed, accept_bool=accept_bool, now_us=0, skip=skip, kinds_of=kinds_of)


# --- the slow path: row by row -------------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason


_Fields = tuple[object, object, object, object, object, object, object]
_TUPLE_FORM = "(sensor, metric, timestamp, value[, quality[, metadata]])"


def rows_listed(rows: Iterable[Any]) -> Sequence[Any]:
    """Return a caller's rows as a list or tuple; an iterator is consumed. Raises `InvalidPoint`."""
    if isinstance(rows, (list, tuple)):
        return rows
    if isinstance(rows, (str, bytes, Mapping)):
        raise InvalidPoint([Refusal(None, "rows", f"is one {type(rows).__name__}, not a sequence of rows")])
    try:
        iterator = iter(rows)
    except TypeError as fault:
        raise InvalidPoint(
            [Refusal(None, "rows", f"is {described(rows)}, not a sequence of rows")]
        ) from fault
    return list(iterator)


def _check_fields(row: _Fields, accept_bool: bool, now_us: int) -> CheckedPoint:
    sensor, metric, time, time_us, value, quality, metadata = row
    field = "sensor_id"
    try:
        sensor = name_of(sensor)
        field = "metric_name"
        metric = name_of(metric)
        field = "timestamp"
        if time_us is not None:
            field = "timestamp_us"
            moment = checked_us(time_us)
        else:
            moment = now_us if time is None else moment_us(time)
        field = "value"
        text = None
        if type(value) is float:
            number = value + 0.0
        elif isinstance(value, str):
            number, text = nan, text_of(value)
        else:
            number = number_of(value, accept_bool)
        field = "quality"
        grade = quality if type(quality) is int and 0 <= quality <= 255 else quality_of(quality)
        field = "metadata"
        extra = None if metadata is None else metadata_json(metadata)
    except Unfit as fault:
        raise _Refused(field, str(fault)) from fault
    kind = KIND_TEXT if text is not None else KIND_NUMBER if number == number else None
    return CheckedPoint(sensor, metric, kind, moment, number, text, grade, extra)


def _fields_of(row: Any) -> _Fields:
    """Return the seven fields of a row of any form."""
    kind = type(row)
    if kind is dict or isinstance(row, Mapping):
        return _fields_by_name(row)
    names = _attribute_names(kind)
    if names is not None:
        return _fields_by_name({name: getattr(row, name) for name in names if hasattr(row, name)})
    if isinstance(row, (tuple, list)):
        if not 4 <= len(row) <= 6:
            raise _Refused("row", f"has {len(row)} items, not {_TUPLE_FORM}")
        sensor, metric, time, value, *rest = row
        quality, metadata = (*rest, None, None)[:2]
        return sensor, metric, time, None, value, quality, metadata
    raise _Refused("row", f"is {described(row)}, not a mapping, tuple, list or dataclass")


def _fields_by_name(row: Mapping[Any, object]) -> _Fields:
    if not row.keys() <= _KNOWN:
        stranger = next(key for key in row if key not in _KNOWN)
        shown = (
            repr(stranger[:40]) if isinstance(stranger, str) else f"the key of type {type(stranger).__name__}"
        )
        raise _Refused(shown, f"is not a field of a point; the fields are {', '.join(_FIELDS)}")
    for name in _REQUIRED:
        if name not in row:
            raise _Refused(name, "is missing")
    if row.get("timestamp") is not None and row.get("timestamp_us") is not None:
        raise _Refused("timestamp", "is given twice, as timestamp and as timestamp_us")
    sensor, metric, time, time_us, value, quality, metadata = map(row.get, _FIELDS)
    return sensor, metric, time, time_us, value, quality, metadata


def _attribute_names(kind: type) -> tuple[str, ...] | None:
    """Return the field names of a dataclass or a named tuple; None for other types."""
    if is_dataclass(kind):
        return tuple(field.name for field in fields(kind))
    names = getattr(kind, "_fields", None)
    return names if issubclass(kind, tuple) and isinstance(names, tuple) else None


def _slow_path(
    rows: Sequence[Any], accept_bool: bool, now_us: int, known: Mapping[tuple[str, str], str]
) -> tuple[Batch, list[Refusal], set[tuple[str, str]]]:
    """Return the good rows, the refusals, and the series with readings of both kinds; `known` kinds are kept to."""
    mixed: set[tuple[str, str]] = set()
    code_of: dict[tuple[str, str], int] = {}
    kinds: list[str | None] = []
    codes: list[int] = []
    times: list[int] = []
    numbers: list[float] = []
    qualities: list[int] = []
    texts: dict[int, str] = {}
    metadata: dict[int, str] = {}
    refusals: list[Refusal] = []
    for index, row in enumerate(rows):
        try:
            sensor, metric, kind, moment, number, text, grade, extra = _check_fields(
                _fields_of(row), accept_bool, now_us
            )
            pair = (sensor, metric)
            code = code_of.get(pair)
            if code is None:
                code = code_of[pair] = len(kinds)
                kinds.append(known.get(pair, kind))
            if kind is not None and kinds[code] != kind:
                if kinds[code] is not None:
                    mixed.add(pair)
                kinds[code] = _same_kind(pair, kinds[code], kind)
        except _Refused as refused:
            refusals.append(Refusal(index, refused.field, refused.reason))
            continue
        if text is not None:
            texts[len(codes)] = text
        if extra is not None:
            metadata[len(codes)] = extra
        codes.append(code)
        times.append(moment)
        numbers.append(number)
        qualities.append(grade)
    batch = Batch(
        list(code_of),
        kinds,
        array("I", codes),
        array("q", times),
        array("d", numbers),
        texts,
        _one_or_many(qualities),
        metadata,
    )
    return batch, refusals, mixed


def _same_kind(series: tuple[str, str], first: str | None, later: str) -> str:
    if first is not None:
        raise _Refused("value", f"is a {later}, but {series[0]!r} {series[1]!r} has {first}s in this batch")
    return later


def _one_or_many(qualities: Sequence[int]) -> int | array[int]:
    if not qualities:
        return DEFAULT_QUALITY
    first = qualities[0]
    return first if qualities.count(first) == len(qualities) else array("i", qualities)


# --- the fast path: column by column -------------------------------------------------------------------

_NOTHING = type(None)
_EPOCH = to_datetime(0)
_Column = Sequence[Any]
_NOT_ORDINARY = (TypeError, ValueError, OverflowError, LookupError, AttributeError)


def _fast_path(rows: Sequence[Any], now_us: int) -> Batch | None:
    """Return the batch if every column is a common case; None sends the rows to the slow path."""
    if not rows:
        return None
    try:
        columns = _columns(rows)
        return None if columns is None else _batch_of(columns, len(rows), now_us)
    except _NOT_ORDINARY:
        return None  # the slow path finds the same fault, and names the row


def _columns(rows: Sequence[Any]) -> dict[str, _Column] | None:
    kinds = set(map(type, rows))
    if kinds <= {tuple, list}:
        width = len(rows[0])
        return dict(zip(_POSITIONS, _transposed(rows, width), strict=False)) if 4 <= width <= 6 else None
    if len(kinds) > 1:
        return None
    kind = kinds.pop()
    if kind is dict:
        return _dict_columns(rows)
    names = _attribute_names(kind)
    if names is None or not _KNOWN.issuperset(names) or not set(_REQUIRED).issubset(names):
        return None
    return {name: list(map(attrgetter(name), rows)) for name in names}


def _transposed(rows: Sequence[Any], width: int) -> Iterable[_Column]:
    if len(rows) <= 8_192:  # zip makes an iterator per row: fastest as long as they fit into the cache
        return zip(*rows, strict=True)
    if set(map(len, rows)) != {width}:
        raise ValueError("rows of different lengths")
    return [list(map(itemgetter(position), rows)) for position in range(width)]


def _dict_columns(rows: Sequence[dict[Any, Any]]) -> dict[str, _Column] | None:
    names = rows[0].keys()
    if set(map(len, rows)) == {len(names)} and names <= _KNOWN and names >= set(_REQUIRED):
        try:
            return {name: list(map(itemgetter(name), rows)) for name in names}
        except KeyError:
            pass  # the same number of keys, but other keys
    every = set().union(*rows)
    if not every <= _KNOWN:
        return None
    columns: dict[str, _Column] = {name: list(map(itemgetter(name), rows)) for name in _REQUIRED}
    columns.update((name, [row.get(name) for row in rows]) for name in every.difference(_REQUIRED))
    return columns


def _batch_of(columns: dict[str, _Column], row_count: int, now_us: int) -> Batch | None:
    times = _time_column(columns, row_count, now_us)
    if times is None:
        return None
    pairs = zip(columns["sensor_id"], columns["metric_name"], strict=True)
    code_of: defaultdict[tuple[str, str], int] = defaultdict(count().__next__)
    codes = array("I", list(map(code_of.__getitem__, pairs)))
    for sensor, metric in code_of:
        if type(sensor) is not str or type(metric) is not str:
            return None
        name_of(sensor)
        name_of(metric)
    series = list(code_of)
    column = columns["value"]
    values = _value_column(column)
    if values is None:
        return None
    kinds: list[str | None]
    texts: dict[int, str] = {}
    if isfinite(sum(values)):
        kinds = [KIND_NUMBER] * len(series)
    else:
        numeric = set(compress(codes, map(eq, values, values)))
        texts = {row: text for row, text in enumerate(column) if type(text) is str}
        textual = {codes[row] for row in texts}
        if not numeric.isdisjoint(textual):
            return None
        for text in set(texts.values()):
            text_of(text)
        kinds = [
            KIND_NUMBER if code in numeric else KIND_TEXT if code in textual else None
            for code in range(len(series))
        ]
    qualities = _quality_column(columns.get("quality"))
    if qualities is None:
        return None
    extras = map(metadata_json, columns.get("metadata", ()))
    metadata = {row: extra for row, extra in enumerate(extras) if extra is not None}
    return Batch(series, kinds, codes, times, values, texts, qualities, metadata)


def _time_column(columns: dict[str, _Column], row_count: int, now_us: int) -> array[int] | None:
    if "timestamp_us" in columns:
        column = columns["timestamp_us"]
        if "timestamp" in columns or set(map(type, column)) != {int}:
            return None
        return _int64s(column) if _within(column, MIN_TIMESTAMP_US, MAX_TIMESTAMP_US) else None
    column = columns.get("timestamp", ())
    kinds = set(map(type, column))
    if kinds <= {_NOTHING}:
        return array("q", (now_us,)) * row_count
    if all(kind is int or issubclass(kind, float) for kind in kinds):
        if not _within(column, -EXACT_FLOAT_S, EXACT_FLOAT_S):
            return None
        to_int = float.__round__
        return _int64s([to_int(seconds * 1e6) for seconds in column])  # raises for NaN
    if kinds == {datetime}:
        spans = [moment - _EPOCH for moment in column]
        us = [(span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds for span in spans]
        return _int64s(us) if _within(us, MIN_TIMESTAMP_US, MAX_TIMESTAMP_US) else None
    return None


def _value_column(column: _Column) -> array[float] | None:
    kinds = set(map(type, column))
    if not all(kind in {int, str, _NOTHING} or issubclass(kind, float) for kind in kinds):
        return None
    if str in kinds or _NOTHING in kinds:
        column = [nan if value is None or type(value) is str else value for value in column]
    values = array("d", column)
    if int in kinds and sum(map(ne, values, column)) != sum(map(ne, column, column)):
        return None  # apart from NaN, only an integer that was rounded differs from its float
    if _MINUS_ZERO in values.tobytes():
        values = array("d", list(map(add, values, repeat(0.0))))
    return values


def _quality_column(column: _Column | None) -> int | array[int] | None:
    if column is None:
        return DEFAULT_QUALITY
    kinds = set(map(type, column))
    if _NOTHING in kinds:
        column = [DEFAULT_QUALITY if quality is None else quality for quality in column]
        kinds.discard(_NOTHING)
    return _one_or_many(column) if kinds <= {int} and _within(column, *QUALITY_RANGE) else None


def _within(column: _Column, lowest: float, highest: float) -> bool:
    return bool(lowest <= min(column) and max(column) <= highest)


def _int64s(column: Sequence[int]) -> array[int]:
    return array("q", struct.pack(f"={len(column)}q", *column))  # array("q", column) takes 1.5 times as long
