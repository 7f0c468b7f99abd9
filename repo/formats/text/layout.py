"""Readings in text files: the layout that describes a file, and the resulting chunks. Reads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from repo.errors import InvalidSettings, Refusal
from repo.formats.lines import undecodable
from repo.formats.text.times import Ambiguous, TimeReader
from repo.inputs.arguments import shown
from repo.inputs.fields import described, name_of
from repo.inputs.times import EXACT_FLOAT_S, Unfit, to_datetime

__all__ = [
    "CHUNK_CHARS",
    "CHUNK_READINGS",
    "SHOWN_CHARS",
    "Layout",
    "ReadingChunk",
    "Rejected",
    "check_layout",
    "layout_of",
    "seconds_of",
    "time_reader",
]

CHUNK_READINGS = 10_000
CHUNK_CHARS = 4_194_304
"""A chunk ends at this number of readings or characters, as texts and metadata may be long."""

SHOWN_CHARS = 80
_THOUSANDS = (",", ".", " ", "'", "_")
_PLACES = {"sensor_id": 0, "metric_name": 1, "timestamp": 2, "value": 3, "quality": 4}
_FLOAT_TIMES_US = int(EXACT_FLOAT_S) * 2 * 1_000_000  # up to here float seconds are exact to the microsecond


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read a file: its columns (for NDJSON, its keys) by name, and the meaning of its texts.

    A column of CSV can also be given by its position: `#1` is the first, unless a column has that name. An empty name
    is the only column without a name.
    """

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
    """The metrics to read, in a wide file the columns; None for all. In a wide file that means all columns except time,
    sensor, quality and `ignored`."""
    columns: tuple[tuple[str, str], ...] = ()
    """Columns of a wide file to read, each as (metric, column), in addition to `metrics`."""
    ignored: tuple[str, ...] = ()
    text_metrics: tuple[str, ...] = ()
    """Metrics that are states, not numbers. NDJSON distinguishes texts from numbers, and needs this only if wide."""
    mixed: bool = False
    """Whether a value that is not a number is a state, whatever the metric. A series is one kind, that of its first
    reading."""
    on_off: bool = False
    """Whether on, true and yes are read as 1, and off, false and no as 0."""
    time_formats: tuple[str, ...] = ("iso",)
    """Tried in order: `iso`, `unix`, `unix_ms`, `unix_us`, or strptime patterns. Numbers in NDJSON are Unix seconds if
    `iso` is the only one."""
    zone: str = "UTC"
    """The time zone of times without an offset: an IANA name, or an offset such as -07:00."""
    ambiguous: Ambiguous = "refuse"
    """How to interpret a local time that occurred twice."""
    missing: tuple[str, ...] = ()
    """What marks a missing reading, besides the marks of the format: for CSV an empty cell, NA, NaN and null; for
    NDJSON null. A number matches every notation of it: -9999 matches -9999.0."""
    header: int | Literal["none"] | None = None
    """For CSV, as is everything below. The line of the column names, from 1; None for the first line that is neither
    blank nor a comment; `none` if there are no names, only positions."""
    skip: int = 0
    """Lines to leave out after each header, such as units and types."""
    footer: int = 0
    """Lines to leave out at the end of the file."""
    comment: str | None = None
    """Lines that begin with this are left out."""
    delimiter: str | None = None
    """None means the one that a first line such as `sep=;` names, or else a comma."""
    decimal: Literal[".", ","] = "."
    thousands: str | None = None
    """The character between the thousands of a number, if there is one."""


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
        self.rejected.append(Rejected(line, column, _reason(reason, text), text[:SHOWN_CHARS]))

    def rejections(self, refusals: Iterable[Refusal]) -> list[Rejected]:
        """Return the rows that the store refused, by line of the file."""
        found = []
        for refusal in refusals:
            index = refusal.row or 0
            place = _PLACES.get(refusal.field)
            value = None if place is None else self.rows[index][place]
            text = "" if value is None or isinstance(value, dict | list) else str(value)[:SHOWN_CHARS]
            found.append(Rejected(self.lines[index], refusal.field, _reason(refusal.reason, text), text))
        return found


def _reason(reason: object, text: str) -> str:
    """Return why an item gives no point; bytes that its encoding cannot represent are the first reason."""
    wrong = undecodable(text)
    return str(reason) if wrong is None else f"{wrong}; set the encoding of the file (--encoding)"


_RENAMED = {
    "time_column": "time_columns",
    "time_format": "time_formats",
    "only": "metrics",
    "ignore": "ignored",
    "text": "text_metrics",
}
_LISTS = ("time_columns", "time_formats", "metrics", "ignored", "text_metrics", "missing")
_TEXTS = (
    "shape",
    "sensor_column",
    "metric_column",
    "value_column",
    "quality_column",
    "zone",
    "ambiguous",
    "decimal",
)
_OPTIONAL_TEXTS = ("sensor", "metric", "comment", "delimiter", "thousands")
_NEEDED_LISTS = ("ignored", "text_metrics", "time_columns", "time_formats", "missing")
_SWITCHES = ("mixed", "on_off")
_MOST_LINES = {"header": 1_000_000, "skip": 1_000_000, "footer": 10_000}
_OPTIONS = {field: option for option, field in _RENAMED.items()}


