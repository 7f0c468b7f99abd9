"""The PostgreSQL sink: stores batches in the tables of a hub (`repo.delivery.hub`), with the position, exactly once.

A batch is one transaction. Its first statement moves the position from the last token to the next, so a repeat or a
fork is noticed before anything is sent. The points then go by COPY into a temporary table, and from there into
`points`: as new rows, or if some are there already, merged, so that the higher (epoch, seq) of an identity wins. An
older value that arrives late never replaces a newer one.

The connection must keep its session between transactions: behind PgBouncer, use session pooling.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from repo.arguments import check_flag, check_seconds, check_text
from repo.cursors import Cursor
from repo.delivery.chain import Held, is_repeat
from repo.delivery.encodings.copy_text import encode
from repo.delivery.hub import HUB_HEAD, HUB_SCHEMA, HUB_VERSION_TABLE, create_schema, enter_schema
from repo.delivery.protocol import Batch, Columns, Lane, Outcome, RecordItem, Tokens
from repo.delivery.secrets import Secret
from repo.errors import (
    HoldfastError,
    InvalidSettings,
    SchemaTooNew,
    SinkHalted,
    SinkRefused,
    SinkUnreachable,
    StoreForked,
)
from repo.extras import missing_extra

__all__ = ["PostgresqlSink"]

_TABLES = ("points", "records", "positions", HUB_VERSION_TABLE)

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
_MAY_USE = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s"
_LACKING_RIGHTS = """
    SELECT format(
        'GRANT %%s ON %%I.%%I TO %%I', string_agg(needed, ', ' ORDER BY needed), %(schema)s::text, name, current_user
    )
    FROM unnest(%(tables)s::text[], %(rights)s::text[]) AS one (name, needed)
    WHERE NOT has_table_privilege(format('%%I.%%I', %(schema)s::text, name), needed) GROUP BY name ORDER BY name
