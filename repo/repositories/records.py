"""Records that wait for delivery, on a connection that the caller gives; never commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select, update

from repo.models import BufferedRecord

__all__ = ["PendingRecord", "RecordRepository"]

_CHUNK = 10_000

PendingRecord = dict[str, Any]
"""Keys: id, record_id, source, data (as given), timestamp (Unix seconds), retry_count, last_retry, created_at."""


class RecordRepository:
    """Add, list and settle records.

    On a connection of your own it writes the record alone; `store.records.add` also writes its points.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, record_id: str, source: str, data_json: str, timestamp_s: float, created_s: float) -> bool:
        """Add a record, or replace the data of the one that has this id; its retry count stays.

        Returns False if the same data stood there already, and nothing was changed.
        """
        table = BufferedRecord
        stored = self._connection.execute(
            select(table.data, table.source).where(table.record_id == record_id)
        ).one_or_none()
        if stored is None:
            self._connection.execute(
                insert(table).values(
                    record_id=record_id,
                    source=source,
                    data=data_json,
                    timestamp=timestamp_s,
                    retry_count=0,
                    created_at=created_s,
                )
            )
            return True
        if tuple(stored) == (data_json, source):
            return False
        self._connection.execute(
            update(table)
            .where(table.record_id == record_id)
            .values(source=source, data=data_json, timestamp=timestamp_s)
        )
        return True

    def pending(self, source: str | None = None, limit: int = 1000) -> list[tuple[Any, ...]]:
        """Return up to `limit` rows in the order of their ids, data still as JSON text."""
        table = BufferedRecord
        query: Select[Any] = select(*table.__table__.c).order_by(table.id).limit(limit)
        if source is not None:
            query = query.where(table.source == source)
        return [tuple(row) for row in self._connection.execute(query)]

    def mark_sent(self, record_ids: Sequence[str]) -> int:
        """Remove records that were delivered; returns how many there were. Their points stay."""
        removed = 0
        for start in range(0, len(record_ids), _CHUNK):
            chunk = record_ids[start : start + _CHUNK]
            removed += self._connection.execute(
                delete(BufferedRecord).where(BufferedRecord.record_id.in_(chunk))
            ).rowcount
        return removed

    def mark_failed(self, record_ids: Sequence[str], now_s: float) -> int:
        """Count one more failed try of these records; returns how many there were."""
        statement = (
            update(BufferedRecord)
            .where(BufferedRecord.record_id.in_(bindparam("ids", expanding=True)))
            .values(retry_count=func.coalesce(BufferedRecord.retry_count, 0) + 1, last_retry=now_s)
        )
        return sum(
            self._connection.execute(statement, {"ids": record_ids[start : start + _CHUNK]}).rowcount
            for start in range(0, len(record_ids), _CHUNK)
        )

    def count(self) -> int:
        """Return how many records wait."""
        return int(self._connection.scalar(select(func.count()).select_from(BufferedRecord)) or 0)
