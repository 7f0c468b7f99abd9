"""Parquet by pyarrow, where DuckDB is not installed. Its pages have checksums of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from repo.exchange.landing import digest
from repo.exchange.parquet import ROW_GROUP_ROWS, FileFacts, Pages
from repo.exchange.streams import Page

__all__ = ["SCHEMA", "PyArrowWriter"]

SCHEMA = pa.schema(
    {
        "sensor_id": pa.string(),
        "metric_name": pa.string(),
        "timestamp": pa.timestamp("us", "UTC"),
        "value": pa.float64(),
        "value_text": pa.string(),
        "quality": pa.int32(),
        "metadata": pa.string(),
        "seq": pa.int64(),
    }
)

_REPETITIVE = ["sensor_id", "metric_name", "value", "value_text", "quality", "metadata"]


class PyArrowWriter:
    """Writes files."""

    def write(self, descriptor: int, pages: Pages, *, compression: str, note: str) -> FileFacts:
        """See `ParquetWriter`."""
        bounds = _Bounds()
        with (
            open(descriptor, "wb", closefd=False) as stream,
            pq.ParquetWriter(
                stream,
                SCHEMA.with_metadata({"holdfast": note}),
                compression=compression,
                use_dictionary=_REPETITIVE,
                column_encoding={"timestamp": "DELTA_BINARY_PACKED", "seq": "DELTA_BINARY_PACKED"},
                data_page_version="2.0",
                write_page_checksum=True,
            ) as writer,
        ):
            for page in pages:
                assert not isinstance(page, Page), "Arrow pages come from DuckDB, which writes them itself"
                if page:
                    columns = [list(column) for column in zip(*page, strict=True)]
                    bounds.add(columns[2], columns[7])
                    writer.write_table(_table(columns), row_group_size=ROW_GROUP_ROWS)
        with open(descriptor, "rb", closefd=False) as written:
            points = pq.read_metadata(written).num_rows
        return FileFacts(
            points, os.fstat(descriptor).st_size, digest(descriptor), *bounds.times, *bounds.seqs
        )


def _table(columns: Sequence[list[Any]]) -> pa.Table:
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


class _Bounds:
    """The first and last of times and seqs."""

    def __init__(self) -> None:
        self.times: tuple[int | None, int | None] = (None, None)
        self.seqs: tuple[int | None, int | None] = (None, None)

    def add(self, times: list[int], seqs: list[int | None]) -> None:
        self.times = _wider(self.times, times)
        self.seqs = _wider(self.seqs, [seq for seq in seqs if seq is not None])


def _wider(bounds: tuple[int | None, int | None], more: list[int]) -> tuple[int | None, int | None]:
    every = [*(bound for bound in bounds if bound is not None), *more]
    return min(every, default=None), max(every, default=None)
