"""Ingest: validates readings of text files and writes them to an open store in batches. Never parses a line itself."""

from __future__ import annotations

import io
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from typing import Any, BinaryIO

from repo.core.changes import PointsChange, Submission
from repo.core.handle import Handle
from repo.errors import (
    EngineMissing,
    HoldfastError,
    InvalidFile,
    InvalidPoint,
    InvalidSettings,
    Refusal,
    StoreBusy,
    counted,
)
from repo.formats.compression import plain_name
from repo.formats.files.mapping import ReadOptions
from repo.formats.text.columns import is_position
from repo.formats.text.csv import read_csv
from repo.formats.text.layout import Layout, ReadingChunk, Rejected, layout_of, time_reader
from repo.formats.text.ndjson import read_ndjson
from repo.formats.text.times import TimeReader
from repo.inputs.batch import KIND_NUMBER, KIND_TEXT
from repo.inputs.fields import described
from repo.inputs.times import UNIX_EXPONENTS
from repo.inputs.values import check_rows
from repo.repositories.points import Written
from repo.repositories.series import SeriesRepository
from repo.transfer.importer import SUSPECT_TIMES, import_parquet
from repo.transfer.ingest_input import Input
from repo.transfer.repeats import Repeats

__all__ = ["Files", "Ingested", "IngestedFile", "ingest"]

Files = str | os.PathLike[str] | BinaryIO | Input | Iterable[str | os.PathLike[str] | BinaryIO | Input]
"""Paths, binary streams or inputs; one or several."""

log = logging.getLogger("holdfast.ingesting")

APPLY_POINTS = 1_000_000
"""After this many points the journal is flushed, so that it does not hold a whole long import."""


@dataclass(frozen=True, slots=True)
class IngestedFile:
    """The outcome for one file."""

    file: str
    points: int
    """Acknowledged points: durable, whatever happens next."""
    overwritten: int
    """Readings with the sensor, metric and time of an earlier one of the same run, which they replaced. They are not
    counted as points. Repeats are recognized among the last million readings or so."""
    rejected: int
    """Lines, cells and rows that gave no point. `on_rejected` receives each; for Parquet, each reason."""
    no_reading: int
    """Cells marked as missing: no point in a wide file, a point without a reading in a long one."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """The outcome for all files, in their order, and the time taken."""

    path: str
    """The store."""
    files: tuple[IngestedFile, ...]
    elapsed_s: float

    @property
    def points(self) -> int:
        """The number of acknowledged points."""
        return sum(file.points for file in self.files)

    @property
    def overwritten(self) -> int:
        """The number of readings that replaced an earlier one of this run."""
        return sum(file.overwritten for file in self.files)

    @property
    def rejected(self) -> int:
        """The number of lines, cells and rows that gave no point."""
        return sum(file.rejected for file in self.files)

    @property
    def no_reading(self) -> int:
        """The number of cells marked as missing."""
        return sum(file.no_reading for file in self.files)

    @property
    def points_per_s(self) -> int:
        """The number of points acknowledged per second."""
        return round(self.points / max(self.elapsed_s, 1e-6))

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json ingest`."""
        return {
            "path": self.path,
            "files": [asdict(file) for file in self.files],
            "points": self.points,
            "overwritten": self.overwritten,
            "rejected": self.rejected,
            "no_reading": self.no_reading,
            "elapsed_s": round(self.elapsed_s, 3),
            "points_per_s": self.points_per_s,
        }


def ingest(
    handle: Handle,
    files: Files,
    options: Mapping[str, Any],
    *,
    form: str = "auto",
    encoding: str = "utf-8",
    strict: bool = False,
    progress: Callable[[Input, int], object] = lambda _input, _readings: None,
    on_rejected: Callable[[Input, Rejected], object] = lambda _input, _rejected: None,
) -> Ingested:
    """See `Store.ingest`. Memory holds a few batches of 10,000 readings or, for Parquet, one page."""
    began_s = time.monotonic()
    for name, function in (("progress", progress), ("on_rejected", on_rejected)):
        if not callable(function):
            raise InvalidSettings(f"{name} is {described(function)}, not a function")
    layout = layout_of(options)
    time_reader(layout)  # a wrong zone or format is refused before anything is opened
    with ExitStack() as stack:
        inputs = [_input_of(file, form, encoding, stack) for file in _listed(files)]
        passes = _Passes(handle, layout, progress, on_rejected)
        done = _run(passes, inputs, strict=strict)
    return Ingested(str(handle.files.path), tuple(done), time.monotonic() - began_s)