"""
_RIGHTS = [
    *(
        (table, right)
        for table in ("points", "positions", "records")
        for right in ("SELECT", "INSERT", "UPDATE")
    ),
    (HUB_VERSION_TABLE, "SELECT"),
]
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

_AGAIN = ("08", "40", "53", "55", "57", "58")
"""Starts of SQLSTATEs of what may pass by itself: connections, deadlocks, resources, locks, shutdowns, the system."""

_CONTENT = ("22", "23", "54", "P0001")
"""Starts of SQLSTATEs of what lies in the data; P0001 is what a trigger raises."""

_NO_ANSWER = (
    "refused", "timeout", "timed out", "unexpectedly", "reset", "aborted", "broken pipe", "unreachable", "no route",
    "host name", "no such file", "the database system is", "too many", "remaining connection slots", "shutdown", "eof",
)  # fmt: skip
"""Words of failures to connect that may pass by themselves. libpq gives no SQLSTATE for them."""

_REMEDIES = (
    ("password authentication failed", "check the user and the password of the sink"),
    ("no password supplied", "the sink needs the secret `password`"),
    ('role "', "check the user of the sink"),
    ('database "', "create the database, or add the sink with another URL"),
    ("pg_hba.conf", "the server must allow this host, user and database in that file"),
)
"""The remedy for a failure to connect, by words of its message."""

_MERGED_BATCHES = 20
"""After a batch with a point that was there already, this many more batches are merged. Adding alone takes PostgreSQL
two thirds of the time, but must be repeated if a point is there already."""

_DAY_US = 86_400_000_000
_1970 = date(1970, 1, 1)
_FIRST_DAY, _LAST_DAY = (date(2000, 1, 1) - _1970).days, (date(2100, 1, 1) - _1970).days
"""The days that have a partition of their month."""

_PREFIX = re.compile(r"(connection failed: )?(connection to server .*? failed: )?(FATAL: +)?")
_OLDEST = 140_000
_PING_S = 2
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
        self._timeout_s = max(
            2, round(min(check_seconds(timeout_s, "timeout_s", error=InvalidSettings), 1e6))
        )
        try:
            import psycopg
        except ImportError as error:
            raise missing_extra("delivering to PostgreSQL needs the package psycopg", "postgresql") from error
        self._psycopg = psycopg
        try:
            self._parameters = psycopg.conninfo.conninfo_to_dict(target)
        except psycopg.Error as error:
            raise InvalidSettings(
                f"{target!r} is not the URL of a PostgreSQL database: {_line(error)}"
            ) from error
        ports = self._parameters.get("port", "5432")
        if not all(port.isascii() and port.isdigit() and int(port) < 65_536 for port in ports.split(",")):
            raise InvalidSettings(f"{target!r} is not the URL of a PostgreSQL database: the port {ports!r}")
        if self._parameters.get("password"):
            raise InvalidSettings(
                "the URL of a sink must not contain a password; pass it as the secret `password`"
            )
        given = {"user": user, "password": password}
        self._secrets = {key: Secret(key, value) for key, value in given.items() if value is not None}
        self._place = f"PostgreSQL at {self._parameters.get('host', 'localhost')}:{ports}"
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
            self._connection = connection = self._connected()
            connection.execute(enter_schema(self._schema))
            self._check_tables()
            connection.execute(_MAKE_POINTS)
            connection.execute(_MAKE_RECORDS)
            return _token(connection, (UUID(store_id), epoch, self._name))

    def send(self, batch: Batch) -> Outcome:
        """Store a batch, the position and the token in one transaction."""
        if self._connection is None:
            self.open(batch.store_id, batch.epoch)
        errors = self._psycopg.errors
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

    def held(self, store_id: str) -> list[Held]:
        """Return the ranges of seqs of this sink's batches, in every epoch."""
        with self._typed():
            rows = self._connection.execute(_RANGES, (UUID(store_id), self._name)).fetchall()
        return [
            Held(epoch, Cursor.of(_NOTHING, [(span.lower, span.upper - 1) for span in ranges]))
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
        if is_repeat(_token(cursor, key), tokens, self._place):
            return False
        raise SinkUnreachable(
            f"{self._place}: another process moved the position of this store at the same time"
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

    # --- connecting ----------------------------------------------------------------------------------------

    def _connected(self, *, autocommit: bool = True) -> Any:
        """Return a new connection, which notices within about `timeout_s` that the link is dead."""
        seconds = self._timeout_s
        given: dict[str, Any] = {
            "connect_timeout": seconds,
            "keepalives_idle": max(1, seconds // 2),
            "keepalives_interval": max(1, seconds // 6),
            "keepalives_count": 3,
            "tcp_user_timeout": seconds * 1000,
            "application_name": f"holdfast {self._name}"[:63],
        }
        revealed = {key: secret.reveal() for key, secret in self._secrets.items()}
        parameters = given | self._parameters | revealed | {"client_encoding": "utf8"}
        try:
            connection = _patient(self._psycopg, 2 * seconds).connect(**parameters, autocommit=autocommit)
        except self._psycopg.OperationalError as error:
            raise self._no_connection(error) from error
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (str(seconds * 1000),))
        if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
            connection.execute("SET synchronous_commit TO on")  # a commit must survive a crash of the server
        return connection

    def _no_connection(self, error: Exception) -> HoldfastError:
        """Return the error for a failure to connect: halted if the server answers, but rejects this sink."""
        message = f"{self._place}: {_line(error)}"
        said = str(error).lower()
        if any(words in said for words in _NO_ANSWER):
            return SinkUnreachable(message)
        pq = self._psycopg.pq
        asked = {
            key: self._parameters[key] for key in ("host", "hostaddr", "port") if key in self._parameters
        }
        conninfo = self._psycopg.conninfo.make_conninfo(**asked, connect_timeout=_PING_S)
        if pq.PGconn.ping(conninfo.encode()) != pq.Ping.OK:
            return SinkUnreachable(message)
        remedy = next((remedy for words, remedy in _REMEDIES if words in said), "")
        return SinkHalted(f"{message}; {remedy}" if remedy else message)

    def _check_tables(self) -> None:
        """Create or upgrade the tables if necessary and allowed; raises `SinkHalted` if they cannot be used."""
        if self._connection.info.server_version < _OLDEST:
            raise SinkHalted(f"{self._place}: a hub needs PostgreSQL 14 or later")
        usable = self._connection.execute(_MAY_USE, (self._schema,)).fetchone()
        if usable == (False,):
            raise SinkHalted(
                f"{self._place}: the role may not use the schema {self._schema!r}; {self._how()}"
            )
        missing = self._missing()
        if not missing:
            self._check_rights()
            if self._revision() == HUB_HEAD:
                return
        if missing and len(missing) < len(_TABLES):
            raise SinkHalted(
                f"{self._place}: the schema {self._schema!r} has no table {missing[0]}, but others of a hub; restore "
                "the table, or name another schema in the option `schema`"
            )
        if not self._create:
            raise SinkHalted(
                f"{self._place}: the schema {self._schema!r} {self._lacks(missing)}; {self._how()}"
            )
        try:
            self._upgrade()
        except self._psycopg.errors.InsufficientPrivilege as error:
            raise SinkHalted(
                f"{self._place}: the schema {self._schema!r} {self._lacks(missing)}, and the role may not create them "
                f"({_line(error)}); {self._how()}"
            ) from error
        except SchemaTooNew as error:
            raise SinkHalted(
                f"{self._place}: the tables were made by a newer version of this program; update the package here"
            ) from error

    def _check_rights(self) -> None:
        tables, rights = zip(*_RIGHTS, strict=True)
        given = {"schema": self._schema, "tables": list(tables), "rights": list(rights)}
        grants = [grant for (grant,) in self._connection.execute(_LACKING_RIGHTS, given)]
        if grants:
            raise SinkHalted(
                f"{self._place}: the role may not do all that a delivery needs; the owner of the tables grants it: "
                + "; ".join(grants)
            )

    def _lacks(self, missing: Sequence[str]) -> str:
        return "has no tables of a hub" if missing else "has tables of an older version"

    def _how(self) -> str:
        return "docs/formats.md has the commands with which their owner creates and upgrades them, and grants rights"

    def _missing(self) -> list[str]:
        found = self._connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename = ANY (%s)",
            (self._schema, list(_TABLES)),
        ).fetchall()
        return [table for table in _TABLES if (table,) not in found]

    def _revision(self) -> str | None:
        found = self._connection.execute(f"SELECT version_num FROM {HUB_VERSION_TABLE}").fetchone()
        return None if found is None else found[0]

    def _upgrade(self) -> None:
        """Create or upgrade the tables on a connection of its own; sinks that do so at the same time wait."""
        from sqlalchemy import create_engine
        from sqlalchemy.exc import DBAPIError
        from sqlalchemy.pool import NullPool

        from repo.schema.runner import upgrade_hub

        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: self._connected(autocommit=False), poolclass=NullPool
        )
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"holdfast hub {self._schema}",)
                )
                connection.exec_driver_sql(create_schema(self._schema))
                connection.exec_driver_sql(enter_schema(self._schema))
                upgrade_hub(connection)
        except DBAPIError as wrapped:
            raise wrapped.orig or wrapped from wrapped

    @contextmanager
    def _typed(self) -> Iterator[None]:
        """Translate errors of the driver to those that the protocol of a sink expects."""
        try:
            yield
        except (SinkHalted, SinkUnreachable, StoreForked):
            self.close()
            raise
        except self._psycopg.Error as error:
            message = f"{self._place}: {_line(error)}"
            state = error.sqlstate or ""
            is_lost = self._connection is None or self._connection.closed
            if state.startswith(_CONTENT) and not is_lost:
                raise SinkRefused(message) from error
            self.close()
            if (
                is_lost
                or state.startswith(_AGAIN)
                or (not state and isinstance(error, self._psycopg.OperationalError))
            ):
                raise SinkUnreachable(message) from error
            raise SinkHalted(message) from error


