"""A process that inserts into one store from eight threads and from one, alternately, and prints the rates as JSON.

It is a separate process so that its fsync can be slowed down from outside.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from itertools import count
from pathlib import Path

from repo import Store

THREADS = 8
SINGLE = "1 thread"
MANY = f"{THREADS} threads"


def insert_together(store: Store, workers: int, run_s: float, seconds: count[int]) -> float:
    """Insert single points from `workers` threads, each into its own series; returns inserts per second."""
    counts = [0] * workers
    started = time.perf_counter()
    until = started + run_s

    def work(number: int) -> None:
        while time.perf_counter() < until:
            store.points.insert(f"SENSOR-{number:03}", "pressure", 1.5, next(seconds))
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def main() -> None:
    """Measure both alternately; the first round is a warm-up and does not count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("run_s", type=float)
    parser.add_argument("rounds", type=int)
    options = parser.parse_args()
    values: dict[str, list[float]] = {MANY: [], SINGLE: []}
    seconds = count(1_700_000_000)
    with Store(options.folder) as store:
        for number in range(options.rounds + 1):
            for name, workers in ((MANY, THREADS), (SINGLE, 1)):
                rate = insert_together(store, workers, options.run_s, seconds)
                store.flush()
                if number:
                    values[name].append(rate)
    print(json.dumps(values))


if __name__ == "__main__":
    main()
