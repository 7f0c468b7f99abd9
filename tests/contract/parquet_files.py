"""Parquet files as other programs write them, and the points that a store has from them. Makes no assertions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from repo import Store
from tests.contract.test_parquet_export import BEGIN_S, points_of

BEGIN_US = BEGIN_S * 1_000_000


def write(path: Path, **columns: Any) -> Path:
    """Write a file as another program does; arguments that are not given have ordinary values."""
    rows = max((len(column) for column in columns.values() if column is not None), default=2)
    usual: dict[str, Any] = {
        "timestamp_us": list(range(BEGIN_US, BEGIN_US + rows)),
        "sensor_id": ["s"] * rows,
        "metric_name": ["m"] * rows,
        "value": [n / 2 for n in range(rows)],
    }
    if "timestamp" in columns:
        del usual["timestamp_us"]
    given = {name: column for name, column in (usual | columns).items() if column is not None}
    pq.write_table(pa.table(given), path)
    return path


def stored(store: Store) -> list[tuple[Any, ...]]:
    return [
        (
            p["sensor_id"],
            p["metric_name"],
            p["timestamp_us"] - BEGIN_US,
            p["value"],
            p["quality"],
            p["metadata"],
        )
        for p in points_of(store)
    ]
