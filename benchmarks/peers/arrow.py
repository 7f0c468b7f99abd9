"""Readings as an Arrow table with the columns of a point."""

from __future__ import annotations

from typing import Any

from benchmarks.data import Readings

__all__ = ["arrow_of"]


def arrow_of(readings: Readings) -> Any:
    """Return readings as a table; `timestamp_us` is an integer, names are plain texts."""
    import pyarrow

    pa: Any = pyarrow
    codes = pa.array(readings.codes, pa.uint32())

    def names(part: int) -> Any:
        listed = pa.array([pair[part] for pair in readings.series])
        return pa.DictionaryArray.from_arrays(codes, listed).cast(pa.string())

    rows = len(readings)
    return pa.table(
        {
            "sensor_id": names(0),
            "metric_name": names(1),
            "timestamp_us": pa.array(readings.times_us, pa.int64()),
            "value": pa.array(readings.values, pa.float64()),
            "quality": pa.array(readings.qualities or [100] * rows, pa.int32()),
            "metadata": pa.array([readings.metadata.get(row) for row in range(rows)], pa.string()),
        }
    )
