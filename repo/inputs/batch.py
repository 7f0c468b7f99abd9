"""A batch: checked points as columns. The writer packs it, and flush applies it. Checks nothing itself."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["KIND_NUMBER", "KIND_TEXT", "Batch", "CheckedPoint"]

KIND_NUMBER: Final = "number"
KIND_TEXT: Final = "text"


@dataclass(slots=True)
class Batch:
    """Checked points as columns."""

    series: list[tuple[str, str]]
    """The distinct (sensor_id, metric_name), in order of first appearance."""
    kinds: list[str | None]
    """Per series: `number`, `text`, or None if the batch has no reading of it."""
    codes: array[int]
    """Per row ('I'): index into `series`."""
    timestamps_us: array[int]
    """Per row ('q')."""
    values: array[float]
    """Per row ('d'); NaN if the row has a text or no reading."""
    texts: dict[int, str]
    """Text by row, for text readings only."""
    qualities: int | array[int]
    """One for all rows, or one per row ('i')."""
    metadata: dict[int, str]
    """Canonical JSON by row, for rows with metadata."""

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, rows: Sequence[int]) -> Batch:
        """Return these rows, in this order, as a batch of the same series."""
        return Batch(
            self.series,
            self.kinds,
            array("I", map(self.codes.__getitem__, rows)),
            array("q", map(self.timestamps_us.__getitem__, rows)),
            array("d", map(self.values.__getitem__, rows)),
            {at: self.texts[row] for at, row in enumerate(rows) if row in self.texts},
            self.qualities
            if isinstance(self.qualities, int)
            else array("i", map(self.qualities.__getitem__, rows)),
            {at: self.metadata[row] for at, row in enumerate(rows) if row in self.metadata},
        )

    def part(self, start: int, stop: int) -> Batch:
        """Return the rows [start, stop) as a batch of the same series."""
        rows = range(start, stop)
        return Batch(
            self.series,
            self.kinds,
            self.codes[start:stop],
            self.timestamps_us[start:stop],
            self.values[start:stop],
            {row - start: self.texts[row] for row in rows if row in self.texts} if self.texts else {},
            self.qualities if isinstance(self.qualities, int) else self.qualities[start:stop],
            {row - start: self.metadata[row] for row in rows if row in self.metadata}
            if self.metadata
            else {},
        )


class CheckedPoint(NamedTuple):
    """One checked point; `value` is NaN if it has a text or no reading, `metadata` is canonical JSON."""

    sensor_id: str
    metric_name: str
    kind: str | None
    """`number`, `text`, or None if the point has no reading."""
    timestamp_us: int
    value: float
    text: str | None
    quality: int
    metadata: str | None

    def batch(self) -> Batch:
        """Return the point as a batch of one row."""
        return Batch(
            [self[:2]],
            [self.kind],
            array("I", (0,)),
            array("q", (self.timestamp_us,)),
            array("d", (self.value,)),
            {} if self.text is None else {0: self.text},
            self.quality,
            {} if self.metadata is None else {0: self.metadata},
        )
