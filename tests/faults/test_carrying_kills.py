"""Kills in the middle of exports and imports: what stands is whole, and doing it again completes it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.store.recovering import verify_parquet
from tests.conftest import start_python

WORK = """
import sys
from repo import Settings, Store
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
DAYS, DAY_ROWS = 4, 5_000
SHORT = 4
LONG = 100


@pytest.fixture
def source(tmp_path: Path, engine: str) -> Store:
    """A store with some days of points, closed."""
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


def killed(what: str, store: Path, path: Path, after_s: float) -> bool:
    """Start the work, and kill it; says whether it had come to its end before."""
    process = start_python(WORK, what, store, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    time.sleep(after_s)
    process.kill()
    said, told = process.communicate()
    assert not told, told
    return "done" in said


def kill_often(times: int, seed: int, work: Callable[[float], bool]) -> int:
    """Kill work at random moments until it would be done; returns how often it was cut off."""
    chance = random.Random(seed)
    longest_s = 0.6
    return sum(not work(chance.random() * longest_s) for _ in range(times))


def kills_in_exports(source: Store, tmp_path: Path, seed: int, times: int) -> None:
    def work(after_s: float) -> bool:
        done = killed("export", source.path, tmp_path / "bundle", after_s)
        if (tmp_path / "bundle" / "manifest.json").exists():
            assert verify_parquet([tmp_path / "bundle"], Settings()).points == DAYS * DAY_ROWS
            (tmp_path / "bundle").rename(tmp_path / f"bundle-{time.monotonic_ns()}")
        if (
            killed("export one", source.path, tmp_path / "one.parquet", after_s)
            or (tmp_path / "one.parquet").exists()
        ):
            assert verify_parquet([tmp_path / "one.parquet"], Settings()).points == DAYS * DAY_ROWS
        return done

    assert kill_often(times, seed, work)
    with Store(source.path, Settings(background=False)) as store:
        assert store.export_parquet(tmp_path / "bundle", partition="day").points == DAYS * DAY_ROWS
    assert verify_parquet([tmp_path / "bundle"], Settings()).verified == DAYS


def kills_in_imports(source: Store, tmp_path: Path, engine: str, seed: int, times: int) -> None:
    expected = points_of(source.path)
    with Store(source.path, Settings(background=False)) as store:
        store.export_parquet(tmp_path / "bundle", partition="day")

    def work(after_s: float) -> bool:
        target = tmp_path / f"target-{time.monotonic_ns()}"
        Store(target, Settings(background=False, engine=engine)).close()  # type: ignore[arg-type]
        done = killed("import", target, tmp_path / "bundle", after_s)
        stored = points_of(target)
        assert set(stored) <= set(expected)
        assert len(set(stored)) == len(stored)
        with Store(target, Settings(background=False)) as store:
            again = store.import_parquet(tmp_path / "bundle")
            assert again.stored + again.present == len(expected)
        assert points_of(target) == expected
        return done

    assert kill_often(times, seed, work)


def test_an_export_that_is_killed_leaves_whole_files_and_can_go_on(
    source: Store, tmp_path: Path, seed: int
) -> None:
    kills_in_exports(source, tmp_path, seed, SHORT)


def test_an_import_that_is_killed_is_completed_by_another(
    source: Store, tmp_path: Path, engine: str, seed: int
) -> None:
    kills_in_imports(source, tmp_path, engine, seed, SHORT)


@pytest.mark.slow
def test_a_hundred_kills_in_exports(source: Store, tmp_path: Path, seed: int) -> None:
    kills_in_exports(source, tmp_path, seed, LONG)


@pytest.mark.slow
def test_a_hundred_kills_in_imports(source: Store, tmp_path: Path, engine: str, seed: int) -> None:
    kills_in_imports(source, tmp_path, engine, seed, LONG)
