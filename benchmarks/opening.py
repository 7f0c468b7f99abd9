"""A process that opens a store, reads a latest value, the status and a minute of points, and prints the times in ms."""

from __future__ import annotations

import json
import sys
import time

from repo import Store


def main(folder: str, sensor: str, metric: str) -> None:
    """Time each step once; importing the library is not timed."""
    marks = [time.perf_counter()]
    with Store(folder) as store:
        marks.append(time.perf_counter())
        latest = store.points.latest(sensor, metric)
        marks.append(time.perf_counter())
        store.status()
        marks.append(time.perf_counter())
        end_s = latest[0]["timestamp_us"] / 1e6 + 1
        store.points.range(sensor, metric, end_s - 60, end_s).all()
        marks.append(time.perf_counter())
    steps = zip(("open", "latest", "status", "first read"), marks, marks[1:], strict=False)
    print(
        json.dumps({name: (after - before) * 1000 for name, before, after in steps} | {"found": len(latest)})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