def _listed(files: Files) -> list[Any]:
    if isinstance(files, str | os.PathLike | Input | io.IOBase):
        return [files]
    try:
        return list(files)
    except TypeError:
        raise InvalidFile(f"files is {described(files)}; give a path, or several") from None


def _input_of(file: Any, form: str, encoding: str, stack: ExitStack) -> Input:
    """Return the caller's argument as an input. An input created here is closed with the stack."""
    if isinstance(file, Input):
        return file
    if not isinstance(file, str | os.PathLike | io.BufferedIOBase | io.RawIOBase):
        raise InvalidFile(f"an element of files is {described(file)}; give a path or a binary stream")
    name = None if isinstance(file, str | os.PathLike) else str(getattr(file, "name", "the stream"))
    stream: Any = file
    wanted: Any = None if isinstance(form, str) and form == "auto" else form
    return stack.enter_context(closing(Input(stream, name=name, encoding=encoding, form=wanted)))


def _run(passes: _Passes, inputs: Sequence[Input], *, strict: bool) -> list[IngestedFile]:
    for given in inputs:
        if given.detect() == "parquet":
            passes.read_options(given)
    if strict:
        checked = [passes.run(given, check_only=True) for given in inputs]
        if any(file.rejected for file in checked):
            return checked
    try:
        written = [passes.run(given, check_only=False) for given in inputs]
    except HoldfastError as error:
        passes.abandon()
        if passes.points:
            error.add_note(
                f"before that, this import acknowledged {counted(passes.points, 'point')}, which stay stored; "
                "repeating the import from the start is harmless"
            )
        raise
    passes.apply()
    return written


