"""The queries that are compared, and the contest of a query between the store and any number of peers.

All sides answer the same random questions, to the same result; answers are compared before anything is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from random import Random
from typing import Any

from benchmarks.cached import CachedReadings
from benchmarks.measure import Contest, Samples, Side, ratio
from benchmarks.peers.base import Database
from repo import Store

__all__ = ["PRODUCT", "QUERIES", "Query", "asked", "require_same"]

PRODUCT = "holdfast"

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_LONG_S = 1.0
_VERY_LONG_S = 10.0
"""A side that takes longer for an answer is asked once: the answer that is compared is the one that is timed."""

_RUN_S = 3.0
"""A run ends after so long, even if questions are left."""

Question = tuple[int, int]
"""The number of a series, and the start of the queried range."""

Ask = Callable[[Question], Any]


@dataclass(frozen=True, slots=True)
class Query:
    """`ours` gets sensor, metric, and the range in seconds; `theirs` the number of the series, and the range in µs."""

    key: str
    count: int
    """Questions per run."""

    width_us: int
    ours: Callable[[Store, str, str, float, float], Any]
    theirs: Callable[[Any, int, int, int], Any]


QUERIES = {
    query.key: query
    for query in (
        Query(
            "range-1h",
            20,
            _HOUR_US,
            lambda store, *where: store.points.range(*where).all(),
            lambda peer, *where: peer.range_dicts(*where),
        ),
        Query(
            "range-24h",
            4,
            _DAY_US,
            lambda store, *where: store.points.range(*where).all(),
            lambda peer, *where: peer.range_dicts(*where),
        ),
        Query(
            "range-24h-arrow",
            4,
            _DAY_US,
            lambda store, *where: store.points.range(*where).to_arrow(),
            lambda peer, *where: peer.range_arrow(*where),
        ),
        Query(
            "aggregate-24h",
            10,
            _DAY_US,
            lambda store, *where: store.points.aggregate(*where)[0]["avg"],
            lambda peer, *where: peer.average(*where),
        ),
        Query(
            "buckets-one",
            5,
            _DAY_US,
            lambda store, *where: store.points.aggregate(*where, every="1m"),
            lambda peer, *where: peer.minutes_of_one(*where),
        ),
        Query(
            "buckets-all",
            1,
            _DAY_US,
            lambda store, _sensor, _metric, *span: store.points.aggregate(None, None, *span, every="1m"),
            lambda peer, _number, *span: peer.minutes_of_all(*span),
        ),
        Query(
            "latest-one",
            200,
            _DAY_US,
            lambda store, sensor, metric, *_: store.points.latest(sensor, metric)[0],
            lambda peer, number, *_: peer.latest_of_one(number),
        ),
        Query(
            "latest-all",
            50,
            _DAY_US,
            lambda store, *_: store.points.latest(None),
            lambda peer, *_: peer.latest_of_all(),
        ),
    )
}


def asked(
    query: Query,
    store: Store,
    held: CachedReadings,
    peers: Sequence[Database],
    *,
    others: Mapping[str, Callable[[int, int, int], Any]] | None = None,
    same: Callable[[Any, Any], bool] | None = None,
    most_rounds: int = 100,
) -> Contest:
    """Return the contest; it yields a figure for each peer.

    `others` are further sides, whose answers are not compared. Raises `RuntimeError` if a peer's answer is not `same`.
    """
    questions: list[Question] = []
    draw = Random(held.seed)
    latest_start = max(held.first_us, held.last_us - query.width_us)

    def prepare() -> None:
        # Whole seconds, so that the times mean the same as floats and as integers.
        seconds = [
            draw.randint(held.first_us // 10**6, latest_start // 10**6) for _ in range(query.count + 1)
        ]
        questions[:] = [(draw.randrange(len(held.series)), second * 10**6) for second in seconds]

    def of_store(question: Question) -> Any:
        number, start_us = question
        end_us = start_us + query.width_us
        return query.ours(store, *held.series[number], start_us / 1e6, end_us / 1e6)

    def of(theirs: Callable[[int, int, int], Any]) -> Ask:
        return lambda question: theirs(question[0], question[1], question[1] + query.width_us)

    def of_peer(peer: Database) -> Ask:
        return of(lambda *where: query.theirs(peer, *where))

    prepare()
    answer = of_store(questions[0])
    once: dict[str, float] = {}
    for peer in peers:
        started = time.perf_counter()
        theirs = of_peer(peer)(questions[0])
        lasted_s = time.perf_counter() - started
        if lasted_s > _VERY_LONG_S:
            once[peer.name] = 1 / lasted_s
        require_same(f"{query.key}, {peer.name}", answer, theirs, same)
    del answer, theirs
    sides = {peer.name: of_peer(peer) for peer in peers}
    sides |= {name: of(theirs) for name, theirs in (others or {}).items()}

    def side(name: str, ask: Ask) -> Side:
        return Side(name, lambda: once.get(name) or _rate(ask, questions))

    def judge(samples: dict[str, Samples]) -> list[Any]:
        note = f"{held.points:,} points, {len(held.series)} series; up to {query.count} queries per run"
        if once:
            note += f"; asked once: {', '.join(once)}"
        return [ratio(query.key, samples, PRODUCT, peer.name, "queries/s", note, peer.key) for peer in peers]

    return Contest(
        (query.key,),
        [side(PRODUCT, of_store)],
        [side(name, ask) for name, ask in sides.items()],
        judge,
        prepare,
        # Every side has just answered a question, and the first one of each run is not timed.
        warm_up=False,
        most_rounds=most_rounds,
    )


def _rate(ask: Ask, questions: Sequence[Question]) -> float:
    """Return queries per second.

    The first query is not timed, so that no side pays for what the run of another side evicted from the caches. If it
    takes long, that share is small, and it is the only query.
    """
    started = time.perf_counter()
    ask(questions[0])
    first_s = time.perf_counter() - started
    if first_s > _LONG_S:
        return 1 / first_s
    done, lasted_s, started = 0, 0.0, time.perf_counter()
    for question in questions[1:]:
        ask(question)
        done, lasted_s = done + 1, time.perf_counter() - started
        if lasted_s > _RUN_S:
            break
    return done / lasted_s


def require_same(what: str, ours: Any, theirs: Any, same: Callable[[Any, Any], bool] | None = None) -> None:
    """Raise unless both sides returned the same result; averages may differ by rounding."""
    if not (same or _same)(_in_order(ours), _in_order(theirs)):
        raise RuntimeError(f"{what}: the store and its peer returned different results")


def _in_order(rows: Any) -> Any:
    order = ("sensor_id", "metric_name", "timestamp_us", "bucket")
    return sorted(rows, key=lambda r: [r[k] for k in order if k in r]) if isinstance(rows, list) else rows


def _same(a: Any, b: Any) -> bool:
    if hasattr(a, "to_pylist"):
        return _same(_plain(a), _plain(b))
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return bool(a == b)


def _plain(table: Any) -> Any:
    """Return the rows of an Arrow table; a time is its µs, with or without a zone."""
    at = table.schema.get_field_index("timestamp")
    return table.set_column(at, "timestamp", table["timestamp"].cast("int64")).to_pylist()
