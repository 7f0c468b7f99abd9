"""A PostgreSQL server on loopback, with a password, in a folder of its own. Restarted and killed by the tests."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.servers import Server, binary, free_port
from tests.delivery.servers.install import why_missing

__all__ = ["PASSWORD", "PostgresqlServer", "why_no_postgresql"]

PASSWORD = "s3cret"

_SETTINGS = ("listen_addresses=127.0.0.1", "shared_buffers=32MB", "max_wal_size=1GB", "fsync=off")
"""The tests kill the server, never the machine."""


def why_no_postgresql() -> str | None:
    """Return why the server cannot run here."""
    try:
        import psycopg
    except ImportError:
        return "psycopg is not installed"
    del psycopg
    return None if binary("initdb") and binary("postgres") else why_missing("postgres")


class PostgresqlServer:
    """The server, running; the role `admin` owns everything."""

    def __init__(self) -> None:
        self._server = Server(Path(tempfile.gettempdir()))
        self.port = free_port()
        password = self._server.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        initdb = binary("initdb")
        assert initdb is not None
        access = ("-U", "admin", "-A", "scram-sha-256", "--pwfile", str(password))
        self._server.run([initdb, "-D", "data", *access, "--no-instructions", "--no-sync"])
        self.start()

    @property
    def url(self) -> str:
        """The URL of its database, without user and password."""
        return f"postgresql://127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        postgres = binary("postgres")
        assert postgres is not None
        options = ("-D", "data", "-p", str(self.port), "-k", str(self._server.folder))
        settings = [part for setting in _SETTINGS for part in ("-c", setting)]
        self._server.start([postgres, *options, *settings], lambda: self.connect().close())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends all sessions, SIGQUIT does so without a checkpoint, as a crash."""
        self._server.stop(how)

    def connect(self, **parameters: Any) -> Any:
        """Connect as the administrator, in autocommit mode."""
        import psycopg

        given = {"user": "admin", "password": PASSWORD, "autocommit": True} | parameters
        try:
            return psycopg.connect(self.url, **given)
        except psycopg.OperationalError as error:
            raise ConnectionError(str(error)) from error

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement, and return its rows."""
        with self.connect() as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Stop it, and remove its folder."""
        self.stop()
        self._server.close()
