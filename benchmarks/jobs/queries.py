"""Queries on a large cached store, compared with the same points in tuned SQLite, to the same results.

Both files are created once and cached. The first query of each run is not timed, so that neither side pays for what the
other's run evicted from the caches.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from math import isclose
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.data import START_US, Source
from benchmarks.measure import Contest, Figure, Plan, Samples, Side, ratio
from benchmarks.peers.sqlite_tuned import TunedSQLite
from repo import Store

__all__ = ["queries"]

HOUR_US = 3_600_000_000
SPAN_S = 100_000
"""The time span of the cached store: a little more than a day, for any number of points."""

DRAIN_PAGE_ROWS = 100_000
DRAIN_PAGES = 10

_LOAD_CHUNK = 500_000
_LOAD_BATCH = 10_000
_PRODUCT = "holdfast"
_SAME = "tuned SQLite"
_TUPLES = "tuned SQLite, to plain tuples"

Question = tuple[int, int]
"""The number of a series, and the start of the queried range."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """Facts about the two cached files."""

    series: list[list[str]]
    first_us: int
    last_us: int
    points: int
    load_s: float
    peer_load_s: float
    bytes: int
    peer_bytes: int


def queries(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure ranges, aggregates, latest values and a drain."""
    folder, standing = _standing(plan)
    series = [(sensor, metric) for sensor, metric in standing.series]
    draw = Random(plan.seed)
    asked: list[Question] = []

    with ExitStack() as open_:
        store = open_.enter_context(Store(folder / "store"))
        sqlite = TunedSQLite(folder / "peer.sqlite", series)
        open_.callback(sqlite.close)
        points = store.points

        def contest(
            key: str,
            count: int,
            width_us: int,
            ours: Callable[[str, str, float, float], Any],
            theirs: Callable[[int, int, int], Any],
            tuples: Callable[[int, int, int], Any] | None = None,
        ) -> Contest:
            latest_start = max(standing.first_us, standing.last_us - width_us)

            def prepare() -> None:
                # Whole seconds, so that the times mean the same as floats and as integers.
                seconds = [
                    draw.randint(standing.first_us // 10**6, latest_start // 10**6) for _ in range(count + 1)
                ]
                asked[:] = [(draw.randrange(len(series)), second * 10**6) for second in seconds]

            def ask_ours(question: Question) -> Any:
                number, start_us = question
                return ours(*series[number], start_us / 1e6, (start_us + width_us) / 1e6)

            def ask(peer: Callable[[int, int, int], Any]) -> Callable[[Question], Any]:
                return lambda question: peer(question[0], question[1], question[1] + width_us)

            prepare()
            _require_same(key, ask_ours(asked[0]), ask(theirs)(asked[0]))
            peers = [Side(_SAME, lambda: _answers(ask(theirs), asked))]
            if tuples is not None:
                peers.append(Side(_TUPLES, lambda: _answers(ask(tuples), asked)))
            note = f"{standing.points:,} points, {len(series)} series; {count} queries per run"
            return Contest(
                (key,),
                [Side(_PRODUCT, lambda: _answers(ask_ours, asked))],
                peers,
                lambda samples: [ratio(key, samples, _PRODUCT, _SAME, "queries/s", note)],
                prepare,
            )

        def exact(sensor: str, metric: str, start: float, end: float) -> Any:
            return points.range(sensor, metric, start, end).all()

        hour, day = HOUR_US, 24 * HOUR_US
        yield contest("range-1h", 20, hour, exact, sqlite.range_dicts, sqlite.range_tuples)
        yield contest("range-24h", 4, day, exact, sqlite.range_dicts, sqlite.range_tuples)
        yield contest(
            "range-24h-arrow",
            4,
            day,
            lambda *where: points.range(*where).to_arrow(),
            sqlite.range_arrow,
        )
        yield contest(
            "aggregate-24h",
            10,
            day,
            lambda *where: points.aggregate(*where)[0]["avg"],
            sqlite.average,
        )
        yield contest(
            "buckets-one",
            5,
            day,
            lambda *where: points.aggregate(*where, every="1m"),
            sqlite.minutes_of_one,
        )
        yield contest(
            "buckets-all",
            1,
            day,
            lambda _s, _m, start, end: points.aggregate(None, None, start, end, every="1m"),
            lambda _number, start_us, end_us: sqlite.minutes_of_all(start_us, end_us),
        )
        yield contest(
            "latest-one",
            200,
            day,
            lambda sensor, metric, _start, _end: points.latest(sensor, metric)[0],
            lambda number, _start, _end: sqlite.latest_of_one(number),
        )
        yield contest(
            "latest-all",
            50,
            day,
            lambda *_: points.latest(None),
            lambda *_: sqlite.latest_of_all(),
        )
        yield Contest(
            ("drain",),
            [Side(_PRODUCT, lambda: _drained(_after(store)))],
            [
                Side(_SAME, lambda: _drained(sqlite.drain_dicts(DRAIN_PAGE_ROWS))),
                Side(_TUPLES, lambda: _drained(sqlite.drain(DRAIN_PAGE_ROWS))),
            ],
            lambda samples: [
                ratio("drain", samples, _PRODUCT, _SAME, "points/s", f"the first {DRAIN_PAGES} pages")
            ],
        )
        yield Contest(
            ("drain-tuples",),
            [Side(_PRODUCT, lambda: _drained(points.since(0).tuples(DRAIN_PAGE_ROWS)))],
            [Side(_TUPLES, lambda: _drained(sqlite.drain(DRAIN_PAGE_ROWS)))],
            lambda samples: [
                ratio(
                    "drain-tuples", samples, _PRODUCT, _TUPLES, "points/s", f"the first {DRAIN_PAGES} pages"
                )
            ],
        )
        yield Contest(
            ("drain-arrow",),
            [Side(_PRODUCT, lambda: _drained(points.since(0).batches(), None))],
            [Side(_TUPLES, lambda: _drained(sqlite.drain(DRAIN_PAGE_ROWS)))],
            lambda samples: [
                ratio(
                    "drain-arrow",
                    samples,
                    _PRODUCT,
                    _TUPLES,
                    "points/s",
                    "all points; the peer's first pages",
                )
            ],
        )
    yield _loading(standing)


def _answers(ask: Callable[[Question], Any], questions: list[Question]) -> float:
    ask(questions[0])
    started = time.perf_counter()
    for question in questions[1:]:
        ask(question)
    return (len(questions) - 1) / (time.perf_counter() - started)


def _after(store: Store) -> Iterator[list[Any]]:
    seq = 0
    while page := store.points.after(seq, DRAIN_PAGE_ROWS):
        yield page
        seq = page[-1]["seq"]


def _drained(pages: Iterator[Any], most: int | None = DRAIN_PAGES) -> float:
    started = time.perf_counter()
    count = sum(len(page) for page in islice(pages, most))
    return count / (time.perf_counter() - started)


def _require_same(key: str, ours: Any, theirs: Any) -> None:
    """Raise unless both sides returned the same result; averages may differ by rounding."""

    def same(a: Any, b: Any) -> bool:
        if hasattr(a, "to_pylist"):
            return same(a.to_pylist(), b.to_pylist())
        if isinstance(a, list):
            return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict):
            return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, float) and isinstance(b, float):
            return isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
        return bool(a == b)

    def sorted_rows(rows: Any) -> Any:
        order = ("sensor_id", "metric_name", "timestamp_us", "bucket")
        return sorted(rows, key=lambda r: [r[k] for k in order if k in r]) if isinstance(rows, list) else rows

    if not same(sorted_rows(ours), sorted_rows(theirs)):
        raise RuntimeError(f"{key}: the store and its peer returned different results")


