"""Readings in text files: the layout that says how one is read, and the chunks that come of it. Reads nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from repo.errors import InvalidSettings, Refusal
from repo.fields import name_of
from repo.formats.text.times import Ambiguous
from repo.times import EXACT_FLOAT_S, Unfit, to_datetime

__all__ = [
    "CHUNK_CHARS",
    "CHUNK_READINGS",
    "SHOWN_CHARS",
    "Chunk",
    "Layout",
    "Rejected",
    "check_layout",
    "seconds_of",
]

CHUNK_READINGS = 10_000
CHUNK_CHARS = 4_194_304
"""A chunk ends when it has so many readings, or so much of the text; texts and metadata may be long."""

SHOWN_CHARS = 80
_PLACES = {"sensor_id": 0, "metric_name": 1, "timestamp": 2, "value": 3, "quality": 4}
_FLOAT_TIMES_US = int(EXACT_FLOAT_S) * 2 * 1_000_000  # to here float seconds give back their microsecond


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is to be read: its columns (of NDJSON, its keys) by name, and what its texts mean."""

    shape: Literal["auto", "long", "wide"] = "auto"
    """`auto`: long if there is a metric (a column or a constant), else wide; of NDJSON, line by line."""
    sensor_column: str = "sensor_id"
    metric_column: str = "metric_name"
    value_column: str = "value"
    quality_column: str = "quality"
    """Used if the file has it; in a wide file it holds for the whole line."""
    time_columns: tuple[str, ...] = ("timestamp",)
    """Several are joined by a space, as in Date and Time."""
    sensor: str | None = None
    """The sensor of every line; it takes the place of the column."""
    metric: str | None = None
    """The metric of every line of a long file; it takes the place of the column."""
    metrics: tuple[str, ...] | None = None
    """Columns of a wide file to read; None for all but those of time, sensor, quality and `ignored`."""
    ignored: tuple[str, ...] = ()
    text_metrics: tuple[str, ...] = ()
    """Metrics that are states, not numbers. NDJSON tells texts from numbers, and needs it in its wide shape only."""
    time_formats: tuple[str, ...] = ("iso",)
    """Tried in order: `iso`, `unix`, `unix_ms`, `unix_us`, or strptime patterns. Numbers of NDJSON are Unix seconds if
    there is `iso` alone."""
    zone: str = "UTC"
    """IANA name of the zone of times without an offset."""
    ambiguous: Ambiguous = "refuse"
    """Which of two is meant by a local time that occurred twice."""
    missing: tuple[str, ...] = ()
    """Texts that mark a missing reading, besides the form's own: of CSV an empty cell, NA, NaN and null; of NDJSON
    null."""
    delimiter: str | None = None
    """Of CSV, as is `decimal`; None is a comma."""
    decimal: Literal[".", ","] = "."


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that gave no point: its line (from 1), its column, why, and the text cut to 80 characters.

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
class Chunk:
    """About 10,000 readings: rows for `insert_many`, what was rejected, and how many cells were missing."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Per row: its line in the file."""
    rejected: list[Rejected] = field(default_factory=list)
    missing: int = 0
    """Cells of a wide file that were marked as missing; no row stands for them."""

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejected)

    def reject(self, line: int, column: str | None, reason: object, text: str) -> None:
        """Add something that gives no point."""
        self.rejected.append(Rejected(line, column, str(reason), text[:SHOWN_CHARS]))

    def rejections(self, refusals: Iterable[Refusal]) -> list[Rejected]:
        """Return what the store refused of `rows`, by line of the file."""
        found = []
        for refusal in refusals:
            index = refusal.row or 0
            place = _PLACES.get(refusal.field)
            value = None if place is None else self.rows[index][place]
            text = "" if value is None or isinstance(value, dict | list) else str(value)[:SHOWN_CHARS]
            found.append(Rejected(self.lines[index], refusal.field, refusal.reason, text))
        return found


def check_layout(layout: Layout) -> None:
    """Raise `InvalidSettings` for a layout that cannot be."""
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


def seconds_of(us: int) -> object:
    """Return a time as `insert_many` takes it, exact to the microsecond."""
    whole, rest = divmod(us, 1_000_000)
    if not rest:
        return whole
    return us / 1e6 if -_FLOAT_TIMES_US < us < _FLOAT_TIMES_US else to_datetime(us)
