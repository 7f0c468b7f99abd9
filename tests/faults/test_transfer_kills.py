"""Kills in the middle of exports and imports: what exists is complete, and repeating the job completes the rest."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.transfer.importer import verify_parquet
from tests.conftest import Templates
from tests.starter import Starter

WORK = """
import functools, importlib, sys
from repo import Settings, Store

def reported(name, step):
    @functools.wraps(step)
    def telling(*given, **named):
        print("in", name, flush=True)
        try:
            return step(*given, **named)
        finally:
            print("after", name, flush=True)
    return telling

for place in sys.argv[4].split():
    module, *path, name = place.split(":")
    home = importlib.import_module(module)
    for part in path:
        home = getattr(home, part)
    setattr(home, name, reported(name.strip("_"), getattr(home, name)))

with Store(sys.argv[2], Settings(background=False, bulk_rows=2_000)) as store:
    print("open", flush=True)
    if sys.argv[1] == "export":
        store.export_parquet(sys.argv[3], partition="day")
    elif sys.argv[1] == "export one":
        store.export_parquet(sys.argv[3])
    else:
        store.import_parquet(sys.argv[3])
    print("done", flush=True)
"""
STEPS = {
    "export": (
        "repo.transfer.exporter:_ExportPages:_taken",
        "repo.transfer.exporter:_ExportPages:first_from",
        "repo.transfer.exporter:_Export:_write",
        "repo.formats.files.bundle:Drafting:add",
        "repo.formats.files.bundle:Drafting:finish",
        "repo.disk.durable:sync",
        "repo.transfer.exporter:put",
    ),
    "import": (
        "repo.transfer.importer:_validate",
        "repo.transfer.importer:_Import:_wants",
        "repo.core.writer:Writer:commit",
        "repo.core.flush:Flusher:commit",
        "repo.core.bulk:merge",
        "repo.engines.duckdb.backend:DuckDBBackend:checkpoint",
        "repo.core.flush:Flusher:_copy",
        "repo.core.flush:Flusher:_prune",
        "repo.core.work:apply",
    ),
}
"""The functions that a process reports, so that the place of its death is known."""

DAYS, DAY_ROWS = 4, 5_000
SHORT = 1
LONG = 40


@pytest.fixture
def source(tmp_path: Path, engine: str, templates: Templates) -> Store:
    """A closed store with some days of points."""
    templates.copy(engine, 1, tmp_path / "source")
    store = Store(tmp_path / "source", Settings(background=False, engine=engine))  # type: ignore[arg-type]
    rows = [(f"s{n % 5}", "m", day * 86_400 + n, n / 8) for day in range(DAYS) for n in range(DAY_ROWS)]
    store.points.insert_many(rows)
    store.close()
    return store


def points_of(folder: Path) -> list[Any]:
    with Store(folder, Settings(background=False)) as store:
        return [
            (point["sensor_id"], point["timestamp_us"], point["value"])
            for point in store.points.range(None, None)
        ]


def killed(starter: Starter, what: str, store: Path, path: Path, after_s: float) -> str:
    """Start the work and kill it; returns the step that it was in, or `done`."""
    process = starter.open(["-c", WORK, what, store, path, " ".join(STEPS[what.split()[0]])])
    while process.stdout.readline() != "open\n":
        assert process.poll() is None, process.communicate()
    time.sleep(after_s)
    process.kill()
    said, reported = process.communicate()
    process.close()
    assert not reported, reported
    return [*said.splitlines(), "before the first step"][-1 if not said else -2]


def kill_often(times: int, seed: int, work: Callable[[float], str]) -> None:
    """Kill work at random times until it was interrupted often enough, and print where; longer work lives longer."""
    chance = random.Random(seed)
    where: Counter[str] = Counter()
    longest_s = 0.6
    while where.total() - where["done"] < times:
        step = work(chance.random() * longest_s)
        where[step] += 1
        longest_s = min(2.0, longest_s * 1.2) if step != "done" else longest_s * 0.8
    print(f"{times} kills: {dict(where.most_common())}")


def kills_in_exports(source: Store, tmp_path: Path, starter: Starter, seed: int, times: int) -> None:
    def work(after_s: float) -> str:
        step = killed(starter, "export", source.path, tmp_path / "bundle", after_s)
        if (tmp_path / "bundle" / "manifest.json").exists():
            assert verify_parquet([tmp_path / "bundle"], Settings()).points == DAYS * DAY_ROWS
            (tmp_path / "bundle").rename(tmp_path / f"bundle-{time.monotonic_ns()}")
        done = killed(starter, "export one", source.path, tmp_path / "one.parquet", after_s) == "done"
        if done or (tmp_path / "one.parquet").exists():
            assert verify_parquet([tmp_path / "one.parquet"], Settings()).points == DAYS * DAY_ROWS
        return step

    kill_often(times, seed, work)
    with Store(source.path, Settings(background=False)) as store:
        assert store.export_parquet(tmp_path / "bundle", partition="day").points == DAYS * DAY_ROWS
    assert verify_parquet([tmp_path / "bundle"], Settings()).verified == DAYS


def kills_in_imports(
    source: Store,
    tmp_path: Path,
    engine: str,
    starter: Starter,
    templates: Templates,
    seed: int,
    times: int,
) -> None:
    expected = points_of(source.path)
    with Store(source.path, Settings(background=False)) as store:
        store.export_parquet(tmp_path / "bundle", partition="day")

    def work(after_s: float) -> str:
        target = tmp_path / f"target-{time.monotonic_ns()}"
        templates.copy(engine, 2, target)
        step = killed(starter, "import", target, tmp_path / "bundle", after_s)
        stored = points_of(target)
        assert set(stored) <= set(expected)
        assert len(set(stored)) == len(stored)
        with Store(target, Settings(background=False)) as store:
            again = store.import_parquet(tmp_path / "bundle")
            assert again.stored + again.present == len(expected)
        assert points_of(target) == expected
        return step

    kill_often(times, seed, work)


@pytest.mark.slow_on("sqlite")
def test_a_killed_export_leaves_complete_files_and_can_resume(
    source: Store, tmp_path: Path, starter: Starter, seed: int
) -> None:
    kills_in_exports(source, tmp_path, starter, seed, SHORT)


@pytest.mark.slow_on("sqlite")
def test_a_killed_import_is_completed_by_another_one(
    source: Store, tmp_path: Path, engine: str, starter: Starter, templates: Templates, seed: int
) -> None:
    kills_in_imports(source, tmp_path, engine, starter, templates, seed, SHORT)


@pytest.mark.slow
def test_many_kills_in_exports(source: Store, tmp_path: Path, starter: Starter, seed: int) -> None:
    kills_in_exports(source, tmp_path, starter, seed, LONG)


@pytest.mark.slow
def test_many_kills_in_imports(
    source: Store, tmp_path: Path, engine: str, starter: Starter, templates: Templates, seed: int
) -> None:
    kills_in_imports(source, tmp_path, engine, starter, templates, seed, LONG)
