"""Arrow tables, acknowledged: compared with raw executemany into tuned SQLite, and DuckDB's own INSERT ... SELECT.

All sides keep filling the same files from round to round. SQLite gets rows that are ready for its table. The store's
time includes its checks, and ends when the points are durable in the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from benchmarks.data import Readings, Source
from benchmarks.measure import Contest, Figure, Plan, Samples, Side, ratio, timed
from benchmarks.peers.duckdb_insert import DuckDBInsert
from benchmarks.peers.sqlite_tuned import TunedSQLite
from repo import Settings, Store

__all__ = ["arrow_of", "tables"]

ROWS = 100_000

_PRODUCT = "holdfast"
_ON_SQLITE = "holdfast on SQLite alone"
_ONE = "holdfast, as one table"


def tables(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure tables of 100,000 rows."""
    source = Source(plan.shape, plan.seed)
    points = max(ROWS, plan.points // ROWS * ROWS)
    arrow: list[pa.Table] = []
    keyed: list[list[Any]] = []
    asked = 0

    def prepare() -> None:
        nonlocal asked
        readings = source.take(points)
        whole = arrow_of(readings)
        rows = readings.keyed_tuples()
        arrow[:] = [whole.slice(start, ROWS) for start in range(0, points, ROWS)]
        keyed[:] = [rows[start : start + ROWS] for start in range(0, points, ROWS)]
        asked += points

    with plan.scratch() as folder, ExitStack() as open_:
        store = open_.enter_context(Store(folder / "store"))
        on_sqlite = open_.enter_context(Store(folder / "alone", Settings(engine="sqlite")))
        as_one = open_.enter_context(Store(folder / "one"))
        sqlite = TunedSQLite(folder / "ready.sqlite", source.series)
        duckdb = DuckDBInsert(folder)
        open_.callback(sqlite.close)
        open_.callback(duckdb.close)

        def judge(samples: dict[str, Samples]) -> list[Figure]:
            counts = {
                name: int(one.sql("SELECT count(*) AS n FROM time_series_data")[0]["n"])
                for name, one in ((_PRODUCT, store), (_ON_SQLITE, on_sqlite), (_ONE, as_one))
            }
            counts |= {sqlite.name: sqlite.count(), duckdb.name: duckdb.count()}
            if set(counts.values()) != {asked}:
                raise RuntimeError(f"each side got {asked} points, but they have {counts}")
            note = f"{asked:,} points at the end"
            return [
                ratio("tables-sqlite", samples, _PRODUCT, sqlite.name, "points/s", note),
                ratio("tables-duckdb", samples, _PRODUCT, duckdb.name, "points/s", note),
            ]

        def one_by_one(insert: Callable[[Any], object], given: list[Any]) -> float:
            return timed(lambda: [insert(one) for one in given], points)

        def flushed(given: list[pa.Table]) -> None:
            for one in given:
                on_sqlite.points.insert_table(one)
            on_sqlite.flush()

        yield Contest(
            ("tables-sqlite", "tables-duckdb"),
            [
                Side(_PRODUCT, lambda: one_by_one(store.points.insert_table, arrow)),
                Side(
                    _ONE, lambda: timed(lambda: as_one.points.insert_table(pa.concat_tables(arrow)), points)
                ),
                Side(_ON_SQLITE, lambda: timed(lambda: flushed(arrow), points)),
            ],
            [
                Side(sqlite.name, lambda: one_by_one(sqlite.insert_many, keyed)),
                Side(duckdb.name, lambda: one_by_one(duckdb.insert, arrow)),
            ],
            judge,
            prepare,
        )


def arrow_of(readings: Readings) -> pa.Table:
    """Return readings as a table for the store."""
    codes = pa.array(readings.codes, pa.uint32())

    def names(part: int) -> pa.Array:
        listed = pa.array([pair[part] for pair in readings.series])
        return pa.DictionaryArray.from_arrays(codes, listed).cast(pa.string())

    rows = len(readings)
    return pa.table(
        {
            "sensor_id": names(0),
            "metric_name": names(1),
            "timestamp_us": pa.array(readings.times_us, pa.int64()),
            "value": pa.array(readings.values, pa.float64()),
            "quality": pa.array(readings.qualities or [100] * rows, pa.int32()),
            "metadata": pa.array([readings.metadata.get(row) for row in range(rows)], pa.string()),
        }
    )