# --- the cached files -----------------------------------------------------------------------------------


def _standing(plan: Plan) -> tuple[Path, _Standing]:
    folder = plan.cache / f"standing-{plan.shape}-{plan.seed}-{plan.store_points}"
    ready = folder / "ready.json"
    if plan.rebuild or not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ready.write_text(json.dumps(asdict(_load(plan, folder))))
    return folder, _Standing(**json.loads(ready.read_text()))


def _load(plan: Plan, folder: Path) -> _Standing:
    """Fill both files with the same points, in order of arrival, in batches."""
    source = Source(plan.shape, plan.seed, rate_hz=plan.store_points / 100 / SPAN_S)
    sqlite = TunedSQLite(folder / "peer.sqlite", source.series)
    first_us, last_us, left = START_US * 2, 0, plan.store_points
    load_s = peer_load_s = 0.0
    with Store(folder / "store") as store:
        while left:
            readings = source.take(min(left, _LOAD_CHUNK))
            first_us, last_us = min(first_us, *readings.times_us), max(last_us, *readings.times_us)
            left -= len(readings)
            load_s += _fed(store.points.insert_many, readings.named_tuples(), store.flush)
            peer_load_s += _fed(sqlite.insert_many, readings.keyed_tuples(), lambda: None)
            print(f"  loading: {left:,} points left", flush=True)
        started = time.perf_counter()
        store.checkpoint()
        load_s += time.perf_counter() - started
    sqlite.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sqlite.connection.execute("ANALYZE")
    sqlite.close()
    return _Standing(
        [list(pair) for pair in source.series],
        first_us,
        last_us,
        plan.store_points,
        load_s,
        peer_load_s,
        sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file()),
        (folder / "peer.sqlite").stat().st_size,
    )


def _fed(insert: Callable[[Any], object], rows: list[Any], finish: Callable[[], object]) -> float:
    started = time.perf_counter()
    for start in range(0, len(rows), _LOAD_BATCH):
        insert(rows[start : start + _LOAD_BATCH])
    finish()
    return time.perf_counter() - started


def _loading(standing: _Standing) -> Figure:
    ours = Samples(_PRODUCT, [standing.points / standing.load_s])
    theirs = Samples(_SAME, [standing.points / standing.peer_load_s])
    ours_bytes, theirs_bytes = standing.bytes / standing.points, standing.peer_bytes / standing.points
    sizes = f"bytes per point on disk: {ours_bytes:.1f} and {theirs_bytes:.1f}"
    return Figure("load", [ours.median / theirs.median], [ours, theirs], "points/s", f"once; {sizes}")
