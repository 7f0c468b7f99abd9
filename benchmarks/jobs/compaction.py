"""Compaction: its time and the bytes that it writes, the bytes that it saves, and inserts that run beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.asking import PRODUCT
from benchmarks.cached import cached_readings, total_bytes
from benchmarks.data import START_US, Shape, Source
from benchmarks.measure import Contest, Figure, Plan, Samples, latencies
from benchmarks.peers.arrow import arrow_of
from repo import Settings, Store

__all__ = ["KEYS", "compaction"]

KEYS = (
    "compact-1m",
    "compact-writes",
    "compact-latency",
    "bytes-tick",
    "bytes-jitter",
)

_ROWS = 1_000_000
_DAY = 100 * 86_400
"""Points of 100 series at 1 Hz in a day."""


def compaction(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure compaction of a million points that came in order of arrival."""
    yield from _a_million(plan)
    yield from _beside(plan)
    yield _bytes(plan, "bytes-tick", "tick")
    yield _bytes(plan, "bytes-jitter", "regular")


def _a_million(plan: Plan) -> Iterator[Figure]:
    seconds, written, per_point = [], [], []
    source = Source("regular", plan.seed)
    for _ in range(plan.rounds):
        with plan.scratch() as folder, Store(folder / "store", _quiet()) as store:
            store.points.insert_table(arrow_of(source.take(_ROWS)))
            store.checkpoint()
            before_bytes, started = _written_bytes(), time.perf_counter()
            store.compact()
            seconds.append(time.perf_counter() - started)
            per_point.append((_written_bytes() - before_bytes) / _ROWS)
            written.append(per_point[-1] * _ROWS / _columns_bytes(folder / "store"))
    note = f"{_ROWS:,} points of 100 series, in order of arrival"
    yield Figure("compact-1m", seconds, [Samples(PRODUCT, seconds)], "s", note)
    day = f"{median(per_point) * _DAY / 1e6:,.0f} MB written for a day of 100 series at 1 Hz"
    sides = [Samples("bytes written per point", per_point)]
    yield Figure("compact-writes", written, sides, "bytes", f"times the size of the column file; {day}")


def _beside(plan: Plan) -> Iterator[Figure]:
    """Insert points one by one while another thread compacts, and as long without it."""
    latencies_ms: dict[str, list[float]] = {"without": [], "beside": []}
    seconds = count(int(START_US / 1e6) + 10 * 86_400)
    rounds = max(2, plan.rounds // 2)
    source = Source("regular", plan.seed)
    for _ in range(rounds):
        with plan.scratch() as folder, Store(folder / "store", _quiet()) as store:
            for _ in range(3):
                store.points.insert_table(arrow_of(source.take(_ROWS)))
            store.checkpoint()
            thread = threading.Thread(target=store.compact)
            started = time.perf_counter()
            thread.start()
            latencies_ms["beside"] += _inserted(store, seconds, thread.is_alive)
            thread.join()
            until = 2 * time.perf_counter() - started
            latencies_ms["without"] += _inserted(store, seconds, lambda end=until: time.perf_counter() < end)
    beside = latencies("beside a compaction", latencies_ms["beside"])
    sides = [*latencies("without one", latencies_ms["without"]), *beside]
    note = f"{len(latencies_ms['beside']):,} durable inserts beside compactions of {3 * _ROWS:,} points"
    yield Figure("compact-latency", beside[1].values, sides, "ms", note)


def _inserted(store: Store, seconds: Iterator[int], going_on: Any) -> list[float]:
    found_ms = []
    while going_on():
        started = time.perf_counter()
        store.points.insert("SENSOR-NEW", "pressure", 1.5, next(seconds))
        found_ms.append((time.perf_counter() - started) * 1000)
    return found_ms


def _bytes(plan: Plan, key: str, shape: Shape) -> Figure:
    """Measure the size of a store; the figure is what the columns of the compacted one use."""
    held = cached_readings(plan, shape=shape)
    sides = []
    for name, compacted in (("compacted", True), ("as it arrived", False)):
        folder = held.store(compacted=compacted)
        files_bytes = total_bytes(folder)
        with Store(folder, _quiet()) as store:
            used_bytes = store.size(inside=True).columns_used_bytes
        sides += [
            Samples(f"{PRODUCT}, {name}, in use in the columns", [used_bytes / held.points]),
            Samples(f"{PRODUCT}, {name}, all files", [files_bytes / held.points]),
        ]
    return Figure(key, sides[0].values, sides, "bytes per point", f"{held.points:,} points")


def _quiet() -> Settings:
    """Return settings under which nothing compacts by itself."""
    return Settings(background=False)


def _written_bytes() -> int:
    """Return the bytes that this process has passed to the disk."""
    with open("/proc/self/io") as found:
        return next(int(line.split()[1]) for line in found if line.startswith("write_bytes:"))


def _columns_bytes(folder: Path) -> int:
    return (folder / "timeseries.duckdb").stat().st_size
