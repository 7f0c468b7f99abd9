"""Writes Parquet by DuckDB, in an instance of its own that can access one open file and nothing else.

DuckDB gets the number of the file's descriptor, never its name, so no name is interpreted as a pattern or as SQL.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import duckdb

from repo.disk.durable import digest
from repo.engines.duckdb.driver import open_sandbox, sandbox_path
from repo.formats.arrays.streams import Chain, HasStream, Page, take_page
from repo.formats.files.interfaces import PAGE_ROWS, FileFacts, WrittenPages
from repo.formats.files.parquet import ROW_GROUP_ROWS

__all__ = ["MOMENT", "DuckDBWriter", "copy_options", "disk_error", "run_aside"]

_MANY_GROUPS = 8
"""In a file with this many row groups the last one is a small part."""

_TABLE = (
    "series INTEGER, timestamp_us BIGINT, value DOUBLE, value_text VARCHAR, quality INTEGER, "
    "metadata VARCHAR, seq BIGINT"
)

MOMENT = (
    f"CASE WHEN timestamp_us = {2**63 - 1} THEN 'infinity'::TIMESTAMPTZ "
    "WHEN timestamp_us < -9223372022400000000 THEN '-infinity'::TIMESTAMPTZ "
    "ELSE make_timestamptz(timestamp_us) END"
)
"""DuckDB has no other representation of these times, which only the legacy program accepted."""


class DuckDBWriter:
    """Writes files; `memory_limit_bytes` limits DuckDB's own buffers."""

    columnar = True

    def __init__(self, memory_limit_bytes: int) -> None:
        self._memory_limit_bytes = memory_limit_bytes

    def write(self, descriptor: int, pages: WrittenPages, *, compression: str, note: str) -> FileFacts:
        """See `FileWriter`."""
        with (
            open_sandbox([descriptor], memory_limit_bytes=self._memory_limit_bytes) as base,
            closing(_arrow_pages(pages, self._memory_limit_bytes)) as arrow,
        ):
            base.execute(f"CREATE TABLE page ({_TABLE})")
            _name(base, pages.series)
            chain = Chain(base.cursor().sql("FROM page"), arrow)
            file = sandbox_path(descriptor)
            row_group_bytes = f"ROW_GROUP_SIZE_BYTES {self._memory_limit_bytes // 8}"
            try:
                run_aside(
                    base,
                    chain,
                    "COPY (SELECT getvariable('sensors')[series + 1]::VARCHAR AS sensor_id, "
                    f"getvariable('metrics')[series + 1]::VARCHAR AS metric_name, {MOMENT} AS timestamp, value, "
                    f"value_text, quality, metadata, seq FROM points) TO '{file}' "
                    f"({copy_options(pages.points, compression, note)}, {row_group_bytes})",
                )
            except duckdb.Error as error:
                if chain.error is not None:
                    raise chain.error from None
                raise disk_error(error) from error
            finally:
                base.unregister("points")
                chain.close()
            [(points, *span)] = base.execute(
                "SELECT count(*), min(epoch_us(timestamp)), max(epoch_us(timestamp)), min(seq), max(seq) "
                f"FROM read_parquet('{file}')"
            ).fetchall()
        return FileFacts(points, os.fstat(descriptor).st_size, digest(descriptor), *span)


def _name(base: Any, series: Sequence[tuple[str, str]]) -> None:
    """Set `sensors` and `metrics` to the names of the series, as ENUMs: with texts each row would get a copy.

    They must not be written as ENUMs. The dictionary of a row group would have "" for each name that does not occur in
    it; if pyarrow reads dictionaries, it merges these entries and assigns wrong names to the rows after them.
    """
    for place, kind in enumerate(("sensor", "metric")):
        names = [pair[place] for pair in series]
        base.execute(f"SET VARIABLE {kind}s = ?::VARCHAR[]", [names])
        base.execute(f"CREATE TYPE {kind} AS ENUM (SELECT DISTINCT unnest(getvariable('{kind}s')))")
        base.execute(f"SET VARIABLE {kind}s = getvariable('{kind}s')::{kind}[]")


def copy_options(points: int, compression: str, note: str) -> str:
    """Return the options of COPY for a file of about this many points."""
    codec = "uncompressed" if compression == "none" else compression
    quoted = note.replace("'", "''")
    return (
        f"FORMAT parquet, COMPRESSION {codec}, PARQUET_VERSION v2, {_grouping(points)}, USE_TMP_FILE false, "
        f"WRITE_BLOOM_FILTER false, KV_METADATA {{holdfast: '{quoted}'}}"
    )


def _grouping(points: int) -> str:
    """Return the options for row groups, and for dictionaries if at most every other value is new.

    By default DuckDB uses a dictionary if one value in five is new. The option is one number for all row groups and
    columns. It is not set if the last group, with fewer rows, would get a dictionary of its times, unless that group is
    a small part of the file. Points that are read as one page form one group.
    """
    rows = max(points, 2) if points <= PAGE_ROWS else ROW_GROUP_ROWS
    most = rows // 2
    last = points % rows or rows
    fits = last > most or points >= _MANY_GROUPS * rows
    return f"ROW_GROUP_SIZE {rows}" + (f", DICTIONARY_SIZE_LIMIT {most}" if fits else "")


def run_aside(base: Any, points: HasStream, sql: str) -> None:
    """Run SQL on the `points` in a separate thread while this one waits.

    Python raises Ctrl-C only in the main thread. There it would be raised inside DuckDB's call for the next page, and
    be lost.
    """
    with ThreadPoolExecutor(1, "holdfast-copy") as beside:
        beside.submit(int).result()  # if Ctrl-C interrupts the start of a thread, nobody joins it
        try:
            beside.submit(base.register, "points", points).result()
            beside.submit(base.execute, sql).result()
        except KeyboardInterrupt:
            base.interrupt()
            raise


def _arrow_pages(pages: WrittenPages, memory_limit_bytes: int) -> Generator[Page]:
    """Yield pages as Arrow. Rows are converted in a separate database: in the writer's, COPY would keep them all."""
    places = {pair: place for place, pair in enumerate(pages.series)}
    with ExitStack() as stack:
        apart: Any = None
        for page in pages.pages:
            if isinstance(page, Page):
                yield page
                continue
            if apart is None:
                apart = stack.enter_context(open_sandbox([], memory_limit_bytes=memory_limit_bytes))
                apart.execute(f"CREATE TABLE page ({_TABLE})")
            apart.execute("TRUNCATE page")
            appender = apart.appender("page")
            appender.append_rows([(places[row[0], row[1]], *row[2:]) for row in page])
            appender.flush()
            yield take_page(apart.sql("FROM page"))


def disk_error(error: duckdb.Error) -> OSError:
    """Return the error of the system for one that DuckDB reports only as text."""
    text = str(error)
    return OSError(errno.ENOSPC if "No space left on device" in text else errno.EIO, text)
