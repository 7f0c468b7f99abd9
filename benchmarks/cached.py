"""The cached databases that are queried: each peer's has the same readings, is built once, and serves many runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import START_US, Readings, Shape, Source
from benchmarks.measure import Plan
from benchmarks.peers.arrow import arrow_of
from benchmarks.peers.base import Database
from repo import Settings, Store

__all__ = ["SPAN_S", "CachedReadings", "cached_readings", "total_bytes"]

SPAN_S = 100_000
"""The time span of the readings: a little more than a day, for any number of points; 10 million are 1 Hz."""

_CHUNK = 500_000


@dataclass(frozen=True, slots=True)
class CachedReadings:
    """The readings of the cached databases; `folder` has a subfolder for each database."""

    folder: Path
    shape: Shape
    seed: int
    points: int
    series: list[tuple[str, str]]
    first_us: int
    last_us: int

    def readings(self) -> Iterator[Readings]:
        """Yield the readings in pieces, in order of arrival."""
        source, left = _source(self.shape, self.seed, self.points), self.points
        while left:
            piece = source.take(min(left, _CHUNK))
            left -= len(piece)
            yield piece

    def built(self, name: str, build: Callable[[Path], object]) -> Path:
        """Return the folder of a database, which `build` fills if it is not there yet."""
        done = self.folder / name
        if not done.exists():
            print(f"  building {name}, {self.points:,} points", flush=True)
            part = self.folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            build(part)
            part.rename(done)
        return done

    def store(self, compacted: bool) -> Path:
        """Return the folder of a store with the readings."""

        def build(folder: Path) -> None:
            # Without the background thread, which would compact some of the points.
            with Store(folder, Settings(background=False)) as store:
                for piece in self.readings():
                    store.points.insert_table(arrow_of(piece))
                store.checkpoint()
                if compacted:
                    store.compact()

        return self.built("holdfast-compacted" if compacted else "holdfast", build)

    def peer(self, make: Callable[[Path, Sequence[tuple[str, str]]], Database], key: str) -> Database:
        """Return an open database of a peer with the readings."""

        def build(folder: Path) -> None:
            database = make(folder / "peer", self.series)
            for piece in self.readings():
                database.load(piece)
            database.settle()
            if database.count() != self.points:
                raise RuntimeError(f"{database.name} holds {database.count():,} of {self.points:,} points")
            database.close()

        return make(self.built(key, build) / "peer", self.series)


def cached_readings(plan: Plan, points: int | None = None, shape: Shape | None = None) -> CachedReadings:
    """Return the cached readings of a plan, and count them on first use."""
    count, shape = points or plan.store_points, shape or plan.shape
    folder = plan.cache / f"standing-{shape}-{plan.seed}-{count}"
    facts = folder / "facts.json"
    if not facts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = CachedReadings(folder, shape, plan.seed, count, [], 0, 0)
        first_us, last_us = 2 * START_US, 0
        for piece in found.readings():
            first_us, last_us = min(first_us, *piece.times_us), max(last_us, *piece.times_us)
            series = piece.series
        facts.write_text(json.dumps({"series": series, "first_us": first_us, "last_us": last_us}))
    read = json.loads(facts.read_text())
    series = [(sensor, metric) for sensor, metric in read["series"]]
    return CachedReadings(folder, shape, plan.seed, count, series, read["first_us"], read["last_us"])


def total_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _source(shape: Shape, seed: int, points: int) -> Source:
    return Source(shape, seed, rate_hz=points / 100 / SPAN_S)
