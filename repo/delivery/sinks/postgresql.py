"""The PostgreSQL sink: stores batches in the tables of a hub (`repo.delivery.hub`), with the position, exactly once.

A batch is one transaction. Its first statement moves the position from the last token to the next, so a repeat or a
fork is noticed before anything is sent. The points then go by COPY into a temporary table, and from there into
`points`: as new rows, or if some are there already, merged, so that the higher (epoch, seq) of an identity wins. An
older value that arrives late never replaces a newer one.

The connection must keep its session between transactions: behind PgBouncer, use session pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from repo.cursors import Cursor
from repo.delivery.chain import HeldSeqs, is_repeat
from repo.delivery.encodings.copy_text import encode
from repo.delivery.hub import HUB_SCHEMA, enter_schema
from repo.delivery.protocol import Batch, Columns, Lane, Outcome, RecordItem, Tokens
from repo.delivery.sinks.postgresql_server import PostgresqlServer
from repo.delivery.sinks.postgresql_tables import check_tables
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable, StoreForked
from repo.inputs.arguments import check_flag, check_seconds, check_text

__all__ = ["PostgresqlSink"]

_MAKE_POINTS = """
    CREATE TEMPORARY TABLE arriving (
        sensor_id varchar COLLATE "C", metric_name varchar COLLATE "C", timestamp_us bigint, value double precision,
        value_text varchar, quality integer, metadata json, seq bigint
    ) ON COMMIT DELETE ROWS
"""
_MAKE_RECORDS = """
    CREATE TEMPORARY TABLE arriving_records (
        record_id varchar COLLATE "C", source varchar, data json, timestamp_us bigint
    ) ON COMMIT DELETE ROWS
"""
_BEGIN_POSITION = """
    INSERT INTO positions (store_id, epoch, sink, token) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
_MOVE_POSITION = """
    UPDATE positions SET token = %s, updated_at = now() WHERE store_id = %s AND epoch = %s AND sink = %s AND token = %s
"""
_HELD = "SELECT token FROM positions WHERE store_id = %s AND epoch = %s AND sink = %s"
_RANGES = "SELECT epoch, ranges FROM positions WHERE store_id = %s AND sink = %s ORDER BY epoch"
_COUNT = """
    UPDATE positions SET ranges = ranges + int8multirange(int8range(%s, %s, '[]')), points = points + %s
    WHERE store_id = %s AND epoch = %s AND sink = %s
"""
_ADD_POINTS = """
    INSERT INTO points (
        store_id, sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, epoch, seq
    )
    SELECT %s, sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, %s, seq FROM arriving
    ORDER BY sensor_id, metric_name, timestamp_us
"""
_MERGE_POINTS = f"""{_ADD_POINTS}
    ON CONFLICT (store_id, sensor_id, metric_name, timestamp_us) DO UPDATE SET
        value = excluded.value, value_text = excluded.value_text, quality = excluded.quality,
        metadata = excluded.metadata, epoch = excluded.epoch, seq = excluded.seq
    WHERE (excluded.epoch, excluded.seq) > (points.epoch, points.seq)
"""
_TAKE_RECORDS = """
    INSERT INTO records (store_id, record_id, source, data, timestamp_us)
    SELECT %s, record_id, source, data, timestamp_us FROM arriving_records
    ON CONFLICT (store_id, record_id) DO UPDATE SET
        source = excluded.source, data = excluded.data, timestamp_us = excluded.timestamp_us
"""

_MERGED_BATCHES = 20
"""After a batch with a point that was there already, this many more batches are merged. Adding alone takes PostgreSQL
two thirds of the time, but must be repeated if a point is there already."""

_DAY_US = 86_400_000_000
_1970 = date(1970, 1, 1)
_FIRST_DAY, _LAST_DAY = (date(2000, 1, 1) - _1970).days, (date(2100, 1, 1) - _1970).days
"""The days that have a partition of their month."""

_FETCHED = 20_000
_NOTHING = -(2**63)

_Key = tuple[UUID, int, str]


