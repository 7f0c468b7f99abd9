"""The writer process: writes the site's readings at a steady rate and reports what was acknowledged."""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Sequence

from repo.demo.process import announce, obey
from repo.demo.site import ticks
from repo.store.store import Store

PAUSE_S = 0.01
"""The interval of its checks for due readings, like a gateway's poll; it limits the commits per second."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ticks `--first` to `--end` (excluded) at `--rate` points a second.

    With `--until-killed`, it waits after the last one, as if it had more to write.

    `acknowledged` is announced after `insert_many` has returned, never before: the tick that comes next, and
    the points of this call.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--end", type=int, required=True)
    parser.add_argument("--until-killed", action="store_true")
    options = parser.parse_args(arguments)
    obey({})
    with Store(options.store) as store:
        announce("ready")
        site = enumerate(itertools.islice(ticks(options.seed), options.first, options.end), options.first)
        start_s, written = time.monotonic(), 0
        tick, due = options.first, list[object]()
        while tick < options.end:
            while tick < options.end and written + len(due) <= (time.monotonic() - start_s) * options.rate:
                tick, readings = next(site)
                tick += 1
                due += readings
            if due:
                done = store.points.insert_many(due)
                announce("acknowledged", tick=tick, points=done.accepted, seq=done.last_seq)
                written += len(due)
                due = []
            time.sleep(PAUSE_S)
        if options.until_killed:
            threading.Event().wait()
        announce("finished")


if __name__ == "__main__":
    main()
