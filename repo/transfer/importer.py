"""Import: reads files and bundles of points into an open store. Validates every file before it stores a point.

If the first pass finds damage, missing columns or wrong types in any file, nothing is stored. The second pass reads the
files again, one page at a time, and writes each page as a table.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from repo.core.bulk import Bulk
from repo.core.handle import Handle
from repo.core.keep_open import kept_open
from repo.engines.registry import duckdb_is_installed
from repo.errors import HoldfastError, InvalidFile, InvalidQuery, Refusal, StoreCorrupt, counted
from repo.formats.arrays.tables import HeldPage, HeldPages
from repo.formats.compression import packing_of
from repo.formats.files.interfaces import FileReader, ReadPage, Validation
from repo.formats.files.mapping import ReadOptions, ReadPlan, plan_of
from repo.formats.files.ndjson import opened_ndjson
from repo.formats.files.parquet_packages import SharedInstance, reader_here
from repo.formats.recognition import HEAD_BYTES, foreign_format, form_of, is_parquet, utf_16_or_32
from repo.inputs.batch import KIND_NUMBER, KIND_TEXT
from repo.inputs.times import SUSPECT_BEFORE_US
from repo.queries.counts import present
from repo.repositories.series import SeriesRepository
from repo.settings import Settings
from repo.transfer.sources import Source, listed, sources_of

__all__ = ["SUSPECT_TIMES", "Imported", "Progress", "Verified", "import_parquet", "verify_parquet"]

log = logging.getLogger("holdfast.importing")

Progress = Callable[[int, int], object]
"""Called with the number of rows processed so far, and the total."""

SUSPECT_TIMES = (
    "times are in January 1970; if the numbers count larger units, set the time format (--time-format): unix for "
    "seconds, unix_ms for milliseconds"
)
_MOST_PROBLEMS = 20
_UNITS = {1_000_000: "seconds", 1_000: "milliseconds", 1: "microseconds"}

_USUAL = ReadOptions()

_MOST_TOGETHER = 8
"""Files that are open at a time."""

_MOST_PAGES = 16
"""Pages that become durable together, about four million points. A checkpoint per page would double the time."""


@dataclass(slots=True)
class _Counts:
    read: int = 0
    present: int = 0
    duplicates: int = 0
    nulls: int = 0
    refused: int = 0
    stored: int = 0
    no_reading: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Imported:
    """The outcome for the rows of an import, or of a dry run.

    `read` is the sum of `stored`, `present`, `duplicates`, `nulls` and `refused`.
    """

    files: int
    read: int
    stored: int
    """Rows that were written. With `on_conflict="overwrite"` this includes rows for stored points, even equal ones,
    which change nothing."""
    present: int
    """Rows whose point was stored before and is kept (`on_conflict="keep"`)."""
    duplicates: int
    """Rows with the same series and time as another row near them in the file; the last one counts."""
    nulls: int
    """Rows without a sensor, a metric or a time."""
    refused: int
    """Rows that cannot be stored: see `problems`."""
    no_reading: int
    """Rows that name a point but have no reading; each is also in one of the counts above."""
    problems: tuple[str, ...]
    """The first few reasons, each with its file."""
    verified: int
    """How many of the files had a SHA-256, in a manifest or a separate file; all of these matched."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json import`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Verified:
    """Files that passed validation; `verified` is the number of those with a SHA-256."""

    files: int
    points: int
    bytes: int
    verified: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json import --verify`."""
        return asdict(self)


@dataclass(slots=True)
class _Validated:
    source: Source
    plan: ReadPlan
    validation: Validation
    bytes: int
    verified: bool
    reader: FileReader | None
    """Its reader, if that is still open."""

    @property
    def points(self) -> int:
        """The number of points; for a wide file the most that it may have."""
        return self.validation.rows * max(1, len(self.plan.wide))


def import_parquet(
    handle: Handle,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    on_conflict: Literal["keep", "overwrite"],
    options: ReadOptions,
    dry_run: bool,
    progress: Progress,
) -> Imported:
    """See `Store.import_parquet`."""
    if on_conflict not in ("keep", "overwrite"):
        raise InvalidQuery(f"on_conflict = {on_conflict!r}: 'keep' or 'overwrite'")
    sources = sources_of(listed(paths))
    with ExitStack() as readers:
        if len(sources) <= _MOST_TOGETHER:
            # The readers stay open: for small files, nothing takes longer than to open them again.
            found = _validate(handle.settings, sources, options, readers)
        else:
            found = _validated(handle.settings, sources, options)
        total = sum(one.points for one in found)
        with kept_open(handle.columns), closing(Bulk(handle)) as bulk:
            job = _Import(handle, bulk, on_conflict, total, progress, dry_run=dry_run)
            for one in found:
                job.run(one)
    counts = job.counts
    return Imported(
        files=len(found),
        read=counts.read,
        stored=counts.stored,
        present=counts.present,
        duplicates=counts.duplicates,
        nulls=counts.nulls,
        refused=counts.refused,
        no_reading=counts.no_reading,
        problems=tuple(counts.problems),
        verified=sum(one.verified for one in found),
    )


def verify_parquet(
    paths: Sequence[Path],
    settings: Settings,
    options: ReadOptions = _USUAL,
) -> Verified:
    """Validate every file as an import does, without a store. Raises the same errors as `Store.import_parquet`."""
    found = _validated(settings, sources_of(paths), options)
    return Verified(
        files=len(found),
        points=sum(one.points for one in found),
        bytes=sum(one.bytes for one in found),
        verified=sum(one.verified for one in found),
    )


@contextmanager
def _opened(
    settings: Settings, source: Source, descriptor: int, instance: SharedInstance
) -> Iterator[FileReader]:
    head = os.pread(descriptor, HEAD_BYTES, 0)
    duckdb = duckdb_is_installed()
    if packing_of(head) is not None or form_of(head, source.path.name) == "ndjson":
        limit = settings.duckdb_memory_limit_bytes
        with opened_ndjson(descriptor, source.path, limit, duckdb=duckdb) as lines:
            yield lines
        return
    if not is_parquet(head):
        _refuse_other_formats(head, source.path)
    with reader_here(descriptor, source.path, instance, duckdb=duckdb) as reader:
        yield reader


def _refuse_other_formats(head: bytes, path: Path) -> None:
    """Raise `InvalidFile` for a file that is recognized, but not as one that can be imported."""
    what = foreign_format(head)
    encoding = None if what else utf_16_or_32(head)
    if what is None and head and (encoding or not any(byte < 9 for byte in head)):
        kind = f"text in {encoding.upper()}" if encoding else "text, perhaps CSV"
        what = f"{kind}; `holdfast ingest` (store.ingest) reads it"
    if what is not None:
        raise InvalidFile(f"{path} cannot be read as Parquet: it is {what}", path=path)


def _validated(settings: Settings, sources: Sequence[Source], options: ReadOptions) -> list[_Validated]:
    """Validate files, and close them."""
    found: list[_Validated] = []
    for first in range(0, len(sources), _MOST_TOGETHER):
        with ExitStack() as readers:
            together = _validate(settings, sources[first : first + _MOST_TOGETHER], options, readers)
            found += [replace(one, reader=None) for one in together]
    return found


def _validate(
    settings: Settings, sources: Sequence[Source], options: ReadOptions, readers: ExitStack
) -> list[_Validated]:
    """Read whole files once, to check that they are undamaged and have usable columns; `readers` closes them."""
    descriptors = [readers.enter_context(source.opened()) for source in sources]
    instance = readers.enter_context(SharedInstance(descriptors, settings.duckdb_memory_limit_bytes))
    return [
        _validate_one(settings, source, descriptor, options, instance, readers)
        for source, descriptor in zip(sources, descriptors, strict=True)
    ]


def _validate_one(
    settings: Settings,
    source: Source,
    descriptor: int,
    options: ReadOptions,
    instance: SharedInstance,
    readers: ExitStack,
) -> _Validated:
    size = os.fstat(descriptor).st_size
    verified = source.verify(descriptor)
    reader = readers.enter_context(_opened(settings, source, descriptor, instance))
    plan = plan_of(reader.types(), options, source.path)
    validation = reader.validate(plan)
    if source.points is not None and validation.rows != source.points:
        raise StoreCorrupt(
            f"{source.path} has {counted(validation.rows, 'point')}, but its manifest says {source.points:,}; "
            "nothing was stored",
            path=source.path,
        )
    if plan.ignored:
        log.warning("%s: not read: the columns %s", source.path, ", ".join(map(repr, plan.ignored)))
    return _Validated(source, plan, validation, size, verified, reader)


class _Import:
    """One import, after the validation."""

    def __init__(
        self,
        handle: Handle,
        bulk: Bulk,
        on_conflict: Literal["keep", "overwrite"],
        total: int,
        progress: Progress,
        *,
        dry_run: bool,
    ) -> None:
        self._handle = handle
        self._bulk = bulk
        self._on_conflict = on_conflict
        self._total = total
        self._progress = progress
        self._dry_run = dry_run
        self._kinds: dict[tuple[str, str], str] = {}
        self._under_way = 0
        self._advice: str | None = None
        self._may_have_wrong_unit = False
        self._spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._overlaps = False
        self.counts = _Counts()

    def run(self, file: _Validated) -> None:
        """Store all rows of a file. An error has a note that says what was stored before it."""
        self._advice = _advice_on_times(file.plan)
        self._may_have_wrong_unit = _counts_small_units(file.plan)
        try:
            with file.source.opened() as descriptor, ExitStack() as again:  # refuses a file that has changed
                settings = self._handle.settings
                instance = again.enter_context(
                    SharedInstance([descriptor], settings.duckdb_memory_limit_bytes)
                )
                reader = file.reader or again.enter_context(
                    _opened(settings, file.source, descriptor, instance)
                )
                pages = reader.pages(file.plan, file.validation)
                while (first := next(pages, None)) is not None:
                    self._write(chain([first], islice(pages, _MOST_PAGES - 1)), file.source)
        except HoldfastError as error:
            if self.counts.stored:
                error.add_note(
                    f"before that, this import stored {counted(self.counts.stored, 'point')}; importing it again is "
                    "harmless"
                )
            raise

    def _write(self, pages: Iterator[ReadPage], source: Source) -> None:
        """Write pages as one unit, which is durable at its end."""
        chosen = (page for page in pages if self._wants(page, source))
        refusals: list[Refusal] = []
        first = next(chosen, None)
        if first is None:
            return
        table: Any = first.table()
        if isinstance(table, HeldPage):
            held = HeldPages(page.table() for page in chain([first], chosen))
            refusals += self._sent(held)
        else:
            for page in chain([first], chosen):
                refusals += self._sent(page.table())
        self.counts.refused += len(refusals)
        self.counts.stored += self._under_way - len(refusals)
        self._under_way = 0
        for refusal in refusals[:_MOST_PROBLEMS]:
            if refusal.field == "timestamp_us" and self._advice is not None:
                self._note(source, self._advice)
            elif refusal.field == "quality" and "32 bits" in refusal.reason:
                self._note(source, "quality: is not a 32-bit integer")
            else:
                self._note(source, f"{refusal.field}: {refusal.reason}")

    def _sent(self, table: Any) -> Sequence[Refusal]:
        if self._dry_run:
            return self._bulk.check(table)
        return self._bulk.insert(table, on_error="skip", on_conflict=self._on_conflict).refusals

    def _wants(self, page: ReadPage, source: Source) -> bool:
        """Count the rows of a page before it is written, and return whether there is anything to write."""
        counts = self.counts
        counts.read += page.rows
        counts.nulls += page.nulls
        counts.no_reading += sum(group.rows - group.readings for group in page.groups)
        if page.nulls:
            self._note(source, f"{counted(page.nulls, 'row')} without a sensor, a metric or a time")
        if self._may_have_wrong_unit and any(
            0 <= group.first_us < SUSPECT_BEFORE_US for group in page.groups
        ):
            self._may_have_wrong_unit = False
            log.warning("%s: %s", source.path, SUSPECT_TIMES)
        if self._dry_run and not self._overlaps:
            self._warn_of_overlaps(page, source)
        refused = self._leave_out_other_kinds(page, source)
        duplicates = page.duplicates()
        rows = page.rows - page.nulls - refused - duplicates
        already = self._present(page) if rows and self._on_conflict == "keep" else 0
        counts.refused += refused
        counts.duplicates += duplicates
        counts.present += already
        self._under_way += max(0, rows - already)
        self._progress(counts.read, self._total)
        return rows > already

    def _warn_of_overlaps(self, page: ReadPage, source: Source) -> None:
        """Warn once that points which occur twice in the input are counted twice here, as nothing is stored."""
        for group in page.groups:
            spans = self._spans.setdefault(group.pair, [])
            if any(group.first_us <= last and first <= group.last_us for first, last in spans):
                self._overlaps = True
                log.warning(
                    "%s: has points of %r %r in a span that was read before; points of equal time are counted each "
                    "time here, but would be stored once",
                    source.path,
                    *group.pair,
                )
                return
            spans.append((group.first_us, group.last_us))

    def _leave_out_other_kinds(self, page: ReadPage, source: Source) -> int:
        """Drop readings whose kind differs from that of their series: the stored kind, else the first in the file."""
        unknown = [group.pair for group in page.groups if group.pair not in self._kinds]
        with self._handle.metadata.read() as connection:
            found = SeriesRepository(connection).kinds(unknown)
        self._kinds |= {pair: kind for pair, kind in found.items() if kind is not None}
        doomed = []
        for group in page.groups:
            here = KIND_NUMBER if group.numbers else KIND_TEXT if group.texts else None
            if here is None:
                continue
            kind = self._kinds.setdefault(group.pair, here)
            if group.texts if kind == KIND_NUMBER else group.numbers:
                doomed.append((group.pair, kind == KIND_NUMBER))
                self._note(source, f"the series {group.pair[0]!r} {group.pair[1]!r} holds {kind}s only")
        return page.leave_out(doomed) if doomed else 0

    def _present(self, page: ReadPage) -> int:
        spans = {group.pair: (group.first_us, group.last_us) for group in page.groups}
        with self._handle.reading("import") as (connection, known):
            return present(connection, known, spans, page)

    def _note(self, source: Source, problem: str) -> None:
        line = f"{source.path}: {problem}"
        if len(self.counts.problems) < _MOST_PROBLEMS and line not in self.counts.problems:
            self.counts.problems.append(line)


def _counts_small_units(plan: ReadPlan) -> bool:
    """Return whether the times are numbers of milliseconds or microseconds, as the caller says."""
    time = plan.types.get("timestamp")
    return time is not None and time.family in ("integer", "float") and plan.us_per_count < 1_000_000


def _advice_on_times(plan: ReadPlan) -> str | None:
    """Return what a refused time of this file may mean; None if its type says it."""
    if "timestamp" not in plan.types:
        return None
    column, family = plan.columns["timestamp"], plan.types["timestamp"].family
    if family in ("integer", "float"):
        return (
            f"timestamp: the numbers of {column!r} are read as {_UNITS[plan.us_per_count]} since 1970 and are "
            "outside the years 1678 to 2261; if they are in another unit, set it: time_format "
            "(--time-format) is unix, unix_ms or unix_us"
        )
    twice = ""
    if plan.zone is not UTC:
        twice = f", or name a time that occurs twice or never in {plan.zone}, where the clock is changed"
    if family == "text":
        return f"timestamp: texts of {column!r} are not ISO 8601 from 1678 to 2261{twice}"
    if family == "naive" and twice:
        return f"timestamp: times of {column!r} are outside the years 1678 to 2261{twice}; write the column with a zone"
    return None
