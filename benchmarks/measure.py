"""Measures sides of a comparison in turn, so that whatever else the machine does falls on all of them.

Owns rounds, medians and the profile; never what is measured, nor how it is shown.
"""

from __future__ import annotations

import cProfile
import gc
import io
import pstats
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.data import Shape

__all__ = ["Contest", "Figure", "Job", "Plan", "Samples", "Side", "ratio", "timed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured, on what, and where."""

    quick: bool
    shape: Shape
    seed: int
    rounds: int
    run_s: float
    """How long a run of single inserts lasts: longer than the flush interval, so that flushes fall into it."""

    points: int
    """Points of a run of batches."""

    store_points: int
    """Points of the standing store that is queried."""

    carried_points: int
    """Points that are exported and imported."""

    legacy_points: int
    """Points of the legacy store that is upgraded."""

    steady_s: float
    cache: Path
    """Where standing stores are kept from one run of the benchmarks to the next."""

    rebuild: bool = False
    """Make the standing store anew."""

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the disk of the cache, removed afterwards."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.cache, prefix="run-") as folder:
            yield Path(folder)


@dataclass(frozen=True, slots=True)
class Side:
    """One contestant. `run` does its work once and returns units a second."""

    name: str
    run: Callable[[], float]
    settle: Callable[[], object] = lambda: None
    """Untimed, after each run: leave nothing of this side's work running into the next one's time."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the kept runs of one side measured."""

    name: str
    values: list[float]

    @property
    def median(self) -> float:
        """The median run."""
        return median(self.values)


@dataclass(slots=True)
class Figure:
    """One line of the table: `values` are held against the target, `sides` are what they came from."""

    key: str
    values: list[float]
    sides: list[Samples] = field(default_factory=list)
    per: str = ""
    """The unit of the sides' values."""

    note: str = ""
    skipped: str = ""
    shape: str = ""

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.values)


@dataclass(frozen=True, slots=True)
class Contest:
    """One comparison: the store's sides first, then its peers.

    `prepare` makes the next data of all sides, untimed, before each round; `judge` makes figures of what
    was measured.
    """

    keys: Sequence[str]
    product: Sequence[Side]
    peers: Sequence[Side]
    judge: Callable[[dict[str, Samples]], list[Figure]]
    prepare: Callable[[], object] = lambda: None
    times: int = 1
    """How many times as many rounds as others: for what a shared disk scatters most."""

    def play(self, rounds: int) -> list[Figure]:
        """Run all sides in each round, in turning order; the first round warms up and is dropped."""
        sides = [*self.product, *self.peers]
        values: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(rounds * self.times + 1):
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

        Only the calling thread is seen.
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
                f"=== {side.name}: {rate:,.1f} a second under the profiler\n{text.getvalue().strip()}\n"
            )
        return "\n".join(pieces)


def ratio(key: str, samples: dict[str, Samples], product: str, peer: str, per: str, note: str = "") -> Figure:
    """How many times as fast as its peer a side was, round by round; the other sides are shown beside."""
    a, b = samples[product], samples[peer]
    others = [side for name, side in samples.items() if name not in (product, peer)]
    return Figure(key, [x / y for x, y in zip(a.values, b.values, strict=True)], [a, b, *others], per, note)


@contextmanager
def _own_garbage_only() -> Iterator[None]:
    """Hide the benchmark's own data from the collector: no side should have to look through it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def timed(work: Callable[[], object], units: int) -> float:
    """Do the work once; returns units a second."""
    started = time.perf_counter()
    work()
    return units / (time.perf_counter() - started)


Job = Callable[[Plan], Iterator[Contest | Figure]]
"""Gives contests to be played while it waits, or figures that it measured by itself."""
