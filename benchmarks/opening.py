"""A process that opens a store, asks for the latest value and the status, and prints the times in ms as JSON."""

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
    steps = zip(("open", "latest", "status"), marks, marks[1:], strict=False)
    print(
        json.dumps({name: (after - before) * 1000 for name, before, after in steps} | {"found": len(latest)})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
