"""Arrow tables, acknowledged: compared with raw executemany into tuned SQLite, and DuckDB's own INSERT ... SELECT.

All sides keep filling the same files from round to round. SQLite gets rows that are ready for its table. The store's
time includes its checks, and ends when the points are in the columns: durable there after tables of a million rows,
while the smaller ones are durable in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from benchmarks.data import Source
from benchmarks.measure import Contest, Figure, Plan, Samples, Side, ratio, timed
from benchmarks.peers.arrow import arrow_of
from benchmarks.peers.duckdb_insert import DuckDBInsert
from benchmarks.peers.sqlite_tuned import TunedSQLite
from repo import Settings, Store

__all__ = ["KEYS", "tables"]

_SIZES = {"tables": 100_000, "tables-1m": 1_000_000}

KEYS = tuple(f"{key}-{peer}" for key in _SIZES for peer in ("sqlite", "duckdb"))

_PRODUCT = "holdfast"
_ON_SQLITE = "holdfast on SQLite alone"


def tables(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure tables of 100,000 rows, and of a million."""
    for key, rows in _SIZES.items():
        yield from _tables(plan, key, rows)


def _tables(plan: Plan, key: str, size: int) -> Iterator[Contest | Figure]:
    source = Source(plan.shape, plan.seed)
    points = max(size, plan.points // size * size)
    arrow: list[pa.Table] = []
    keyed: list[list[Any]] = []
    asked = 0

    def prepare() -> None:
        nonlocal asked
        readings = source.take(points)
        whole = arrow_of(readings)
        rows = readings.keyed_tuples()
        arrow[:] = [whole.slice(start, size) for start in range(0, points, size)]
        keyed[:] = [rows[start : start + size] for start in range(0, points, size)]
        asked += points

    with plan.scratch() as folder, ExitStack() as open_:
        store = open_.enter_context(Store(folder / "store"))
        stores = {_PRODUCT: store}
        if size == min(_SIZES.values()):  # it is slow, and no faster with larger tables
            stores[_ON_SQLITE] = open_.enter_context(Store(folder / "alone", Settings(engine="sqlite")))
        sqlite = TunedSQLite(folder / "ready.sqlite", source.series)
        duckdb = DuckDBInsert(folder)
        open_.callback(sqlite.close)
        open_.callback(duckdb.close)

        def judge(samples: dict[str, Samples]) -> list[Figure]:
            counts = {
                name: int(one.sql("SELECT count(*) AS n FROM time_series_data")[0]["n"])
                for name, one in stores.items()
            }
            counts |= {sqlite.name: sqlite.count(), duckdb.name: duckdb.count()}
            if set(counts.values()) != {asked}:
                raise RuntimeError(f"each side got {asked} points, but they have {counts}")
            note = f"{asked:,} points at the end"
            return [
                ratio(f"{key}-sqlite", samples, _PRODUCT, sqlite.name, "points/s", note),
                ratio(f"{key}-duckdb", samples, _PRODUCT, duckdb.name, "points/s", note),
            ]

        def one_by_one(insert: Callable[[Any], object], given: list[Any]) -> float:
            return timed(lambda: [insert(one) for one in given], points)

        def applied(into: Store) -> None:
            for one in arrow:
                into.points.insert_table(one)
            into.flush()

        yield Contest(
            (f"{key}-sqlite", f"{key}-duckdb"),
            [
                Side(name, lambda one=one: timed(lambda: applied(one), points), one.compact)  # type: ignore[misc]
                for name, one in stores.items()
            ],
            [
                Side(sqlite.name, lambda: one_by_one(sqlite.insert_many, keyed)),
                Side(duckdb.name, lambda: one_by_one(duckdb.insert, arrow)),
            ],
            judge,
            prepare,
        )
