"""The gate: through it comes one thread alone, or many that share, in the order in which they asked.

A ticket stands for one use. Everything that the gate knows is which tickets wait and which are inside, so that
`leave` can be repeated: whatever interrupted a use, leaving puts all in order.
"""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Gate", "Patience", "Ticket"]

_LOOK_S = 0.1
"""How often who waits looks again whether it may enter, or whether there is progress."""

_PROGRESS_S = 1.0
"""How often who waits asks for progress."""


class Patience:
    """How long a call waits: until its deadline, which starts anew with each progress that others make."""

    def __init__(self, timeout_s: float, progress: Callable[[], object] | None = None) -> None:
        self._timeout_s = timeout_s
        self._progress = progress
        self._since_s = time.monotonic()
        self._deadline_s = self._since_s + timeout_s
        self.look_after_s = min(_PROGRESS_S, timeout_s / 4)
        self._next_look_s = self._since_s + self.look_after_s
        self._seen: object = None

    @property
    def waited_s(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self._since_s

    @property
    def left_s(self) -> float:
        """How long is left; 0 when the deadline has come."""
        return max(0.0, self._deadline_s - time.monotonic())

    def renew(self) -> None:
        """Begin anew: there was progress."""
        self._deadline_s = time.monotonic() + self._timeout_s

    def look(self) -> None:
        """Ask for progress, if it is time to; call it again and again while waiting."""
        if self._progress is None or time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + self.look_after_s
        seen = self._progress()
        if self._seen is not None and seen != self._seen:
            self.renew()
        self._seen = seen


class Ticket:
    """One use, by one thread."""

    __slots__ = ("_waker", "alone", "thread")

    def __init__(self) -> None:
        self.alone = False
        self.thread = _thread.get_ident()
        self._waker = _thread.allocate_lock()
        self._waker.acquire()

    def wake(self) -> None:
        """Let `sleep` return; the gate's lock is held."""
        if self._waker.locked():
            self._waker.release()

    def sleep(self, timeout_s: float) -> None:
        """Wait to be woken."""
        self._waker.acquire(timeout=timeout_s)


class Gate:
    """Thread-safe. `closes` says whether those who would share wait although others share already."""

    def __init__(self, closes: Callable[[], bool]) -> None:
        self._closes = closes
        # Taken and released by `with` without a gap for an interrupt, as no Condition is.
        self._mutex = _thread.allocate_lock()
        self._queue: deque[Ticket] = deque()
        self._inside: set[Ticket] = set()

    def enter(self, ticket: Ticket, patience: Patience, *, alone: bool) -> bool:
        """Wait until the ticket is inside; False at the deadline. After that, and after any exception, `leave`."""
        with self._mutex:
            ticket.alone = alone
            if not alone and self._is_nested(ticket):
                self._inside.add(ticket)
                return True
            self._queue.append(ticket)
        while True:
            with self._mutex:
                self._admit()
                if ticket in self._inside:
                    return True
            left_s = patience.left_s
            if left_s <= 0:
                return False
            ticket.sleep(min(left_s, _LOOK_S))
            patience.look()

    def enter_idle(self, ticket: Ticket, condition: Callable[[], bool]) -> bool:
        """Let the ticket in alone if nobody is inside or waits, and the condition holds."""
        with self._mutex:
            if self._inside or self._queue or not condition():
                return False
            ticket.alone = True
            self._inside.add(ticket)
            return True

    def step_down(self, ticket: Ticket) -> None:
        """Share from now on what the ticket had alone."""
        with self._mutex:
            ticket.alone = False
            self._admit()

    def leave(self, ticket: Ticket, stay: Callable[[], bool] = lambda: False) -> bool:
        """Take the ticket out, wherever it is. True where it is the last and `stay` says so: it stays, alone."""
        with self._mutex:
            if ticket in self._inside:
                if len(self._inside) == 1 and stay():
                    ticket.alone = True
                    return True
                self._inside.discard(ticket)
            while ticket in self._queue:
                self._queue.remove(ticket)
            self._admit()
            return False

    def is_awaited(self) -> bool:
        """Say whether a thread waits."""
        return bool(self._queue)

    def asking(self, question: Callable[[], bool]) -> bool:
        """Answer a question that only one thread at a time may ask."""
        with self._mutex:
            return question()

    def _admit(self) -> None:
        while self._queue:
            first = self._queue[0]
            if first not in self._inside:
                if not self._may_enter(first):
                    return
                self._inside.add(first)  # before it leaves the queue: an interrupt in between loses nothing
            self._queue.popleft()
            first.wake()

    def _may_enter(self, ticket: Ticket) -> bool:
        if not self._inside:
            return True
        if ticket.alone or any(inside.alone for inside in self._inside):
            return False
        return not self._closes()

    def _is_nested(self, ticket: Ticket) -> bool:
        """Say whether its thread shares already: made to wait for itself, it would wait for ever."""
        return any(inside.thread == ticket.thread and not inside.alone for inside in self._inside)
