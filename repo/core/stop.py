"""Stop: asks a background thread to end.

It replaces `threading.Event`, whose lock an interrupt can leave locked.
"""

from __future__ import annotations

import _thread
import contextlib

__all__ = ["Stop"]


class Stop:
    """A request to end. One thread waits for it; any thread can make it."""

    def __init__(self) -> None:
        self._nap = _thread.allocate_lock()
        self._nap.acquire()
        self._is_asked = False

    def ask(self) -> None:
        """Ask the thread to end, and wake it. Safe to call again."""
        self._is_asked = True
        with contextlib.suppress(RuntimeError):  # already released
            self._nap.release()

    def is_asked(self) -> bool:
        """Return whether the thread was asked to end."""
        return self._is_asked

    def wait(self, timeout_s: float) -> bool:
        """Sleep until the thread is asked to end, for at most `timeout_s` seconds; returns whether it was asked."""
        if not self._is_asked:
            self._nap.acquire(timeout=timeout_s)
        return self._is_asked
