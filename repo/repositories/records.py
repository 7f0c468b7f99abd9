"""Records that wait for delivery, on a connection that the caller provides. Never commits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, false, func, select, true

from repo.clock import Clock, system_clock
from repo.errors import InvalidRecord
from repo.inputs.arguments import LARGEST, check_count, check_flag, check_text, shown
from repo.inputs.fields import check_name, json_plain
from repo.inputs.times import to_us
from repo.models import BufferedRecord
from repo.repositories.ledger import LedgerRepository, Loss
from repo.repositories.pointers import HANDED_OUT
from repo.repositories.state import StateRepository

__all__ = [
    "DroppedRecords",
    "NewRecord",
    "PendingRecord",
    "RecordCounts",
    "RecordExtent",
    "RecordRepository",
    "RecordScope",
    "RecordText",
    "data_text",
    "listed_ids",
]

PendingRecord = dict[str, Any]
"""Keys: id, record_id, source, data (as given), timestamp (Unix seconds), retry_count, last_retry, created_at."""

DAY_US = 86_400_000_000

_ROW_BYTES = 64
"""The bytes that a record takes besides its texts, including its index entries."""

_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=json_plain
).encode

# SQL text for the driver: every message runs these statements, and building them each time costs as much as a durable
# commit.
_INSERT = (
    "INSERT INTO buffered_records (record_id, source, data, timestamp, retry_count, created_at) "
    "VALUES (?, ?, ?, ?, 0, ?) ON CONFLICT (record_id) DO NOTHING"
)
_REPLACE = (
    "UPDATE buffered_records SET source = ?, data = ?, timestamp = ? "
    "WHERE record_id = ? AND (source <> ? OR data <> ?)"
)
_SETTLED = "DELETE FROM buffered_records WHERE record_id = ? AND data = ?"
_SENT = "DELETE FROM buffered_records WHERE record_id = ?"
_FAILED = "UPDATE buffered_records SET retry_count = coalesce(retry_count, 0) + ?, last_retry = ? WHERE record_id = ?"


class NewRecord(NamedTuple):
    """A stored record; times in Unix seconds."""

    record_id: str
    source: str
    data_json: str
    timestamp_s: float
    created_s: float

    @classmethod
    def of(
        cls,
        record_id: str,
        source: str,
        data: Mapping[str, Any],
        timestamp: float | datetime | None,
        now_us: int,
    ) -> NewRecord:
        """Validate the arguments of a caller; raises `InvalidRecord` or `InvalidPoint`."""
        check_name(record_id, "record_id")
        check_name(source, "source")
        timestamp_us = now_us if timestamp is None else to_us(timestamp)
        return cls(record_id, source, data_text(data), timestamp_us / 1e6, now_us / 1e6)


class RecordText(NamedTuple):
    """A waiting record for delivery: its data is the JSON text as it was added."""

    record_id: str
    source: str
    data: str
    timestamp_us: int


class RecordCounts(NamedTuple):
    """The number of waiting records, in total, by source and by failed attempts, and the oldest time (Unix seconds)."""

    total: int
    by_source: dict[str, int]
    by_retry_count: dict[int, int]
    oldest_s: float | None


class DroppedRecords(NamedTuple):
    """The number of records dropped unsent, and the span of their times in µs."""

    records: int = 0
    first_us: int | None = None
    last_us: int | None = None

    def plus(self, other: DroppedRecords) -> DroppedRecords:
        """Return the sum of both."""
        firsts = [us for us in (self.first_us, other.first_us) if us is not None]
        lasts = [us for us in (self.last_us, other.last_us) if us is not None]
        return DroppedRecords(
            self.records + other.records, min(firsts, default=None), max(lasts, default=None)
        )


@dataclass(frozen=True, slots=True)
class RecordScope:
    """The selected records: those that meet all given conditions. Times in Unix seconds, [start_s, end_s)."""

    sources: tuple[str, ...] | None = None
    start_s: float | None = None
    end_s: float | None = None
    min_retries: int | None = None

    def where(self) -> ColumnElement[bool]:
        """Return the condition on `buffered_records`."""
        table = BufferedRecord
        conditions: list[ColumnElement[bool]] = [true()]
        if self.sources is not None:
            conditions.append(table.source.in_(self.sources) if self.sources else false())
        if self.start_s is not None:
            conditions.append(table.timestamp >= self.start_s)
        if self.end_s is not None:
            conditions.append(table.timestamp < self.end_s)
        if self.min_retries is not None:
            conditions.append(func.coalesce(table.retry_count, 0) >= self.min_retries)
        return and_(*conditions)


class RecordExtent(NamedTuple):
    """Records of one source; times in µs, `bytes` is their approximate size."""

    source: str
    records: int
    first_us: int | None
    last_us: int | None
    bytes: int


class RecordRepository:
    """Add, list and settle records in the transaction of a connection that you opened.

    The database is SQLite and has the tables of `repo.models.MetadataBase`. Only the record is written;
    `store.records.add` also writes its points. Not thread-safe, like its connection.
    """

    def __init__(self, connection: Connection, *, clock: Clock = system_clock) -> None:
        self._connection = connection
        self._clock = clock

    def add(
        self,
        record_id: str,
        source: str,
        data: Mapping[str, Any],
        timestamp: float | datetime | None = None,
    ) -> bool:
        """Add a record, or replace the data of the record with this id; its retry count stays.

        Returns False if the record already had the same data; nothing was changed then.
        """
        return self.put(NewRecord.of(record_id, source, data, timestamp, self._clock()))

    def put(self, record: NewRecord) -> bool:
        """Do the same as `add` with a record that is already validated."""
        record_id, source, data_json, timestamp_s, _ = record
        driver = self._driver()
        if driver.execute(_INSERT, record).rowcount:
            return True
        changes = (source, data_json, timestamp_s, record_id, source, data_json)
        return bool(driver.execute(_REPLACE, changes).rowcount)

    def skip_ids_through(self, last_id: int) -> None:
        """Give later records ids above `last_id`, which is above those of all existing records."""
        driver = self._driver()
        driver.execute("DELETE FROM sqlite_sequence WHERE name = 'buffered_records'")
        driver.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('buffered_records', ?)", (last_id,))

    def has(self, record_id: str) -> bool:
        """Return whether the record waits for delivery."""
        record_id = check_text(record_id, "record_id", error=InvalidRecord)
        query = select(BufferedRecord.id).where(BufferedRecord.record_id == record_id)
        return self._connection.scalar(query) is not None

    def pending(
        self,
        source: str | None = None,
        limit: int = 1000,
        *,
        after_id: int = 0,
        max_retries: int | None = None,
    ) -> list[PendingRecord]:
        """Return up to `limit` records after `after_id` in the order of their ids, oldest first.

        The next page begins after the last `id` of this one, whatever is settled in between. Records that failed
        `max_retries` times or more are left out. So are pointers of the legacy program until their data is restored
        (`repo.repositories.pointers`).
        """
        limit, after_id = check_count(limit, "limit", 0), check_count(after_id, "after_id", -LARGEST)
        if source is not None:
            source = check_text(source, "source")
        if max_retries is not None:
            max_retries = check_count(max_retries, "max_retries", -LARGEST)
        table = BufferedRecord
        query: Select[Any] = (
            select(*table.__table__.c).where(table.id > after_id, HANDED_OUT).order_by(table.id).limit(limit)
        )
        if source is not None:
            query = query.where(table.source == source)
        if max_retries is not None:
            query = query.where(func.coalesce(table.retry_count, 0) < max_retries)
        return [_pending_record(row) for row in self._connection.execute(query)]

    def texts(self, limit: int) -> list[RecordText]:
        """Return up to `limit` records as `pending` does, oldest first, with their data as text."""
        table = BufferedRecord
        query = select(table.record_id, table.source, table.data, table.timestamp).where(HANDED_OUT)
        found = self._connection.execute(query.order_by(table.id).limit(limit))
        return [
            RecordText(record_id, source, data, _us(at_s) or 0) for record_id, source, data, at_s in found
        ]

    def settle(self, records: Iterable[tuple[str, str]]) -> int:
        """Remove records, given by id and data text, unless their data was replaced; returns their number."""
        return self._settle(_SETTLED, list(records))

    def mark_sent(self, record_ids: str | Iterable[str]) -> int:
        """Remove delivered records and return their number. Their points stay."""
        return self._settle(_SENT, [(record_id,) for record_id in listed_ids(record_ids)])

    def mark_failed(self, record_ids: str | Iterable[str], *, increment_retry: bool = True) -> int:
        """Note a failed attempt now and, unless `increment_retry` is False, count it. Returns the number of records."""
        step, now_s = int(check_flag(increment_retry, "increment_retry")), self._clock() / 1e6
        return self._settle(_FAILED, [(step, now_s, record_id) for record_id in listed_ids(record_ids)])

    def count(self) -> int:
        """Return the number of waiting records."""
        return int(self._connection.scalar(select(func.count()).select_from(BufferedRecord)) or 0)

    def counts(self) -> RecordCounts:
        """Return the counts of waiting records that statistics need."""
        table = BufferedRecord
        retries = func.coalesce(table.retry_count, 0)

        def grouped(key: Any) -> dict[Any, int]:
            query = select(key, func.count()).group_by(key).order_by(key)
            return {value: int(count) for value, count in self._connection.execute(query)}

        by_source = grouped(table.source)
        oldest = self._connection.scalar(select(func.min(table.timestamp)))
        return RecordCounts(sum(by_source.values()), by_source, grouped(retries), oldest)

    def extents(self, scope: RecordScope) -> list[RecordExtent]:
        """Count the records in a scope by source, in order of names."""
        table = BufferedRecord
        texts = func.length(table.record_id) + func.length(table.source) + func.length(table.data)
        query = (
            select(
                table.source,
                func.count(),
                func.min(table.timestamp),
                func.max(table.timestamp),
                func.sum(texts + _ROW_BYTES),
            )
            .where(scope.where())
            .group_by(table.source)
            .order_by(table.source)
        )
        return [
            RecordExtent(source, int(count), _us(first_s), _us(last_s), int(size))
            for source, count, first_s, last_s, size in self._connection.execute(query)
        ]

    def drop(
        self,
        scope: RecordScope,
        reason: str = "drop",
        why: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
    ) -> DroppedRecords:
        """Delete the unsent records in a scope, and note the drop in the loss ledger.

        The ledger keeps one entry a day for each `reason` and `why`. `limit` deletes only that many, the oldest ids.
        """
        table = BufferedRecord
        where = scope.where()
        if limit is not None:
            where = table.id.in_(select(table.id).where(where).order_by(table.id).limit(limit))
        count, first_s, last_s = self._connection.execute(
            select(func.count(), func.min(table.timestamp), func.max(table.timestamp)).where(where)
        ).one()
        dropped = DroppedRecords(int(count), _us(first_s), _us(last_s))
        if dropped.records:
            self._connection.execute(delete(table).where(where))
            state = StateRepository(self._connection).get()
            assert state is not None
            now_us = self._clock()
            detail = json.dumps(why or {}, ensure_ascii=False)
            entry_id = f"{state.store_id}:records:{reason}:{now_us // DAY_US}:{detail}"
            loss = Loss(entry_id, "records", reason, detail, *dropped, now_us)
            LedgerRepository(self._connection).merge(loss)
        return dropped

    def _settle(self, statement: str, rows: list[tuple[Any, ...]]) -> int:
        if not rows:
            return 0
        return int(self._driver().executemany(statement, rows).rowcount)

    def _driver(self) -> Any:
        """Return the driver's connection, in a transaction, so that a message costs little more than its commit."""
        driver: Any = self._connection.connection.driver_connection
        if not driver.in_transaction and not self._connection.in_transaction():
            self._connection.begin()
        return driver


