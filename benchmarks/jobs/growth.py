"""Growth: what a store costs as its points, its series and its days become more.

Each size is a store of its own, compacted; two sizes differ in one thing only. The stores are filled through the API
once, and kept. Every act is timed by itself, on a copy; the background thread neither flushes nor compacts during it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks.data import START_US
from benchmarks.measure import Contest, Figure, Plan, Samples
from repo import Settings, Store

__all__ = ["KEYS", "growth"]

KEYS = ("growth-points", "growth-series", "growth-days")

_ROOT = Path(__file__).resolve().parents[2]
_CHUNK = 1_000_000
_FLUSHED = 10_000
_COMPACTED = 1_000_000
_STEADY = 1_000_000
"""Points of a store whose series or days grow."""

_DAYS = (1, 7, 30, 90)
_INSERTS = 300
_FLUSHES = 5
_ASKED = 20
_OPENED = 3
_HOUR_S = 3600.0
_DAY_S = 86_400.0
_FILLING = Settings(background=False)
_QUIET = Settings(compact_background=False, flush_interval_s=86_400)


@dataclass(slots=True)
class _Stream:
    """A reading of each of `count` series per tick; ticks are `step_us` apart."""

    count: int
    step_us: int
    seed: int = 1
    done: int = 0

    def name(self, number: int) -> str:
        """Return the sensor of a series."""
        return f"SENSOR-{number:06}"

    @property
    def now_us(self) -> int:
        """Return the time of the next point."""
        return START_US + self.done // self.count * self.step_us

    def take(self, rows: int) -> Any:
        """Return the next points as an Arrow table."""
        import numpy as np
        import pyarrow

        pa: Any = pyarrow
        numbers = np.arange(self.done, self.done + rows, dtype=np.int64)
        draw = np.random.default_rng(self.seed + self.done)
        jitter = draw.integers(0, min(20_000, self.step_us), rows)
        times = START_US + numbers // self.count * self.step_us + jitter
        codes = (numbers % self.count).astype(np.int32)
        values = np.round(500 + 100 * np.sin(numbers / 1e5 + codes) + draw.random(rows), 2)
        self.done += rows
        names = pa.array([self.name(number) for number in range(self.count)])
        return pa.table(
            {
                "sensor_id": pa.DictionaryArray.from_arrays(pa.array(codes), names),
                "metric_name": pa.DictionaryArray.from_arrays(
                    pa.array(np.zeros(rows, np.int32)), pa.array(["pressure"])
                ),
                "timestamp_us": pa.array(times),
                "value": pa.array(values),
            }
        )

    def tuples(self, rows: int) -> list[tuple[Any, ...]]:
        """Return the next points as an application's rows."""
        table = self.take(rows)
        columns = (table[name].to_pylist() for name in ("sensor_id", "metric_name", "timestamp_us", "value"))
        return [(sensor, metric, us / 1e6, value) for sensor, metric, us, value in zip(*columns, strict=True)]


