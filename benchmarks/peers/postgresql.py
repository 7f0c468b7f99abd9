"""PostgreSQL, as installed from the distribution, through psycopg: a key by series and time, COPY for batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import Readings
from benchmarks.peers.base import point, points
from benchmarks.servers import Server, binary, free_port

__all__ = ["PostgreSQL"]

CONFIG = {
    "shared_buffers": "512MB",
    "effective_cache_size": "4GB",
    "maintenance_work_mem": "256MB",
    "work_mem": "64MB",
    "max_wal_size": "4GB",  # few checkpoints
    "synchronous_commit": "on",  # acknowledged means on the disk, as in the store
    "fsync": "on",
    "jit": "off",  # it delays short queries
    "random_page_cost": "1.1",  # an SSD
}
_OF_ONE = "series = %s AND time_us >= %s AND time_us < %s"


class PostgreSQL:
    """A server of its own on a Unix socket; one connection in autocommit mode."""

    key = "postgresql"
    name = "PostgreSQL"
    settings = "PRIMARY KEY (series, time), numbers for names, COPY per batch; " + (
        ", ".join(f"{name} {value}" for name, value in CONFIG.items())
    )

    def __init__(self, parent: Path, series: Sequence[tuple[str, str]]) -> None:
        import psycopg

        self.series = list(series)
        self._server = Server(parent)
        data = self._server.folder / "data"
        self._server.run(
            [self._program("initdb"), "-D", str(data), "-U", "bench", "-A", "trust", "--no-instructions"]
        )
        settings = [part for name, value in CONFIG.items() for part in ("-c", f"{name}={value}")]
        port = free_port()
        self.url = f"postgresql://localhost:{port}/postgres?host={self._server.folder}"
        """For other clients; the user is `bench`."""
        listen = ["-k", str(self._server.folder), "-p", str(port), "-c", "listen_addresses="]

        def connect() -> None:
            try:
                self._connection: Any = psycopg.connect(
                    host=str(self._server.folder), port=port, user="bench", dbname="postgres", autocommit=True
                )
            except psycopg.OperationalError as error:
                raise ConnectionError(str(error)) from error

        self._server.start([self._program("postgres"), "-D", str(data), *listen, *settings], connect)
        self._connection.execute(
            "CREATE TABLE points (series integer, time_us bigint, value double precision, quality integer NOT NULL, "
            "metadata text, PRIMARY KEY (series, time_us))"
        )

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot run here."""
        try:
            import psycopg
        except ImportError:
            return "psycopg is not installed"
        del psycopg
        return None if binary("initdb") and binary("postgres") else "PostgreSQL is not installed"

    def rows(self, readings: Readings) -> list[Any]:
        """Return rows that are ready for the table."""
        return readings.keyed_tuples()

    def insert(self, rows: Sequence[Any]) -> None:
        """Insert by COPY; durable on return."""
        with self._connection.cursor() as cursor, cursor.copy("COPY points FROM STDIN") as copy:
            write = copy.write_row
            for row in rows:
                write(row)

    def load(self, readings: Readings) -> None:
        """Insert readings."""
        self.insert(self.rows(readings))

    def settle(self) -> None:
        """Gather statistics and write a checkpoint."""
        self._connection.execute("VACUUM ANALYZE points")
        self._connection.execute("CHECKPOINT")

    def count(self) -> int:
        """Return the number of points."""
        return int(self._connection.execute("SELECT count(*) FROM points").fetchone()[0])

    def size_bytes(self) -> int:
        """Return the bytes of the table and its key, without the log."""
        return int(self._connection.execute("SELECT pg_total_relation_size('points')").fetchone()[0])

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the points of one series."""
        rows = self._connection.execute(
            f"SELECT time_us, value, quality, metadata FROM points WHERE {_OF_ONE} ORDER BY time_us",
            (number, start_us, end_us),
        ).fetchall()
        return points(*self.series[number], rows)

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        statement = f"SELECT avg(value) FROM points WHERE {_OF_ONE}"
        return float(self._connection.execute(statement, (number, start_us, end_us)).fetchone()[0])

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Return the newest point of one series."""
        row = self._connection.execute(
            "SELECT time_us, value, quality, metadata FROM points WHERE series = %s ORDER BY time_us DESC LIMIT 1",
            (number,),
        ).fetchone()
        return point(*self.series[number], *row)

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Return the newest point of each series: one descent of the b-tree each, in one statement."""
        rows = self._connection.execute(
            "SELECT number, p.* FROM generate_series(0, %s) AS number CROSS JOIN LATERAL ("
            "SELECT time_us, value, quality, metadata FROM points WHERE series = number "
            "ORDER BY time_us DESC LIMIT 1) AS p",
            (len(self.series) - 1,),
        ).fetchall()
        return [point(*self.series[number], *rest) for number, *rest in rows]

    def close(self) -> None:
        """Stop the server."""
        self._connection.close()
        self._server.close()

    @staticmethod
    def _program(name: str) -> str:
        found = binary(name)
        assert found is not None  # `missing` says so first
        return found
