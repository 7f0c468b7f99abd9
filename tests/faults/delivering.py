"""A process that delivers a store to a sink, and is killed at a step; for `test_delivery_kills`.

    python -m tests.faults.delivering STORE SINK STEP NUMBER

The code under test is unchanged: the steps are around the calls that commit and send. At most steps the process kills
itself. At those of `HELD` it prints `SENDING`, waits for a line, and goes on: its parent lets a proxy keep back what it
sends, or the answer, and kills it then. A folder has no link, so it is killed there between its files.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

from repo import Settings, Store
from repo.delivery import worker
from repo.delivery.forwarder import Backoff, Forwarder
from repo.delivery.sinks import folder
from repo.disk import durable
from repo.repositories.attempts import AttemptRepository
from repo.store.deliveries import Delivery

__all__ = ["ANSWER", "BATCH_POINTS", "HELD", "NOTHING", "REFUSALS", "SENDING", "SENT", "STEPS"]

BATCH_POINTS = 20

SENDING = "while sending"
ANSWER = "before the answer"

NOTHING = ", nothing"
"""The steps of a batch without items, which moves the token after a refusal, have this ending, too."""

SENT = "SENT: nothing was kept back"
"""What the process ends with if its parent, or the sink, found nothing to keep back."""

HELD = (SENDING, ANSWER, SENDING + NOTHING, ANSWER + NOTHING)
"""A part of the batch is on its way; the destination has stored it, and the answer is on its way."""

STEPS = (
    "before the attempt",
    "after the attempt",
    "before sending",
    SENDING,
    ANSWER,
    "after sending",
    "before the confirmation",
    "between confirmation and attempt",
    "after the confirmation",
)

REFUSALS = (
    "before the refusal",
    "between the refusal and the rest",
    "after the refusal",
    *(step + NOTHING for step in ("before sending", SENDING, ANSWER, "after sending")),
)
"""The steps of an item that the destination refuses alone."""


class Killer:
    """Kills this process at the `number`-th time that a step is reached."""

    def __init__(self, step: str, number: int) -> None:
        self._step = step
        self._left = number

    def reach(self, step: str) -> None:
        """Note that a step is reached."""
        if self.is_now(step):
            os.kill(os.getpid(), signal.SIGKILL)

    def is_now(self, step: str) -> bool:
        """Note that a step is reached, and return whether it is the one to be killed at."""
        if step != self._step:
            return False
        self._left -= 1
        return self._left == 0

    def around(self, call: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        """Wrap a function with two steps."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.reach(before)
            result = call(*args, **kwargs)
            self.reach(after)
            return result

        return wrapped

    def sending(self, send: Callable[..., Any], sink: Any) -> Callable[..., Any]:
        """Wrap a sink's `send` with the steps before, while and after it."""

        def wrapped(batch: Any) -> Any:
            endings = ("",) if len(batch) else ("", NOTHING)
            for ending in endings:
                self.reach("before sending" + ending)
            steps = [step + ending for step in (SENDING, ANSWER) for ending in endings]
            now = self._step in steps and self.is_now(self._step)
            if now and isinstance(sink, folder.FolderSink):
                _kill_in_folder(self._step)
            elif now:
                print("SENDING", flush=True)
                sys.stdin.readline()
            outcome = send(batch)
            if now:
                raise SystemExit(SENT)
            for ending in endings:
                self.reach("after sending" + ending)
            return outcome

        return wrapped


def _kill_in_folder(step: str) -> None:
    """Die before the file of the batch has its name, before the position is written, or after it."""
    write, put = durable.atomic_write, durable.put
    place = "answer" if step == ANSWER else random.choice(["file", "position"])

    class Durable:
        atomic_write, sync = staticmethod(write), staticmethod(durable.sync)

        @staticmethod
        def put(path: Any, content: bytes) -> None:
            is_position = path.suffix == ".json"
            if place == ("position" if is_position else "file"):
                os.kill(os.getpid(), signal.SIGKILL)
            put(path, content)
            if is_position and place == "answer":
                os.kill(os.getpid(), signal.SIGKILL)

    vars(folder)["durable"] = Durable


def install(killer: Killer) -> None:
    """Put the steps around what a worker calls, for the rest of this process's life."""
    begin, confirm_part, put = Delivery.begin, Delivery.confirm_part, AttemptRepository.put
    between = [""]

    def watched_put(self: AttemptRepository, *given: Any) -> None:
        if between[0]:
            killer.reach(between[0])
        put(self, *given)

    def watched_begin(self: Delivery, attempt: Any, confirm: Any = None, *more: Any) -> None:
        between[0] = "" if confirm is None else "between confirmation and attempt"
        begin(self, attempt, confirm, *more)

    def watched_part(self: Delivery, *given: Any, **named: Any) -> None:
        between[0] = "between the refusal and the rest"
        confirm_part(self, *given, **named)

    AttemptRepository.put = watched_put  # type: ignore[method-assign, assignment]
    Delivery.begin = killer.around(watched_begin, "before the attempt", "after the attempt")  # type: ignore[method-assign]
    Delivery.confirm_part = killer.around(watched_part, "before the refusal", "after the refusal")  # type: ignore[method-assign]
    Delivery.confirm = killer.around(  # type: ignore[method-assign]
        Delivery.confirm, "before the confirmation", "after the confirmation"
    )
    opened = worker.Worker._open

    def open_(self: worker.Worker, info: Any) -> bool:
        fits = opened(self, info)
        assert self._sink is not None
        if not hasattr(self._sink.send, "__wrapped__"):
            sent: Any = killer.sending(self._sink.send, self._sink)
            sent.__wrapped__ = self._sink.send
            self._sink.send = sent  # type: ignore[method-assign]
        return fits

    worker.Worker._open = open_  # type: ignore[method-assign]


def main() -> None:
    """Deliver until nothing is left, or until the kill."""
    store_path, sink, step, number = sys.argv[1:5]
    install(Killer(step, int(number)))
    with Store(store_path, Settings(background=False)) as store:
        forwarder = Forwarder(
            store, sink, batch_points=BATCH_POINTS, backoff=Backoff(first_s=0.01, longest_s=0.02)
        )
        drained = forwarder.drain(600.0)[sink]
        if not drained.is_empty:
            raise SystemExit(repr(drained.last))


if __name__ == "__main__":
    main()
