"""Readings in NDJSON files: converts objects to rows and refusals. Never opens a file or a store.

There are two shapes, as in CSV. A long line is one reading, with the keys of `repo.formats.ndjson_lines`; its time may
also be text. A wide line has one key per metric, whose value is a number. JSON's types need no options: `null` is no
reading (no point in a wide line, a point without a reading in a long line), and a text in a long line is a state. The
shape is detected per line. Other keys of a long line are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any, TextIO

from repo.formats.lines import Objects
from repo.formats.ndjson_lines import INFINITE
from repo.formats.text.cells import ON_OFF, numbers_among
from repo.formats.text.layout import (
    CHUNK_CHARS,
    CHUNK_READINGS,
    SHOWN_CHARS,
    Layout,
    ReadingChunk,
    check_layout,
    seconds_of,
    time_reader,
)
from repo.formats.text.times import TimeReader, refuse_rounded
from repo.inputs.fields import described
from repo.inputs.times import Unfit, checked_us

__all__ = ["read_ndjson"]

_EXACT_TIME = "timestamp_us"
_METADATA = "metadata"
_EXPONENT = re.compile("[0-9][eE]")


def read_ndjson(stream: TextIO, layout: Layout, times: TimeReader | None = None) -> Iterator[ReadingChunk]:
    """Yield the readings of an NDJSON text in chunks, in the order of the file, in bounded memory.

    Open the file as for `read_csv`. A line that is not an object, or lacks a key, is rejected with its number, and
    reading continues. `times` is a new `time_reader` of the layout, for its findings. Raises InvalidSettings for an
    invalid layout, InvalidFile for a single JSON array or an undecodable byte; chunks yielded before stay valid.
    """
    check_layout(layout)
    return _chunks(Objects(stream), _NdjsonLines(layout, times or time_reader(layout)).take)


def _chunks(
    objects: Objects, take: Callable[[dict[str, Any], Objects, ReadingChunk], None]
) -> Iterator[ReadingChunk]:
    chunk, through = ReadingChunk(), CHUNK_CHARS
    while True:
        try:
            found = objects.next_object()
        except Unfit as fault:
            chunk.reject(objects.line, None, fault, objects.text)
        else:
            if found is None:
                break
            take(found, objects, chunk)
        if len(chunk) >= CHUNK_READINGS or objects.chars >= through:
            yield chunk
            chunk, through = ReadingChunk(), objects.chars + CHUNK_CHARS
    if len(chunk) or chunk.missing:
        yield chunk


class _Reject(Exception):
    def __init__(self, column: str | None, reason: object, value: object = None) -> None:
        self.column, self.reason = column, reason
        self.text = "" if value is None or isinstance(value, dict | list) else str(value)


class _NdjsonLines:
    """Converts the object of a line and adds it to a chunk."""

    def __init__(self, layout: Layout, times: TimeReader) -> None:
        self._layout = layout
        self._times = times
        self._missing = frozenset(layout.missing)
        self._missing_numbers = numbers_among(layout.missing)
        self._numbers_are_seconds = set(layout.time_formats) == {"iso"}
        self._time = layout.time_columns[0] if len(layout.time_columns) == 1 else None
        self._has_exact_time = layout.time_columns in (("timestamp",), (_EXACT_TIME,))
        chosen = (*layout.columns, *((name, name) for name in layout.metrics or ()))
        self._chosen = chosen or None
        self._heads = {
            *(layout.sensor_column, layout.quality_column, _METADATA, *layout.time_columns, *layout.ignored),
            *((_EXACT_TIME,) if self._has_exact_time else ()),
        }

    def take(self, found: dict[str, Any], at: Objects, chunk: ReadingChunk) -> None:
        """Add the readings of a line, and its rejected items."""
        layout = self._layout
        try:
            is_long = layout.shape == "long" or (
                layout.shape == "auto"
                and (layout.metric is not None or (layout.metric_column in found and not layout.columns))
            )
            sensor = found.get(layout.sensor_column) if layout.sensor is None else layout.sensor
            if type(sensor) is not str:
                raise self._no_text(layout.sensor_column, sensor, found)
            series = (sensor, str(found.get(layout.metric_column)) if is_long else None)
            seconds = self._seconds(found, at, series)
            tail = (found.get(layout.quality_column), found.get(_METADATA))
            if is_long:
                self._take_long(found, sensor, seconds, tail, at.line, chunk)
            else:
                self._take_wide(found, sensor, seconds, tail, at.line, chunk)
        except _Reject as fault:
            chunk.reject(at.line, fault.column, fault.reason, fault.text or at.text)

    def _take_long(
        self,
        found: dict[str, Any],
        sensor: str,
        seconds: object,
        tail: tuple[Any, Any],
        line: int,
        chunk: ReadingChunk,
    ) -> None:
        layout = self._layout
        metric = found.get(layout.metric_column) if layout.metric is None else layout.metric
        if type(metric) is not str:
            raise self._no_text(layout.metric_column, metric, found)
        if layout.metrics is not None and metric not in layout.metrics:
            return
        if layout.value_column not in found:
            raise _Reject(layout.value_column, "is missing")
        try:
            value = self._value(found[layout.value_column])
        except Unfit as fault:
            raise _Reject(layout.value_column, fault) from fault
        chunk.rows.append((sensor, metric, seconds, value, *tail))
        chunk.lines.append(line)

    def _take_wide(
        self,
        found: dict[str, Any],
        sensor: str,
        seconds: object,
        tail: tuple[Any, Any],
        line: int,
        chunk: ReadingChunk,
    ) -> None:
        layout, heads = self._layout, self._heads
        if self._chosen is None:
            cells = [(metric, value) for metric, value in found.items() if metric not in heads]
            if not cells:
                raise _Reject(None, "has no key for a metric")
        else:
            cells = [(metric, found[key]) for metric, key in self._chosen if key in found]
        before = len(chunk.rows)
        for metric, given in cells:
            try:
                value = self._value(given)
            except Unfit as fault:
                chunk.reject(line, metric, fault, "")
                continue
            if value is None:
                chunk.missing += 1
            elif type(value) is str and metric not in layout.text_metrics and not layout.mixed:
                reason = "is a text, not a number; if the metric holds states, declare it as text (--text)"
                chunk.reject(line, metric, reason, value)
            else:
                chunk.rows.append((sensor, metric, seconds, value, *tail))
        chunk.lines.extend([line] * (len(chunk.rows) - before))

    def _value(self, value: Any) -> Any:
        """Return a JSON value as a number, a text, or None if it is marked as missing."""
        kind = type(value)
        if kind is str:
            if value in self._missing:
                return None
            switch = ON_OFF.get(value.lower()) if self._layout.on_off else None
            return INFINITE.get(value, value) if switch is None else switch
        if kind is dict:
            raise Unfit("is a nested object; flatten the lines first, with jq for example")
        if kind is list:
            raise Unfit(f"is {described(value)}; expected a number or a text")
        if kind is float and not isfinite(value):  # JSON has no infinity
            raise Unfit("is too large for a 64-bit float")
        if kind is bool and self._layout.on_off:
            return float(value)
        return (
            None if self._missing_numbers and value in self._missing_numbers and kind is not bool else value
        )

    def _seconds(self, found: dict[str, Any], at: Objects, series: tuple[str, str | None]) -> object:
        """Return the time of a line in a form that `insert_many` accepts."""
        time = found.get(_EXACT_TIME) if self._has_exact_time else None
        try:
            if time is not None:
                return seconds_of(checked_us(time))
            if self._time is None:
                time = " ".join([self._time_text(found.get(name)) for name in self._layout.time_columns])
                return seconds_of(self._times.us(time.strip(), series))
            time = found.get(self._time)
            kind = type(time)
            if kind is float and _EXPONENT.search(at.text):
                refuse_rounded(at.exact()[self._time])
            if kind is not int and kind is not float:
                return seconds_of(self._times.us(self._time_text(time), series))
            return (
                time if self._numbers_are_seconds else seconds_of(self._times.number_us(repr(time), series))
            )
        except Unfit as fault:
            raise _Reject(" ".join(self._layout.time_columns), fault, time) from fault

    @staticmethod
    def _time_text(time: object) -> str:
        if type(time) is str:
            return time.strip()
        if type(time) is int or type(time) is float:
            return repr(time)
        raise Unfit("is missing" if time is None else f"is {described(time)}; expected a text or a number")

    @staticmethod
    def _no_text(column: str, value: object, found: dict[str, Any]) -> _Reject:
        if column not in found:
            keys = ", ".join(repr(key[:SHOWN_CHARS]) for key in list(found)[:20])
            return _Reject(column, f"is missing; there are only {keys}" if keys else "is missing")
        return _Reject(column, f"is {described(value)}, not a text", value)
