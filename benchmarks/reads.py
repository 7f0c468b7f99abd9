"""A process that uses a store as an application does: `python -m benchmarks.reads STORE SECONDS PLACE`.

Ten times a second it writes 100 points, and reads three times, at even intervals. Prints the milliseconds of each read
as JSON. PLACE is `in-process` if the process also delivers the store to its sinks.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from repo import Forwarder, Store

__all__ = ["ASKED", "IN_PROCESS"]

ASKED = ("first", "range", "aggregate")
IN_PROCESS = "in-process"

_PERIOD_S = 0.1
_SETTLING_S = 3.0
"""Not measured: the process, the forwarder and DuckDB's cache come into use."""


def _main(folder: str, seconds: float, place: str) -> dict[str, list[float]]:
    found_ms: dict[str, list[float]] = {name: [] for name in ASKED}
    draw = random.Random(1)
    with ExitStack() as open_:
        store = open_.enter_context(Store(folder))
        series = [(row.sensor_id, row.metric_name) for row in store.series.list()]
        held = store.sql(
            "SELECT min(timestamp_us) AS first, max(timestamp_us) AS last FROM time_series_data"
        )[0]
        first_s, last_s = held["first"] / 1e6, held["last"] / 1e6
        if place == IN_PROCESS:
            open_.enter_context(Forwarder(store))
        began_s = due_s = time.monotonic()
        while due_s < began_s + _SETTLING_S + seconds:
            now_s, start_s = time.time(), draw.uniform(first_s, last_s - 3600)
            sensor, metric = draw.choice(series)
            store.points.insert_many([(*name, now_s, draw.random()) for name in series[:100]])
            asked: dict[str, Callable[[], object]] = {
                "first": lambda: store.points.range(sensor, metric, now_s - 60).all(),  # noqa: B023  called below
                "range": lambda: store.points.range(sensor, metric, start_s, start_s + 60).all(),  # noqa: B023
                "aggregate": lambda: store.points.aggregate(sensor, metric, start_s, start_s + 3600),  # noqa: B023
            }
            for name in ASKED:
                before_s = time.perf_counter()
                asked[name]()
                if due_s >= began_s + _SETTLING_S:
                    found_ms[name].append((time.perf_counter() - before_s) * 1000)
                due_s = max(due_s + _PERIOD_S / len(ASKED), time.monotonic())
                time.sleep(max(0.0, due_s - time.monotonic()))
    return found_ms


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], float(sys.argv[2]), sys.argv[3])))
