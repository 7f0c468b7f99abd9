"""Readings in CSV files: converts lines to rows and refusals. Never opens a file or a store.

A long file has one reading per line (sensor, metric, time, value), a wide file one column per metric. A cell that the
layout does not declare as text must be a number. A missing value gives no point in a wide file; in a long file it
gives a point without a reading. Empty cells at the end of a line may be left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TextIO

from repo.errors import counted
from repo.formats.text.cells import Cells
from repo.formats.text.columns import CsvColumns, first_columns, later_columns
from repo.formats.text.layout import (
    CHUNK_CHARS,
    CHUNK_READINGS,
    Layout,
    ReadingChunk,
    check_layout,
    seconds_of,
    time_reader,
)
from repo.formats.text.records import CsvRecords
from repo.formats.text.times import TimeReader
from repo.inputs.times import NoSuchTime, Unfit

__all__ = ["read_csv"]


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
    records = CsvRecords(stream, layout.delimiter, comment=layout.comment, footer=layout.footer)
    return _chunks(records, layout, times)


def _chunks(records: CsvRecords, layout: Layout, times: TimeReader) -> Iterator[ReadingChunk]:
    columns, row = first_columns(records, layout)
    lines = _CsvLines(layout, columns, times)
    chunk, through = ReadingChunk(), CHUNK_CHARS
    while True:
        try:
            row = records.next_cells() if row is None else row
        except csv.Error as fault:
            chunk.reject(records.line, None, fault, "")
            row = []
        if row is None:
            break
        rejections = len(chunk.rejected)
        if len(row) == lines.width:
            lines.take(row, records.line, chunk)
        else:
            _take_other_width(lines, row, records, chunk)
        if len(chunk.rejected) > rejections and row:
            later = later_columns(records, layout, row, lines.columns)
            if later is not None:
                del chunk.rejected[rejections:]
                lines = _CsvLines(layout, later, times)
        if len(chunk) >= CHUNK_READINGS or records.chars >= through:
            yield chunk
            chunk, through = ReadingChunk(), records.chars + CHUNK_CHARS
        row = None
    if len(chunk) or chunk.missing:
        yield chunk


def _take_other_width(lines: _CsvLines, row: list[str], records: CsvRecords, chunk: ReadingChunk) -> None:
    """Add the readings of a line that has, or leaves out, empty cells at its end."""
    cells, width = len(row), lines.width
    if not any(map(str.strip, row)):
        return
    if cells > width and not any(map(str.strip, row[width:])):
        lines.take(row[:width], records.line, chunk)
    elif lines.most <= cells < width or (lines.least <= cells < width and records.is_complete):
        lines.take(row + [""] * (width - cells), records.line, chunk)
    else:
        reason = f"the line has {counted(cells, 'cell')}, the header {width}"
        if not records.is_complete:
            reason += ", and the file ends within it"
        chunk.reject(records.line, None, reason, records.delimiter.join(row))


# --- one line ------------------------------------------------------------------------------------------

_Head = tuple[str | None, object, tuple[int | None, ...]]


class _CsvLines:
    """Converts the cells of a line and adds them to a chunk."""

    def __init__(self, layout: Layout, columns: CsvColumns, times: TimeReader) -> None:
        self._layout, self.columns, self._times = layout, columns, times
        self.width, self.least, self.most = columns.width, columns.least, columns.most
        self._time = columns.times[0] if len(columns.times) == 1 else None
        self._cells = cells = Cells(layout)
        self._value = cells.number_or_text if layout.mixed else cells.number
        self.take = self._take_wide if columns.value is None else self._take_long

    def _take_wide(self, row: list[str], line: int, chunk: ReadingChunk) -> None:
        head = self._head(row, line, chunk, None)
        if head is None:
            return
        sensor, seconds, quality = head
        value_of, text_of, rows = self._value, self._cells.text, chunk.rows
        before = len(rows)
        for index, metric, is_text in self.columns.cells:
            try:
                value = text_of(row[index]) if is_text else value_of(row[index])
            except Unfit as fault:
                chunk.reject(line, metric, fault, row[index])
                continue
            if value is None:
                chunk.missing += 1
            else:
                rows.append((sensor, metric, seconds, value, *quality))
        chunk.lines.extend([line] * (len(rows) - before))

    def _take_long(self, row: list[str], line: int, chunk: ReadingChunk) -> None:
        value_column, layout = self.columns.value, self._layout
        metric = layout.metric if self.columns.metric is None else row[self.columns.metric].strip()
        head = self._head(row, line, chunk, metric)
        if head is None or value_column is None:
            return
        if layout.metrics is not None and metric not in layout.metrics:
            return
        sensor, seconds, quality = head
        cell = row[value_column]
        try:
            value = self._cells.text(cell) if metric in layout.text_metrics else self._value(cell)
        except Unfit as fault:
            chunk.reject(line, layout.value_column, fault, cell)
            return
        chunk.rows.append((sensor, metric, seconds, value, *quality))
        chunk.lines.append(line)

    def _head(self, row: list[str], line: int, chunk: ReadingChunk, metric: str | None) -> _Head | None:
        """Return sensor, time and quality of a line; None if one of them caused a rejection.

        `metric` is None in a wide file.
        """
        columns, layout = self.columns, self._layout
        sensor = layout.sensor if columns.sensor is None else row[columns.sensor].strip()
        names = layout.time_columns
        if self._time is not None:
            text = row[self._time].strip()
        else:
            text = " ".join([row[index].strip() for index in columns.times]).strip()
        quality: tuple[int | None, ...] = ()
        try:
            seconds = seconds_of(self._times.us(text, (sensor, metric)))
            if columns.quality is not None:
                names, text = (layout.quality_column,), row[columns.quality]
                quality = (self._cells.quality(text),)
        except Unfit as fault:
            # A file with a line per interval has empty ones for the hour that the clock skips.
            if isinstance(fault, NoSuchTime) and self._has_no_reading(row):
                chunk.missing += len(columns.cells)
            else:
                chunk.reject(line, " ".join(names), fault, text)
            return None
        return sensor, seconds, quality

    def _has_no_reading(self, row: list[str]) -> bool:
        """Return whether all metrics of a wide file are missing in a line."""
        cells = [row[index] for index, _, _ in self.columns.cells]
        return bool(cells) and all(self._cells.text(cell) is None for cell in cells)
