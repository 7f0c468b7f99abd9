"""`store.records`: messages to deliver, each stored with its points in one transaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from repo.core.changes import Change, PointsChange, RecordChange, SettleChange, Submission
from repo.core.deleting import RecordDrop, delete_records
from repo.core.handle import Handle
from repo.inputs.arguments import LARGEST, check_count, check_flag, check_seconds, check_text
from repo.inputs.times import to_us
from repo.inputs.values import check_rows
from repo.repositories.points import Written
from repo.repositories.records import (
    NewRecord,
    PendingRecord,
    RecordCounts,
    RecordRepository,
    RecordScope,
    listed_ids,
)
from repo.store.readings import readings_of

__all__ = ["RecordWriter", "Records"]


class RecordWriter:
    """The write methods, shared by the store and its transactions."""

    def __init__(self, handle: Handle, send: Callable[[Submission], Written]) -> None:
        self._handle = handle
        self._send = send

    def add(
        self,
        record_id: str,
        source: str,
        data: Mapping[str, Any],
        timestamp: float | datetime | None = None,
    ) -> Written:
        """Add a record to deliver, and its numbers (also as text) as points; durable on return, both or neither.

        The sensor is `sensor_id`, `well_name` or the source. `value` becomes a point of the metric `metric_name`,
        `metric` or `unknown`; `pressure`, `temperature`, `flow_rate` and `flowRate` become points of the metric of that
        name. Their time is the data's `timestamp`, Unix seconds or ISO 8601 (UTC if it has no offset), otherwise the
        record's. Their `quality` is an integer or a word: good is 100, uncertain 64, bad 0. A time or a quality that
        cannot be read is logged once for each source; the points then have the record's time, or the quality 64. An
        existing `record_id` replaces the data and keeps the retry count; identical data changes nothing, whatever the
        time. Raises `InvalidRecord` or `InvalidPoint`; nothing was written.
        """
        now_us = self._handle.clock()
        change = RecordChange(NewRecord.of(record_id, source, data, timestamp, now_us))
        changes: list[Change] = [change]
        accept_bool = self._handle.settings.accept_bool
        time_us = now_us if timestamp is None else to_us(timestamp)
        rows = readings_of(data, source, time_us, accept_bool=accept_bool)
        if rows:
            batch, _ = check_rows(rows, accept_bool=accept_bool, now_us=now_us)
            changes.append(PointsChange.of(batch, record=change))
        return self._send(Submission(changes))


class Records(RecordWriter):
    """`store.records`. Thread-safe."""

    def pending(
        self,
        source: str | None = None,
        limit: int = 1000,
        *,
        after_id: int = 0,
        max_retries: int | None = None,
    ) -> list[PendingRecord]:
        """Return up to `limit` pending records, oldest first, with their data as given.

        To read a long backlog in pages, pass the last `id` of the previous page as `after_id`. `max_retries` excludes
        records that have failed that many times or more.
        """
        with self._handle.metadata.read() as connection:
            return RecordRepository(connection).pending(
                source, limit, after_id=after_id, max_retries=max_retries
            )

    def has(self, record_id: str) -> bool:
        """Return whether the record is pending."""
        with self._handle.metadata.read() as connection:
            return RecordRepository(connection).has(record_id)

    def counts(self) -> RecordCounts:
        """Count the pending records: in total, by source, and by failed attempts."""
        with self._handle.metadata.read() as connection:
            return RecordRepository(connection).counts()

    def count(self) -> int:
        """Return the number of pending records."""
        with self._handle.metadata.read() as connection:
            return RecordRepository(connection).count()

    def mark_sent(self, record_ids: str | Iterable[str]) -> int:
        """Remove delivered records in one commit; returns how many were pending.

        Their points stay as history. Durable like any write; threads share commits.
        """
        return self._settle(SettleChange(listed_ids(record_ids), sent=True))

    def mark_failed(self, record_ids: str | Iterable[str], *, increment_retry: bool = True) -> int:
        """Record a failed attempt for these records, in one commit; returns how many were pending.

        With `increment_retry=False` the retry count stays, and only the time is recorded.
        """
        counted = check_flag(increment_retry, "increment_retry")
        return self._settle(SettleChange(listed_ids(record_ids), sent=False, increment_retry=counted))

    def drop_old(self, *, max_age_s: float | timedelta | None = None, max_retries: int | None = None) -> int:
        """Drop unsent records older than `max_age_s`, and those that have failed `max_retries` times or more.

        Returns how many were dropped, permanently. The loss ledger records the number, the time span and the reason in
        the same commit. Their points stay.
        """
        drops: list[RecordDrop] = []
        if max_age_s is not None:
            max_age_s = check_seconds(max_age_s, "max_age_s", -math.inf)
            too_old = RecordScope(end_s=self._handle.clock() / 1e6 - max_age_s)
            drops.append((too_old, "age", {"max_age_s": max_age_s}))
        if max_retries is not None:
            max_retries = check_count(max_retries, "max_retries", -LARGEST)
            drops.append((RecordScope(min_retries=max_retries), "retries", {"max_retries": max_retries}))
        return delete_records(self._handle, drops).records

    def clear(self, source: str | None = None) -> int:
        """Drop all unsent records, or those of one source; returns how many. The loss ledger records it."""
        if source is not None:
            source = check_text(source, "source")
        scope = RecordScope(None if source is None else (source,))
        return delete_records(self._handle, [(scope, "clear", {"source": source})]).records

    def _settle(self, change: SettleChange) -> int:
        if change.record_ids:
            self._send(Submission((change,)))
        return change.found
