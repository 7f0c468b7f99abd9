"""The forwarder: delivers points from the store to one sink, in order. Owns the cursor, never the connection.

The cursor moves only after the receipt. A crash between the two repeats a batch; the receiver recognizes it by its key,
or by its seqs if the range has changed since (see `repo.delivery.batch`). Within one process, a batch without a receipt
is kept and sent again unchanged, so its key stays the same whatever is written in the meantime. After a restart the
batch is read again. If `batch_points` is the same, `after(cursor, batch_points)` then covers the same range of seqs,
except at the end of the backlog, where the range was incomplete.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from repo.arguments import check_count, check_fields, check_function, check_seconds, shown
from repo.delivery.batch import DeliveryBatch
from repo.delivery.sinks import Receipt, Sink
from repo.errors import HoldfastError, InvalidSettings, SinkRefused, SinkUnreachable, StoreBusy, counted
from repo.repositories.sinks import FailureKind
from repo.store.store import Store

__all__ = ["Backoff", "Forwarder", "Outcome", "Step"]

log = logging.getLogger("holdfast.delivery")


class Outcome(Enum):
    """The outcome of a step."""

    IDLE = "idle"
    """Everything has been delivered."""
    DELIVERED = "delivered"
    """The receiver returned a receipt, and the cursor has moved."""
    RETRY = "retry"
    """No receipt: the same batch is sent again after `wait_s`."""
    REFUSED = "refused"
    """The receiver rejected the batch. The cursor does not move: nothing is skipped, nothing is lost."""


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step, and the seconds to wait before the next one."""

    outcome: Outcome
    wait_s: float = 0.0
    batch: DeliveryBatch | None = None
    receipt: Receipt | None = None
    error: HoldfastError | None = None

    def __repr__(self) -> str:
        parts = [self.outcome.value]
        if self.batch is not None:
            count = self.batch.identity.points
            parts.append(f"{counted(count, 'point')}, seqs {self.batch.first_seq} to {self.batch.last_seq}")
        if self.wait_s:
            parts.append(f"wait {self.wait_s:.3g} s")
        if self.error is not None:
            parts.append(f"{type(self.error).__name__}: {self.error}")
        return f"<Step: {'; '.join(parts)}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The delay after consecutive failures: it doubles with each one, up to `longest_s`.

    Each delay is randomly shortened by up to a half, so that a fleet does not reconnect all at once.
    """

    first_s: float = 0.5
    longest_s: float = 60.0

    def __post_init__(self) -> None:
        check_fields(self, error=InvalidSettings)
        if not 0 < self.first_s <= self.longest_s:
            raise InvalidSettings(
                f"backoff: first_s = {self.first_s!r} must be above 0 and at most longest_s = {self.longest_s!r}"
            )

    def delay_s(self, failures: int) -> float:
        """Return the seconds to wait after `failures` (at least 1) consecutive failures."""
        full = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return full * random.uniform(0.5, 1.0)  # noqa: S311  spreads load; nothing is secret


class Forwarder:
    """Delivers the points of a store to one sink. Use it from one thread; other threads may use the store.

    `batch_points` is the range of a batch in seqs, and so its maximum number of points. Keep it the same across
    restarts, so that repeated batches keep their keys. `on_receipt` is called with the batch and the receipt, before
    the cursor moves; if it raises, the cursor does not move. `poll_s` is the delay when everything is delivered.
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
        batch_points = check_count(batch_points, "batch_points", error=InvalidSettings)
        poll_s = check_seconds(poll_s, "poll_s", error=InvalidSettings)
        if backoff is not None and not isinstance(backoff, Backoff):
            raise InvalidSettings(f"backoff = {shown(backoff)}: a Backoff is expected")
        if on_receipt is not None:
            check_function(on_receipt, "on_receipt", error=InvalidSettings)
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
        self._refusal = ""

    @property
    def cursor(self) -> int:
        """The seq up to which this sink has confirmed everything, as committed in the store."""
        return self._cursor

    def step(self) -> Step:
        """Send the next batch, or the last one again if it has no receipt; never waits between attempts.

        If it is delivered, the cursor is committed. Any other outcome or error leaves the cursor unchanged. A link that
        is down, an `OSError` of the sink, and a busy store have the outcome RETRY; other errors are raised. `status`
        shows the first of several failures until a batch is delivered.
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
            if str(error) != self._refusal:
                self._refusal = str(error)
                log.error("%s refused a batch, which stays first in the queue: %s", self._sink.name, error)
                self._note("refused", error)
            return Step(Outcome.REFUSED, self._backoff.longest_s, self._in_flight, error=error)
        self._in_flight, self._refusal = None, ""
        if self._failures:
            log.info(
                "the delivery to %s works again after %s", self._sink.name, counted(self._failures, "failure")
            )
            self._failures = 0
        return Step(Outcome.DELIVERED, 0.0, batch, receipt)

    def run(self, stop: threading.Event, *, until_empty: bool = False) -> int:
        """Deliver until `stop` is set or, with `until_empty`, nothing is left; returns the number of points delivered.

        Retries for as long as the link is down, and sends a refused batch again every `backoff.longest_s` seconds: what
        refuses it, an expired token or a moved URL, is fixed at the other end. With `until_empty`, which would then
        never end, a refusal raises `SinkRefused`.
        """
        delivered = 0
        while not stop.is_set():
            step = self.step()
            if step.outcome is Outcome.DELIVERED and step.batch is not None:
                delivered += len(step.batch)
            elif step.outcome is Outcome.REFUSED and step.error is not None and until_empty:
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
        # These seqs have no points left: they were deletes, or points that were deleted or overwritten.
        self._confirm(end)
        return None

    def _sent(self, batch: DeliveryBatch) -> Receipt:
        try:
            receipt = self._sink.send(batch)
        except OSError as error:  # ConnectionError and TimeoutError are, too
            raise SinkUnreachable(f"{self._sink.name}: {type(error).__name__}: {error}") from error
        if receipt.key != batch.key:
            raise SinkUnreachable(
                f"{self._sink.name} answered with a receipt for another batch ({receipt.key[:200]!r}); check for a "
                "proxy or cache before the receiver"
            )
        return receipt

    def _confirm(self, seq: int) -> None:
        self._store.sinks.confirm(self._sink.name, seq)
        self._cursor = seq

    def _again(self, error: SinkUnreachable | StoreBusy) -> Step:
        self._failures += 1
        if self._failures == 1:
            if isinstance(error, SinkUnreachable):
                log.warning("%s cannot be reached; the points stay in the store: %s", self._sink.name, error)
                self._note("unreachable", error)
            else:
                log.warning("the store is busy, so the delivery to %s waits: %s", self._sink.name, error)
        wait_s = self._backoff.delay_s(self._failures)
        if isinstance(error, SinkUnreachable) and error.retry_after_s is not None:
            wait_s = max(wait_s, min(error.retry_after_s, self._backoff.longest_s))
        return Step(Outcome.RETRY, wait_s, self._in_flight, error=error)

    def _note(self, kind: FailureKind, error: HoldfastError) -> None:
        try:
            self._store.sinks.note_failure(self._sink.name, kind, str(error))
        except HoldfastError as failed:  # a full disk, for example, which deliveries may survive
            log.warning("`status` will not show why %s fails: %s", self._sink.name, failed)
