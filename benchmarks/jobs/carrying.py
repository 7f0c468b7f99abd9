"""Export to a Parquet file and import: compared with tuned SQLite, and with DuckDB's own statements.

Every side has the same points and writes a file of them. Then every side reads the store's file into an empty database
of its own, and so do the two designs of the legacy program. The store's time includes its checksums and its validation
of the whole file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.data import Source
from benchmarks.measure import Contest, Figure, Plan, Samples, Side, ratio, timed
from benchmarks.peers import sqlite_parquet
from benchmarks.peers.arrow import arrow_of
from benchmarks.peers.duckdb_parquet import DuckDBParquet
from benchmarks.peers.legacy_duckdb import LegacyDuckDB
from benchmarks.peers.legacy_sqlite import LegacySQLite
from benchmarks.peers.sqlite_tuned import TunedSQLite
from repo import Settings, Store

__all__ = ["KEYS", "MEMORY_LIMIT_BYTES", "carrying"]

MEMORY_LIMIT_BYTES = 128_000_000

_PIECE = 500_000
_PRODUCT = "holdfast"
_ON_SQLITE = "holdfast on SQLite alone"
_SQLITE = "tuned SQLite and pyarrow"

KEYS = (
    "export-sqlite",
    "export-duckdb",
    "export-bytes",
    "import-sqlite",
    "import-duckdb",
    "claim-import",
)


def carrying(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure exports, imports, and the sizes of the files."""
    with plan.scratch() as folder, ExitStack() as open_:
        points = plan.carried_points
        source = Source(plan.shape, plan.seed)
        stores = {name: open_.enter_context(_store(folder, name)) for name in (_PRODUCT, _ON_SQLITE)}
        sqlite = TunedSQLite(folder / "tuned.sqlite", source.series)
        duckdb = DuckDBParquet(folder / "plain.duckdb")
        open_.callback(sqlite.close)
        open_.callback(duckdb.close)
        _fill(source, points, stores.values(), sqlite, duckdb)
        files = {name: folder / f"{name}.parquet" for name in (*stores, _SQLITE, duckdb.name)}

        def export(name: str, write: Callable[[Path], object]) -> Side:
            return Side(name, lambda: timed(lambda: write(files[name]), points))

        def judge_exports(samples: dict[str, Samples]) -> list[Figure]:
            note = ", ".join(
                f"{name}: {file.stat().st_size / points:.2f} bytes per point" for name, file in files.items()
            )
            own = [files[_PRODUCT].stat().st_size / points]
            return [
                ratio("export-sqlite", samples, _PRODUCT, _SQLITE, "points/s", note),
                ratio("export-duckdb", samples, _PRODUCT, duckdb.name, "points/s"),
                Figure("export-bytes", own, note=f"{points:,} points"),
            ]

        yield Contest(
            ("export-sqlite", "export-duckdb", "export-bytes"),
            [export(name, store.export_parquet) for name, store in stores.items()],
            [
                export(_SQLITE, lambda path: sqlite_parquet.export(sqlite, path)),
                export(duckdb.name, duckdb.export),
            ],
            judge_exports,
        )
        stores[_PRODUCT].export_parquet(files[_PRODUCT])
        yield _imports(folder / "in", points, source.series, files[_PRODUCT], open_)


def _imports(
    folder: Path, points: int, series: Sequence[tuple[str, str]], file: Path, open_: ExitStack
) -> Contest:
    """Import into an empty database of every side, which is created before each round."""
    now: dict[str, Any] = {}

    def close() -> None:
        for side in now.values():
            side.close()
        now.clear()

    def prepare() -> None:
        close()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in (_PRODUCT, _ON_SQLITE):
            now[name] = _store(folder, name)
            now[name].flush()  # creates its column file; the tables of the peers exist, too
        now[_SQLITE] = TunedSQLite(folder / "tuned.sqlite", series)
        now[DuckDBParquet.name] = DuckDBParquet(folder / "plain.duckdb")
        now[LegacySQLite.name] = LegacySQLite(folder / "legacy.sqlite", series)
        now[LegacyDuckDB.name] = LegacyDuckDB(folder / "legacy.duckdb", series)

    def checked(name: str, read: Callable[[], object], count: Callable[[], int]) -> float:
        rate = timed(read, points)
        if count() != points:
            raise RuntimeError(f"{name} holds {count():,} of {points:,} points")
        return rate

    def own(name: str) -> Side:
        def count() -> int:
            return int(now[name].sql("SELECT count(*) AS n FROM time_series_data")[0]["n"])

        return Side(name, lambda: checked(name, lambda: now[name].import_parquet(file), count))

    def peer(name: str, read: Callable[[], object]) -> Side:
        return Side(name, lambda: checked(name, read, lambda: now[name].count()))

    def judge(samples: dict[str, Samples]) -> list[Figure]:
        claimed = {
            _SQLITE: TunedSQLite.key,
            LegacySQLite.name: LegacySQLite.key,
            LegacyDuckDB.name: LegacyDuckDB.key,
        }
        return [
            ratio("import-sqlite", samples, _PRODUCT, _SQLITE, "points/s"),
            ratio("import-duckdb", samples, _PRODUCT, DuckDBParquet.name, "points/s"),
            *(
                ratio("claim-import", samples, _PRODUCT, name, "points/s", "", key)
                for name, key in claimed.items()
            ),
        ]

    open_.callback(close)
    return Contest(
        ("import-sqlite", "import-duckdb", "claim-import"),
        [own(_PRODUCT), own(_ON_SQLITE)],
        [
            peer(_SQLITE, lambda: sqlite_parquet.import_(now[_SQLITE], file)),
            peer(DuckDBParquet.name, lambda: now[DuckDBParquet.name].import_(file)),
            peer(LegacySQLite.name, lambda: now[LegacySQLite.name].import_parquet(file)),
            peer(LegacyDuckDB.name, lambda: now[LegacyDuckDB.name].import_parquet(file)),
        ],
        judge,
        prepare,
    )


def _store(folder: Path, name: str) -> Store:
    engine: Any = "sqlite" if name == _ON_SQLITE else "auto"
    return Store(folder / name, Settings(engine=engine, duckdb_memory_limit_bytes=MEMORY_LIMIT_BYTES))


def _fill(source: Source, points: int, stores: Any, sqlite: TunedSQLite, duckdb: DuckDBParquet) -> None:
    """Insert the same points into all sides, in pieces: as rows, all of them would not fit into memory."""
    for start in range(0, points, _PIECE):
        readings = source.take(min(_PIECE, points - start))
        table = arrow_of(readings)
        for store in stores:
            store.points.insert_table(table)
        sqlite.insert_many(readings.keyed_tuples())
        duckdb.insert(table)
    for store in stores:
        store.checkpoint()
