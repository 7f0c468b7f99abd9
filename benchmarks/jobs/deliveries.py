"""Deliveries: the backlog of a store to each kind of sink.

Each delivery is compared with the bulk loader that the destination itself has, and with reading the same backlog row by
row from SQLite. It runs in a process of its own, for its memory, and goes to an empty destination. The backlog is
compacted, as it is after a long outage. What takes long is measured once.
A delivery ends after the `delivery_s` of the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from itertools import count, islice
from typing import Any

from benchmarks.asking import PRODUCT
from benchmarks.cached import CachedReadings, cached_readings
from benchmarks.destinations import DESTINATIONS, Destination
from benchmarks.drain import DISCARDS, Delivered, delivered
from benchmarks.measure import Contest, Figure, Plan, Samples, Side, ratio, timed
from benchmarks.peers.sqlite_tuned import TunedSQLite
from repo import Store

__all__ = ["KEYS", "deliveries"]

KEYS = ("deliver-columns", *(destination.key for destination in DESTINATIONS))

_PAGE_ROWS, _PAGES = 100_000, 30
_ROWS = "tuned SQLite"
_number = count()


def deliveries(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure a sink that forgets the columns, and each destination that is installed here."""
    held = cached_readings(plan)
    with ExitStack() as open_:
        folder = open_.enter_context(plan.scratch())
        rows = partial(_row_by_row, held)
        yield _contest("deliver-columns", held, partial(_discarded, held), rows, rounds=3)
        for kind in DESTINATIONS:
            if missing := kind.missing():
                yield Figure(kind.key, [], skipped=missing)
                continue
            with ExitStack() as until_done:
                make = partial(kind, held, folder / kind.key, plan.cache / "servers", until_done)
                started = cache(make)  # when its contest is played, not when it is passed over
                deliver = partial(_delivered, held, started, plan.delivery_s)
                load = partial(_loaded, started)
                yield _contest(kind.key, held, deliver, rows, load, kind.loader)


def _delivered(held: CachedReadings, started: Callable[[], Destination], most_s: float) -> Delivered:
    name = f"bench{next(_number)}"
    folder, there = held.store(compacted=True), started()
    with Store(folder) as store:
        for left in store.sinks.list():  # by a run that was stopped
            store.sinks.remove(left.name)
        there.add(store, name)
    return delivered(folder, name, most_s)


def _loaded(started: Callable[[], Destination]) -> float:
    there = started()
    return timed(there.load, there.loaded)


def _discarded(held: CachedReadings) -> Delivered:
    return delivered(held.store(compacted=True), DISCARDS, 300)


def _row_by_row(held: CachedReadings) -> float:
    sqlite: Any = held.peer(TunedSQLite, TunedSQLite.key)
    try:
        pages = islice(sqlite.drain(_PAGE_ROWS), _PAGES)
        started = time.perf_counter()
        rows = sum(map(len, pages))
        return rows / (time.perf_counter() - started)
    finally:
        sqlite.close()


def _contest(
    key: str,
    held: CachedReadings,
    deliver: Callable[[], Delivered],
    rows: Callable[[], float],
    load: Callable[[], float] | None = None,
    loader: str = "",
    rounds: int = 1,
) -> Contest:
    runs: list[Delivered] = []

    def ours() -> float:
        runs.append(deliver())
        return runs[-1].rate

    def judge(samples: dict[str, Samples]) -> list[Figure]:
        peers = {_ROWS: TunedSQLite.key} | ({loader: f"{key}-loader"} if load else {})
        points, own_mb = min(run.points for run in runs), max(run.own_mb for run in runs)
        both_mb = max(run.with_engine_mb for run in runs)
        part = "" if points == held.points else f" of {held.points:,}"
        memory = f"+{own_mb:.0f} MB at the peak, +{both_mb:.0f} MB with DuckDB's"
        note = f"{points:,}{part} points, {len(held.series)} series; {memory}"
        figures = []
        for name, peer_key in peers.items():
            figure = ratio(key, samples, PRODUCT, name, "points/s", note, peer_key)
            figure.details = {
                "points": points,
                "own_mb": round(own_mb, 1),
                "with_engine_mb": round(both_mb, 1),
            }
            figures.append(figure)
        return figures

    peers = [Side(_ROWS, rows), *([Side(loader, load)] if load else [])]
    return Contest((key,), [Side(PRODUCT, ours)], peers, judge, warm_up=rounds > 1, most_rounds=rounds)
