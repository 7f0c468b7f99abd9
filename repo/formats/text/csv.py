"""Readings in CSV files: converts lines to rows and refusals. Never opens a file or a store.

A long file has one reading per line (sensor, metric, time, value), a wide file one column per metric. A cell that the
layout does not declare as text must be a number. A missing value gives no point in a wide file; in a long file it
gives a point without a reading.

One record is one line, because names and readings cannot contain line breaks. A stray quote therefore costs its own
line only, not the rest of the file. A line with unpaired quotes is refused even if it would parse: it may be the end of
a cell that began on another line.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, isinf, isnan
from typing import TextIO

from repo.errors import InvalidFile, InvalidSettings
from repo.fields import name_of
from repo.formats.lines import Lines, LongLine
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
from repo.formats.text.times import TimeReader
from repo.times import Unfit

__all__ = ["CsvRecords", "read_csv"]

_MISSING = ("", "NA", "NaN", "null")
_EXACT_INT = 2.0**53
_DIGITS = re.compile(r"[+-]?[0-9]+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")

_UNPAIRED = "the line has a quote that is not closed on it"


class CsvRecords(Lines):
    """The records of a text stream, one at a time; `line` is the number, from 1, of the last line read."""

    def __init__(self, stream: TextIO, delimiter: str) -> None:
        super().__init__(stream)
        self.delimiter = delimiter
        self._line_was_fed = False
        self._reader = csv.reader(self, delimiter=delimiter, strict=True)

    def next_cells(self) -> list[str] | None:
        """Return the cells of the next line, or None at the end.

        Raises csv.Error for a line that is not a record (reading can continue), InvalidFile for an undecodable byte.
        """
        try:
            return next(self._reader, None)
        finally:
            self._line_was_fed = False

    def __iter__(self) -> CsvRecords:
        return self

    def __next__(self) -> str:
        """Return the next line to the parser, which requests a second one only if a quote is open."""
        if self._line_was_fed:
            raise csv.Error(_UNPAIRED)
        try:
            line = self.next_line()
        except LongLine as fault:
            raise csv.Error(str(fault)) from fault
        if not line:
            raise StopIteration
        if line.count('"') % 2:
            raise csv.Error(_UNPAIRED)
        self._line_was_fed = True
        return line


def read_csv(stream: TextIO, layout: Layout, times: TimeReader | None = None) -> Iterator[ReadingChunk]:
    """Yield the readings of a CSV text in chunks, in the order of the file, in bounded memory.

    Open the file with newline="" and, to have undecodable bytes rejected line by line and not the whole file,
    errors="surrogateescape". A line that is too long or short, or has a stray quote, is rejected with its
    number, and reading continues. `times` is a new `time_reader` of the layout, for its findings. Raises
    InvalidSettings for an invalid layout, InvalidFile for a file without a usable header or with an undecodable byte;
    chunks yielded before stay valid.
    """
    check_layout(layout)
    times = times or time_reader(layout)
    delimiter = _checked_delimiter(layout)
    return _chunks(CsvRecords(stream, delimiter), layout, times)


def _checked_delimiter(layout: Layout) -> str:
    delimiter = "," if layout.delimiter is None else layout.delimiter
    if len(delimiter) != 1 or delimiter in '\r\n\0" ':
        raise InvalidSettings(
            f"the delimiter {delimiter!r} cannot be used: one character, such as , ; or a tab"
        )
    if layout.decimal == delimiter:
        raise InvalidSettings("the decimal comma needs another delimiter, such as ';'")
    return delimiter


def _chunks(records: CsvRecords, layout: Layout, times: TimeReader) -> Iterator[ReadingChunk]:
    columns = _read_header(records, layout)
    take = _CsvLines(layout, columns, times).take
    width = columns.width
    chunk, through = ReadingChunk(), CHUNK_CHARS
    while True:
        try:
            row = records.next_cells()
        except csv.Error as fault:
            chunk.reject(records.line, None, fault, "")
            row = []
        if row is None:
            break
        if len(row) > width and not any(map(str.strip, row[width:])):
            del row[width:]
        if len(row) == width:
            take(row, records.line, chunk)
        elif any(map(str.strip, row)):
            reason = f"the line has {len(row)} cells, the header {width}"
            chunk.reject(records.line, None, reason, records.delimiter.join(row))
        if len(chunk) >= CHUNK_READINGS or records.chars >= through:
            yield chunk
            chunk, through = ReadingChunk(), records.chars + CHUNK_CHARS
    if len(chunk) or chunk.missing:
        yield chunk


# --- the header ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Positions:
    """The positions of the fields in a line; None for fields that the file lacks."""

    width: int
    times: list[int]
    sensor: int | None
    quality: int | None
    metric: int | None = None
    value: int | None = None
    cells: list[tuple[int, str, bool]] = field(default_factory=list)
    """For a wide file: index, metric, whether it contains texts."""


class _Header:
    """The names of a file's columns, and the messages for missing ones."""

    def __init__(self, records: CsvRecords) -> None:
        self._path = records.path
        row: list[str] | None = []
        while row is not None and not any(map(str.strip, row)):
            try:
                row = records.next_cells()
            except csv.Error as fault:
                raise self.unusable(f"the header cannot be read: {fault}") from fault
        if row is None:
            raise self.unusable("the file is empty: it has no header line")
        row[0] = row[0].removeprefix("\ufeff")
        columns = [name.strip() for name in row]
        self.names = [name for name in columns if name]
        self.index_of = {name: index for index, name in enumerate(columns) if name}
        self.width = len(columns)
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise self.unusable(f"more than one column is named {_listed(twice)}")

    def column(self, name: str, use: str) -> int:
        if name in self.index_of:
            return self.index_of[name]
        alone = self.names[0] if len(self.names) == 1 else ""
        hint = "".join(f"; is {mark!r} its delimiter?" for mark in ";\t|," if mark in alone)
        raise self.unusable(f"there is no column {name!r} for the {use}, only {_listed(self.names)}{hint}")

    def unusable(self, message: str) -> InvalidFile:
        return InvalidFile(message, path=self._path)


