"""The sender process: forwards a store to the receiver, and reports each step."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence

from repo.delivery.forwarder import Backoff, Forwarder, Progress, Step
from repo.demo.process import announce, obey
from repo.store.store import Store

SINK = "receiver"


class Reporter:
    """Reports the steps of the forwarder.

    After the `hold_after`-th batch that the receiver has stored it blocks forever, before the batch is confirmed in the
    store. The demo kills the sender at this point.
    """

    def __init__(self, hold_after: int) -> None:
        self._hold_after = hold_after
        self._batches = 0
        self._since_s: float | None = None

    def __call__(self, _name: str, step: Step) -> None:
        """Report a step."""
        now_s = time.monotonic()
        took_s = None if self._since_s is None else now_s - self._since_s
        if step.progress in (Progress.UNREACHABLE, Progress.BUSY):
            announce("retry")
        elif step.progress is Progress.DELIVERED:
            self._batches += 1
            announce(
                "held" if self._batches == self._hold_after else "delivered",
                lane=step.lane,
                first=step.first_seq,
                last=step.last_seq,
                points=step.items,
                refused=step.refused,
                repeat=step.repeat,
                took_s=took_s,
            )
            if self._batches == self._hold_after:
                threading.Event().wait()
        elif step.error is not None:
            raise step.error
        self._since_s = None if step.wait_s else time.monotonic()


def main(arguments: Sequence[str] | None = None) -> None:
    """Forward in the background until the order `finish`, and then until nothing is left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--batch-points", type=int, required=True)
    parser.add_argument("--hold-after", type=int, default=0)
    options = parser.parse_args(arguments)
    finish = threading.Event()
    obey({"finish": finish.set})
    with Store(options.store, create=False) as store:
        forwarder = Forwarder(
            store,
            SINK,
            batch_points=options.batch_points,
            backoff=Backoff(first_s=0.1, longest_s=0.5),
            poll_s=0.1,
            on_step=Reporter(options.hold_after),
        )
        with forwarder:
            announce("ready")
            finish.wait()
        drained = forwarder.drain(60.0)[SINK]
        if not drained.is_empty:
            raise SystemExit(f"the receiver does not have everything: {drained.last}")
    announce("finished")


if __name__ == "__main__":
    main()
