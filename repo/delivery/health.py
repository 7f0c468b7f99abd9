"""How the delivery to one sink goes: what an error means, what is logged and stored about it, and the wait after it."""

from __future__ import annotations

import logging

from repo.delivery.steps import Backoff, Progress
from repo.errors import (
    EngineMissing,
    FlushFailed,
    HoldfastError,
    InvalidSettings,
    MissingExtra,
    SinkHalted,
    SinkRefused,
    SinkUnreachable,
    StoreBusy,
    StoreForked,
    StoreFull,
    counted,
)
from repo.repositories.sinks import SinkInfo, SinkState
from repo.store.deliveries import Delivery

__all__ = ["STORE_ERRORS", "Health"]

log = logging.getLogger("holdfast.delivery")
log_of_states = logging.getLogger("holdfast.delivery.state")
"""Logs what the state of the sink and its `last_error` say, too."""

PROBE_S = 60.0
"""How often a sink that rejects everything is tried again."""

FORKED_S = 1.0
"""How often a forked sink is checked: an operator may have ended the fork."""

STORE_ERRORS = (StoreBusy, StoreFull, EngineMissing, FlushFailed)
"""Errors of the store that may pass."""


class Health:
    """Counts failures since the last success. For one thread."""

    def __init__(self, delivery: Delivery, backoff: Backoff) -> None:
        self._delivery = delivery
        self._name = delivery.name
        self._backoff = backoff
        self._failures = 0
        self._trouble = ""

    def failed(self, error: Exception) -> tuple[Progress, float]:
        """Record an error of the sink; returns what the step did, and the seconds to wait.

        Raises errors of the store, except those that may pass: then `status` does not show this error.
        """
        self._failures += 1
        state, progress, wait_s = _meaning(error)
        if state == "failing":
            wait_s = self._backoff.delay_s(self._failures)
            after_s = error.retry_after_s if isinstance(error, SinkUnreachable) else None
            if after_s is not None:
                wait_s = max(wait_s, min(after_s, self._backoff.longest_s))
        self._note(state, error)
        return progress, wait_s

    def busy(self, error: HoldfastError) -> float:
        """Record an error of the store that may pass; returns the seconds to wait."""
        self._failures += 1
        if isinstance(error, StoreBusy):
            if self._failures == 1:
                log.warning("the store is busy, so the delivery to %s waits: %s", self._name, error)
        else:
            self._note("failing", error)
        return self._backoff.delay_s(self._failures)

    def reached(self, info: SinkInfo) -> None:
        """Record that the sink can be reached, though there was nothing to send."""
        if info.state != "running":
            self._delivery.running()
        self.succeeded()

    def succeeded(self) -> None:
        """Note that the sink has answered a batch; its confirmation also ends a failure in the store."""
        if self._failures:
            log.info(
                "the delivery to %s works again after %s", self._name, counted(self._failures, "failure")
            )
        self._failures, self._trouble = 0, ""

    def _note(self, state: SinkState, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if state == "stopped":
            text = f"{type(error).__name__}: {text}"
        is_new, self._trouble = text != self._trouble, text
        if is_new:
            match state:
                case "failing" if isinstance(error, STORE_ERRORS):
                    log_of_states.warning("the delivery to %s waits for the store: %s", self._name, text)
                case "failing":
                    log_of_states.warning(
                        "%s cannot be reached; the points stay in the store: %s", self._name, text
                    )
                case "stopped":
                    log_of_states.error(
                        "the delivery to %s failed; it is tried again: %s", self._name, text, exc_info=error
                    )
                case _:
                    log_of_states.error("%s takes nothing for now; nothing is skipped: %s", self._name, text)
        try:
            self._delivery.failed(state, text)
        except STORE_ERRORS as failed:  # a full disk, for example, which deliveries may survive
            if is_new:
                log.warning("`status` cannot show this, because it cannot be stored: %s", failed)


def _meaning(error: Exception) -> tuple[SinkState, Progress, float]:
    """Return what an error of a sink says about its state, and the seconds until it is tried again."""
    match error:
        case StoreForked():
            return "forked", Progress.FORKED, FORKED_S
        case SinkUnreachable() | OSError():
            return "failing", Progress.UNREACHABLE, 0.0
        case SinkHalted() | SinkRefused() | MissingExtra() | InvalidSettings():
            return "halted", Progress.HALTED, PROBE_S
        case _:
            return "stopped", Progress.HALTED, PROBE_S