class _Passes:
    """Reads files with the store's validation; holds the writes in progress."""

    def __init__(
        self,
        handle: Handle,
        layout: Layout,
        progress: Callable[[Input, int], object],
        on_rejected: Callable[[Input, Rejected], object],
    ) -> None:
        self._handle = handle
        self._layout = layout
        self._progress = progress
        self._on_rejected = on_rejected
        self._kinds = _kinds_of(handle)
        self._under_way: deque[Future[Written]] = deque()
        self._unapplied = 0
        self._columns_to_be_had = True
        self._repeats = Repeats()
        self._acknowledged = 0
        self._overwritten = 0

    @property
    def points(self) -> int:
        """The number of acknowledged points."""
        return max(0, self._acknowledged - self._overwritten)

    def run(self, given: Input, *, check_only: bool) -> IngestedFile:
        """Read one file. An error that does not name it gets a note that does."""
        try:
            if given.detect() == "parquet":
                return self._run_parquet(given, check_only=check_only)
            return self._run_text(given, self.check if check_only else self.write, again=check_only)
        except InvalidFile as error:
            if given.name not in str(error):
                error.add_note(f"the file is {given.name}")
            raise

    def _run_text(self, given: Input, take: Callable[[list[Any]], None], *, again: bool) -> IngestedFile:
        """`take` receives rows and may refuse them with `InvalidPoint`, which lists all bad ones."""
        acknowledged, overwritten = self._acknowledged, self._overwritten
        taken, rejected, no_reading = 0, 0, 0
        with given.opened(again=again) as (form, text):
            layout = self._layout
            if layout.delimiter is None and plain_name(given.name).endswith(".tsv"):
                layout = replace(layout, delimiter="\t")
            read = read_ndjson if form == "ndjson" else read_csv
            times = time_reader(layout)
            for chunk in read(text, layout, times):
                self._sift(chunk, self._mismatches(chunk.rows))
                try:
                    take(chunk.rows)
                except InvalidPoint as refused:
                    self._sift(chunk, refused.refusals)
                    take(chunk.rows)
                self._learn(chunk.rows)
                for one in sorted(chunk.rejected, key=lambda rejected: rejected.line or 0):
                    self._on_rejected(given, one)
                taken += len(chunk.rows)
                rejected += len(chunk.rejected)
                no_reading += chunk.missing + sum(row[3] is None for row in chunk.rows)
                self._progress(given, taken)
        if not again:
            self._warn(given, times)
            if not (taken or rejected or no_reading) and (layout.metrics is not None or layout.columns):
                log.warning("%s: no line has a metric that --only or --column chose", given.name)
        self._settle(0)
        acknowledged, overwritten = self._acknowledged - acknowledged, self._overwritten - overwritten
        return IngestedFile(given.name, acknowledged - overwritten, overwritten, rejected, no_reading)

    def _warn(self, given: Input, times: TimeReader) -> None:
        """Warn of times that were read as requested, but may well be wrong."""
        single = times.single_passes()
        if single:
            log.warning(
                "%s: %s occurs twice in %s because the clock was set back, but the file has only one pass of that "
                "hour; it was read as the first",
                given.name,
                single[0],
                self._layout.zone,
            )
        for name, count in times.suspects.items():
            log.warning("%s, %s of %s: %s", given.name, counted(count, "line"), name, SUSPECT_TIMES)

    def _run_parquet(self, given: Input, *, check_only: bool) -> IngestedFile:
        self._settle(0)
        assert given.path is not None
        done = import_parquet(
            self._handle,
            [given.path],
            on_conflict="overwrite",
            options=self.read_options(given),
            dry_run=check_only,
            progress=lambda rows, _total: self._progress(given, rows),
        )
        for problem in done.problems:
            reason = problem.removeprefix(f"{given.path}: ")
            self._on_rejected(given, Rejected(None, None, reason, ""))
        self._kinds |= _kinds_of(self._handle)
        rejected = done.refused + done.nulls
        acknowledged, overwritten = (0, 0) if check_only else (done.read - rejected, done.duplicates)
        self._acknowledged += acknowledged
        self._overwritten += overwritten
        return IngestedFile(given.name, acknowledged - overwritten, overwritten, rejected, done.no_reading)

    def read_options(self, given: Input) -> ReadOptions:
        """Return how to read Parquet by the layout; raises `InvalidSettings` for options that apply to text only."""
        layout, usual = self._layout, Layout()
        for option, is_given in (
            ("several time columns", len(layout.time_columns) > 1),
            ("marks of missing readings", bool(layout.missing)),
            ("columns by position", any(map(is_position, _names_of(layout)))),
            ("times that occur twice", layout.ambiguous != "refuse"),
        ):
            if is_given:
                raise InvalidSettings(
                    f"{given.name} is Parquet, which does not support {option}; ingest it separately"
                )
        time = layout.time_columns[0]
        columns = {
            field: column
            for field, column, same in (
                ("sensor_id", layout.sensor_column, usual.sensor_column),
                ("metric_name", layout.metric_column, usual.metric_column),
                ("value", layout.value_column, usual.value_column),
                ("quality", layout.quality_column, usual.quality_column),
                ("timestamp_us" if time == "timestamp_us" else "timestamp", time, usual.time_columns[0]),
            )
            if column != same
        }
        metrics: dict[str, str] | None = None
        if layout.metrics is not None or layout.columns:
            metrics = {name: name for name in layout.metrics or ()} | dict(layout.columns)
        return ReadOptions.of(
            columns,
            _counted(layout.time_formats),
            layout.zone,
            layout.sensor,
            layout.metric,
            metrics,
            layout.ignored,
        )

    def check(self, rows: list[Any]) -> None:
        """Refuse the same rows as the store would, and write nothing."""
        check_rows(rows, accept_bool=self._handle.settings.accept_bool, now_us=0)

    def write(self, rows: list[Any]) -> None:
        """Submit rows to the journal."""
        if rows:
            batch, _ = check_rows(
                rows, accept_bool=self._handle.settings.accept_bool, now_us=self._handle.clock()
            )
            self._under_way.append(self._handle.writer.submit(Submission((PointsChange.of(batch),))))
            self._overwritten += self._repeats.add(batch)
            self._settle(_UNDER_WAY)
        if self._unapplied >= APPLY_POINTS:
            self.apply()

    def apply(self) -> None:
        """Apply the journal to the columns, if they are available."""
        self._settle(0)
        self._unapplied = 0
        if not self._columns_to_be_had:
            return
        try:
            self._handle.checkpoint()
        except (StoreBusy, EngineMissing) as error:
            self._columns_to_be_had = False
            log.warning("the points are durable in the journal, but not yet in the columns: %s", error)

    def abandon(self) -> None:
        """Wait for the writes in progress after an error, so that the count is right."""
        for future in self._under_way:
            if future.exception() is None:
                self._acknowledged += future.result().accepted
        self._under_way.clear()

    def _settle(self, left: int) -> None:
        """Wait until at most `left` writes are in progress; raises the error of the first that failed."""
        while len(self._under_way) > left:
            written = self._under_way.popleft().result()
            self._acknowledged += written.accepted
            self._unapplied += written.accepted

    def _mismatches(self, rows: list[Any]) -> list[Refusal]:
        """Return the rows whose kind differs from that of their series; the store would refuse the whole batch."""
        wrong = {
            (sensor, metric, kind)
            for sensor, metric, kind in _kinds_in(rows)
            if self._kinds.get((sensor, metric), kind) != kind
        }
        if not wrong:
            return []
        return [
            Refusal(
                index,
                "value",
                f"the series holds {self._kinds[row[0], row[1]]} values, but this is a {kind}",
            )
            for index, row in enumerate(rows)
            if (kind := _kind_of(type(row[3]))) is not None and (row[0], row[1], kind) in wrong
        ]

    def _learn(self, rows: list[Any]) -> None:
        """Record the kinds of new series, which their first reading determines."""
        for sensor, metric, kind in _kinds_in(rows):
            self._kinds.setdefault((sensor, metric), kind)

    @staticmethod
    def _sift(chunk: ReadingChunk, refusals: Iterable[Refusal]) -> None:
        """Move rows from the accepted ones to the rejected ones."""
        refusals = list(refusals)
        if not refusals:
            return
        chunk.rejected += chunk.rejections(refusals)
        bad = {refusal.row for refusal in refusals}
        good = [index for index in range(len(chunk.rows)) if index not in bad]
        chunk.rows = [chunk.rows[index] for index in good]
        chunk.lines = [chunk.lines[index] for index in good]


