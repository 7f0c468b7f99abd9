"""Text files of points, as NDJSON or CSV, plain or compressed. Needs no package, except for zstd.

The lines of NDJSON are those of `repo.formats.ndjson_lines`. CSV has a line of column names and then one line per
point: `sensor_id, metric_name, timestamp` (ISO 8601, UTC), `value` (a number or a text; empty for no reading),
`quality` and `metadata` (JSON; `ingest` does not read it).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import isfinite
from typing import Any, BinaryIO

from repo.disk.durable import digest
from repo.formats.arrays.streams import Page
from repo.formats.compression import packed
from repo.formats.files.interfaces import Bounds, FileFacts, WrittenPages
from repo.formats.ndjson_lines import lines_of
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US, to_datetime

__all__ = ["CsvWriter", "NdjsonWriter", "TextWriter"]

_WRITTEN_LINES = 1_000

_Lines = Callable[[Sequence[Sequence[Any]]], Iterator[str]]


class TextWriter:
    """Writes files. Equal points give equal bytes."""

    columnar = False

    def __init__(self, lines: _Lines, head: str = "") -> None:
        self._lines = lines
        self._head = head

    def write(self, descriptor: int, pages: WrittenPages, *, compression: str, note: str) -> FileFacts:  # noqa: ARG002
        """See `FileWriter`. `compression` is gzip, zstd or none; the note is not written."""
        with open(descriptor, "wb", closefd=False) as stream:
            points, bounds = self.write_to(stream, pages, compression)
        return FileFacts(
            points, os.fstat(descriptor).st_size, digest(descriptor), *bounds.times, *bounds.seqs
        )

    def write_to(self, stream: BinaryIO, pages: WrittenPages, compression: str) -> tuple[int, Bounds]:
        """Write to a stream, which stays open; return the number of points and their bounds."""
        bounds = Bounds()
        points = 0
        with packed(stream, compression) as plain:
            plain.write(self._head.encode())
            for page in pages.pages:
                assert not isinstance(page, Page), "this writer is not columnar"
                if page:
                    lines = self._lines(page)
                    while piece := "".join(islice(lines, _WRITTEN_LINES)):
                        plain.write(piece.encode())
                    bounds.add([row[2] for row in page], [row[7] for row in page])
                    points += len(page)
        return points, bounds


class NdjsonWriter(TextWriter):
    """Writes NDJSON."""

    def __init__(self) -> None:
        super().__init__(lines_of)


class CsvWriter(TextWriter):
    """Writes CSV."""

    def __init__(self) -> None:
        super().__init__(_csv_lines, "sensor_id,metric_name,timestamp,value,quality,metadata\n")


def _csv_lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    for sensor, metric, us, number, text, quality, metadata, _seq in rows:
        value = text if number is None or number != number else _number(number)
        writer.writerow((sensor, metric, _time(us), value, quality, metadata))
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _number(number: float) -> str:
    return repr(number) if isfinite(number) else "Infinity" if number > 0 else "-Infinity"


def _time(us: int) -> str:
    """Return ISO 8601, or the microseconds, which `ingest` refuses, of a time that only a legacy store can have."""
    if not MIN_TIMESTAMP_US <= us <= MAX_TIMESTAMP_US:
        return str(us)
    return to_datetime(us).isoformat().replace("+00:00", "Z")
