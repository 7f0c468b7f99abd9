"""Parquet by DuckDB, in an instance of its own that reaches one open file and nothing else.

It is told the number of the file's descriptor, never its name: so no name is ever taken as a pattern or as SQL, and
what is read is what was opened and checked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import duckdb

from repo.engines.duckdb import open_sandbox, sandbox_path
from repo.exchange.landing import digest
from repo.exchange.parquet import ROW_GROUP_ROWS, FileFacts, Pages
from repo.exchange.streams import Chain, Page, take_page

__all__ = ["DuckDBWriter"]

_TABLE = (
    "sensor_id VARCHAR, metric_name VARCHAR, timestamp_us BIGINT, value DOUBLE, value_text VARCHAR, "
    "quality INTEGER, metadata VARCHAR, seq BIGINT"
)


class DuckDBWriter:
    """Writes files; `memory_limit_bytes` is for DuckDB's own buffers."""

    def __init__(self, memory_limit_bytes: int) -> None:
        self._memory_limit_bytes = memory_limit_bytes

    def write(self, descriptor: int, pages: Pages, *, compression: str, note: str) -> FileFacts:
        """See `ParquetWriter`."""
        with open_sandbox([descriptor], memory_limit_bytes=self._memory_limit_bytes) as base:
            base.execute(f"CREATE TABLE page ({_TABLE})")
            chain = Chain(base.cursor().sql("FROM page LIMIT 0"), _arrow_pages(base.cursor(), pages))
            file = sandbox_path(descriptor)
            codec = "uncompressed" if compression == "none" else compression
            quoted = note.replace("'", "''")
            base.register("points", chain)
            try:
                base.execute(
                    "COPY (SELECT sensor_id, metric_name, make_timestamptz(timestamp_us) AS timestamp, value, "
                    f"value_text, quality, metadata, seq FROM points) TO '{file}' (FORMAT parquet, "
                    f"COMPRESSION {codec}, PARQUET_VERSION v2, ROW_GROUP_SIZE {ROW_GROUP_ROWS}, USE_TMP_FILE false, "
                    f"KV_METADATA {{holdfast: '{quoted}'}})"
                )
            except duckdb.Error as error:
                if chain.error is not None:
                    raise chain.error from None
                raise OSError(*_reason(error)) from error
            finally:
                base.unregister("points")
                chain.close()
            [(points, *span)] = base.execute(
                "SELECT count(*), min(epoch_us(timestamp)), max(epoch_us(timestamp)), min(seq), max(seq) "
                f"FROM read_parquet('{file}')"
            ).fetchall()
        return FileFacts(points, os.fstat(descriptor).st_size, digest(descriptor), *span)


def _arrow_pages(connection: Any, pages: Pages) -> Iterator[Page]:
    for page in pages:
        if isinstance(page, Page):
            yield page
            continue
        connection.execute("TRUNCATE page")
        appender = connection.appender("page")
        appender.append_rows(page)
        appender.flush()
        yield take_page(connection.sql("FROM page"))


def _reason(error: duckdb.Error) -> tuple[int, str]:
    """Return the system's number for what DuckDB only tells in words, and the words."""
    text = str(error)
    return (errno.ENOSPC if "No space left on device" in text else errno.EIO), text
