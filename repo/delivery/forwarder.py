"""The forwarder: takes points from the store to one sink, in order. Owns the cursor's moves, never the wire.

The cursor moves after the receipt, never before it. So a crash between the two repeats a batch, and the
receiver knows it by its key (or, if the range has changed meanwhile, by its seqs: see `repo.delivery.batch`).
Within one process a batch that has no receipt yet is kept and sent again as it was, so its key stays the same
whatever is written meanwhile. After a restart it is read again: `after(cursor, batch_points)` covers the same
range of seqs while `batch_points` is the same and a whole range was there, that is for all of a backlog but
its end.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from repo.delivery.batch import DeliveryBatch
from repo.delivery.sinks import Receipt, Sink
from repo.errors import HoldfastError, InvalidSettings, SinkRefused, SinkUnreachable, StoreBusy
from repo.store.store import Store

__all__ = ["Backoff", "Forwarder", "Outcome", "Step"]

log = logging.getLogger("holdfast.delivery")


class Outcome(Enum):
    """How one step ended."""

    IDLE = "idle"
    """Everything has been delivered."""
    DELIVERED = "delivered"
    """There is a receipt, and the cursor has moved."""
    RETRY = "retry"
    """No receipt: the same batch goes again, after `wait_s`."""
    REFUSED = "refused"
    """The receiver will not take this batch. The cursor stays: nothing is skipped, nothing is lost."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did, and how many seconds to wait before the next one."""

    outcome: Outcome
    wait_s: float = 0.0
    batch: DeliveryBatch | None = None
    receipt: Receipt | None = None
    error: HoldfastError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait after the n-th failure in a row: doubling, never longer than `longest_s`.

    Each delay is shortened by up to a half, by chance, so that a fleet whose link returns does not come as one.
    """

    first_s: float = 0.5
    longest_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.longest_s:
            raise InvalidSettings(
                f"backoff: first_s = {self.first_s!r} and longest_s = {self.longest_s!r} must be above 0, in this order"
            )

    def delay_s(self, failures: int) -> float:
        """Return the seconds to wait after `failures` (1 and up) failures in a row."""
        full = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return full * random.uniform(0.5, 1.0)  # noqa: S311  spreads load; nothing is secret


class Forwarder:
    """Delivers the points of a store to one sink. Use it from one thread; the store may be used by others.

    `batch_points` is the width of a batch in seqs: at most so many points. Keep it the same over restarts, and
    repeats keep their keys. `on_receipt` is called with batch and receipt after the receiver's word and before
    the cursor moves; what it raises leaves the cursor where it was. `poll_s` is how long to wait when all is
    delivered.
    """

    def __init__(
        self,
        store: Store,
        sink: Sink,
        *,
        batch_points: int = 10_000,
        backoff: Backoff | None = None,
        poll_s: float = 1.0,
        on_receipt: Callable[[DeliveryBatch, Receipt], None] | None = None,
    ) -> None:
        if batch_points < 1:
            raise InvalidSettings(f"batch_points = {batch_points!r}: at least 1")
        self._store = store
        self._sink = sink
        self._batch_points = batch_points
        self._backoff = backoff or Backoff()
        self._poll_s = poll_s
        self._on_receipt = on_receipt
        self._store_id = store.status().store_id
        self._cursor = store.sinks.register(sink.name)
        self._in_flight: DeliveryBatch | None = None
        self._failures = 0

    @property
    def cursor(self) -> int:
        """The seq through which this sink has confirmed everything, as committed in the store."""
        return self._cursor

    def step(self) -> Step:
        """Send the next batch, or the same again if it has no receipt; never waits between tries.

        Delivered: the cursor is committed. Any other outcome, and any error raised, leaves the cursor as it
        was. A link that is down and a store that is busy are outcomes (RETRY); other errors are raised.
        """
        try:
            if self._in_flight is None:
                self._in_flight = self._next()
            batch = self._in_flight
            if batch is None:
                return Step(Outcome.IDLE, self._poll_s)
            receipt = self._sent(batch)
            if self._on_receipt is not None:
                self._on_receipt(batch, receipt)
            self._confirm(batch.last_seq)
        except (SinkUnreachable, StoreBusy) as error:
            return self._again(error)
        except SinkRefused as error:
            log.error("%s refused a batch, which stays first in line: %s", self._sink.name, error)
            return Step(Outcome.REFUSED, self._backoff.longest_s, self._in_flight, error=error)
        self._in_flight = None
        if self._failures:
            log.info("%s is reached again after %d failures", self._sink.name, self._failures)
            self._failures = 0
        return Step(Outcome.DELIVERED, 0.0, batch, receipt)

    def run(self, stop: threading.Event, *, until_empty: bool = False) -> int:
        """Step until `stop` is set (or, with `until_empty`, nothing is left); returns the points delivered.

        Waits out dead links for as long as they last. Raises `SinkRefused` when a batch is refused.
        """
        delivered = 0
        while not stop.is_set():
            step = self.step()
            if step.outcome is Outcome.DELIVERED and step.batch is not None:
                delivered += len(step.batch)
            elif step.outcome is Outcome.REFUSED and step.error is not None:
                raise step.error
            elif step.outcome is Outcome.IDLE and until_empty:
                break
            stop.wait(step.wait_s)
        return delivered

    def _next(self) -> DeliveryBatch | None:
        end = self._store.sinks.last_seq()
        if end <= self._cursor:
            return None
        points = self._store.points.after(self._cursor, self._batch_points)
        if points:
            return DeliveryBatch.of(self._store_id, self._cursor + 1, points)
        # Nothing of these seqs is left: deletes, and points that later ones overwrote.
        self._confirm(end)
        return None

    def _sent(self, batch: DeliveryBatch) -> Receipt:
        receipt = self._sink.send(batch)
        if receipt.key != batch.key:
            raise SinkUnreachable(
                f"{self._sink.name} answered with a receipt for another batch ({receipt.key[:200]!r}): "
                "something between here and the receiver is in the way"
            )
        return receipt

    def _confirm(self, seq: int) -> None:
        self._store.sinks.confirm(self._sink.name, seq)
        self._cursor = seq

    def _again(self, error: SinkUnreachable | StoreBusy) -> Step:
        self._failures += 1
        if self._failures == 1:
            log.warning("%s cannot be reached; the points wait: %s", self._sink.name, error)
        wait_s = self._backoff.delay_s(self._failures)
        if isinstance(error, SinkUnreachable) and error.retry_after_s is not None:
            wait_s = max(wait_s, min(error.retry_after_s, self._backoff.longest_s))
        return Step(Outcome.RETRY, wait_s, self._in_flight, error=error)