def layout_of(options: Mapping[str, Any]) -> Layout:
    """Return the layout of the options of `Store.ingest`; raises `InvalidSettings` for a wrong type or value."""
    given: dict[str, Any] = {_RENAMED.get(name, name): value for name, value in options.items()}
    for name in ("ignored", "text_metrics", "missing"):
        given[name] = () if given.get(name) is None else given[name]
    for name in _LISTS:
        if given.get(name) is not None or (name in given and name in _NEEDED_LISTS):
            given[name] = _texts(_OPTIONS.get(name, name), given[name])
    given["metrics"] = given.get("metrics") or None
    columns = given.get("columns")
    given["columns"] = () if columns is None else _pairs(columns)
    delimiter = given.get("delimiter")
    if isinstance(delimiter, str) and delimiter in ("tab", "\\t"):
        given["delimiter"] = "\t"
    layout = Layout(**given)
    check_layout(layout)
    return layout


def _texts(option: str, value: Any) -> tuple[str, ...]:
    """Return one text or several as a tuple; marks of missing readings may also be numbers."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        value = (value,)
    try:
        found = tuple(value)
    except TypeError:
        raise InvalidSettings(f"{option} is {described(value)}; give a text or several") from None
    if option == "missing":
        found = tuple(shown(mark) if type(mark) in (int, float) else mark for mark in found)
    return found


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    try:
        pairs = tuple(
            (metric, column) for metric, column in (value.items() if isinstance(value, Mapping) else value)
        )
    except (TypeError, ValueError):
        raise InvalidSettings(
            f"columns is {described(value)}; give a mapping from metrics to columns"
        ) from None
    return pairs


def check_layout(layout: Layout) -> None:
    """Raise `InvalidSettings` for a layout with a wrong type, an invalid value, or a contradiction."""
    _check_types(layout)
    if layout.shape not in {"auto", "long", "wide"} or layout.decimal not in {".", ","}:
        raise InvalidSettings("shape may be auto, long or wide; decimal may be a point or a comma")
    if not layout.time_columns:
        raise InvalidSettings("no time column is given")
    for use, name in (("sensor", layout.sensor), ("metric", layout.metric)):
        _check_name(f"the {use} for all lines", name)
    for metric, column in layout.columns:
        _check_name(f"the metric of the column {column!r}", metric)
    metrics = [metric for metric, _ in layout.columns]
    if len(set(metrics)) < len(metrics):
        raise InvalidSettings("columns names a metric twice; each column needs a metric of its own")
    if layout.columns and (layout.shape == "long" or layout.metric is not None):
        raise InvalidSettings("columns names the metrics of a wide file, but the file is to be read as long")
    _check_numbers(layout)


def _check_types(layout: Layout) -> None:
    for name in (*_TEXTS, *_OPTIONAL_TEXTS):
        value = getattr(layout, name)
        if not isinstance(value, str) and not (value is None and name in _OPTIONAL_TEXTS):
            raise InvalidSettings(f"{name} is {described(value)}, not a text")
    for name in _LISTS:
        for value in getattr(layout, name) or ():
            if not isinstance(value, str):
                raise InvalidSettings(
                    f"{_OPTIONS.get(name, name)} has {described(value)}; it may have only texts"
                )
    for pair in layout.columns:
        if not all(isinstance(name, str) for name in pair):
            raise InvalidSettings("columns maps metrics to columns; both are texts")
    for name in _SWITCHES:
        if not isinstance(getattr(layout, name), bool):
            raise InvalidSettings(f"{name} is {described(getattr(layout, name))}; it may be True or False")
    for name, most in _MOST_LINES.items():
        value = getattr(layout, name)
        if name == "header" and (value is None or (isinstance(value, str) and value == "none")):
            continue
        if type(value) is not int or not (name == "header") <= value <= most:
            hint = (
                "the line of the header (from 1), or 'none'"
                if name == "header"
                else f"a number of lines, at most {most:,}"
            )
            raise InvalidSettings(f"{name} is {shown(value)}; give {hint}")


def _check_name(use: str, name: str | None) -> None:
    try:
        if name is not None:
            name_of(name)
    except Unfit as fault:
        raise InvalidSettings(f"{use} {fault}") from fault


def _check_numbers(layout: Layout) -> None:
    if layout.comment == "":
        raise InvalidSettings("comment is empty; give the beginning of the lines to leave out, such as #")
    delimiter = "," if layout.delimiter is None else layout.delimiter
    if len(delimiter) != 1 or delimiter in '\r\n\0" ':
        raise InvalidSettings(
            f"the delimiter {delimiter!r:.40} cannot be used: one character, such as , ; or a tab"
        )
    if layout.delimiter is not None and layout.decimal == delimiter:
        raise InvalidSettings("the decimal comma needs another delimiter, such as ';'")
    if layout.thousands is not None and (
        layout.thousands not in _THOUSANDS or layout.thousands == layout.decimal
    ):
        raise InvalidSettings(
            f"thousands is {layout.thousands!r:.40}; it may be a comma, a point, a blank, ' or _, but not "
            "the decimal sign"
        )


def time_reader(layout: Layout) -> TimeReader:
    """Return the reader of one file's times; raises `InvalidSettings`."""
    return TimeReader(layout.time_formats, layout.zone, layout.ambiguous)


def seconds_of(us: int) -> object:
    """Return a time in a form that `insert_many` accepts, exact to the microsecond."""
    whole, rest = divmod(us, 1_000_000)
    if not rest:
        return whole
    return us / 1e6 if -_FLOAT_TIMES_US < us < _FLOAT_TIMES_US else to_datetime(us)
