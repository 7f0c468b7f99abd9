"""Processes that the tests of exact sinks kill: a site that writes and delivers, and a store that receives.

Run as `python -m tests.delivery.site_process write|finish STORE URL OPTIONS SEED` (OPTIONS of the sink, in JSON), or
`... receive STORE PORT`.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from pathlib import Path
from typing import Any

from repo import Receiver, Settings, Store
from repo.delivery.forwarder import Backoff, Forwarder

START_S = 1_767_225_600


def deliver(job: str, place: str, url: str, options: str, seed: str) -> None:
    """Write readings and deliver them until the process is killed; or deliver the rest, and print how that ended."""
    chance = random.Random(seed)
    backoff = Backoff(first_s=0.05, longest_s=0.2)
    with Store(Path(place), Settings(engine="sqlite", background=False)) as store:
        is_new = not store.sinks.list()
        if is_new:
            given: dict[str, Any] = json.loads(options)
            store.sinks.add("hub", url, start="beginning", **given)
        forwarder = Forwarder(store, batch_points=100, poll_s=0.01, backoff=backoff)
        if job == "finish":
            last = forwarder.drain(timeout_s=600)["hub"].last
            print(last.progress.value if last.error is None else f"{last.progress.value}: {last.error}")
            return
        forwarder.start()
        if is_new:
            # Enough for every test, however soon this process is killed and however slow the machine is.
            rows = [(f"S-{at % 5}", "flow", START_S + at, chance.random()) for at in range(2_000)]
            store.points.insert_many(rows)
        print("ready", flush=True)
        while True:  # few series and times, so that many points are overwritten
            rows = [
                (f"S-{chance.randrange(5)}", "flow", START_S + chance.randrange(2_000), chance.random())
                for _ in range(chance.randrange(1, 300))
            ]
            store.points.insert_many(rows)
            store.points.insert("S-1", "state", chance.choice("ab"), timestamp=START_S + chance.randrange(50))


def receive(place: str, port: str) -> None:
    """Receive until the process is killed."""
    with (
        Store(Path(place), Settings(engine="sqlite")) as store,
        Receiver(store, "127.0.0.1", int(port)),
    ):
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(*sys.argv[2:])
    else:
        deliver(*sys.argv[1:])
