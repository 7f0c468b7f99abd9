"""DuckDB's own best for each query, written by hand: one sorted table, one connection, no layer above the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.data import Readings
from benchmarks.peers.arrow import arrow_of
from benchmarks.peers.base import MINUTE_US, buckets, minutes, point, points

__all__ = ["CONFIG", "DuckDBSorted"]

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,  # as in the store
    "memory_limit": "64MB",  # the store's default: memory is what an operator grants
}

_OF_ONE = "series = ? AND time_us >= ? AND time_us < ?"


class DuckDBSorted:
    """The points sorted by series and time, with numbers for names. Nothing keeps that order: it is loaded once."""

    key = "duckdb-sorted"
    name = "DuckDB by hand, sorted"
    settings = "points sorted by (series, time), numbers for names, one open connection, " + (
        ", ".join(f"{name} {value}" for name, value in CONFIG.items())
    )

    def __init__(self, path: Path, series: Sequence[tuple[str, str]]) -> None:
        self.path = path
        self.series = list(series)
        self._connection = duckdb.connect(str(path), config=CONFIG)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS points (series INTEGER, time_us BIGINT, value DOUBLE, quality INTEGER, "
            "metadata VARCHAR)"
        )

    def load(self, readings: Readings) -> None:
        """Insert readings as they come; `settle` sorts them."""
        import pyarrow

        pa: Any = pyarrow
        numbers = pa.array(readings.codes, pa.uint32()).cast(pa.int32())
        self._connection.register("given", arrow_of(readings).append_column("series", numbers))
        self._connection.execute(
            "INSERT INTO points SELECT series, timestamp_us, value, quality, metadata FROM given"
        )
        self._connection.unregister("given")

    def settle(self) -> None:
        """Rewrite the table in order, in a new file, with all the memory that this takes."""
        self._connection.close()
        unsorted = self.path.with_suffix(".unsorted")
        self.path.rename(unsorted)
        connection = duckdb.connect(str(self.path), config={"threads": 2, "memory_limit": "4GB"})
        connection.execute(f"ATTACH '{unsorted}' AS old (READ_ONLY)")
        connection.execute("CREATE TABLE points AS SELECT * FROM old.points ORDER BY series, time_us")
        connection.execute("DETACH old")
        connection.execute("CHECKPOINT")
        connection.close()
        unsorted.unlink()
        self._connection = duckdb.connect(str(self.path), config=CONFIG)

    def count(self) -> int:
        """Return the number of points."""
        return int(self._rows("SELECT count(*) FROM points")[0][0])

    def size_bytes(self) -> int:
        """Return the bytes of the file."""
        return self.path.stat().st_size

    def range_dicts(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return the points of one series."""
        pair = self.series[number]
        rows = self._rows(
            f"SELECT time_us, value, quality, metadata FROM points WHERE {_OF_ONE} ORDER BY time_us",
            (number, start_us, end_us),
        )
        return points(*pair, rows)

    def range_arrow(self, number: int, start_us: int, end_us: int) -> Any:
        """Return the same as an Arrow table with the columns of the store."""
        sensor, metric = self.series[number]
        return self._connection.execute(
            "SELECT ?::VARCHAR AS sensor_id, ?::VARCHAR AS metric_name, time_us AS timestamp, value, "
            f"NULL::VARCHAR AS value_text, quality, metadata FROM points WHERE {_OF_ONE} ORDER BY time_us",
            (sensor, metric, number, start_us, end_us),
        ).to_arrow_table()

    def average(self, number: int, start_us: int, end_us: int) -> float:
        """Return the average of one series."""
        statement = f"SELECT avg(value) FROM points WHERE {_OF_ONE}"
        return float(self._rows(statement, (number, start_us, end_us))[0][0])

    def minutes_of_one(self, number: int, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of one series."""
        statement = f"SELECT time_us // {MINUTE_US}, avg(value) FROM points WHERE {_OF_ONE} GROUP BY ALL"
        return buckets(*self.series[number], self._rows(statement, (number, start_us, end_us)))

    def minutes_of_all(self, start_us: int, end_us: int) -> list[dict[str, Any]]:
        """Return 1-minute averages of all series."""
        statement = (
            f"SELECT series, time_us // {MINUTE_US}, avg(value) FROM points WHERE time_us >= ? AND time_us < ? "
            "GROUP BY ALL"
        )
        return minutes(self.series, self._rows(statement, (start_us, end_us)))

    def latest_of_one(self, number: int) -> dict[str, Any]:
        """Return the newest point of one series."""
        rows = self._rows(
            "SELECT time_us, value, quality, metadata FROM points WHERE series = ? ORDER BY time_us DESC LIMIT 1",
            (number,),
        )
        return point(*self.series[number], *rows[0])

    def latest_of_all(self) -> list[dict[str, Any]]:
        """Return the newest point of each series."""
        rows = self._rows(
            "SELECT series, max(time_us), arg_max(value, time_us), arg_max(quality, time_us), "
            "arg_max_null(metadata, time_us) FROM points GROUP BY ALL"
        )
        return [point(*self.series[number], *rest) for number, *rest in rows]

    def drain(self, page_rows: int) -> Iterator[list[tuple[Any, ...]]]:
        """Yield all points in pages of tuples, in the order of the table."""
        cursor = self._connection.cursor()
        cursor.execute("SELECT * FROM points")
        while page := cursor.fetchmany(page_rows):
            yield page

    def drain_arrow(self) -> Iterator[Any]:
        """Yield all points as Arrow batches, in the order of the table."""
        yield from self._connection.cursor().sql("SELECT * FROM points").to_arrow_reader()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()