def _patient(psycopg: Any, seconds: float) -> Any:
    """Return the class of connections that break if nothing at all arrives or leaves for so long.

    TCP notices a dead peer. It does not notice a proxy that answers for one, or a server that is frozen.
    """

    class Patient(psycopg.Connection):  # type: ignore[misc]
        def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
            return super().wait(self._watched(gen), *arguments, **options)

        def _watched(self, gen: Any) -> Generator[Any, Any, Any]:
            """Pass on what `gen` waits for; while nothing is ready, it is resumed at intervals."""
            until_s = time.monotonic() + seconds
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    now_s = time.monotonic()
                    if ready:
                        until_s = now_s + seconds
                    elif now_s > until_s:
                        self.pgconn.finish()
                        raise psycopg.OperationalError(f"no answer in {seconds:g} s")
                    wanted = gen.send(ready)
            except StopIteration as done:
                return done.value

    return Patient


def _token(connection: Any, key: _Key) -> str | None:
    found = connection.execute(_HELD, key).fetchone()
    return None if found is None else found[0]


def _record_columns(records: Sequence[RecordItem]) -> Columns:
    return list(zip(*records, strict=True)) if records else ((), (), (), ())


def _line(error: BaseException) -> str:
    """Return the first line of a message, without what `_place` says."""
    lines = str(error).strip().splitlines()
    return _PREFIX.sub("", lines[0]) if lines else type(error).__name__