class PostgresqlSink:
    """Delivers to a hub in PostgreSQL 14 or later. For one thread.

    `target` is a URL without a password, such as `postgresql://host:5432/database?sslmode=verify-full`. `schema` holds
    the tables. With `create`, `open` creates or upgrades them; without it, or without the right to, it raises
    `SinkHalted`. `timeout_s` limits connecting and waiting for a lock; a server that is silent for twice as long is
    unreachable. Raises `MissingExtra` if psycopg is not installed.
    """

    exact = True
    takes_records = True

    def __init__(
        self,
        target: str,
        *,
        name: str,
        user: str | None = None,
        password: str | None = None,
        schema: str = HUB_SCHEMA,
        create: bool = True,
        timeout_s: float = 30.0,
    ) -> None:
        self._name = check_text(name, "name", error=InvalidSettings)
        target = check_text(target, "target", error=InvalidSettings)
        self._schema = check_text(schema, "schema", error=InvalidSettings)
        self._create = check_flag(create, "create", error=InvalidSettings)
        timeout = max(2, round(min(check_seconds(timeout_s, "timeout_s", error=InvalidSettings), 1e6)))
        self._server = PostgresqlServer(
            target, name=self._name, user=user, password=password, timeout_s=timeout
        )
        self._connection: Any = None
        self._months: set[date] = set()
        self._merging = 0

    @property
    def name(self) -> str:
        """The name of the cursor in the store."""
        return self._name

    def open(self, store_id: str, epoch: int) -> str | None:
        """Connect, create missing tables, and return the token of this store's position."""
        self.close()
        with self._typed():
            self._connection = connection = self._server.connect()
            connection.execute(enter_schema(self._schema))
            check_tables(self._server, connection, self._schema, create=self._create)
            connection.execute(_MAKE_POINTS)
            connection.execute(_MAKE_RECORDS)
            return _token(connection, (UUID(store_id), epoch, self._name))

    def send(self, batch: Batch) -> Outcome:
        """Store a batch, the position and the token in one transaction."""
        if self._connection is None:
            self.open(batch.store_id, batch.epoch)
        errors = self._server.errors
        with self._typed():
            try:
                return self._stored(batch)
            except errors.CheckViolation as error:
                if error.diag.constraint_name is not None:
                    raise
                self._months.clear()  # somebody dropped a partition
            except errors.UniqueViolation:
                if self._merging:
                    raise
                self._merging = _MERGED_BATCHES
            return self._stored(batch)

    def held(self, store_id: str) -> list[HeldSeqs]:
        """Return the ranges of seqs of this sink's batches, in every epoch."""
        with self._typed():
            rows = self._connection.execute(_RANGES, (UUID(store_id), self._name)).fetchall()
        return [
            HeldSeqs(epoch, Cursor.of(_NOTHING, [(span.lower, span.upper - 1) for span in ranges]))
            for epoch, ranges in rows
        ]

    def held_seqs(self, store_id: str) -> Iterator[tuple[int, int]]:
        """Yield the seq and the epoch of each point of the store, in order of seq. Reads in one transaction."""
        with self._typed(), self._connection.transaction(), self._connection.cursor("held") as cursor:
            cursor.itersize = _FETCHED
            yield from cursor.execute(
                "SELECT seq, epoch FROM points WHERE store_id = %s ORDER BY seq", (UUID(store_id),)
            )

    def close(self) -> None:
        """Disconnect. `send` and `open` connect again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._months.clear()

    def _stored(self, batch: Batch) -> Outcome:
        connection = self._connection
        key: _Key = (UUID(batch.store_id), batch.epoch, self._name)
        owner: tuple[Any, ...]
        if batch.lane is Lane.RECORDS:
            table, take, owner = "arriving_records", _TAKE_RECORDS, key[:1]
            texts, refused = encode(_record_columns(batch.records))
        else:
            table, take, owner = "arriving", _MERGE_POINTS if self._merging else _ADD_POINTS, key[:2]
            texts, refused = encode(batch.columns)
            self._make_partitions(batch.columns[2])
        with connection.transaction(), connection.cursor() as cursor:
            if not self._has_moved(cursor, key, batch.tokens):
                return Outcome(refused, repeat=True)
            if texts:
                with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                    copy.write(texts)
                cursor.execute(take, owner)
            if batch.lane is not Lane.RECORDS:
                stored = len(batch) - len(refused)
                cursor.execute(_COUNT, (batch.first_seq, batch.last_seq, stored, *key))
        self._merging = max(0, self._merging - 1)
        return Outcome(refused, sent_bytes=len(texts))

    def _has_moved(self, cursor: Any, key: _Key, tokens: Tokens) -> bool:
        """Move the position from the committed token to the next one; False if it is there already.

        The row stays locked until the transaction ends, so a copy of this store waits here, and is then noticed.
        """
        committed, following = tokens
        if committed is None:
            cursor.execute(_BEGIN_POSITION, (*key, following))
        else:
            cursor.execute(_MOVE_POSITION, (following, *key, committed))
        if cursor.rowcount:
            return True
        if is_repeat(_token(cursor, key), tokens, self._server.place):
            return False
        raise SinkUnreachable(
            f"{self._server.place}: another process moved the position of this store at the same time"
        )

    def _make_partitions(self, times_us: Sequence[int]) -> None:
        """Create the partitions of these times that this connection has not seen yet, each in its own transaction."""
        if not times_us:
            return
        first, last = min(times_us) // _DAY_US, max(times_us) // _DAY_US
        for day in sorted(
            {first, last} if last - first < 2 else {time_us // _DAY_US for time_us in times_us}
        ):
            if _FIRST_DAY <= day < _LAST_DAY and (
                month := (_1970 + timedelta(days=day)).replace(day=1)
            ) not in (self._months):
                self._connection.execute("SELECT make_partition(%s)", (day * _DAY_US,))
                self._months.add(month)

    @contextmanager
    def _typed(self) -> Iterator[None]:
        """Translate errors of the driver, and disconnect unless the batch was refused for its content."""
        try:
            yield
        except (SinkHalted, SinkUnreachable, StoreForked):
            self.close()
            raise
        except self._server.error as error:
            is_lost = self._connection is None or self._connection.closed
            typed = self._server.typed(error, is_lost=is_lost)
            if not isinstance(typed, SinkRefused):
                self.close()
            raise typed from error


def _token(connection: Any, key: _Key) -> str | None:
    found = connection.execute(_HELD, key).fetchone()
    return None if found is None else found[0]


def _record_columns(records: Sequence[RecordItem]) -> Columns:
    return list(zip(*records, strict=True)) if records else ((), (), (), ())
