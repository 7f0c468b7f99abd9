"""Parquet from and to tuned SQLite, by pyarrow, as its experts would write it.

It writes in the order of the key, so that names come in long runs and cost nothing. It reads through dictionaries, so
that each name is looked up once per batch, not once per row.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from benchmarks.peers.sqlite_tuned import TunedSQLite

__all__ = ["export", "import_"]

_pa: Any = pyarrow

PAGE_ROWS = 122_880
"""Rows in memory at a time, and rows per row group, as in the store's files."""

SCHEMA = _pa.schema(
    {
        "sensor_id": _pa.dictionary(_pa.int32(), _pa.string()),
        "metric_name": _pa.dictionary(_pa.int32(), _pa.string()),
        "timestamp": _pa.timestamp("us", "UTC"),
        "value": _pa.float64(),
        "quality": _pa.int32(),
        "metadata": _pa.string(),
    }
)


def export(sqlite: TunedSQLite, path: Path) -> None:
    """Write all points; durable on return."""
    sensors, metrics = (_pa.array([pair[part] for pair in sqlite.series]) for part in (0, 1))
    part = path.with_suffix(".part")
    with pyarrow.parquet.ParquetWriter(
        part,
        SCHEMA,
        compression="zstd",
        use_dictionary=["sensor_id", "metric_name", "value", "quality", "metadata"],
        column_encoding={"timestamp": "DELTA_BINARY_PACKED"},  # a third of what a dictionary takes
        data_page_version="2.0",
    ) as writer:
        for page in sqlite.drain(PAGE_ROWS):
            codes, times, values, qualities, metadata = zip(*page, strict=True)
            numbers = _pa.array(codes, _pa.int32())
            columns = [
                _pa.DictionaryArray.from_arrays(numbers, sensors),
                _pa.DictionaryArray.from_arrays(numbers, metrics),
                _pa.array(times, _pa.int64()).cast(_pa.timestamp("us", "UTC")),
                _pa.array(values, _pa.float64()),
                _pa.array(qualities, _pa.int32()),
                _pa.array(metadata, _pa.string()),
            ]
            writer.write_table(_pa.table(columns, schema=SCHEMA), row_group_size=PAGE_ROWS)
    with open(part, "rb") as written:
        os.fsync(written.fileno())
    part.rename(path)


def import_(sqlite: TunedSQLite, path: Path) -> None:
    """Read all points; durable on return. One transaction per page, so that the log stays short."""
    names = ["sensor_id", "metric_name"]
    file = pyarrow.parquet.ParquetFile(path, read_dictionary=names)
    wanted = [*names, "timestamp", "value", "quality", "metadata"]
    for batch in file.iter_batches(batch_size=PAGE_ROWS, columns=wanted):
        sqlite.insert_many(
            list(
                zip(
                    _numbers(sqlite.numbers, batch["sensor_id"], batch["metric_name"]),
                    batch["timestamp"].cast(_pa.int64()).to_pylist(),
                    batch["value"].to_pylist(),
                    batch["quality"].to_pylist(),
                    _listed(batch["metadata"]),
                    strict=True,
                )
            )
        )


def _numbers(numbers: Mapping[tuple[str, str], int], sensors: Any, metrics: Any) -> list[int]:
    """Return the number of each row's series, by a table of all pairs in the dictionaries."""
    listed = [
        [numbers.get((sensor, metric), -1) for metric in metrics.dictionary.to_pylist()]
        for sensor in sensors.dictionary.to_pylist()
    ]
    return [
        listed[sensor][metric]
        for sensor, metric in zip(sensors.indices.to_pylist(), metrics.indices.to_pylist(), strict=True)
    ]


def _listed(column: Any) -> Any:
    return repeat(None, len(column)) if column.null_count == len(column) else column.to_pylist()
