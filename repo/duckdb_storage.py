"""`DuckDBTimeSeriesStorage`: the documented class for points in one column file, a thin layer over a store."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from repo.compat.environment import filled_from_environment
from repo.compat.shared import acquire
from repo.compat.trim import Trim
from repo.errors import InvalidQuery, InvalidSettings, StoreFull
from repo.files import StoreFiles, check_store_path
from repo.inputs.arguments import check_flag, check_number, check_seconds, check_text, shown
from repo.inputs.fields import number_in
from repo.inputs.times import bound_us, to_datetime
from repo.inputs.values import rows_listed
from repo.queries.selection import select_deleted

__all__ = ["DEFAULT_MAX_SIZE_MB", "MAX_SIZE_MB", "MB", "DuckDBTimeSeriesStorage"]

log = logging.getLogger("holdfast.duckdb_storage")

MB = 1024 * 1024

MAX_SIZE_MB = "DUCKDB_MAX_SIZE_MB"
DEFAULT_MAX_SIZE_MB = 1000

_VALUE = 3
"""The place of the value in a row that is a tuple."""

_AGGREGATIONS = {
    "avg": "avg(value)",
    "min": "min(value)",
    "max": "max(value)",
    "sum": "sum(value)",
    "count": "count(*)",
}

_AGGREGATE = """
    SELECT {aggregation} AS value, count(*) AS count, count(value_text) AS texts,
        min(timestamp_us) AS first_us, max(timestamp_us) AS last_us
    FROM time_series_data
    WHERE sensor_id = ? AND metric_name = ? AND timestamp_us BETWEEN ? AND ?
        AND (value IS NOT NULL OR value_text IS NOT NULL)"""


class DuckDBTimeSeriesStorage:
    """Stores points in one DuckDB file, or in SQLite where DuckDB does not exist. Thread-safe.

    Times are Unix seconds; bounds are inclusive. The metadata database is next to the file as `<name>.meta.db`; in a
    buffer's folder it is the database of the buffer. All objects on one file in a process share one open store.

    If the columns exceed `max_size_mb`, the oldest points are deleted until a tenth of it is free; the loss ledger
    records them with the reason `size`, and the log warns.

    Omitted arguments are taken from `DUCKDB_STORAGE_PATH` and `DUCKDB_MAX_SIZE_MB`, if set. `enable_compression`
    applies to new data. Errors are raised, as by `Store`. `close` or the end of the process releases the file. After
    a fork it keeps working in the child, which opens the store again; `Store` describes what a fork waits for.
    """

    @filled_from_environment({"db_path": ("DUCKDB_STORAGE_PATH", str), "max_size_mb": (MAX_SIZE_MB, float)})
    def __init__(
        self,
        db_path: str | os.PathLike[str] = "./data/edge/timeseries.duckdb",
        max_size_mb: float = 1000,
        enable_compression: bool = True,
    ) -> None:
        file = check_store_path(db_path)
        check_number(max_size_mb, "max_size_mb", error=InvalidSettings)
        enable_compression = check_flag(enable_compression, "enable_compression", error=InvalidSettings)
        self.db_path = Path(db_path)
        self.max_size_mb = max_size_mb
        self.enable_compression = enable_compression
        files = StoreFiles.beside(file)
        self._reference = reference = acquire(files, compress=enable_compression)
        self._trim = Trim(lambda: reference.store, max_size_mb * MB, "max_size_mb")
        if not any(path.exists() for path in files.column_files()):
            self._reference.store.flush()

    def insert_data_point(
        self,
        sensor_id: str,
        metric_name: str,
        value: Any,
        timestamp: float | None = None,
        quality: int = 100,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Write one point, durable on return, and return True. The value may be a bool, or a number given as text.

        Overwrites a point of the same sensor, metric and time. Raises `InvalidPoint` or `StoreFull`; nothing was
        written.
        """
        store = self._reference.store
        self._refuse_if_full()
        store.points.insert(sensor_id, metric_name, _taken(value), timestamp, quality, metadata)
        return True

    def insert_batch(self, data_points: Iterable[Any]) -> int:
        """Write many points in one commit; returns how many were accepted.

        Each is a dict with the arguments of `insert_data_point`, or a tuple (sensor, metric, timestamp, value[,
        quality[, metadata]]). Bad points are skipped; the log has their number and the first reason. Raises
        `StoreFull`.
        """
        store = self._reference.store
        rows = [_with_number(row) for row in rows_listed(data_points)]
        self._refuse_if_full()
        written = store.points.insert_many(rows, on_error="skip")
        if written.rejected:
            first = written.refusals[0]
            log.warning("%d of %d points were rejected; the first: %s", written.rejected, len(rows), first)
        return written.accepted

    def query_time_range(
        self,
        sensor_id: str,
        metric_name: str,
        start_time: float,
        end_time: float,
        aggregation: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return the points from `start_time` through `end_time` in order of time, or one aggregate of them.

        A point has `timestamp, value, quality, metadata`. With `aggregation` (avg, min, max, count, sum, in any case)
        the list has one dict, `sensor_id, metric_name, value, start_timestamp, end_timestamp, count, aggregation`,
        whose times are those of the first and last point; it is empty if there are no points. Raises `InvalidQuery`.
        """
        store = self._reference.store
        start_us, end_us = bound_us(start_time, "start_time"), bound_us(end_time, "end_time")
        if aggregation is not None:
            return self._aggregate(sensor_id, metric_name, start_us, end_us, aggregation)
        if start_us > end_us:
            return []
        found = store.points.range([sensor_id], [metric_name], to_datetime(start_us), to_datetime(end_us + 1))
        return [_plain(row) for row in found]

    def query_latest(
        self, sensor_id: str, metric_name: str | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Return the newest `limit` points of a sensor, or of one of its metrics, newest first.

        Each has `timestamp, metric_name, value, quality, metadata`.
        """
        metrics = None if metric_name is None else [metric_name]
        found = self._reference.store.points.latest([sensor_id], metrics, limit)
        found.sort(key=lambda row: row["timestamp_us"], reverse=True)
        return [{"metric_name": row["metric_name"], **_plain(row)} for row in found[:limit]]

    def get_storage_stats(self) -> dict[str, Any]:
        """Return `total_records` (points), `unique_sensors, unique_metrics, time_range` (`start, end` as Unix
        seconds or None, `duration_seconds`), `storage_size_mb, max_size_mb, usage_percent`.
        """
        store = self._reference.store
        store.flush()
        series = [info for info in store.series.list() if info.points]
        first_us = min((info.first_us for info in series if info.first_us is not None), default=None)
        last_us = max((info.last_us for info in series if info.last_us is not None), default=None)
        size_mb = store.size().columns_bytes / MB
        return {
            "total_records": sum(info.points for info in series),
            "unique_sensors": len({info.sensor_id for info in series}),
            "unique_metrics": len({info.metric_name for info in series}),
            "time_range": {
                "start": None if first_us is None else first_us / 1e6,
                "end": None if last_us is None else last_us / 1e6,
                "duration_seconds": 0.0
                if first_us is None or last_us is None
                else (last_us - first_us) / 1e6,
            },
            "storage_size_mb": size_mb,
            "max_size_mb": self.max_size_mb,
            "usage_percent": 100 * size_mb / self.max_size_mb if self.max_size_mb else 100.0,
        }

    def cleanup_old_data(self, max_age_seconds: float = 2592000, sensor_id: str | None = None) -> int:
        """Delete the points older than `max_age_seconds`, of one sensor or of all; returns how many.

        The loss ledger records the number. If the columns are busy, this raises `StoreBusy`: the delete is durable
        nevertheless, but its count is not known yet.
        """
        store = self._reference.store
        max_age_seconds = check_seconds(max_age_seconds, "max_age_seconds", -math.inf)
        cutoff = to_datetime(store.now_us() - round(max_age_seconds * 1e6))
        old = select_deleted(None if sensor_id is None else [sensor_id], None, None, cutoff, everything=False)
        written = store.points.delete_selected(replace(old, reason="age"))
        assert written.first_seq is not None
        assert written.last_seq is not None
        store.flush()
        losses = map(store.dropped_by, range(written.first_seq, written.last_seq + 1))
        return sum(loss.dropped or 0 for loss in losses if loss is not None)

    def export_to_parquet(
        self,
        output_path: str | os.PathLike[str],
        sensor_id: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> bool:
        """Write the points from `start_time` through `end_time` to one Parquet file; True when it is durable.

        None means no bound, or all sensors. The file appears complete or not at all. Raises what
        `Store.export_parquet` raises.
        """
        done = self._reference.store.export_parquet(
            output_path,
            sensor_id=None if sensor_id is None else [sensor_id],
            start=None if start_time is None else to_datetime(bound_us(start_time, "start_time")),
            end=None if end_time is None else to_datetime(bound_us(end_time, "end_time") + 1),
            compression="zstd" if self.enable_compression else "none",
        )
        if not done.points:
            log.warning("%s was written, but no point matches", done.path)
        return True

    def import_from_parquet(self, input_path: str | os.PathLike[str]) -> int:
        """Import a Parquet file by its column names; returns how many of its points are now stored.

        That includes points that were stored before, which stay unchanged; importing again changes nothing. Raises
        what `Store.import_parquet` raises.
        """
        found = self._reference.store.import_parquet(input_path)
        return found.read - found.nulls - found.refused

    def close(self) -> None:
        """Release the store; other objects in this process can continue to use it. Safe to call again."""
        self._reference.release()

    def _aggregate(
        self, sensor_id: str, metric_name: str, start_us: int, end_us: int, aggregation: str
    ) -> list[dict[str, Any]]:
        function = aggregation.lower() if isinstance(aggregation, str) else ""
        if function not in _AGGREGATIONS:
            raise InvalidQuery(f"aggregation = {shown(aggregation)} is not one of {', '.join(_AGGREGATIONS)}")
        sensor_id, metric_name = check_text(sensor_id, "sensor_id"), check_text(metric_name, "metric_name")
        query = _AGGREGATE.format(aggregation=_AGGREGATIONS[function])
        [row] = self._reference.store.sql(query, (sensor_id, metric_name, start_us, end_us))
        if not row["count"]:
            return []
        if row["texts"] and function != "count":
            raise InvalidQuery(
                f"the series {sensor_id!r} {metric_name!r} has text readings, which have no {aggregation}"
            )
        return [
            {
                "sensor_id": sensor_id,
                "metric_name": metric_name,
                "value": row["value"],
                "start_timestamp": row["first_us"] / 1e6,
                "end_timestamp": row["last_us"] / 1e6,
                "count": row["count"],
                "aggregation": aggregation,
            }
        ]

    def _refuse_if_full(self) -> None:
        if self._trim.apply():
            raise StoreFull(
                f"{self.db_path} has reached max_size_mb = {self.max_size_mb:g}, and deleting the oldest points does "
                "not help; nothing of this call was written. Raise the limit",
                path=self.db_path,
            )


def _taken(value: Any) -> Any:
    """Return a number that is given as text as a number; these classes have always taken it."""
    return value if not isinstance(value, str) or (number := number_in(value)) is None else number


def _with_number(row: Any) -> Any:
    if isinstance(row, Mapping):
        value = row.get("value")
        return {**row, "value": _taken(value)} if isinstance(value, str) else row
    if isinstance(row, (tuple, list)) and len(row) > _VALUE and isinstance(row[_VALUE], str):
        return (*row[:_VALUE], _taken(row[_VALUE]), *row[_VALUE + 1 :])
    return row


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "timestamp": row["timestamp_us"] / 1e6,
        "value": row["value"],
        "quality": row["quality"],
        "metadata": row["metadata"],
    }