def listed_ids(record_ids: str | Iterable[str]) -> list[str]:
    """Return one id or many as a list; raises `InvalidRecord` for an invalid id."""
    try:
        found = [record_ids] if isinstance(record_ids, str) else list(record_ids)
    except TypeError as error:
        raise InvalidRecord(
            f"record_id = {shown(record_ids)}: a text or a list of texts is expected"
        ) from error
    return [check_text(record_id, "record_id", error=InvalidRecord) for record_id in found]


def _pending_record(row: Any) -> PendingRecord:
    return {
        "id": row[0],
        "record_id": row[1],
        "source": row[2],
        "data": json.loads(row[3]),
        "timestamp": row[4],
        "retry_count": row[5] or 0,
        "last_retry": row[6],
        "created_at": row[7],
    }


def _us(seconds: object) -> int | None:
    # A legacy table may hold values of any type in its number columns.
    return round(seconds * 1e6) if isinstance(seconds, (int, float)) else None


def data_text(data: Mapping[str, Any]) -> str:
    """Return the stored form of a record's data; raises `InvalidRecord` if it is not a mapping, or not JSON."""
    if not isinstance(data, Mapping):
        raise InvalidRecord(f"data: expected a mapping, not {type(data).__name__}")
    try:
        text = _encode(data)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRecord(f"data: cannot be written as JSON: {error}") from error
    return text