def _read_header(records: CsvRecords, layout: Layout) -> _Positions:
    header = _Header(records)
    columns = _Positions(
        width=header.width,
        times=[header.column(name, "time") for name in layout.time_columns],
        sensor=None if layout.sensor is not None else header.column(layout.sensor_column, "sensor"),
        quality=header.index_of.get(layout.quality_column),
    )
    has_metric = layout.metric is not None or layout.metric_column in header.index_of
    if layout.shape == "long" or (layout.shape == "auto" and has_metric):
        columns.value = header.column(layout.value_column, "value")
        columns.metric = None if layout.metric is not None else header.column(layout.metric_column, "metric")
        return columns
    others = {layout.sensor_column, layout.quality_column, *layout.time_columns, *layout.ignored}
    metrics = layout.metrics or tuple(name for name in header.names if name not in others)
    if not metrics:
        raise header.unusable(f"no column is left for a metric; there are only {_listed(header.names)}")
    for name in metrics:
        try:
            columns.cells.append((header.column(name, "metric"), name_of(name), name in layout.text_metrics))
        except Unfit as fault:
            raise header.unusable(f"the column name {name[:SHOWN_CHARS]!r} {fault}") from fault
    for name in set(layout.text_metrics).difference(metrics):
        raise header.unusable(f"the text metric {name!r} is none of the metrics {_listed(metrics)}")
    return columns


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:SHOWN_CHARS]) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


# --- one line ------------------------------------------------------------------------------------------

_Head = tuple[str | None, object, tuple[int | None, ...]]


