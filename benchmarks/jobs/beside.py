"""An application's own reads: alone, and while its backlog is delivered in its process or in another one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.cached import CachedReadings, cached_readings
from benchmarks.discarding import Discarding
from benchmarks.measure import Contest, Figure, Plan, latencies
from benchmarks.reads import ASKED, IN_PROCESS
from repo import Store

__all__ = ["KEYS", "beside"]

KEYS = tuple(f"beside-{name}" for name in ASKED)

_ROOT = Path(__file__).resolve().parents[2]
_RATE = "500kB/s"
"""The link, so slow that the backlog outlasts the measurement."""

_PLACES = {
    "alone": "alone",
    IN_PROCESS: "forwarder in its process",
    "another": "forwarder in another process",
}
_ANSWER_S = 60.0


def beside(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure the reads of a process that writes 1,000 points per second."""
    held = cached_readings(plan)
    found = {place: _read_at(held, plan, place) for place in _PLACES}
    for name, key in zip(ASKED, KEYS, strict=True):
        sides = [side for place, label in _PLACES.items() for side in latencies(label, found[place][name])]
        note = (
            f"{held.points:,} points of backlog, a link of {_RATE}, {len(found['alone'][name]):,} reads each"
        )
        yield Figure(key, sides[-2].values, sides, "ms", note)


def _read_at(held: CachedReadings, plan: Plan, place: str) -> dict[str, list[float]]:
    """Return the milliseconds of each kind of read, on a copy of the store."""
    with ExitStack() as open_:
        folder = open_.enter_context(plan.scratch()) / "store"
        shutil.copytree(held.store(compacted=True), folder)
        server = open_.enter_context(Discarding.running())
        with Store(folder) as store:
            for left in store.sinks.list():  # by a run of deliveries that was stopped
                store.sinks.remove(left.name)
            if place != "alone":
                target = f"http://127.0.0.1:{server.port}/points"
                store.sinks.add("slow", target, start="beginning", rate=_RATE, receipts=False)
        if place == "another":
            run = [sys.executable, "cli.py", "--store", str(folder), "run"]
            forwarder = open_.enter_context(subprocess.Popen(run, cwd=_ROOT, stdout=subprocess.DEVNULL))
            open_.callback(forwarder.terminate)
            until_s = time.monotonic() + _ANSWER_S
            while not server.requests:
                if time.monotonic() > until_s:
                    raise RuntimeError(f"the forwarder has sent nothing in {_ANSWER_S:g} s")
                time.sleep(0.05)
        reads = [sys.executable, "-m", "benchmarks.reads", str(folder), str(plan.steady_s), place]
        done = subprocess.run(reads, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
        if bool(server.requests) != (place != "alone"):
            raise RuntimeError(f"{place}: the server got {server.requests} requests")
        with Store(folder) as store:
            if any(sink.confirmed_seq >= held.points for sink in store.sinks.list()):
                print(f"  {place}: the backlog of {held.points:,} points ended too soon", flush=True)
        read_ms: dict[str, list[float]] = json.loads(done.stdout)
        return read_ms
