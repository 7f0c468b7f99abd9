"""Single inserts: one thread compared with raw commits, and eight threads with one, with and without a slow disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import slow_fsync
from benchmarks.data import Source
from benchmarks.measure import Contest, Figure, Plan, Samples, Side, ratio
from benchmarks.peers.duckdb_autocommit import DuckDBAutocommit
from benchmarks.peers.sqlite_commits import SQLiteCommits
from repo import Store

__all__ = ["one", "threads"]

SLOW_FSYNC_MS = 5.0
_MOST_A_SECOND = 60_000
"""More rows than any side can insert per second."""


def one(plan: Plan) -> Iterator[Contest | Figure]:
    """Compare durable inserts through the API, one after the other, with commits of raw SQLite and of DuckDB."""
    source = Source(plan.shape, plan.seed)
    rows: list[Any] = []
    keyed: list[Any] = []

    def prepare() -> None:
        readings = source.take(int(_MOST_A_SECOND * plan.run_s))
        rows[:] = readings.named_tuples()
        keyed[:] = readings.keyed_tuples()

    with plan.scratch() as folder, ExitStack() as open_:
        store = open_.enter_context(Store(folder / "store"))
        sqlite = SQLiteCommits(folder)
        duckdb = DuckDBAutocommit(folder)
        open_.callback(sqlite.close)
        open_.callback(duckdb.close)

        def insert(row: Sequence[Any]) -> None:
            sensor, metric, at, value, *rest = row
            store.points.insert(sensor, metric, value, at, *rest)

        yield Contest(
            ("insert-one-sqlite", "insert-one-duckdb"),
            [Side("holdfast", lambda: _for_a_while(insert, rows, plan.run_s), store.flush)],
            [
                Side(sqlite.name, lambda: _for_a_while(sqlite.insert, keyed, plan.run_s)),
                Side(duckdb.name, lambda: _for_a_while(duckdb.insert, keyed, plan.run_s)),
            ],
            lambda samples: [
                ratio("insert-one-sqlite", samples, "holdfast", sqlite.name, "inserts/s"),
                ratio("insert-one-duckdb", samples, "holdfast", duckdb.name, "inserts/s"),
            ],
            prepare,
            times=2,
        )


def threads(plan: Plan) -> Iterator[Contest | Figure]:
    """Compare eight threads with one, in a separate process whose fsync can be slowed down."""
    with plan.scratch() as folder:
        yield _in_child("threads-8", plan, folder / "quick", {})
        slow = slow_fsync.environment(folder, SLOW_FSYNC_MS)
        if isinstance(slow, str):
            yield Figure("threads-8-slow-fsync", [], skipped=slow)
        else:
            yield _in_child("threads-8-slow-fsync", plan, folder / "slow", slow)


def _in_child(key: str, plan: Plan, folder: Path, variables: dict[str, str]) -> Figure:
    command = [
        sys.executable,
        "-m",
        "benchmarks.contention",
        str(folder),
        str(plan.run_s),
        str(2 * plan.rounds),
    ]
    answer = subprocess.run(
        command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True
    )
    values: dict[str, list[float]] = json.loads(answer.stdout)
    samples = {name: Samples(name, kept) for name, kept in values.items()}
    many, single = samples
    return ratio(key, samples, many, single, "inserts/s")


def _for_a_while(insert: Callable[[Any], object], rows: Sequence[Any], run_s: float) -> float:
    """Insert row after row until the time is over; returns inserts per second."""
    done = 0
    started = time.perf_counter()
    until = started + run_s
    for row in rows:
        insert(row)
        done += 1
        if time.perf_counter() >= until:
            break
    else:
        raise RuntimeError("too few rows for this machine: raise _MOST_A_SECOND")
    return done / (time.perf_counter() - started)
