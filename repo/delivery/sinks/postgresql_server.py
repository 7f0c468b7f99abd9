"""The PostgreSQL server of a sink: connects to it, and translates its errors. Knows no table."""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from typing import Any

from repo.delivery.secrets import Secret
from repo.errors import HoldfastError, InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable
from repo.extras import missing_extra

__all__ = ["PostgresqlServer", "line_of"]

_AGAIN = ("08", "40", "53", "55", "57", "58", "XX")
"""Starts of SQLSTATEs of what may pass by itself: connections, deadlocks, resources, locks, shutdowns, the system.

XX are internal errors of the server. Like status 500 of an HTTP server, they say nothing about the batch.
"""

_CONTENT = ("22", "23", "54", "P0001")
"""Starts of SQLSTATEs of what lies in the data; P0001 is what a trigger raises."""

_NO_ANSWER = (
    "refused", "timeout", "timed out", "unexpectedly", "reset", "aborted", "broken pipe", "unreachable", "no route",
    "host name", "no such file", "the database system is", "too many", "remaining connection slots", "shutdown", "eof",
    "terminating connection",
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

_PREFIX = re.compile(r"(connection failed: )?(connection to server .*? failed: )?(FATAL: +)?")
_PING_S = 2


class PostgresqlServer:
    """A server that `target` names, a URL without a password. `name` is that of the sink; see `PostgresqlSink`."""

    def __init__(
        self, target: str, *, name: str, user: str | None, password: str | None, timeout_s: int
    ) -> None:
        self._name = name
        self._timeout_s = timeout_s
        try:
            import psycopg
        except ImportError as error:
            raise missing_extra("delivering to PostgreSQL needs the package psycopg", "postgresql") from error
        self._psycopg = psycopg
        try:
            self._parameters = psycopg.conninfo.conninfo_to_dict(target)
        except psycopg.Error as error:
            raise InvalidSettings(
                f"{target!r} is not the URL of a PostgreSQL database: {line_of(error)}"
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

    @property
    def place(self) -> str:
        """The server in messages."""
        return self._place

    @property
    def error(self) -> type[Exception]:
        """The base class of the driver's errors."""
        error: type[Exception] = self._psycopg.Error
        return error

    @property
    def errors(self) -> Any:
        """The driver's errors by SQLSTATE, as its module `errors` names them."""
        return self._psycopg.errors

    def connect(self, *, autocommit: bool = True) -> Any:
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
        message = f"{self._place}: {line_of(error)}"
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

    def typed(self, error: Any, *, is_lost: bool) -> SinkHalted | SinkRefused | SinkUnreachable:
        """Translate an error of the driver to one that the protocol of a sink expects."""
        message = f"{self._place}: {line_of(error)}"
        state = error.sqlstate or ""
        if state.startswith(_CONTENT) and not is_lost:
            return SinkRefused(message)
        if (
            is_lost
            or state.startswith(_AGAIN)
            or (not state and isinstance(error, self._psycopg.OperationalError))
        ):
            return SinkUnreachable(message)
        return SinkHalted(message)


def _patient(psycopg: Any, seconds: float) -> Any:
    """Return the class of connections that break if nothing at all arrives or leaves for this long.

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


def line_of(error: BaseException) -> str:
    """Return the first line of a message, without what `PostgresqlServer.place` says."""
    lines = str(error).strip().splitlines()
    return _PREFIX.sub("", lines[0]) if lines else type(error).__name__
