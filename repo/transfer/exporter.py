"""Export: writes the points of an open store to files, one page at a time. Never holds the lease while it writes.

Each page is read into memory under a lease of its own, and encoded while the next one is read. Later pages may
therefore contain points that were written during the export, as in a `Result`, except those of series that had no
points when it began.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from repo.core.handle import Handle
from repo.core.keep_open import kept_open
from repo.disk.durable import atomic_write, put
from repo.engines.registry import duckdb_is_installed
from repo.errors import InvalidFile, InvalidQuery, file_typed
from repo.formats.arrays.streams import Page, take_page
from repo.formats.compression import packing_named, plain_name
from repo.formats.files.bundle import DAY_US, FIRST_DAY, LAST_DAY, combined, day_path, drafting
from repo.formats.files.interfaces import FileFacts, FileWriter, WrittenPage, WrittenPages
from repo.formats.files.ndjson import ENDING
from repo.formats.files.parquet import COMPRESSIONS, note_of
from repo.formats.files.parquet_packages import writer_here
from repo.formats.files.text_writer import CsvWriter, NdjsonWriter, TextWriter
from repo.formats.recognition import NAMES, Form
from repo.queries.export_spans import SpanReader, span_of, span_reader
from repo.queries.selection import Selection, Summary
from repo.repositories.series import SummaryRepository
from repo.repositories.state import StateRepository

__all__ = ["Exported", "Progress", "export"]

Progress = Callable[[int, int], object]
"""Called with the number of points read so far, and the approximate total."""

ARROW_ROWS = 524_288
"""The maximum number of rows in a page of columns. Pages aim at three quarters of it: 15 MB, and about 150 ms under the
lease. With three times as many, readings with jitter take 6 % less space in the file, but regular readings 50 % more,
as fewer series then share their times."""

PLAIN_ROWS = 65_536
"""The maximum number of rows in a page of Python objects: 25 MB."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote. Times are µs since 1970 UTC; spans are None if there are no points."""

    path: Path
    files: int
    points: int
    bytes: int
    first_us: int | None
    last_us: int | None
    first_seq: int | None
    last_seq: int | None
    resumed: int = 0
    """How many of the files existed already, from an interrupted export."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json export`."""
        return {**asdict(self), "path": str(self.path)}


def export(
    handle: Handle,
    target: Path | BinaryIO,
    selection: Selection,
    *,
    form: Form | None,
    partition: Literal["day"] | None,
    compression: Literal["zstd", "gzip", "none"] | None,
    progress: Progress,
) -> Exported:
    """See `Store.export`."""
    name = target.name if isinstance(target, Path) else ""
    if form is None:
        form = "parquet" if partition is not None else _form_named(name) if name else "csv"
    if partition is None:
        _refuse_other_name(name, form)
    announced = packing_named(name) if partition is None else None
    if form == "parquet":
        if not isinstance(target, Path):
            raise InvalidQuery("Parquet cannot be written to a stream; export to a file, or as CSV or NDJSON")
        if compression not in (None, *COMPRESSIONS) or announced is not None:
            raise InvalidQuery(f"{name}: Parquet is compressed inside, with zstd or not at all")
        writer = writer_here(handle.settings.duckdb_memory_limit_bytes, duckdb=duckdb_is_installed())
        return _export(
            handle, target, selection, _Form(writer, ".parquet", compression or "zstd"), partition, progress
        )
    if partition is not None and (form != "ndjson" or compression not in (None, "gzip")):
        raise InvalidQuery("a folder of days contains Parquet or gzipped NDJSON")
    if announced is not None and compression not in (None, announced):
        raise InvalidQuery(f"{name} ends as {announced} files do, but compression is {compression}")
    packing = announced or compression or ("none" if partition is None else "gzip")
    writer = NdjsonWriter() if form == "ndjson" else CsvWriter()
    return _export(handle, target, selection, _Form(writer, ENDING, packing), partition, progress)


def _refuse_other_name(name: str, form: Form) -> None:
    """Refuse a name by which the file would not be recognized later."""
    for other, endings in NAMES.items():
        if other != form and plain_name(name).endswith(endings):
            raise InvalidQuery(
                f"{name} would be {form}, but ends as {other} files do; name it {NAMES[form][0]}"
            )


def _form_named(name: str) -> Form:
    """Return the format that a file name announces; Parquet for a name without a suffix."""
    plain = plain_name(name)
    for form, endings in NAMES.items():
        if plain.endswith(endings) and not plain.endswith(".tsv"):  # CSV is written with commas
            return form
    suffix = Path(plain).suffix
    if suffix:
        raise InvalidQuery(
            f"{name}: the format of {suffix} is not known; name the file .parquet, .csv or .ndjson (also with .gz or "
            ".zst), or name the format"
        )
    return "parquet"


