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

__all__ = ["Figure", "Plan", "Samples", "Side", "compare", "profile", "ratio", "timed"]


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

    steady_s: float
    cache: Path
    """Where standing stores are kept from one run of the benchmarks to the next."""

    rebuild: bool = False
    only_profile: bool = False
    """Run the store's sides once, under the profiler, and no peer."""

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


def compare(
    sides: Sequence[Side], rounds: int, prepare: Callable[[], object] = lambda: None
) -> dict[str, Samples]:
    """Run all sides in each round, in turning order; the first round warms up and is dropped.

    `prepare` makes the next data of all sides, untimed, before each round.
    """
    samples: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        prepare()
        # What the benchmark itself holds is not garbage that a side should have to look through.
        gc.collect()
        gc.freeze()
        for side in [*sides[number % len(sides) :], *sides[: number % len(sides)]]:
            rate = side.run()
            side.settle()
            gc.collect()
            if number:
                samples[side.name].append(rate)
        gc.unfreeze()
    return {name: Samples(name, values) for name, values in samples.items()}


def ratio(
    key: str, product: Samples, peer: Samples, per: str, note: str = "", others: Sequence[Samples] = ()
) -> Figure:
    """How many times as fast the product was, round by round."""
    values = [a / b for a, b in zip(product.values, peer.values, strict=True)]
    return Figure(key, values, [product, peer, *others], per, note)


def timed(work: Callable[[], object], units: int) -> float:
    """Do the work once; returns units a second."""
    started = time.perf_counter()
    work()
    return units / (time.perf_counter() - started)


def profile(sides: Sequence[Side], prepare: Callable[[], object], lines: int = 15) -> str:
    """Run each side once to warm up and once under cProfile (this thread alone); returns the top lines."""
    pieces: list[str] = []
    for side in sides:
        prepare()
        side.run()
        side.settle()
        prepare()
        profiler = cProfile.Profile()
        rate = profiler.runcall(side.run)
        side.settle()
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(lines)
        pieces.append(f"=== {side.name}: {rate:,.0f} a second under the profiler\n{text.getvalue().strip()}\n")
    return "\n".join(pieces)
