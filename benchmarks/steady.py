"""A process that writes 100 series at 10 Hz and then reports its memory use. Imports only `repo`."""

import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from repo import Store

SERIES = [f"SENSOR-{number:03}" for number in range(100)]
STEP_S = 0.1


def status_kib(field: str) -> int:
    """Return a figure of this process's memory, in KiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(f"{field}:"))


def main(folder: str, seconds: float) -> None:
    """Write for `seconds`, a batch of 100 points every tenth of a second."""
    draw = random.Random(1).random
    values = [draw() * 1000 for _ in SERIES]
    rss_kib: list[int] = []
    points, slowest_s = 0, 0.0
    with Store(folder) as store:
        started = due = time.monotonic()
        while due < started + seconds:
            now = time.time()
            values = [round(value + draw() - 0.5, 2) for value in values]
            rows = [(name, "pressure", now, value) for name, value in zip(SERIES, values, strict=True)]
            before = time.perf_counter()
            points += store.points.insert_many(rows).accepted
            slowest_s = max(slowest_s, time.perf_counter() - before)
            if points % 1000 == 0:
                rss_kib.append(status_kib("VmRSS"))
            due += STEP_S
            time.sleep(max(0.0, due - time.monotonic()))
        lasted_s = time.monotonic() - started
    report = {
        "points": points,
        "seconds": lasted_s,
        "rss_kib": rss_kib,
        "peak_kib": status_kib("VmHWM"),
        "slowest_ms": slowest_s * 1000,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
