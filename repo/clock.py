"""The clock, which is passed to everything that needs the time, so that no test has to sleep."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "system_clock"]

Clock = Callable[[], int]
"""A function that returns the current time in microseconds since 1970 UTC."""


def system_clock() -> int:
    """Return the system's wall clock in microseconds since 1970 UTC."""
    return time.time_ns() // 1_000