@dataclass(frozen=True, slots=True)
class _Form:
    writer: FileWriter
    ending: str
    compression: str


def _export(
    handle: Handle,
    target: Path | BinaryIO,
    selection: Selection,
    form: _Form,
    partition: Literal["day"] | None,
    progress: Progress,
) -> Exported:
    if isinstance(target, Path) and handle.files.owns(target):
        raise InvalidFile(f"{target} is one of the store's own files; export to another folder", path=target)
    with handle.metadata.read() as connection:
        state = StateRepository(connection).get()
    assert state is not None
    with kept_open(handle.columns):
        job = _Export(handle, selection, form, note_of(state.store_id), progress)
        if not isinstance(target, Path):
            return job.stream(target)
        return job.one_file(target) if partition is None else job.bundle(target, state.store_id)


class _Export:
    """One export."""

    def __init__(
        self,
        handle: Handle,
        selection: Selection,
        form: _Form,
        note: str,
        progress: Progress,
    ) -> None:
        self._selection = selection
        self._form = form
        self._note = note
        self._pages = _ExportPages(handle, selection, progress, columnar=form.writer.columnar)

    def one_file(self, path: Path) -> Exported:
        """Write all points into one file, and its checksum into another."""
        if path.is_dir():
            raise InvalidFile(f"{path} is a folder; name a file, or export with partition='day'", path=path)
        checksum = path.with_name(f"{path.name}.sha256")
        with file_typed(path.parent, "created"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with file_typed(path, "written"), atomic_write(path) as descriptor:
            facts = self._write(descriptor, self._pages.start_us, self._pages.end_us)
            # The old checksum must not remain next to the new file: that would look like damage.
            checksum.unlink(missing_ok=True)
        with file_typed(checksum, "written"):
            put(checksum, os.fsencode(_sum_line(facts.sha256, path.name)))
        return Exported(path, 1, **combined([facts]))

    def stream(self, stream: BinaryIO) -> Exported:
        """Write all points to a stream."""
        writer = self._form.writer
        assert isinstance(writer, TextWriter), "only texts are written to a stream"
        counting = _Counting(stream)
        with closing(_ahead(self._pages.pages(self._pages.start_us, self._pages.end_us))) as pages:
            found = WrittenPages(self._pages.series, 0, pages)
            points, bounds = writer.write_to(counting, found, self._form.compression)  # type: ignore[arg-type]
        stream.flush()
        return Exported(Path("-"), 1, points, counting.bytes, *bounds.times, *bounds.seqs)

    def bundle(self, path: Path, store_id: str) -> Exported:
        """Write the missing files, one per day, and the manifest."""
        request = {
            "store": store_id,
            "selection": self._selection.as_dict(),
            "compression": self._form.compression,
        }
        with drafting(path, request) as bundle:
            resumed = 0
            at = self._pages.start_us
            while (first := self._pages.first_from(at)) is not None:
                day = min(max(first // DAY_US, FIRST_DAY), LAST_DAY)
                at = self._pages.end_us if day == LAST_DAY else min((day + 1) * DAY_US, self._pages.end_us)
                name = day_path(store_id, day, self._form.ending)
                if name in bundle.done and self._pages.holds(bundle.done[name], first, at):
                    self._pages.skip(bundle.done[name].points)
                    resumed += 1
                    continue
                if name in bundle.done:
                    bundle.forget(name)
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                with file_typed(path / name, "written"), atomic_write(path / name) as descriptor:
                    facts = self._write(descriptor, first, at)
                bundle.add(name, facts)
            bundle.finish()
            return Exported(path, len(bundle.done), **combined(bundle.done.values()), resumed=resumed)

    def _write(self, descriptor: int, start_us: int, end_us: int) -> FileFacts:
        with closing(_ahead(self._pages.pages(start_us, end_us))) as pages:
            found = WrittenPages(self._pages.series, self._pages.count(start_us, end_us), pages)
            return self._form.writer.write(
                descriptor, found, compression=self._form.compression, note=self._note
            )


class _Counting:
    """Counts the bytes that are written to a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bytes = 0

    def write(self, content: bytes) -> int:
        self._stream.write(content)
        self.bytes += len(content)
        return len(content)

    def flush(self) -> None:
        self._stream.flush()


def _sum_line(sha256: str, name: str) -> str:
    """Return the line that sha256sum writes for a file; it escapes unusual names with a backslash."""
    odd = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if odd == name else chr(92)}{sha256}  {odd}\n"


def _ahead(pages: Generator[WrittenPage]) -> Generator[WrittenPage]:
    """Yield pages, reading the next one in a thread."""
    with closing(pages), ThreadPoolExecutor(1, "holdfast-page") as beside:
        beside.submit(int).result()  # if Ctrl-C interrupts the start of a thread, nobody joins it
        coming = beside.submit(next, pages, None)
        while (page := coming.result()) is not None:
            coming = beside.submit(next, pages, None)
            yield page


class _ExportPages:
    """Iterates over the selected points in pages. The time span of a page depends on the density of the points.

    The series are those that have points when this object is created.
    """

    def __init__(self, handle: Handle, selection: Selection, progress: Progress, *, columnar: bool) -> None:
        self._handle = handle
        self._columnar = columnar
        self._selection = selection
        self._progress = progress
        self._read = 0
        with handle.reading("export") as (connection, _):
            known = {
                pair: summary
                for pair, summary in SummaryRepository(connection).all().items()
                if selection.names(*pair)
            }
        self.series = sorted(known)
        self.start_us, self.end_us, self._total = _outline(selection, known)
        span_us = self.end_us - self.start_us
        page = _filling(ARROW_ROWS if columnar else PLAIN_ROWS)
        self._width_us = max(1, span_us * page // max(self._total, page))
        self._progress(0, self._total)

    def holds(self, facts: FileFacts, start_us: int, end_us: int) -> bool:
        """Return whether a span is unchanged since a file of it was written: no late and no corrected points."""
        span = span_of(self._selection, start_us, end_us)
        with self._reading() as reader:
            return (reader.count(span), reader.last_seq(span)) == (facts.points, facts.last_seq)

    def skip(self, points: int) -> None:
        """Count points as read that do not have to be read."""
        self._advance(points)

    def first_from(self, start_us: int) -> int | None:
        """Return the time of the first point at or after `start_us`."""
        if start_us >= self.end_us:
            return None
        with self._reading() as reader:
            return reader.first(span_of(self._selection, start_us, self.end_us))

    def count(self, start_us: int, end_us: int) -> int:
        """Return the number of points in a span."""
        with self._reading() as reader:
            return reader.count(span_of(self._selection, start_us, end_us))

    def pages(self, start_us: int, end_us: int) -> Generator[WrittenPage]:
        """Yield the points of a span; the lease is not held between pages."""
        at_us = start_us
        while at_us < end_us:
            with self._reading() as reader:
                piece, weight = self._fitting(reader, at_us, end_us)
                found = self._taken(reader, piece) if weight else None
                if found is None:
                    next_us = reader.first(span_of(self._selection, at_us, end_us))
            if found is None:
                if next_us is None:
                    return
                at_us = next_us
                continue
            at_us = piece.end_us or end_us
            count = found.rows if isinstance(found, Page) else len(found)
            yield found
            self._advance(count)

    def _fitting(self, reader: SpanReader, at_us: int, end_us: int) -> tuple[Selection, int]:
        """Return a span that starts at `at_us` and has at most one page of points, and their weight.

        The points of one microsecond stay together, however many there are.
        """
        most = ARROW_ROWS if self._columnar and reader.columns else PLAIN_ROWS
        width_us = min(self._width_us, end_us - at_us)
        while True:
            piece = span_of(self._selection, at_us, at_us + width_us)
            weight = reader.weight(piece)
            if weight <= most or width_us == 1:
                break
            width_us = max(1, min(width_us // 2, width_us * most // weight))
        wanted_us = width_us * _filling(most) // max(weight, 1)
        self._width_us = max(1, min(wanted_us, width_us * 8))
        return piece, weight

    def _taken(self, reader: SpanReader, piece: Selection) -> WrittenPage:
        if self._columnar and reader.columns:
            return take_page(reader.columns(piece))
        return reader.rows(piece)

    @contextmanager
    def _reading(self) -> Iterator[SpanReader]:
        with self._handle.reading("export") as (connection, _):
            yield span_reader(connection, self.series, self._handle.flusher.order)

    def _advance(self, points: int) -> None:
        self._read += points
        self._progress(self._read, max(self._total, self._read))


def _filling(rows: int) -> int:
    """Return the number of rows to aim at for a page size, as points are not evenly distributed."""
    return rows * 3 // 4


def _outline(selection: Selection, known: Mapping[tuple[str, str], Summary]) -> tuple[int, int, int]:
    """Return the span that contains the points, [first, end), and their approximate number."""
    first_us = min((summary.first_us for summary in known.values()), default=0)
    end_us = max((summary.last_us + 1 for summary in known.values()), default=0)
    if selection.start_us is not None:
        first_us = max(first_us, selection.start_us)
    if selection.end_us is not None:
        end_us = min(end_us, selection.end_us)
    points = 0.0
    for summary in known.values():
        whole_us = summary.last_us + 1 - summary.first_us
        inside_us = min(end_us, summary.last_us + 1) - max(first_us, summary.first_us)
        points += summary.points * max(0, inside_us) / whole_us
    return first_us, max(first_us, end_us), round(points)
