"""Measures the sides of a comparison alternately, so that other load on the machine affects all of them.

Owns rounds, medians and the profile, but not the jobs or the report.
"""

from __future__ import annotations

import cProfile
import gc
import io
import pstats
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.data import Shape

__all__ = ["Contest", "Figure", "Job", "Plan", "Samples", "Side", "latencies", "ratio", "timed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The amounts, the data and the place of a pass."""

    shape: Shape
    seed: int
    rounds: int
    run_s: float
    """The duration of a run of single inserts: longer than the flush interval, so that it includes flushes."""

    points: int
    """Points per run of batches."""

    store_points: int
    """Points in the cached store that is queried."""

    claimed_points: int
    """Points in the databases of the legacy designs, which take up to a minute for an answer."""

    other_points: int
    """Points that other servers and libraries hold."""

    carried_points: int
    """Points to export and import."""

    legacy_points: int
    """Points in the legacy store to upgrade."""

    sustained_points: int
    """Points that are inserted one batch after the other, until all are in the columns."""

    growth_points: Sequence[int]
    """The sizes of the store at which the growth of costs is measured."""

    delivery_s: float = 20.0
    """A delivery ends after so long, even if its backlog does not."""

    steady_s: float
    cache: Path
    """The folder of stores that are reused by the next run of the benchmarks."""

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a temporary folder on the disk of the cache."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.cache, prefix="run-") as folder:
            yield Path(folder)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison. `run` does its work once and returns units per second."""

    name: str
    run: Callable[[], float]
    settle: Callable[[], object] = lambda: None
    """Called untimed after each run, to finish work that would otherwise run during the next side's time."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The results of one side's runs, without the warm-up."""

    name: str
    values: list[float]

    @property
    def median(self) -> float:
        """The median run."""
        return median(self.values)


@dataclass(slots=True)
class Figure:
    """One line of the table: `values` are compared with the target, and computed from `sides`."""

    key: str
    values: list[float]
    sides: list[Samples] = field(default_factory=list)
    per: str = ""
    """The unit of the sides' values."""

    note: str = ""
    skipped: str = ""
    shape: str = ""
    peer: str = ""
    """The key of the peer, where a job has several."""

    details: dict[str, Any] = field(default_factory=dict)
    """What a picture or a table needs besides."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Figure:
        """Return a figure that was stored as JSON; what a report adds to it is left out."""
        known = {one.name: row[one.name] for one in fields(cls)}
        return cls(**{**known, "sides": [Samples(**side) for side in row["sides"]]})

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.values)


@dataclass(frozen=True, slots=True)
class Contest:
    """One comparison: the store's sides first, then its peers.

    `prepare` creates the data for all sides before each round, untimed; `judge` computes the figures.
    """

    keys: Sequence[str]
    product: Sequence[Side]
    peers: Sequence[Side]
    judge: Callable[[dict[str, Samples]], list[Figure]]
    prepare: Callable[[], object] = lambda: None
    times: int = 1
    """A factor for the number of rounds, for jobs that vary most on a shared disk."""

    warm_up: bool = True
    """Whether a first round does not count; there is none if the sides did the same work before."""

    most_rounds: int = 100
    """A limit for the number of rounds, for jobs of which one run takes long."""

    def play(self, rounds: int) -> list[Figure]:
        """Run all sides in each round, in rotating order, after a warm-up that does not count."""
        sides = [*self.product, *self.peers]
        values: dict[str, list[float]] = {side.name: [] for side in sides}
        first = 0 if self.warm_up else 1
        for number in range(first, min(rounds * self.times, self.most_rounds) + 1):
            self.prepare()
            with _own_garbage_only():
                for side in [*sides[number % len(sides) :], *sides[: number % len(sides)]]:
                    rate = side.run()
                    side.settle()
                    gc.collect()
                    if number:
                        values[side.name].append(rate)
        return self.judge({name: Samples(name, kept) for name, kept in values.items()})

    def profile(self, lines: int) -> str:
        """Run each of the store's sides once to warm up and once under cProfile; returns the top lines.

        The profile covers only the calling thread.
        """
        pieces: list[str] = []
        for side in self.product:
            self.prepare()
            side.run()
            side.settle()
            self.prepare()
            with _own_garbage_only():
                profiler = cProfile.Profile()
                rate = profiler.runcall(side.run)
            side.settle()
            text = io.StringIO()
            pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(lines)
            pieces.append(
                f"=== {side.name}: {rate:,.1f} per second under the profiler\n{text.getvalue().strip()}\n"
            )
        return "\n".join(pieces)


def ratio(
    key: str,
    samples: dict[str, Samples],
    product: str,
    peer: str,
    per: str,
    note: str = "",
    peer_key: str = "",
) -> Figure:
    """Return the speed of a side as a multiple of its peer's, per round; the other sides are shown too."""
    a, b = samples[product], samples[peer]
    others = [side for name, side in samples.items() if name not in (product, peer)]
    values = [x / y for x, y in zip(a.values, b.values, strict=True)]
    return Figure(key, values, [a, b, *others], per, note, peer=peer_key)


@contextmanager
def _own_garbage_only() -> Iterator[None]:
    """Hide the benchmark's own data from the garbage collector, so that no side pays for traversing it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def timed(work: Callable[[], object], units: int) -> float:
    """Do the work once; returns units per second."""
    started = time.perf_counter()
    work()
    return units / (time.perf_counter() - started)


def latencies(label: str, values_ms: Sequence[float]) -> list[Samples]:
    """Return the median, the 99th percentile and the longest of some times."""
    return [
        Samples(f"{label}, median", [median(values_ms)]),
        Samples(f"{label}, 99th percentile", [quantiles(values_ms, n=100, method="inclusive")[-1]]),
        Samples(f"{label}, longest", [max(values_ms)]),
    ]


Job = Callable[[Plan], Iterator[Contest | Figure]]
"""Yields contests, which are run before it continues, or figures that it measured itself."""
