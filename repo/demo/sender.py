"""The sender process: forwards a store to the receiver, and reports each step."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence

from repo.delivery.batch import DeliveryBatch
from repo.delivery.former import Backoff, Forwarder, Outcome
from repo.delivery.sinks import Receipt
from repo.delivery.sinks.http import HttpSink
from repo.demo.process import announce, obey
from repo.store.store import Store

SINK = "receiver"


def main(arguments: Sequence[str] | None = None) -> None:
    """Forward until the order `finish`, and then until nothing is left.

    `--hold-after N` reports the N-th receipt and then blocks forever, before the cursor is committed. The demo kills
    the sender at this point.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("url")
    parser.add_argument("--batch-points", type=int, required=True)
    parser.add_argument("--hold-after", type=int, default=0)
    options = parser.parse_args(arguments)
    finish, wake = threading.Event(), threading.Event()

    def finishing() -> None:
        finish.set()
        wake.set()

    obey({"finish": finishing})
    receipts = 0

    def held(batch: DeliveryBatch, receipt: Receipt) -> None:
        nonlocal receipts
        receipts += 1
        if receipts == options.hold_after:
            announce("held", key=receipt.key, first=batch.first_seq, last=batch.last_seq)
            threading.Event().wait()

    with Store(options.store, create=False) as store, HttpSink(options.url, name=SINK, timeout_s=5.0) as sink:
        forwarder = Forwarder(
            store,
            sink,
            batch_points=options.batch_points,
            backoff=Backoff(first_s=0.1, longest_s=0.5),
            poll_s=0.1,
            on_receipt=held,
        )
        announce("ready", cursor=forwarder.cursor)
        while True:
            is_last = finish.is_set()
            start_s = time.monotonic()
            step = forwarder.step()
            took_s = time.monotonic() - start_s
            if step.outcome is Outcome.IDLE and is_last:
                break
            if step.outcome is Outcome.REFUSED and step.error is not None:
                raise step.error
            if step.outcome is not Outcome.IDLE and step.batch is not None:
                announce(
                    step.outcome.value,
                    points=len(step.batch),
                    bytes=len(step.batch.body),
                    took_s=took_s,
                    cursor=forwarder.cursor,
                )
            wake.wait(step.wait_s)
        announce("finished", cursor=forwarder.cursor)


if __name__ == "__main__":
    main()