def growth(plan: Plan) -> Iterator[Contest | Figure]:
    """Yield a figure for each kind of growth; `details` has the curves. The figure is the worst time to open."""
    steady = min(max(plan.growth_points), _STEADY)
    many = [count for count in (10, 100, 1_000, 10_000, 100_000) if count <= steady // 10]
    kinds: dict[str, tuple[Sequence[int], Callable[[int], tuple[_Stream, int]]]] = {
        "points": (plan.growth_points, lambda points: (_Stream(100, 1_000_000), points)),
        "series": (many, lambda count: (_Stream(count, 1_000_000), steady)),
        "days": (_DAYS, lambda days: (_Stream(100, int(days * _DAY_S * 1e6 * 100 / steady)), steady)),
    }
    for key, (unit, (sizes, stream_of)) in zip(KEYS, kinds.items(), strict=True):
        curves: dict[str, list[float]] = {}
        for size in sizes:
            print(f"  growth, {size:,} {unit}", flush=True)
            for name, cost in _costs(plan, *stream_of(size)).items():
                curves.setdefault(name, []).append(cost)
        sides = [
            Samples(f"{name}, {unit} {size:,}", [cost])
            for name, costs in curves.items()
            for size, cost in zip(sizes, costs, strict=True)
        ]
        note = {
            "points": "100 series at 1 Hz",
            "series": f"{steady:,} points",
            "days": f"{steady:,} points of 100 series",
        }
        yield Figure(
            key,
            [max(curves["open, new process"])],
            sides,
            "ms",
            note[unit],
            details={"unit": unit, "sizes": list(sizes), "ms": curves},
        )


def _costs(plan: Plan, stream: _Stream, points: int) -> dict[str, float]:
    """Return the ms of each act on a store with so many points of a stream."""
    draw = Random(plan.seed)
    kept = _filled(plan, stream, points)
    stream.done = points
    with plan.scratch() as folder:
        shutil.copytree(kept, folder / "store")
        costs = _opened(folder / "store", stream)
        with Store(folder / "store", _QUIET) as store:
            costs = _asked(store, stream, draw) | _fed(store, stream) | costs
        with Store(folder / "store", _QUIET) as store:
            store.points.insert_table(stream.take(_COMPACTED))
            store.checkpoint()
            costs["compact 1 M new points"] = _ms(store.compact)
    return costs


def _filled(plan: Plan, stream: _Stream, points: int) -> Path:
    """Return the folder of a compacted store, which is filled if it is not there yet."""
    kept = plan.cache / f"growth-{stream.count}-{stream.step_us}-{points}"
    if not kept.exists():
        part = kept.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        with Store(part, _FILLING) as store:
            while stream.done < points:
                store.points.insert_table(stream.take(min(_CHUNK, points - stream.done)))
            store.checkpoint()
            store.compact()
        part.rename(kept)
    return kept


def _asked(store: Store, stream: _Stream, draw: Random) -> dict[str, float]:
    end_s = stream.now_us / 1e6 + 1
    acts: dict[str, Callable[[str], object]] = {
        "latest of one": lambda name: store.points.latest(name, "pressure"),
        "range of the last hour": lambda name: store.points.range(
            name, "pressure", end_s - _HOUR_S, end_s
        ).all(),
        "average of the last day": lambda name: store.points.aggregate(
            name, "pressure", end_s - _DAY_S, end_s
        ),
        "status": lambda _name: store.status(),
    }
    return {
        act: _median_ms(lambda ask=ask: ask(stream.name(draw.randrange(stream.count))), _ASKED)  # type: ignore[misc]
        for act, ask in acts.items()
    }


def _fed(store: Store, stream: _Stream) -> dict[str, float]:
    rows = iter(stream.tuples(_INSERTS + 1))

    def insert() -> None:
        sensor, metric, at, value = next(rows)
        store.points.insert(sensor, metric, value, at)

    costs = {"durable insert": _median_ms(insert, _INSERTS)}
    store.flush()
    flushes = []
    for _ in range(_FLUSHES + 1):
        store.points.insert_many(stream.tuples(_FLUSHED))
        flushes.append(_ms(store.flush))
    return costs | {"flush of 10,000 points": median(flushes[1:])}


def _opened(folder: Path, stream: _Stream) -> dict[str, float]:
    """Open the store in new processes. Their first read opens the columns."""
    command = [sys.executable, "-m", "benchmarks.opening", str(folder), stream.name(0), "pressure"]
    answers = []
    for _ in range(_OPENED + 1):
        done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
        answers.append(json.loads(done.stdout))
    if any(answer["found"] != 1 for answer in answers):
        raise RuntimeError("a new process does not find the latest point")
    return {
        f"{name}, new process": median(answer[name] for answer in answers[1:])
        for name in ("open", "latest", "status", "first read")
    }


def _median_ms(act: Callable[[], object], times: int) -> float:
    """Do an act once to warm up, and then `times` times."""
    act()
    return median(_ms(act) for _ in range(times))


def _ms(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000