class _CsvLines:
    """Converts the cells of a line and adds them to a chunk."""

    def __init__(self, layout: Layout, columns: _Positions, times: TimeReader) -> None:
        self._layout, self._columns, self._times = layout, columns, times
        self._cells = _Cells(layout)
        self.take = self._take_wide if columns.value is None else self._take_long

    def _take_wide(self, row: list[str], line: int, chunk: ReadingChunk) -> None:
        head = self._head(row, line, chunk)
        if head is None:
            return
        sensor, seconds, quality = head
        number_of, text_of, rows = self._cells.number, self._cells.text, chunk.rows
        before = len(rows)
        for index, metric, is_text in self._columns.cells:
            try:
                value = text_of(row[index]) if is_text else number_of(row[index])
            except Unfit as fault:
                chunk.reject(line, metric, fault, row[index])
                continue
            if value is None:
                chunk.missing += 1
            else:
                rows.append((sensor, metric, seconds, value, *quality))
        chunk.lines.extend([line] * (len(rows) - before))

    def _take_long(self, row: list[str], line: int, chunk: ReadingChunk) -> None:
        head, value_column, layout = self._head(row, line, chunk), self._columns.value, self._layout
        if head is None or value_column is None:
            return
        sensor, seconds, quality = head
        metric = self._metric(row)
        cell = row[value_column]
        try:
            value = self._cells.text(cell) if metric in layout.text_metrics else self._cells.number(cell)
        except Unfit as fault:
            chunk.reject(line, layout.value_column, fault, cell)
            return
        chunk.rows.append((sensor, metric, seconds, value, *quality))
        chunk.lines.append(line)

    def _head(self, row: list[str], line: int, chunk: ReadingChunk) -> _Head | None:
        """Return sensor, time and quality of a line; None if one of them caused a rejection."""
        columns, layout = self._columns, self._layout
        sensor = layout.sensor if columns.sensor is None else row[columns.sensor]
        names, text = layout.time_columns, " ".join([row[index].strip() for index in columns.times]).strip()
        quality: tuple[int | None, ...] = ()
        try:
            seconds = seconds_of(self._times.us(text, (sensor, self._metric(row))))
            if columns.quality is not None:
                names, text = (layout.quality_column,), row[columns.quality]
                quality = (self._cells.quality(text),)
        except Unfit as fault:
            chunk.reject(line, " ".join(names), fault, text)
            return None
        return sensor, seconds, quality

    def _metric(self, row: list[str]) -> str | None:
        """Return the metric of a line of a long file."""
        return self._layout.metric if self._columns.metric is None else row[self._columns.metric]


class _Cells:
    """Return the value of one cell, None if it is marked as missing; raises Unfit if it cannot be parsed."""

    def __init__(self, layout: Layout) -> None:
        self._missing = frozenset((*_MISSING, *layout.missing))
        self._decimal_comma = layout.decimal == ","
        self._plain = not self._decimal_comma and not any(map(_is_finite_number, layout.missing))

    def number(self, cell: str) -> float | None:
        if self._plain:  # nine out of ten cells end here
            try:
                number = float(cell)
                if -_EXACT_INT < number < _EXACT_INT and cell.isascii() and "_" not in cell:
                    return number
            except ValueError:
                pass
        return self._careful_number(cell)

    def _careful_number(self, cell: str) -> float | None:
        cell = cell.strip()
        if cell in self._missing:
            return None
        try:
            number = float(self._with_point(cell) if self._decimal_comma else cell)
        except ValueError:
            raise Unfit("is not a number; declare the metric as text if it holds states") from None
        if -_EXACT_INT < number < _EXACT_INT and cell.isascii() and "_" not in cell:
            return number
        return self._unusual(number, cell)

    def text(self, cell: str) -> str | None:
        return None if cell.strip() in self._missing else cell

    def quality(self, cell: str) -> int | None:
        cell = cell.strip()
        if cell in self._missing:
            return None
        if not _INTEGER.fullmatch(cell):
            raise Unfit("is not an integer of 32 bits")
        return int(cell)

    @staticmethod
    def _with_point(cell: str) -> str:
        if "." in cell:
            raise Unfit("has a point, but the file's numbers have decimal commas")
        return cell.replace(",", ".")

    @staticmethod
    def _unusual(number: float, cell: str) -> float | None:
        if not cell.isascii() or "_" in cell:
            raise Unfit("is a number only to Python; write it with the digits 0 to 9")
        if isnan(number):
            return None
        if isinf(number) and not cell.lstrip("+-").isalpha():
            raise Unfit("is too large for a 64-bit float")
        if _DIGITS.fullmatch(cell) and int(cell) != number:
            raise Unfit("is an integer that a 64-bit float would round")
        return number


def _is_finite_number(mark: str) -> bool:
    try:
        return isfinite(float(mark))
    except ValueError:
        return False
