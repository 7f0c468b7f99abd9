"""`store.records`: messages to deliver, each with its points in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from repo.errors import InvalidRecord
from repo.moments import to_us
from repo.repositories.points import Written
from repo.repositories.records import PendingRecord, RecordRepository
from repo.store.access import Access
from repo.store.writer import Change, PointsChange, RecordChange, Submission
from repo.values import check_name, check_rows

__all__ = ["RecordWriter", "Records", "points_of"]

READING_FIELDS = ("pressure", "temperature", "flow_rate", "flowRate")
"""Fields of a record's data that are readings by their own name, beside `value`."""


class RecordWriter:
    """The writing half, shared by the store and its transactions."""

    def __init__(self, access: Access, send: Callable[[Submission], Written]) -> None:
        self._access = access
        self._send = send

    def add(
        self,
        record_id: str,
        source: str,
        data: Mapping[str, Any],
        timestamp: float | datetime | None = None,
    ) -> Written:
        """Add a record to deliver, with the points that its numbers are; durable on return, both or none.

        Sensor is `sensor_id`, `well_name` or the source; `value` is a point of `metric_name`, `metric` or
        `unknown`; so is each of `pressure, temperature, flow_rate, flowRate` of its own name. Their time is
        the data's `timestamp`, where it has a number there, else the record's. The same `record_id` again
        replaces the data and keeps the retry count; the same data again changes nothing.
        Raises `InvalidRecord` or `InvalidPoint`; then nothing was written.
        """
        check_name(record_id, "record_id")
        check_name(source, "source")
        now_us = self._access.clock()
        timestamp_us = now_us if timestamp is None else to_us(timestamp)
        data_json = _json(data)
        changes: list[Change] = [RecordChange(record_id, source, data_json, timestamp_us / 1e6)]
        rows = points_of(data, source, timestamp_us)
        if rows:
            batch, _ = check_rows(rows, accept_bool=False, now_us=now_us)
            changes.append(PointsChange.of(batch))
        return self._send(Submission(changes))


class Records(RecordWriter):
    """`store.records`. Thread-safe."""

    def pending(self, source: str | None = None, limit: int = 1000) -> list[PendingRecord]:
        """Return up to `limit` records that wait, oldest first, with their data as given."""
        with self._access.metadata.read() as connection:
            rows = RecordRepository(connection).pending(source, limit)
        return [
            {
                "id": row[0],
                "record_id": row[1],
                "source": row[2],
                "data": json.loads(row[3]),
                "timestamp": row[4],
                "retry_count": row[5] or 0,
                "last_retry": row[6],
                "created_at": row[7],
            }
            for row in rows
        ]

    def mark_sent(self, record_ids: str | Iterable[str]) -> int:
        """Remove records that were delivered, in one commit; returns how many there were.

        Their points stay as history.
        """
        with self._access.metadata.write() as connection:
            removed = RecordRepository(connection).mark_sent(_listed(record_ids))
        self._access.metadata.fold_if_due()
        return removed

    def mark_failed(self, record_ids: str | Iterable[str]) -> int:
        """Count one more failed try of these records, in one commit; returns how many there were."""
        with self._access.metadata.write() as connection:
            return RecordRepository(connection).mark_failed(_listed(record_ids), self._access.clock() / 1e6)


def points_of(data: Mapping[str, Any], source: str, timestamp_us: int) -> list[dict[str, Any]]:
    """Return the points that the numbers of a record's data are; see `RecordWriter.add`."""
    sensor = data.get("sensor_id") or data.get("well_name") or source
    moment = data.get("timestamp")
    if _is_number(moment):
        timestamp_us = to_us(moment, "data.timestamp")
    numbers = [(name, data[name]) for name in READING_FIELDS if _is_number(data.get(name))]
    if _is_number(data.get("value")):
        numbers.append((data.get("metric_name") or data.get("metric") or "unknown", data["value"]))
    quality = data.get("quality")
    return [
        {
            "sensor_id": sensor,
            "metric_name": metric,
            "timestamp_us": timestamp_us,
            "value": number,
            "quality": quality if type(quality) is int else None,
        }
        for metric, number in numbers
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _json(data: Mapping[str, Any]) -> str:
    if not isinstance(data, Mapping):
        raise InvalidRecord(f"data: a mapping is needed, not {type(data).__name__}")
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRecord(f"data: cannot be written as JSON: {error}") from error
    return text


def _listed(record_ids: str | Iterable[str]) -> list[str]:
    return [record_ids] if isinstance(record_ids, str) else list(record_ids)
