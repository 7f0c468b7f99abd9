"""The store: opens and closes the two databases of a folder, and wires the rooms that work on them."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from repo import forks
from repo.clock import Clock, system_clock
from repo.core.background import Keeper, stop_all
from repo.core.metadata import MetadataDatabase
from repo.engines.interrupts import KeyboardInterrupts
from repo.errors import EngineMissing
from repo.files import StoreFiles
from repo.queries.selection import Names, select_points
from repo.schema import version
from repo.settings import Settings
from repo.store.opening import Opening
from repo.store.points import Points, Time
from repo.store.records import Records
from repo.store.series import SeriesApi
from repo.store.sinks import Sinks
from repo.store.status import Status, read_status
from repo.store.transaction import Transaction

if TYPE_CHECKING:
    from repo.formats.text.layout import Layout, Rejected
    from repo.repositories.ledger import Loss
    from repo.transfer.exporter import Exported
    from repo.transfer.importer import Imported
    from repo.transfer.ingest import Files, Ingested
    from repo.transfer.inputs import Input
    from repo.upkeep.cleanup import Cleaned
    from repo.upkeep.convert import Converted
    from repo.upkeep.shrink import Shrunk
    from repo.upkeep.usage import Size

__all__ = ["Store"]

log = logging.getLogger("holdfast.store")

Progress = Callable[[int, int], object]
"""Called with how much is done, of how much; the method says of what."""


def _unseen(_done: int, _total: int) -> None:
    """Show no progress."""


class Store:
    """A store-and-forward buffer for time-series in one folder. Thread-safe; many processes may have it open.

    `path` is its folder, or the column file that it was made beside (`DuckDBTimeSeriesStorage`).
    Opening makes a new store if the folder holds none (`create=False`: `StoreMissing`), and brings an older
    schema to the present one. A write is durable when its call returns. Close it, or use it as a context
    manager; closing is quick, and what was not flushed stays safe in the journal.

    Before a fork (`os.fork`, `multiprocessing`) this process closes the files of all its stores: the fork waits up to
    three seconds for running calls to end, and calls of other threads wait for the fork. In the parent the handle goes
    on. In the child it raises `StoreClosed`: open the store again there, whatever the parent does next. If a call did
    not end in time, or the fork comes from inside of one (a callback), opening that store in the child raises
    `StoreClosed`, too; the start method "spawn" always works.
    """

    points: Points
    series: SeriesApi
    records: Records
    sinks: Sinks

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Settings | None = None,
        *,
        create: bool = True,
        clock: Clock = system_clock,
        files: StoreFiles | None = None,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.files = StoreFiles.of(self.path) if files is None else files
        self.settings = Settings.load(self.files.folder) if settings is None else settings
        self._pid = os.getpid()
        self._keeper: Keeper | None = None
        self._opening = Opening(self.path, self.files, self.settings, clock)
        with forks.Use():
            self._open(create)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Collect writes of points and records, and commit them as one when the block ends well.

        An error in the block, or at the commit, leaves nothing of it.
        """
        transaction = Transaction(self._handle)
        try:
            yield transaction
        finally:
            submission = transaction.end()
        transaction.written = self._handle.writer.commit(submission)

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Run one SELECT on the columns (`time_series_data`, `series`) and return its rows as dicts.

        Values go by `params` (`?`, or `$name` on DuckDB and `:name` on SQLite). It can neither write nor reach
        anything outside the store: `InvalidQuery`. All rows are fetched at once, so mind the memory.
        """
        with self._handle.reading("sql query") as (connection, _):
            return self._handle.columns.backend.query(connection, query, params)

    def flush(self) -> int:
        """Apply everything acknowledged so far to the columns; returns the seq that they now hold."""
        return self._handle.flush()

    def checkpoint(self) -> int:
        """Flush, make the columns durable and prune the journal; returns the seq that they now hold."""
        return self._handle.checkpoint()

    def promote(self, *, progress: Progress = _unseen) -> Converted:
        """Move the columns from SQLite to DuckDB, and return when they are durable there and DuckDB is active.

        Writing goes on meanwhile; reading waits, in every process, and so may end in `StoreBusy`. The old file is
        kept, under another name. A kill leaves the one engine active or the other, with everything in it. Does
        nothing where DuckDB is active. `progress` is told how many of how many points were moved. Raises
        `EngineMissing`, `StoreBusy`, `StoreFull` or the engine's typed error; then nothing was changed.
        """
        return self._convert("duckdb", progress)

    def demote(self, *, progress: Progress = _unseen) -> Converted:
        """Move the columns from DuckDB to SQLite; as `promote`."""
        return self._convert("sqlite", progress)

    @KeyboardInterrupts()
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
        """Write the points in [start, end) to Parquet, and return when the files are durable.

        Names and times are selected as in `points.range`. `repo.formats.files.parquet` describes a file, and
        `repo.formats.files.bundle` the folder that `partition="day"` makes: a file a day (UTC), and a manifest with
        their SHA-256; a single file has its own in `NAME.sha256` beside it. A file stands whole or not at all, and
        replaces one of its name; a folder must be new, or hold this same export cut off, which then goes on where
        it was. In memory there are two pages of points, and the columns are free for others between pages: what is
        written meanwhile may show, of the series that had points at the beginning. `progress` is told how many
        points were read, of about how many.

        Raises `InvalidQuery`, `InvalidFile` where the path cannot be written, `StoreFull`, `StoreBusy`, or
        `MissingExtra` where neither DuckDB nor pyarrow is installed: `export_ndjson` needs neither.
        """
        from repo.transfer.exporter import export_parquet

        return export_parquet(
            self._handle,
            Path(path),
            select_points(sensor_id, metric_name, start, end),
            partition=partition,
            compression=compression,
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
        """Write the points in [start, end) as gzipped NDJSON, wherever this library runs: it needs no package.

        All else is as `export_parquet` says; `repo.formats.ndjson_lines` describes a line. A single file has a name
        that ends in `.ndjson.gz`: `InvalidQuery`. `import_parquet` takes files and folders of both kinds back.
        """
        from repo.transfer.exporter import export_ndjson

        return export_ndjson(
            self._handle,
            Path(path),
            select_points(sensor_id, metric_name, start, end),
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
        dry_run: bool = False,
        progress: Progress = _unseen,
    ) -> Imported:
        """Read Parquet files, folders of them and bundles into the store, and return when all of it is durable.

        Files of exports, of the legacy program and of other writers: columns are found by their names, which are
        those of `points.insert_table`; `columns` says where a field has another (`{"sensor_id": "tag"}`). Numbers in
        the column of `timestamp` count seconds since 1970, or what `time_format` says. Other columns are left
        out, with a warning in the log. What `export_ndjson` wrote comes in likewise, told by its content.
        `on_conflict="keep"` lets stored points stand, so that a correction made since is not undone; `"overwrite"`
        lets the files win. Importing again changes nothing.

        Every file is looked at before anything is stored: `InvalidFile` for one that cannot be read, or lacks a
        column, or has it of a wrong type; `StoreCorrupt` for one that is not as its SHA-256 says, in the manifest or
        in `NAME.sha256` beside it. Rows that cannot be stored are counted and left out. An error or a kill after
        that leaves some of the points stored; importing again completes it. `dry_run` counts, and stores nothing.
        """
        from repo.transfer.importer import import_parquet

        return import_parquet(
            self._handle,
            paths,
            on_conflict=on_conflict,
            columns=columns,
            time_format=time_format,
            dry_run=dry_run,
            progress=progress,
        )

    @KeyboardInterrupts()
    def ingest(
        self,
        files: Files,
        layout: Layout | None = None,
        *,
        strict: bool = False,
        progress: Callable[[Input, int], object] = lambda _input, _readings: None,
        on_rejected: Callable[[Input, Rejected], object] = lambda _input, _rejected: None,
    ) -> Ingested:
        """Write the readings of CSV, NDJSON and Parquet files, in their order, and report on each.

        `files`: paths, or `Input` for a stream or a stated encoding. `layout` says which column is which; see
        `Layout`. Of points with one sensor, metric and time the last wins, over stored ones too. What cannot be
        stored is rejected and the rest is written; with `strict` every file is checked first, and nothing is written
        if anything is rejected. All points are durable on return. An error leaves what was acknowledged before it,
        and has a note that says how many points those are; ingesting the same files again is harmless.

        A file that cannot be opened or read as its kind, Parquet in a stream, and options that Parquet cannot
        follow are found before anything is written. Raises `InvalidFile`, `InvalidSettings`, `StoreFull` or
        `StoreBusy`.
        """
        from repo.transfer.ingest import ingest

        return ingest(
            self._handle,
            files,
            layout,
            strict=strict,
            progress=progress,
            on_rejected=on_rejected,
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
        dry_run: bool = False,
    ) -> Cleaned:
        """Drop points, records that wait, or both, for good, and say what that was; `dry_run` changes nothing.

        Dropped are those of a time in [start, end), of these sensors and metrics (points), of these sources and
        failed `min_retries` times or oftener (records); names are selected as in `points.range`. What would drop
        all of them is an `InvalidQuery`, unless `everything` says that it is meant. The loss ledger tells of it, in
        the transaction of the drop. What a sink has already confirmed stays delivered.

        The records are gone when this returns, and the delete of the points is durable. While another process keeps
        the columns, it is applied later: `points` is then None. Records and points are dropped one after the
        other: an error at the second leaves the first dropped. Disk space is given back by `shrink`.
        """
        from repo.upkeep.cleanup import Scope, cleanup

        scope = Scope.of(
            self._handle,
            points=points,
            records=records,
            sensor_id=sensor_id,
            metric_name=metric_name,
            source=source,
            start=start,
            end=end,
            min_retries=min_retries,
            everything=everything,
        )
        return cleanup(self._handle, scope, dry_run=dry_run)

    @KeyboardInterrupts()
    def shrink(self, *, dry_run: bool = False, progress: Progress = _unseen) -> Shrunk:
        """Give the free blocks inside the files back to the disk, and return when that is done.

        The columns are written into a new file, which is read back and compared, and then takes the place of the
        old one; the metadata database is vacuumed. Writing goes on meanwhile, but for the last moments; reading
        waits, in every process, and so may end in `StoreBusy`. A kill leaves the old file or the new one, each
        whole. `progress` is told how many of how many points were written. Raises `StoreFull` beforehand, with the
        bytes that it needs, `EngineMissing`, `StoreBusy` or the engine's typed error; no point is lost by any.
        `dry_run` only looks what it needs.
        """
        from repo.upkeep.shrink import shrink

        return shrink(self._handle, dry_run=dry_run, progress=progress)

    def status(self) -> Status:
        """Describe the store, from SQLite alone: it answers at once, whoever holds the columns."""
        with self._handle.metadata.read() as connection:
            return read_status(connection, self.files, version.version_of(connection) or "none")

    def size(self, *, inside: bool = False) -> Size:
        """Return the bytes of the store's files, and how many are free inside them.

        From SQLite alone it answers at once, and free blocks of the columns count as taken; with `inside` it
        opens the columns, as a read does, and knows them too.
        """
        from repo.upkeep.usage import measure

        return measure(self._handle, inside=inside)

    def dropped_by(self, seq: int) -> Loss | None:
        """Return the ledger entry of the delete with this seq; None if it dropped no point or was not flushed."""
        return self._handle.loss_by(seq)

    def now_us(self) -> int:
        """Return the time by the store's clock, in µs since 1970 UTC."""
        return self._handle.clock()

    def close(self) -> None:
        """Commit what was submitted, let go of the files, and stop the threads. Safe to call again."""
        if os.getpid() != self._pid:
            return
        _open_stores.discard(self)
        self._handle.writer.close()
        self.points.close()
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None
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

    def _open(self, create: bool) -> None:
        self._opening.find(create)
        self._opening.upgrade()
        metadata = MetadataDatabase(self.files, self.settings)
        try:
            state = self._opening.prepared(metadata)
            metadata.is_prepared = True
            self._handle = self._opening.wired(metadata)
            if state.file_id is None:
                self._opening.take_columns_in(self._handle)
        except BaseException:  # a store that is not made cannot be closed by its user
            metadata.close()
            raise
        self.points = Points(self._handle, self._handle.writer.commit)
        self.records = Records(self._handle, self._handle.writer.commit)
        self.series = SeriesApi(self._handle)
        self.sinks = Sinks(self._handle)
        if self.settings.background:
            self._keeper = Keeper(self._handle)
        _open_stores.add(self)
        if self.settings.convert_at_open and self.settings.engine != "auto":
            try:
                self._convert(self.settings.engine)
            except EngineMissing as missing:
                log.warning("the columns stay where they are: %s", missing)
            except BaseException:  # the caller gets no store that could be closed
                self.close()
                raise

    @KeyboardInterrupts()
    def _convert(self, engine: str, progress: Progress = _unseen) -> Converted:
        from repo.upkeep.convert import convert

        return convert(self._handle, engine, progress=progress)


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _close_all() -> None:
    for store in list(_open_stores):
        store.close()
    stop_all()  # of stores that were dropped and never closed


atexit.register(_close_all)
