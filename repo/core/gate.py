"""The gate: a fair lock that one thread holds exclusively or many threads share, in the order of their requests.

A ticket represents one use. The gate's only state is which tickets wait and which are inside, so `leave` can be
repeated and restores order after any interrupt. Those inside are referenced weakly: if an interrupt keeps a use from
ending, its ticket no longer counts once it is dropped.
"""

from __future__ import annotations

import _thread
import time
import weakref
from collections import deque
from collections.abc import Callable

__all__ = ["Gate", "Patience", "Ticket"]

_POLL_S = 0.1
"""How often a waiting thread checks whether it may enter, or whether there was progress."""

_PROGRESS_S = 1.0
"""How often a waiting thread asks for progress."""


class Patience:
    """How long a call waits: until a deadline, which is extended whenever others make progress."""

    def __init__(self, timeout_s: float, progress: Callable[[], object] | None = None) -> None:
        self._timeout_s = timeout_s
        self._progress = progress
        self._since_s = time.monotonic()
        self._deadline_s = self._since_s + timeout_s
        self.check_after_s = min(_PROGRESS_S, timeout_s / 4)
        self._next_check_s = self._since_s + self.check_after_s
        self._seen: object = None

    @property
    def waited_s(self) -> float:
        """How long the call has waited."""
        return time.monotonic() - self._since_s

    @property
    def left_s(self) -> float:
        """The time left; 0 after the deadline."""
        return max(0.0, self._deadline_s - time.monotonic())

    def renew(self) -> None:
        """Restart the deadline, after progress."""
        self._deadline_s = time.monotonic() + self._timeout_s

    def check(self) -> None:
        """Check for progress if it is time to; call it repeatedly while waiting."""
        if self._progress is None or time.monotonic() < self._next_check_s:
            return
        self._next_check_s = time.monotonic() + self.check_after_s
        seen = self._progress()
        if self._seen is not None and seen != self._seen:
            self.renew()
        self._seen = seen


class Ticket:
    """One use by one thread."""

    __slots__ = ("__weakref__", "_waker", "alone", "mark", "thread")

    def __init__(self) -> None:
        self.alone = False
        self.thread = _thread.get_ident()
        self.mark: weakref.ref[Ticket] | None = None
        """What the gate has of it while it is inside."""
        self._waker = _thread.allocate_lock()
        self._waker.acquire()

    def wake(self) -> None:
        """Make `sleep` return. The caller holds the gate's lock."""
        if self._waker.locked():
            self._waker.release()

    def sleep(self, timeout_s: float) -> None:
        """Wait for `wake`, or for the timeout."""
        self._waker.acquire(timeout=timeout_s)


class Gate:
    """Thread-safe. While `closes` returns True, new sharers wait, even if other threads already share."""

    def __init__(self, closes: Callable[[], bool]) -> None:
        self._closes = closes
        # `with` acquires and releases it without a gap for an interrupt; a Condition has such a gap.
        self._mutex = _thread.allocate_lock()
        self._queue: deque[Ticket] = deque()
        self._inside: set[weakref.ref[Ticket]] = set()

    def join(self, ticket: Ticket) -> bool:
        """Share the gate at once, if that needs no waiting; if not, `enter` waits. Call `leave` in any case."""
        with self._mutex:
            ticket.alone = False
            if self._queue or not self._may_enter(ticket):
                return False
            self._let_in(ticket)
            return True

    def enter(self, ticket: Ticket, patience: Patience, *, alone: bool) -> bool:
        """Wait until the ticket is inside; False at the deadline. Call `leave` in any case, also after an exception."""
        with self._mutex:
            ticket.alone = alone
            if not alone and self._is_nested(ticket):
                self._let_in(ticket)
                return True
            self._queue.append(ticket)
        while True:
            with self._mutex:
                self._admit()
                if ticket.mark in self._inside:
                    return True
            left_s = patience.left_s
            if left_s <= 0:
                return False
            ticket.sleep(min(left_s, _POLL_S))
            patience.check()

    def enter_idle(self, ticket: Ticket, condition: Callable[[], bool]) -> bool:
        """Admit the ticket exclusively if no ticket is inside or waiting, and the condition holds."""
        with self._mutex:
            if self._inside or self._queue or not condition():
                return False
            ticket.alone = True
            self._let_in(ticket)
            return True

    def step_down(self, ticket: Ticket) -> None:
        """Turn exclusive use into shared use."""
        with self._mutex:
            ticket.alone = False
            self._admit()

    def leave(self, ticket: Ticket, stay: Callable[[], bool] = lambda: False) -> bool:
        """Remove the ticket. If it is the last one inside and `stay` returns True, it stays, exclusively: True."""
        with self._mutex:
            if ticket.mark in self._inside:
                if len(self._inside) == 1 and stay():
                    ticket.alone = True
                    return True
                self._inside.discard(ticket.mark)
            while ticket in self._queue:
                self._queue.remove(ticket)
            self._admit()
            return False

    def is_awaited(self) -> bool:
        """Return whether a thread is waiting."""
        return bool(self._queue)

    def asking(self, question: Callable[[], bool]) -> bool:
        """Evaluate `question` under the gate's lock, so that only one thread at a time does."""
        with self._mutex:
            return question()

    def _admit(self) -> None:
        while self._queue:
            first = self._queue[0]
            if first.mark not in self._inside:
                if not self._may_enter(first):
                    return
                # Before it leaves the queue, so that an interrupt in between loses nothing.
                self._let_in(first)
            self._queue.popleft()
            first.wake()

    def _may_enter(self, ticket: Ticket) -> bool:
        if not self._inside:
            return True
        if ticket.alone or any(inside.alone for inside in self._present()):
            return False
        return not self._closes()

    def _is_nested(self, ticket: Ticket) -> bool:
        """Return whether its thread already shares the gate. Otherwise it could wait for itself forever."""
        return any(inside.thread == ticket.thread and not inside.alone for inside in self._present())

    def _let_in(self, ticket: Ticket) -> None:
        ticket.mark = weakref.ref(ticket, self._inside.discard)
        self._inside.add(ticket.mark)

    def _present(self) -> list[Ticket]:
        return [ticket for mark in tuple(self._inside) if (ticket := mark()) is not None]