def _kinds_of(handle: Handle) -> dict[tuple[str, str], str]:
    with handle.metadata.read() as connection:
        listed = SeriesRepository(connection).list()
    return {(info.sensor_id, info.metric_name): info.kind for info in listed if info.kind is not None}


def _kinds_in(rows: list[Any]) -> Iterable[tuple[str, str, str]]:
    types = map(type, map(itemgetter(3), rows))
    for sensor, metric, found in set(
        zip(map(itemgetter(0), rows), map(itemgetter(1), rows), types, strict=True)
    ):
        kind = _kind_of(found)
        if kind is not None:
            yield sensor, metric, kind


def _kind_of(found: type) -> str | None:
    return None if found is type(None) else KIND_TEXT if found is str else KIND_NUMBER


def _names_of(layout: Layout) -> tuple[str, ...]:
    """Return the columns that the layout names for Parquet."""
    return (
        layout.sensor_column,
        layout.metric_column,
        layout.value_column,
        layout.quality_column,
        *layout.time_columns,
    )


def _counted(time_formats: Sequence[str]) -> Any:
    """Return the unit of numeric times in Parquet; its other times need no format."""
    return next((name for name in time_formats if name in UNIX_EXPONENTS), "unix")


_UNDER_WAY = 8
"""Batches that wait for their commit, so that reading and committing overlap."""
