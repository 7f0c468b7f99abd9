"""Incoming points: those of the journal rows of one flush, joined as columns. Never touches a database.

As columns a point takes about 30 bytes; as a row, 300. Rows are only made where an engine needs them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from typing import Any

from repo.formats.arrays.memory import MemoryColumn, MemoryTable
from repo.inputs.batch import Batch
from repo.inputs.fields import DEFAULT_QUALITY
from repo.queries.rows import Row, rows_of

__all__ = ["Incoming"]


class Incoming:
    """Points in order of their seqs."""

    def __init__(self) -> None:
        self.batch = Batch([], [], array("I"), array("q"), array("d"), {}, DEFAULT_QUALITY, {})
        self.seqs = array("q")
        self.returned: Set[int] = frozenset()
        """The seqs of points, after `netted`, that came after a different one of the same identity.

        They are stored even if they equal the stored ones: the points between may have been delivered before this
        flush, or before a power loss that undid another one. So the result is the same wherever flushes end.
        """
        self._codes: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        return len(self.seqs)

    @classmethod
    def _of(cls, batch: Batch, seqs: array[int], returned: Set[int]) -> Incoming:
        found = cls()
        found.batch, found.seqs, found.returned = batch, seqs, returned
        found._codes = {pair: code for code, pair in enumerate(batch.series)}
        return found

    def add(self, batch: Batch, first_seq: int) -> None:
        """Append a batch whose seqs are consecutive."""
        mine, before, rows = self.batch, len(self), len(batch)
        codes = [self._code_of(pair) for pair in batch.series]
        if rows == 1:
            mine.codes.append(codes[batch.codes[0]])
        elif codes == list(range(len(codes))):
            mine.codes.extend(batch.codes)
        else:
            mine.codes.extend(map(codes.__getitem__, batch.codes))
        if not before:
            mine.qualities = batch.qualities
        elif mine.qualities != batch.qualities or not isinstance(mine.qualities, int):
            mine.qualities = _each(mine.qualities, before)
            mine.qualities.extend(_each(batch.qualities, rows))
        mine.timestamps_us.extend(batch.timestamps_us)
        mine.values.extend(batch.values)
        if batch.texts:
            mine.texts.update((before + row, text) for row, text in batch.texts.items())
        if batch.metadata:
            mine.metadata.update((before + row, text) for row, text in batch.metadata.items())
        if rows == 1:
            self.seqs.append(first_seq)
        else:
            self.seqs.extend(range(first_seq, first_seq + rows))

    def netted(self, *, keep: bool) -> Incoming:
        """Return the points without all but one of each identity: the last one that changes anything.

        A point that equals the one before it changes nothing. With `keep` the first one counts, as if it were already
        in the columns.
        """
        keys = list(zip(self.batch.codes, self.batch.timestamps_us, strict=True))
        if len(set(keys)) == len(keys):
            return self
        places: dict[tuple[int, int], int] = {}
        returned: set[int] = set()
        for place, key in enumerate(keys):
            before = places.get(key)
            if before is None or not (keep or self._reading(before) == self._reading(place)):
                places[key] = place
                if before is not None:
                    returned.add(self.seqs[place])
                    returned.discard(self.seqs[before])
        return self._only(sorted(places.values()), returned)

    def halves(self) -> tuple[Incoming, Incoming]:
        """Return the earlier and the later points."""
        places = sorted(range(len(self)), key=self.batch.timestamps_us.__getitem__)
        half = len(places) // 2
        earlier, later = sorted(places[:half]), sorted(places[half:])
        return self._only(earlier, self.returned), self._only(later, self.returned)

    def rows(self) -> Iterator[Row]:
        """Yield the points as stored rows."""
        return rows_of(self.batch, self.seqs)

    def end_of(self, seq: int) -> tuple[Any, ...]:
        """Return the point with this seq as the end of a summary: value, text, quality, metadata, seq."""
        return (*self._reading(bisect_left(self.seqs, seq)), seq)

    def table(self) -> MemoryTable:
        """Return the points as a table for `select`; it must not outlive them."""
        batch = self.batch
        columns = [
            MemoryColumn("series", batch.codes),
            MemoryColumn("sensor_id", batch.codes, [sensor for sensor, _ in batch.series]),
            MemoryColumn("metric_name", batch.codes, [metric for _, metric in batch.series]),
            MemoryColumn("timestamp_us", batch.timestamps_us),
            MemoryColumn("value", batch.values),
            MemoryColumn("seq", self.seqs),
        ]
        if not isinstance(batch.qualities, int):
            columns.append(MemoryColumn("quality", batch.qualities))
        columns += [
            MemoryColumn(name, *_numbered(texts, len(self)))
            for name, texts in (("value_text", batch.texts), ("metadata", batch.metadata))
            if texts
        ]
        return MemoryTable(columns)

    def select(self, name: str) -> str:
        """Return SQL for the columns of a stored point, read from `table` under this name."""
        batch = self.batch
        quality = f"{batch.qualities:d}::INTEGER AS" if isinstance(batch.qualities, int) else ""
        return (
            "SELECT sensor_id, metric_name, timestamp_us, CASE WHEN isnan(value) THEN NULL ELSE value END AS value, "
            f"{'' if batch.texts else 'NULL::VARCHAR AS'} value_text, {quality} quality, "
            f"{'' if batch.metadata else 'NULL::VARCHAR AS'} metadata, seq FROM {name}"
        )

    def _code_of(self, pair: tuple[str, str]) -> int:
        code = self._codes.get(pair)
        if code is None:
            code = self._codes[pair] = len(self.batch.series)
            self.batch.series.append(pair)
        return code

    def _reading(self, place: int) -> tuple[float | None, str | None, int, str | None]:
        batch = self.batch
        value = batch.values[place]
        return (
            None if value != value else value,
            batch.texts.get(place),
            batch.qualities if isinstance(batch.qualities, int) else batch.qualities[place],
            batch.metadata.get(place),
        )

    def _only(self, places: Sequence[int], returned: Set[int]) -> Incoming:
        return self._of(self.batch.rows(places), array("q", map(self.seqs.__getitem__, places)), returned)


def _each(qualities: int | array[int], rows: int) -> array[int]:
    return array("i", (qualities,)) * rows if isinstance(qualities, int) else qualities


def _numbered(texts: dict[int, str], rows: int) -> tuple[array[int], list[str | None]]:
    """Return the texts by row as a place for each row in a list of the distinct ones, of which the first is None."""
    places: dict[str | None, int] = {None: 0}
    numbers = array("I", bytes(4 * rows))
    for row, text in texts.items():
        numbers[row] = places.setdefault(text, len(places))
    return numbers, list(places)
