"""The store: opens and closes the two databases of a folder, and exposes the operations on them."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

from repo.clock import Clock, system_clock
from repo.core.background import BackgroundThread, stop_all
from repo.core.metadata import MetadataDatabase
from repo.core.read_only import refuse_change
from repo.core.reserve import Reserve
from repo.engines.interrupts import KeyboardInterrupts
from repo.errors import EngineMissing, InvalidSettings, StoreFull
from repo.files import StoreFiles, check_store_path
from repo.inputs.arguments import (
    LARGEST,
    check_choice,
    check_count,
    check_flag,
    check_function,
    check_path,
    shown,
)
from repo.inputs.times import UNIX_EXPONENTS
from repo.processes import forks
from repo.queries.selection import Names
from repo.schema import version
from repo.settings import Settings
from repo.store.opening import Opening
from repo.store.points import Points, Time
from repo.store.quarantine import Quarantine
from repo.store.read_only import open_read_only
from repo.store.records import Records
from repo.store.series import SeriesApi
from repo.store.sinks import Sinks
from repo.store.status import Status, read_status
from repo.store.transaction import Transaction

if TYPE_CHECKING:
    from repo.formats.text.layout import Rejected
    from repo.repositories.ledger import Loss
    from repo.store.losses import LossEntry
    from repo.store.receiving import Receiving
    from repo.transfer.exporter import Exported
    from repo.transfer.importer import Imported
    from repo.transfer.ingest import Files, Ingested
    from repo.transfer.ingest_input import Input
    from repo.upkeep.cleanup import Cleaned
    from repo.upkeep.compact import Compacted
    from repo.upkeep.convert import Converted
    from repo.upkeep.shrink import Shrunk
    from repo.upkeep.usage import Size

__all__ = ["Store"]

log = logging.getLogger("holdfast.store")

Progress = Callable[[int, int], object]
"""Called with the amount done and the total; each method documents the unit."""


def _unseen(_done: int, _total: int) -> None:
    """Ignore progress."""


class Store:
    """A store-and-forward buffer for time-series in one folder. Thread-safe; many processes may have it open.

    `path` is the folder, or the column file that the store was created next to (`DuckDBTimeSeriesStorage`). Opening
    creates a store if the folder has none (with `create=False`: `StoreMissing`), and upgrades an older schema. A write
    is durable when its call returns. Close the store, or use it as a context manager. Closing is quick: writes that
    were not flushed stay safe in the journal.

    `read_only=True` opens a store whose files this process may only read: those of another user, or on a file system
    that is mounted read-only. Queries, `latest`, `status` and exports see everything that was acknowledged, including
    the points that wait in the journal. These are read again each time the columns are opened, that is after another
    process used them, or after `lease_idle_s`. Nothing is created or changed, so an outdated store raises
    `SchemaOutdated`, and every write raises `StoreReadOnly`. This process and those that write to the store hand the
    columns over to each other as usual.

    Before a fork (`os.fork`, `multiprocessing`) this process closes the files of all its stores. The fork waits up to
    three seconds for running calls, and calls of other threads wait for the fork. The handle keeps working in the
    parent. In the child it raises `StoreClosed`: open the store again there. If a call did not end in time, or the fork
    was made inside a call (in a callback), opening that store in the child raises `StoreClosed`, too; the start method
    "spawn" always works.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Settings | None = None,
        *,
        create: bool = True,
        read_only: bool = False,
        clock: Clock = system_clock,
        files: StoreFiles | None = None,
    ) -> None:
        if settings is not None and not isinstance(settings, Settings):
            raise InvalidSettings(f"settings = {shown(settings)}: a repo.Settings is expected")
        create, read_only = check_flag(create, "create"), check_flag(read_only, "read_only")
        self.path = check_store_path(path)
        self.files = StoreFiles.of(self.path) if files is None else files
        self.settings = Settings.load(self.files.folder) if settings is None else settings
        self._pid = os.getpid()
        self._background: BackgroundThread | None = None
        self.read_only = read_only
        with forks.Use():
            if read_only:
                self._handle = open_read_only(self.files, self.settings, clock)
                log.info("opened the store in %s for reading", self.path)
                self._offer()
            else:
                self._open(Opening(self.path, self.files, self.settings, clock), create)

    @property
    def points(self) -> Points:
        """Write, read, aggregate and delete points: `insert`, `insert_many`, `insert_table`, `range`, `latest` ..."""
        return self._points

    @property
    def records(self) -> Records:
        """Add, list and settle messages to deliver, each with its points: `add`, `pending`, `mark_sent` ..."""
        return self._records

    @property
    def series(self) -> SeriesApi:
        """List and describe the series: `list`, `describe`."""
        return self._series

    @property
    def sinks(self) -> Sinks:
        """The destinations of the store: `add`, `list`, `pause`, `replay`, `remove` ..."""
        return self._sinks

    @property
    def quarantine(self) -> Quarantine:
        """What the destinations refused for good: `list`, `retry`, `export`, `drop`."""
        return self._quarantine

    @property
    def receiving(self) -> Receiving:
        """Take batches of other stores, for a receiver: `take_points`, `take_records`, `positions`."""
        from repo.store.receiving import Receiving

        self._refuse_if_read_only()
        return Receiving(self._handle)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Collect writes of points and records, and commit them together when the block ends without an error.

        After an error in the block or in the commit, nothing was written.
        """
        transaction = Transaction(self._handle, self.points.bulk)
        try:
            yield transaction
        finally:
            submission = transaction.end()
        transaction.written = self._handle.writer.commit(submission)

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Run one SELECT on the store and return its rows as dicts.

        The columns are `time_series_data` and `series`, in the SQL of their engine. The metadata can be read as
        `series_info` (kind, unit, description, labels), `records`, `sinks` and `losses`; these are copied for the query
        if it names them. Everything acknowledged before is applied first, so the query sees it.

        Pass values as `params` (`?`, or `$name` on DuckDB and `:name` on SQLite). A query that would write, or access
        anything outside the store, raises `InvalidQuery`. All rows are loaded into memory.
        """
        from repo.store.sql import run_sql

        return run_sql(self._handle, query, params)

    def flush(self) -> int:
        """Apply everything acknowledged so far to the columns; returns the seq through which they are complete."""
        self._refuse_if_read_only()
        return self._handle.flush()

    def checkpoint(self) -> int:
        """Flush, make the columns durable and prune the journal; returns the same as `flush`."""
        self._refuse_if_read_only()
        return self._handle.checkpoint()

    def promote(self, *, progress: Progress = _unseen) -> Converted:
        """Move the columns from SQLite to DuckDB, and return when they are durable there and DuckDB is active.

        Does nothing if DuckDB is already active. Writes continue during the move; reads wait, in every process, and
        may raise `StoreBusy`. The old file is kept under another name. A kill leaves one engine active, with all
        points. `progress` receives the points moved and the total. Raises `EngineMissing`, `StoreBusy`, `StoreFull` or
        the engine's typed error; nothing was changed.
        """
        return self._convert("duckdb", progress)

    def demote(self, *, progress: Progress = _unseen) -> Converted:
        """Move the columns from DuckDB to SQLite; otherwise like `promote`."""
        return self._convert("sqlite", progress)

    @KeyboardInterrupts()
    def export(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        sensor_id: Names = None,
        metric_name: Names = None,
        start: Time = None,
        end: Time = None,
        format: Literal["parquet", "csv", "ndjson"] | None = None,  # noqa: A002 - as the command has it
        partition: Literal["day"] | None = None,
        compression: Literal["zstd", "gzip", "none"] | None = None,
        progress: Progress = _unseen,
    ) -> Exported:
        """Write the points in [start, end) to a file, a folder or a stream, and return when the files are durable.

        Names and times are selected as in `points.range`. The name of the file determines the format: `.parquet`,
        `.csv` or `.ndjson`, the last two also with `.gz` or `.zst`; `format` and `compression` state it instead.
        Without a suffix it is Parquet; a stream, such as `sys.stdout.buffer`, gets CSV or NDJSON. The SHA-256 of a file
        is next to it in `NAME.sha256`. `partition="day"` makes a folder with a file for each day (UTC), Parquet or
        gzipped NDJSON, and a manifest with their SHA-256. The formats are documented in `repo.formats.files.parquet`,
        `repo.formats.files.text_writer` and `repo.formats.files.bundle`. `import_parquet` reads Parquet and NDJSON
        back, `ingest` also CSV, but not its metadata.

        Missing folders are created. A file appears complete or not at all, and replaces an existing one. A folder must
        be new, or contain the same export, interrupted, which then resumes. Memory holds two pages of points. Other
        calls can use the columns between pages, so points written during the export may be included, for series that
        had points at its start. `progress` receives the points read and an estimate of the total.

        Raises `InvalidQuery`; `InvalidFile` if the path cannot be written; `StoreFull`; `StoreBusy`; or `MissingExtra`
        if the format needs a package that is not installed: DuckDB or pyarrow for Parquet, zstandard for zstd.
        """
        from repo.transfer.exporter import export

        if format is not None:
            check_choice(format, "format", ("parquet", "csv", "ndjson"))
        if partition is not None:
            check_choice(partition, "partition", ("day",))
        if compression is not None:
            check_choice(compression, "compression", ("zstd", "gzip", "none"))
        place: Any = target if callable(getattr(target, "write", None)) else check_path(target, "target")
        return export(
            self._handle,
            place,
            self._handle.select(sensor_id, metric_name, start, end),
            form=format,
            partition=partition,
            compression=compression,
            progress=check_function(progress, "progress"),
        )

    def export_parquet(
        self,
        path: str | os.PathLike[str],
        *,
        sensor_id: Names = None,
        metric_name: Names = None,
        start: Time = None,
        end: Time = None,
        partition: Literal["day"] | None = None,
        compression: Literal["zstd", "none"] = "zstd",
        progress: Progress = _unseen,
    ) -> Exported:
        """Write the points in [start, end) to Parquet, whatever the name of the file; otherwise like `export`."""
        return self.export(
            check_path(path, "path"),
            sensor_id=sensor_id,
            metric_name=metric_name,
            start=start,
            end=end,
            format="parquet",
            partition=partition,
            compression=check_choice(compression, "compression", ("zstd", "none")),
            progress=progress,
        )

    def export_ndjson(
        self,
        path: str | os.PathLike[str],
        *,
        sensor_id: Names = None,
        metric_name: Names = None,
        start: Time = None,
        end: Time = None,
        partition: Literal["day"] | None = None,
        progress: Progress = _unseen,
    ) -> Exported:
        """Write the points in [start, end) as NDJSON, which needs no optional package; otherwise like `export`.

        `repo.formats.ndjson_lines` documents a line. A name that ends in `.gz` or `.zst` is compressed.
        """
        return self.export(
            check_path(path, "path"),
            sensor_id=sensor_id,
            metric_name=metric_name,
            start=start,
            end=end,
            format="ndjson",
            partition=partition,
            progress=progress,
        )

    @KeyboardInterrupts()
    def import_parquet(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        on_conflict: Literal["keep", "overwrite"] = "keep",
        columns: Mapping[str, str] | None = None,
        time_format: Literal["unix", "unix_ms", "unix_us"] = "unix",
        zone: str = "UTC",
        sensor: str | None = None,
        metric: str | None = None,
        only: Mapping[str, str] | str | Sequence[str] | None = None,
        dry_run: bool = False,
        progress: Progress = _unseen,
    ) -> Imported:
        """Read Parquet files, folders of them and bundles into the store, and return when all points are durable.

        Reads exports, files of the legacy program and of other writers. The column names are those of
        `points.insert_table`; `columns` maps a field to another name (`{"sensor_id": "tag"}`). Numbers in the column
        `timestamp` are Unix seconds, or as `time_format` says; texts are ISO 8601. Times without a zone or an offset
        are in `zone`, an IANA name or an offset; those that occur twice or never, because clocks change, are refused.
        If there is no `timestamp`, the only column with times is used. Unknown columns are ignored, with a warning in
        the log. Files that `export_ndjson` wrote are recognized by their content.

        A file without columns for metric and value is wide: its other columns, which must be numbers or booleans, are
        metrics, and nulls and NaN in them are no points. `only` names these columns instead, and may include texts; a
        mapping gives the column of each metric. `sensor` and `metric` apply to every row, instead of a column.

        `on_conflict="keep"` keeps stored points, so that later corrections are not undone; `"overwrite"` replaces them.
        Importing again changes nothing.

        Every file is checked before anything is stored: `InvalidFile` if a file cannot be read, or a column is missing
        or has a wrong type; `StoreCorrupt` if a file does not match its SHA-256 in the manifest or in `NAME.sha256`
        next to it. Rows that cannot be stored are counted and skipped. A later error or a kill leaves some of the
        points stored; importing again completes the import. `dry_run` only counts.
        """
        from repo.formats.files.mapping import ReadOptions
        from repo.transfer.importer import import_parquet

        return import_parquet(
            self._handle,
            paths,
            on_conflict=check_choice(on_conflict, "on_conflict", ("keep", "overwrite")),
            options=ReadOptions.of(
                columns,
                check_choice(time_format, "time_format", tuple(UNIX_EXPONENTS)),
                zone,
                sensor,
                metric,
                only,
            ),
            dry_run=check_flag(dry_run, "dry_run"),
            progress=check_function(progress, "progress"),
        )

    @KeyboardInterrupts()
    def ingest(
        self,
        files: Files,
        *,
        format: Literal["auto", "csv", "ndjson", "parquet"] = "auto",  # noqa: A002 - as the command has it
        encoding: str = "utf-8",
        shape: Literal["auto", "long", "wide"] = "auto",
        sensor: str | None = None,
        metric: str | None = None,
        sensor_column: str = "sensor_id",
        metric_column: str = "metric_name",
        value_column: str = "value",
        quality_column: str = "quality",
        columns: Mapping[str, str] | None = None,
        only: str | Sequence[str] | None = None,
        ignore: str | Sequence[str] = (),
        text: str | Sequence[str] = (),
        mixed: bool = False,
        on_off: bool = False,
        time_column: str | Sequence[str] = "timestamp",
        time_format: str | Sequence[str] = "iso",
        zone: str = "UTC",
        ambiguous: Literal["refuse", "infer", "earlier", "later"] = "refuse",
        missing: str | float | Sequence[str | float] = (),
        header: int | Literal["none"] | None = None,
        skip: int = 0,
        footer: int = 0,
        comment: str | None = None,
        delimiter: str | None = None,
        decimal: Literal[".", ","] = ".",
        thousands: str | None = None,
        strict: bool = False,
        progress: Callable[[Input, int], object] = lambda _input, _readings: None,
        on_rejected: Callable[[Input, Rejected], object] = lambda _input, _rejected: None,
    ) -> Ingested:
        """Write the readings of CSV, NDJSON and Parquet files, in the given order, and report on each file.

        `files` are paths and binary streams, or a `repo.transfer.ingest_input.Input` for one with its own options;
        `format` and `encoding` apply to the others. Of points with the same sensor, metric and time the last one wins,
        and replaces a stored one. Readings that cannot be stored are rejected, and the rest is written; with `strict`
        every file is checked first, and nothing is written if a reading is rejected. All points are durable on return.
        After an error, the points acknowledged before it stay, and a note on the exception has their number; ingesting
        the same files again is harmless. `on_rejected` is called with each rejection, `progress` with the number of
        readings so far.

        The options are those of `holdfast ingest`, and `docs/ingest.md` has examples:

        - A long file (`shape`) has a reading per line: `sensor_column`, `metric_column`, `value_column`, time, and
          `quality_column` if there is one. A wide file has a column per metric: all that have no other use, without
          those of `ignore`; or those of `only`, and of `columns`, a mapping from metrics to columns. `sensor` and
          `metric` are constants that replace a column. Columns are given by name or, in CSV, by position (`#1`). For
          NDJSON, they are keys.
        - The times are in `time_column`; several are joined by a space. `time_format` is `iso`, `unix`, `unix_ms`,
          `unix_us` or a strptime pattern; several are tried in order. Times without an offset are in `zone`, an IANA
          name or an offset (`-07:00`). `ambiguous` is how to read a local time that occurred twice; `infer` is by the
          order of the file.
        - Values are numbers, but for the metrics of `text`, which are states. With `mixed` every cell that is not a
          number is a state. With `on_off`, on, true and yes are 1, and off, false and no are 0. `missing` marks what
          means no reading. `decimal` and `thousands` are the signs in numbers.
        - For CSV, `header` is the line of the names, from 1, or `"none"`; `skip` is the number of lines to leave out
          after it (units), `footer` at the end of the file; lines that begin with `comment` are left out. `delimiter`
          is one character, a comma if it is None and the file does not say `sep=`.

        Raises `InvalidSettings` for an option of a wrong type or value, `InvalidFile` for a file that cannot be opened,
        is in a wrong format, is Parquet in a stream, or does not support the options; both before anything is written,
        except that a file without a usable header does not undo the files before it. Also `StoreFull` and `StoreBusy`.
        """
        from repo.transfer.ingest import ingest

        options = {
            "shape": shape,
            "sensor": sensor,
            "metric": metric,
            "sensor_column": sensor_column,
            "metric_column": metric_column,
            "value_column": value_column,
            "quality_column": quality_column,
            "columns": columns,
            "only": only,
            "ignore": ignore,
            "text": text,
            "mixed": mixed,
            "on_off": on_off,
            "time_column": time_column,
            "time_format": time_format,
            "zone": zone,
            "ambiguous": ambiguous,
            "missing": missing,
            "header": header,
            "skip": skip,
            "footer": footer,
            "comment": comment,
            "delimiter": delimiter,
            "decimal": decimal,
            "thousands": thousands,
        }
        return ingest(
            self._handle,
            files,
            options,
            form=format,
            encoding=encoding,
            strict=check_flag(strict, "strict"),
            progress=check_function(progress, "progress"),
            on_rejected=check_function(on_rejected, "on_rejected"),
        )

    def cleanup(
        self,
        *,
        points: bool = True,
        records: bool = False,
        sensor_id: Names = None,
        metric_name: Names = None,
        source: Names = None,
        start: Time = None,
        end: Time = None,
        min_retries: int | None = None,
        everything: bool = False,
        even_unsent: bool = False,
        dry_run: bool = False,
    ) -> Cleaned:
        """Drop points, pending records, or both, permanently, and report what was dropped; `dry_run` changes nothing.

        Selects by time, [start, end); points also by sensor and metric, as in `points.range`; records also by source,
        and by having failed `min_retries` times or more. A selection of everything raises `InvalidQuery`, unless
        `everything` is set. The loss ledger records the loss in the transaction of the drop. What a sink has confirmed
        stays delivered.

        Points that a sink with a hold has not confirmed are kept, within the limits of its `max_backlog`, unless
        `even_unsent` is set; the report says how many. This applies to all series, even if the sink gets only some.

        On return the records are gone, and the delete of the points is durable. If another process holds the columns,
        the delete is applied later, and `points` in the report is None. Records are dropped before points: an error at
        the second step leaves the first one done. `shrink` returns the space to the disk. On a full disk the reserve is
        released, and both are deleted in parts, the oldest first, so an error leaves some of them deleted.
        """
        from repo.upkeep.cleanup import CleanupScope, cleanup

        scope = CleanupScope.of(
            self._handle,
            points=check_flag(points, "points"),
            records=check_flag(records, "records"),
            sensor_id=sensor_id,
            metric_name=metric_name,
            source=source,
            start=start,
            end=end,
            min_retries=min_retries,
            everything=check_flag(everything, "everything"),
            even_unsent=check_flag(even_unsent, "even_unsent"),
        )
        return cleanup(self._handle, scope, dry_run=check_flag(dry_run, "dry_run"))

    @KeyboardInterrupts()
    def compact(
        self, *, progress: Progress = _unseen, until: int | None = None, dry_run: bool = False
    ) -> Compacted:
        """Sort the points on disk by series and time, so that queries of one series read little else.

        It covers everything acknowledged before the call or, with `until`, the points up to this seq. They are sorted
        in slices of about a million seqs, one transaction each; what is sorted already is left alone. Readers and
        writers, in every process, get their turns between slices, after at most about a second. A kill or an error
        leaves each slice as it was, or sorted. No point, seq or result of a query changes.

        With `compact_background`, the background thread does the same for a slice once a million seqs lie after it; so
        this method serves stores without that thread, and large loads. On SQLite there is nothing to do. `progress`
        receives the points done and the total. `dry_run` changes nothing, except that it applies the journal.

        Raises `StoreFull`, before a slice is changed, if the disk may have too little room for it; `EngineMissing`,
        `StoreBusy`, or the engine's typed error.
        """
        from repo.upkeep.compact import compact

        self._refuse_if_read_only()
        return compact(
            self._handle,
            until=None if until is None else check_count(until, "until", -LARGEST),
            dry_run=check_flag(dry_run, "dry_run"),
            progress=check_function(progress, "progress"),
        )

    @KeyboardInterrupts()
    def shrink(self, *, dry_run: bool = False, progress: Progress = _unseen) -> Shrunk:
        """Return the free blocks inside the files to the disk.

        The columns are written to a new file, which is read back, compared, and then replaces the old one; the metadata
        database is vacuumed. Writes continue except at the very end; reads wait, in every process, and may raise
        `StoreBusy`. A kill leaves the old file or the new one, complete. `progress` receives the points written and the
        total. `dry_run` only reports the space needed.

        Raises `StoreFull`, which states the bytes needed, before anything is changed; `EngineMissing`; `StoreBusy`; or
        the engine's typed error. No point is lost.
        """
        from repo.upkeep.shrink import shrink

        self._refuse_if_read_only()
        return shrink(
            self._handle,
            dry_run=check_flag(dry_run, "dry_run"),
            progress=check_function(progress, "progress"),
        )

    def status(self) -> Status:
        """Return the status of the store. Reads SQLite only, so it never waits for the columns."""
        with self._handle.metadata.read() as connection:
            return read_status(
                connection, self.files, version.version_of(connection) or "none", self._handle.clock()
            )

    def size(self, *, inside: bool = False) -> Size:
        """Return the size of the store's files, and the free bytes inside them.

        By default it reads SQLite only and never waits for the columns, whose free blocks then count as used. With
        `inside` it opens the columns, as a read does, and includes their free blocks.
        """
        from repo.upkeep.usage import measure

        return measure(self._handle, inside=check_flag(inside, "inside"))

    def losses(self, limit: int | None = None) -> list[LossEntry]:
        """Return what the store ever dropped, from the loss ledger: at most `limit` entries, newest first.

        Reads SQLite only. A deletion of points is listed once it is applied: after the next flush, or read.
        """
        from repo.store.losses import read_losses

        if limit is not None:
            limit = check_count(limit, "limit")
        with self._handle.metadata.read() as connection:
            return read_losses(connection, limit)

    def dropped_by(self, seq: int) -> Loss | None:
        """Return the ledger entry of the delete with this seq; None if it dropped no points or is not flushed yet."""
        return self._handle.loss_by(check_count(seq, "seq", 0))

    def now_us(self) -> int:
        """Return the current time of the store's clock, in µs since 1970 UTC."""
        return self._handle.clock()

    def close(self) -> None:
        """Commit what was submitted, close the files and stop the threads. Safe to call again."""
        if os.getpid() != self._pid:
            return
        if self._background is not None and self._background.is_current():
            # The garbage collector, which runs in any thread, found the last owner here. No thread can wait for itself.
            threading.Thread(target=self.close, name="holdfast-close").start()
            return
        _open_stores.discard(self)
        self._handle.writer.close()
        self.points.close()
        if self._background is not None:
            self._background.stop()
            self._background = None
        self._handle.columns.close()
        self._handle.metadata.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def _open(self, opening: Opening, create: bool) -> None:
        reserve = Reserve(self.files)
        is_new = not self.files.metadata.exists()
        try:
            self._open_files(opening, create)
        except StoreFull as full:
            with reserve.released():
                log.info("the reserve is used to open the store on a full disk: %s", full)
                self._open_files(opening, create)
        reserve.renew()
        log.info("%s the store in %s (schema %s)", "created" if is_new else "opened", self.path, version.HEAD)
        self._offer()
        self._start()

    def _open_files(self, opening: Opening, create: bool) -> None:
        opening.find(create)
        opening.upgrade()
        metadata = MetadataDatabase(self.files, self.settings)
        try:
            state = opening.prepare(metadata)
            metadata.is_prepared = True
            self._handle = opening.build_handle(metadata)
            if state.file_id is None:
                opening.open_existing_columns(self._handle)
        except BaseException:  # the caller gets no store that could be closed
            metadata.close()
            raise

    def _start(self) -> None:
        if self.settings.background:
            self._background = BackgroundThread(self._handle)
        if self.settings.convert_at_open and self.settings.engine != "auto":
            try:
                self._convert(self.settings.engine)
            except EngineMissing as missing:
                log.warning("the columns were not converted: %s", missing)
            except BaseException:  # the caller gets no store that could be closed
                self.close()
                raise

    def _offer(self) -> None:
        self._points = Points(self._handle, self._handle.writer.commit)
        self._records = Records(self._handle, self._handle.writer.commit)
        self._series = SeriesApi(self._handle)
        self._sinks = Sinks(self._handle)
        self._quarantine = Quarantine(self._handle)
        _open_stores.add(self)

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            refuse_change(self.files)

    @KeyboardInterrupts()
    def _convert(self, engine: str, progress: Progress = _unseen) -> Converted:
        from repo.upkeep.convert import convert

        self._refuse_if_read_only()
        return convert(self._handle, engine, progress=check_function(progress, "progress"))


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _close_all() -> None:
    for store in list(_open_stores):
        store.close()
    stop_all()  # for stores that were garbage-collected without being closed


atexit.register(_close_all)
