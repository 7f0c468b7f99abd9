"""Readings in text files: the layout that describes a file, and the resulting chunks. Reads nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from repo.errors import InvalidSettings, Refusal
from repo.fields import name_of
from repo.formats.text.times import Ambiguous, TimeReader
from repo.times import EXACT_FLOAT_S, Unfit, to_datetime

__all__ = [
    "CHUNK_CHARS",
    "CHUNK_READINGS",
    "SHOWN_CHARS",
    "Layout",
    "ReadingChunk",
    "Rejected",
    "check_layout",
    "seconds_of",
    "time_reader",
]

CHUNK_READINGS = 10_000
CHUNK_CHARS = 4_194_304
"""A chunk ends at this number of readings or characters, as texts and metadata may be long."""

SHOWN_CHARS = 80
_PLACES = {"sensor_id": 0, "metric_name": 1, "timestamp": 2, "value": 3, "quality": 4}
_FLOAT_TIMES_US = int(EXACT_FLOAT_S) * 2 * 1_000_000  # up to here float seconds are exact to the microsecond


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read a file: its columns (for NDJSON, its keys) by name, and the meaning of its texts."""

    shape: Literal["auto", "long", "wide"] = "auto"
    """`auto`: long if there is a metric (a column or a constant), else wide; for NDJSON, decided per line."""
    sensor_column: str = "sensor_id"
    metric_column: str = "metric_name"
    value_column: str = "value"
    quality_column: str = "quality"
    """Used if the file has it; in a wide file it applies to the whole line."""
    time_columns: tuple[str, ...] = ("timestamp",)
    """Several columns are joined by a space, such as Date and Time."""
    sensor: str | None = None
    """The sensor of every line; it replaces the column."""
    metric: str | None = None
    """The metric of every line of a long file; it replaces the column."""
    metrics: tuple[str, ...] | None = None
    """Columns of a wide file to read; None for all except time, sensor, quality and `ignored`."""
    ignored: tuple[str, ...] = ()
    text_metrics: tuple[str, ...] = ()
    """Metrics that are states, not numbers. NDJSON distinguishes texts from numbers, and needs this only if wide."""
    time_formats: tuple[str, ...] = ("iso",)
    """Tried in order: `iso`, `unix`, `unix_ms`, `unix_us`, or strptime patterns. Numbers in NDJSON are Unix seconds if
    `iso` is the only one."""
    zone: str = "UTC"
    """IANA name of the time zone for times without an offset."""
    ambiguous: Ambiguous = "refuse"
    """How to interpret a local time that occurred twice."""
    missing: tuple[str, ...] = ()
    """Texts that mark a missing reading, besides those of the format: for CSV an empty cell, NA, NaN and null; for
    NDJSON null."""
    delimiter: str | None = None
    """For CSV, as is `decimal`; None means a comma."""
    decimal: Literal[".", ","] = "."


@dataclass(frozen=True, slots=True)
class Rejected:
    """An item that gave no point: its line (from 1), column, the reason, and the text, shortened to 80 characters.

    Rows of Parquet have no line.
    """

    line: int | None
    column: str | None
    reason: str
    text: str

    def __str__(self) -> str:
        if self.line is None:
            return self.reason
        where = f"line {self.line}" if self.column is None else f"line {self.line}, {self.column}"
        return f"{where}: {self.reason} ({self.text!r})"


@dataclass(slots=True)
class ReadingChunk:
    """About 10,000 readings: rows for `insert_many`, the rejected items, and the number of missing cells."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """The line in the file of each row."""
    rejected: list[Rejected] = field(default_factory=list)
    missing: int = 0
    """Cells of a wide file that were marked as missing; they have no row."""

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejected)

    def reject(self, line: int, column: str | None, reason: object, text: str) -> None:
        """Add an item that gives no point."""
        self.rejected.append(Rejected(line, column, str(reason), text[:SHOWN_CHARS]))

    def rejections(self, refusals: Iterable[Refusal]) -> list[Rejected]:
        """Return the rows that the store refused, by line of the file."""
        found = []
        for refusal in refusals:
            index = refusal.row or 0
            place = _PLACES.get(refusal.field)
            value = None if place is None else self.rows[index][place]
            text = "" if value is None or isinstance(value, dict | list) else str(value)[:SHOWN_CHARS]
            found.append(Rejected(self.lines[index], refusal.field, refusal.reason, text))
        return found


def check_layout(layout: Layout) -> None:
    """Raise `InvalidSettings` for an invalid layout."""
    if layout.shape not in {"auto", "long", "wide"} or layout.decimal not in {".", ","}:
        raise InvalidSettings("shape may be auto, long or wide; decimal may be a point or a comma")
    if not layout.time_columns:
        raise InvalidSettings("no time column is given")
    for use, name in (("sensor", layout.sensor), ("metric", layout.metric)):
        try:
            if name is not None:
                name_of(name)
        except Unfit as fault:
            raise InvalidSettings(f"the {use} for all lines {fault}") from fault


def time_reader(layout: Layout) -> TimeReader:
    """Return the reader of one file's times; raises `InvalidSettings`."""
    return TimeReader(layout.time_formats, layout.zone, layout.ambiguous)


def seconds_of(us: int) -> object:
    """Return a time in a form that `insert_many` accepts, exact to the microsecond."""
    whole, rest = divmod(us, 1_000_000)
    if not rest:
        return whole
    return us / 1e6 if -_FLOAT_TIMES_US < us < _FLOAT_TIMES_US else to_datetime(us)
