"""A campaign: workers start while threads write; what was acknowledged anywhere is found in the end."""

from __future__ import annotations

import multiprocessing
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from tests.forks.children import PATIENT

WORKERS = {"fork": 200, "spawn": 50}


def worker(path: Path, engine: Any, name: str, results: Any) -> None:
    """Write points and records, and tell what was acknowledged."""
    acknowledged, error = 0, None
    rng = random.Random(name)
    try:
        background = rng.random() < 0.5
        store = Store(
            path, Settings(engine=engine, background=background, wal_checkpoint_bytes=65_536, **PATIENT)
        )
        for at in range(rng.randrange(1, 30)):
            store.points.insert_many([(name, "m", 10 * at + k, 1.0) for k in range(10)])
            acknowledged += 10
            if rng.random() < 0.1:
                store.points.range(name, "m").all()
        if rng.random() < 0.5:
            store.close()
    except BaseException as caught:  # noqa: BLE001  reported to the parent
        error = f"{type(caught).__name__}: {caught}"
    results.put((name, acknowledged, error))


def campaign(path: Path, engine: Any, method: str, count: int, seed: int) -> None:
    """Start workers one after another, a few at a time, in the middle of writes; then compare."""
    rng = random.Random(seed)
    context: Any = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    expected: dict[str, int] = {}
    settings = Settings(engine=engine, wal_checkpoint_bytes=65_536, **PATIENT)
    stop = threading.Event()
    held = {"store": Store(path, settings)}
    lock = threading.Lock()
    errors: list[BaseException] = []

    def write(name: str) -> None:
        done = 0
        try:
            while not stop.is_set():
                with lock:
                    held["store"].points.insert_many([(name, "m", done + k, 1.0) for k in range(20)])
                done += 20
                stop.wait(0.002)
        except BaseException as error:  # noqa: BLE001  reported below
            errors.append(error)
        expected[name] = done

    threads = [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    running: list[Any] = []

    def reap(most: int) -> None:
        while len(running) > most:
            process = running.pop(0)
            process.join(300)
            assert process.exitcode == 0, process.exitcode
            name, acknowledged, error = results.get()
            assert error is None, (name, error)
            expected[name] = acknowledged

    try:
        for number in range(count):
            process = context.Process(target=worker, args=(path, engine, f"worker {number}", results))
            process.start()
            running.append(process)
            reap(3)
            if rng.random() < 0.2:  # the parent closes and opens, while children have it open
                with lock:
                    held["store"].close()
                    held["store"] = Store(path, settings)
        reap(0)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        held["store"].close()
    assert not errors
    assert len(expected) == count + 2
    with Store(path, Settings(engine=engine, background=False)) as store:
        store.flush()
        found = {info.sensor_id: info.points for info in store.series.list()}
        assert found == expected
        for name in rng.sample(sorted(expected), 5):
            assert len(store.points.range(name, "m").all()) == expected[name]


@pytest.mark.slow_on("sqlite")
def test_what_forked_workers_were_acknowledged_is_found(tmp_path: Path, engine: Any, seed: int) -> None:
    campaign(tmp_path / "store", engine, "fork", 6, seed)


@pytest.mark.slow
@pytest.mark.parametrize("method", WORKERS)
def test_what_many_workers_were_acknowledged_is_found(
    tmp_path: Path, engine: Any, method: str, seed: int
) -> None:
    campaign(tmp_path / "store", engine, method, WORKERS[method], seed)
