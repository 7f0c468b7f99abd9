"""Batches, acknowledged: tuples against raw executemany, dicts against SQLAlchemy Core, both into tuned SQLite.

The store is measured with its defaults, where the background thread flushes at the same time; without that thread; and
until the last point is in the columns. The first of these is the figure that counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.data import Readings, Source
from benchmarks.measure import Contest, Figure, Plan, Samples, Side, ratio, timed
from benchmarks.peers.sqlalchemy_core import SQLAlchemyCore
from benchmarks.peers.sqlite_tuned import TunedSQLite
from repo import Settings, Store

__all__ = ["dicts", "tuples"]

_DEFAULT = "holdfast"
_ALONE = "holdfast, background off"
_APPLIED = "holdfast, until in the columns"
_Rows = Sequence[Any]


def tuples(plan: Plan) -> Iterator[Contest | Figure]:
    """Batches of 1,000 tuples."""
    yield from _batches("batch-1000-tuples", 1_000, plan, Readings.named_tuples, _sqlite_peers)


def dicts(plan: Plan) -> Iterator[Contest | Figure]:
    """Batches of 10,000 dicts."""
    yield from _batches("batch-10000-dicts", 10_000, plan, Readings.named_dicts, _core_peers)


_Peer = tuple[str, Callable[[Readings], _Rows], Callable[[_Rows], object], Callable[[], int]]
"""Name, its rows of the readings, its insert, its count of points."""


def _sqlite_peers(folder: Path, source: Source, open_: ExitStack) -> list[_Peer]:
    ready = TunedSQLite(folder / "ready.sqlite", source.series)
    open_.callback(ready.close)
    peers: list[_Peer] = [(ready.name, Readings.keyed_tuples, ready.insert_many, ready.count)]
    if source.shape == "regular":
        named = TunedSQLite(folder / "named.sqlite", source.series)
        open_.callback(named.close)
        peers.append(
            (f"{named.name}, from the same rows", Readings.named_tuples, named.insert_named, named.count)
        )
    return peers


def _core_peers(folder: Path, source: Source, open_: ExitStack) -> list[_Peer]:
    core = SQLAlchemyCore(folder / "core.sqlite", source.series)
    open_.callback(core.close)
    keys = ("series", "time_us", "value", "quality", "metadata")

    def keyed_dicts(readings: Readings) -> _Rows:
        return [dict(zip(keys, row, strict=True)) for row in readings.keyed_tuples()]

    return [(core.name, keyed_dicts, core.insert_many, core.count)]


def _batches(
    key: str,
    size: int,
    plan: Plan,
    form: Callable[[Readings], _Rows],
    make_peers: Callable[[Path, Source, ExitStack], list[_Peer]],
) -> Iterator[Contest | Figure]:
    source = Source(plan.shape, plan.seed)
    points = max(size, plan.points // size * size)
    now: list[Readings] = []
    asked = 0

    def prepare() -> None:
        nonlocal asked
        now[:] = [source.take(points)]
        asked += points

    def chunks(rows: _Rows) -> list[_Rows]:
        return [rows[start : start + size] for start in range(0, points, size)]

    with plan.scratch() as folder, ExitStack() as open_:
        store = open_.enter_context(Store(folder / "store"))
        alone = open_.enter_context(Store(folder / "alone", Settings(background=False)))
        peers = make_peers(folder, source, open_)
        applied: list[float] = []
        began_s = 0.0

        def run(form: Callable[[Readings], _Rows], insert: Callable[[_Rows], object]) -> float:
            nonlocal began_s
            batches = chunks(form(now[0]))

            def work() -> None:
                for batch in batches:
                    insert(batch)

            began_s = time.perf_counter()
            return timed(work, points)

        def until_applied() -> None:
            store.flush()
            applied.append(points / (time.perf_counter() - began_s))
            store.compact()

        def side(name: str, form: Callable[[Readings], _Rows], insert: Callable[[_Rows], object]) -> Side:
            return Side(name, lambda: run(form, insert))

        def judge(samples: dict[str, Samples]) -> list[Figure]:
            count = int(store.sql("SELECT count(*) AS n FROM time_series_data")[0]["n"])
            counts = {_DEFAULT: count} | {name: counted() for name, _, _, counted in peers}
            if set(counts.values()) != {asked}:
                raise RuntimeError(f"each side got {asked} points, but they have {counts}")
            samples[_APPLIED] = Samples(_APPLIED, applied[-len(samples[_DEFAULT].values) :])
            return [ratio(key, samples, _DEFAULT, peers[0][0], "points/s")]

        yield Contest(
            (key,),
            [
                Side(_DEFAULT, lambda: run(form, store.points.insert_many), until_applied),
                Side(_ALONE, lambda: run(form, alone.points.insert_many), alone.flush),
            ],
            [side(name, rows_of, insert) for name, rows_of, insert, _ in peers],
            judge,
            prepare,
        )
