"""A process that delivers a store to a receiver, and kills itself at a step; for `test_delivery_kills`.

    python -m tests.faults.delivering STORE SINK STEP NUMBER [LANES]

The code under test is unchanged: the steps are around the calls that commit and send. `while sending` is a kill at a
random time of the exchange, from a thread.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from repo import Settings, Store
from repo.delivery import worker
from repo.delivery.forwarder import Backoff, Forwarder
from repo.store.deliveries import Delivery

__all__ = ["BATCH_POINTS", "STEPS"]

BATCH_POINTS = 20

STEPS = (
    "before the attempt",
    "after the attempt",
    "while sending",
    "after sending",
    "before the confirmation",
    "after the confirmation",
)


class Killer:
    """Kills this process at the `number`-th time that a step is reached."""

    def __init__(self, step: str, number: int) -> None:
        self._step = step
        self._left = number

    def reach(self, step: str) -> None:
        """Note that a step is reached."""
        if step != self._step:
            return
        self._left -= 1
        if self._left:
            return
        if step == "while sending":
            threading.Thread(target=self._soon, daemon=True).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def _soon(self) -> None:
        time.sleep(random.uniform(0, 0.01))
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        """Wrap a function with two steps."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.reach(before)
            result = call(*args, **kwargs)
            self.reach(after)
            return result

        return wrapped


def main() -> None:
    """Deliver until nothing is left, or until the kill."""
    store_path, sink, step, number = sys.argv[1:5]
    killer = Killer(step, int(number))
    Delivery.begin = killer.around(Delivery.begin, "before the attempt", "after the attempt")  # type: ignore[method-assign]
    Delivery.confirm = killer.around(  # type: ignore[method-assign]
        Delivery.confirm, "before the confirmation", "after the confirmation"
    )
    opened = worker.Worker._open

    def open_(self: worker.Worker, info: Any) -> bool:
        fits = opened(self, info)
        assert self._sink is not None
        if not hasattr(self._sink.send, "__wrapped__"):
            sent = killer.around(self._sink.send, "while sending", "after sending")
            sent.__wrapped__ = self._sink.send  # type: ignore[attr-defined]
            self._sink.send = sent  # type: ignore[method-assign]
        return fits

    worker.Worker._open = open_  # type: ignore[method-assign]
    with Store(store_path, Settings(background=False)) as store:
        forwarder = Forwarder(
            store, sink, batch_points=BATCH_POINTS, backoff=Backoff(first_s=0.01, longest_s=0.02)
        )
        drained = forwarder.drain(60.0)[sink]
        if not drained.is_empty:
            raise SystemExit(repr(drained.last))


if __name__ == "__main__":
    main()
