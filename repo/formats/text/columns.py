"""Columns of a CSV file: finds the header, and the position of each field in a line. Never converts a cell.

A file may have several headers, such as files that were joined; each applies to the lines after it. A later header is
recognized by the names of the columns that every line needs. One that changes the meaning of a position that the
caller chose makes the file unusable, as does a line that looks like a header without these names.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from repo.errors import InvalidFile, InvalidSettings
from repo.formats.lines import undecodable
from repo.formats.text.layout import SHOWN_CHARS, Layout
from repo.formats.text.records import CsvRecords
from repo.inputs.fields import name_of
from repo.inputs.times import Unfit

__all__ = ["CsvColumns", "first_columns", "is_position", "later_columns"]

_POSITION = re.compile(r"#([1-9][0-9]{0,5})")
_SEARCHED_LINES = 100
"""In how many lines a misplaced header is searched for, to name its line in the message."""
_REMEDIES = {
    "time": "name the column (--time-column)",
    "sensor": "name the column (--sensor-column), or the sensor of all lines (--sensor)",
    "value": "name the column (--value-column)",
}


@dataclass(slots=True)
class CsvColumns:
    """The positions of the fields in a line; None for fields that the file lacks."""

    names: list[str]
    """The name of each column, empty if it has none."""
    times: list[int]
    sensor: int | None
    quality: int | None
    metric: int | None = None
    value: int | None = None
    cells: list[tuple[int, str, bool]] = field(default_factory=list)
    """For a wide file: index, metric, whether it contains texts."""
    positions: dict[int, str] = field(default_factory=dict)
    """The name of each column that was chosen by its position."""

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self.names)

    @property
    def least(self) -> int:
        """The number of cells that a line needs; the empty ones after them may be left out."""
        needed = [*self.times, self.sensor, self.metric, self.value]
        last = max(index for index in needed if index is not None)
        return 1 + max(last, min((index for index, _, _ in self.cells), default=0))

    @property
    def most(self) -> int:
        """The number of cells after which a line has nothing that is read."""
        used = [self.quality, *(index for index, _, _ in self.cells)]
        return max(self.least, *(1 + index for index in used if index is not None), 0)

    @property
    def keys(self) -> set[str]:
        """The names of the columns that every line needs."""
        needed = (*self.times, self.sensor, self.metric, self.value)
        return {self.names[index] for index in needed if index is not None} - {""}


def first_columns(records: CsvRecords, layout: Layout) -> tuple[CsvColumns, list[str] | None]:
    """Read the header of a file; return its columns, and the first line of data if that had to be read.

    Raises `InvalidFile` for a file without a usable header.
    """
    if isinstance(layout.header, int):
        records.skip_to(layout.header)
    row = _first_row(records)
    if records.delimiter == layout.decimal:
        raise InvalidSettings("the decimal comma needs another delimiter, such as ';'")
    if layout.header == "none":
        names = [f"#{number}" for number in range(1, len(row) + 1)]
        return _Header(records, names).columns(layout), row
    header = _Header(records, row)
    try:
        columns = header.columns(layout)
    except _NoColumn as fault:
        line = None if layout.header else _line_of_header(records, layout)
        hint = (
            fault.hint
            if line is None
            else f"; line {line} has it: set the line of the header (--header {line})"
        )
        raise header.unusable(f"{fault}{hint}") from fault
    records.skip_lines(layout.skip)
    return columns, None


def later_columns(
    records: CsvRecords, layout: Layout, row: Sequence[str], before: CsvColumns
) -> CsvColumns | None:
    """Return the columns if a line, which gave no point, is another header or belongs to one; None if it is data.

    A line that begins like one above the first header belongs to the next one.

    Raises `InvalidFile` if the lines after it could not be read by it.
    """
    names = [cell.strip() for cell in row]
    if layout.header == "none":
        return None
    if names == before.names:
        records.skip_lines(layout.skip)
        return before
    if names[0] in records.titles:
        return before
    here = {name for name in names if name}
    if not (before.keys and before.keys <= here):
        known = here.intersection(before.names)
        if len(known) < 2 or 2 * len(known) < len(here):
            return None
        missing = _listed(sorted(before.keys - here))
        raise InvalidFile(
            f"line {records.line} looks like another header, but has no column {missing}; the lines after it cannot be "
            "read by either header, so split the file there",
            path=records.path,
        )
    header = _Header(records, names)
    try:
        columns = header.columns(layout)
    except InvalidFile as fault:
        raise header.unusable(
            f"line {records.line} is another header, which cannot be used: {fault}"
        ) from fault
    for index, name in before.positions.items():
        if columns.names[index] != name:
            raise header.unusable(
                f"line {records.line} is another header, whose column #{index + 1} is {columns.names[index]!r} and not "
                f"{name!r}; choose the column by its name, or split the file there"
            )
    records.skip_lines(layout.skip)
    return columns


def is_position(name: str) -> bool:
    """Return whether a name may denote a column by its position, as `#1` does."""
    return _POSITION.fullmatch(name) is not None


def _first_row(records: CsvRecords) -> list[str]:
    row: list[str] | None = []
    while row is not None and not any(map(str.strip, row)):
        try:
            row = records.next_cells()
        except csv.Error as fault:
            raise InvalidFile(f"the header cannot be read: {fault}", path=records.path) from fault
    if row is None:
        raise InvalidFile("the file is empty: it has no header line", path=records.path)
    return row


def _line_of_header(records: CsvRecords, layout: Layout) -> int | None:
    """Search the next lines for the columns that every line needs, and return the line that has them."""
    wanted = {name for name in layout.time_columns if not is_position(name)} - {""}
    if layout.sensor is None and not is_position(layout.sensor_column):
        wanted.add(layout.sensor_column)
    for _ in range(_SEARCHED_LINES if wanted else 0):
        try:
            row = records.next_cells()
        except csv.Error:
            continue
        if row is None:
            return None
        if wanted <= set(map(str.strip, row)):
            return records.line
    return None


class _NoColumn(InvalidFile):
    """The header lacks a column; `hint` is what may be wrong."""

    hint = ""


class _Header:
    """The names of a file's columns, and the messages for missing ones."""

    def __init__(self, records: CsvRecords, row: Sequence[str]) -> None:
        self._path = records.path
        self._delimiter = records.delimiter
        self._columns = [name.strip() for name in row]
        self._names = [name for name in self._columns if name]
        self._index_of = {name: index for index, name in enumerate(self._columns) if name}
        self._counts = Counter(self._names)
        self._positions: dict[int, str] = {}
        for name in self._names:
            if wrong := undecodable(name):
                raise self.unusable(
                    f"the header {wrong}; set the encoding of the file, such as cp1252 or latin-1 (--encoding)"
                )

    def columns(self, layout: Layout) -> CsvColumns:
        """Return the positions of the layout's fields; raises `InvalidFile`."""
        columns = CsvColumns(
            self._columns,
            times=[self._index(name, "time") for name in layout.time_columns],
            sensor=None if layout.sensor is not None else self._index(layout.sensor_column, "sensor"),
            quality=self._find(layout.quality_column),
            positions=self._positions,
        )
        metric = None if layout.metric is not None else self._find(layout.metric_column)
        has_metric = (layout.metric is not None or metric is not None) and not layout.columns
        if layout.shape == "long" or (layout.shape == "auto" and has_metric):
            columns.value = self._index(layout.value_column, "value")
            columns.metric = (
                None if layout.metric is not None else self._index(layout.metric_column, "metric")
            )
        else:
            columns.cells = self._cells(layout, columns)
        return columns

    def unusable(self, message: str) -> InvalidFile:
        return InvalidFile(message, path=self._path)

    def _cells(self, layout: Layout, columns: CsvColumns) -> list[tuple[int, str, bool]]:
        chosen = [(self._index(column, "metric"), metric) for metric, column in layout.columns]
        if layout.metrics is not None:
            chosen += [(index, self._metric_at(index)) for index in self._indexes(layout.metrics)]
        elif not layout.columns:
            chosen = [(index, self._columns[index]) for index in self._others(layout, columns)]
        if not chosen:
            raise self.unusable(f"no column is left for a metric; there are only {_listed(self._names)}")
        cells = []
        for index, metric in chosen:
            try:
                cells.append((index, name_of(metric), metric in layout.text_metrics))
            except Unfit as fault:
                raise self.unusable(f"the column name {metric[:SHOWN_CHARS]!r} {fault}") from fault
        metrics = [metric for _, metric in chosen]
        self._refuse_twice(metrics)
        for name in set(layout.text_metrics).difference(metrics):
            raise self.unusable(f"the text metric {name!r} is none of the metrics {_listed(metrics)}")
        return cells

    def _others(self, layout: Layout, columns: CsvColumns) -> Iterator[int]:
        """Yield the columns that have a name and no other use."""
        used = {*columns.times, columns.sensor, columns.quality}
        used.update(
            index for name in layout.ignored if (index := self._find(name, all_of_a_name=True)) is not None
        )
        ignored = {*layout.ignored, layout.sensor_column}
        for index, name in enumerate(self._columns):
            if name and index not in used and name not in ignored:
                yield index

    def _indexes(self, names: Sequence[str]) -> list[int]:
        return [self._index(name, "metric") for name in names]

    def _metric_at(self, index: int) -> str:
        return self._columns[index] or f"#{index + 1}"

    def _index(self, name: str, use: str) -> int:
        index = self._find(name)
        if index is not None:
            return index
        if name == "" and "" in self._columns:
            count = self._columns.count("")
            raise self.unusable(
                f"{count} columns have no name; choose the one for the {use} by its position, such as #1"
            )
        fault = _NoColumn(
            f"there is no column {name[:SHOWN_CHARS]!r} for the {use}, only {_listed(self._names)}",
            path=self._path,
        )
        alone = self._names[0] if len(self._names) == 1 else ""
        fault.hint = "".join(f"; is {mark!r} its delimiter?" for mark in ";\t|," if mark in alone)
        if not fault.hint and use in _REMEDIES:
            fault.hint = f"; {_REMEDIES[use]}"
        raise fault

    def _find(self, name: str, *, all_of_a_name: bool = False) -> int | None:
        """Return the index of the column with a name or at a position; None if there is none."""
        index = self._index_of.get(name)
        if index is not None:
            if not all_of_a_name:
                self._refuse_twice([name] * self._counts[name])
            return index
        if name == "":
            return self._columns.index("") if self._columns.count("") == 1 else None
        position = _POSITION.fullmatch(name)
        if position is None or int(position[1]) > len(self._columns):
            return None
        index = int(position[1]) - 1
        self._positions[index] = self._columns[index]
        return index

    def _refuse_twice(self, names: Sequence[str]) -> None:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise self.unusable(
                f"more than one column is named {_listed(twice)}; choose one by its position, such as #2"
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:SHOWN_CHARS]) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
