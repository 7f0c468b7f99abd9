"""Capacity: decides whether a store may grow, by its number of records and by its bytes. Deletes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from repo.errors import EngineMissing, StoreBusy
from repo.processes import forks
from repo.store.store import Store
from repo.upkeep.usage import Size

__all__ = ["Capacity"]

REUSE_S = 1.0
"""How long a count and a size are reused while there is room. In that time, other processes can write the store past
its limit."""


class Capacity:
    """The remaining room. Thread-safe; a refusal is always based on a new count and measurement.

    Bytes are those of the files minus the free blocks inside. Before a refusal, logs are checkpointed and the free
    blocks of the columns are counted; this result is then reused for `REUSE_S`.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        used_bytes: Callable[[Size], int],
        max_bytes: float,
        count: Callable[[], int] = lambda: 0,
        max_count: float = float("inf"),
    ) -> None:
        self._store = store
        self._used_bytes = used_bytes
        self._max_bytes = max_bytes
        self._count = count
        self._max_count = max_count
        self._lock = threading.Lock()
        self._in_flight = 0
        self._left = self._bytes_left = 0.0
        self._measured_s = self._refused_s = float("-inf")
        self._hidden_bytes = 0
        forks.after_fork(self, Capacity._reset_in_child)

    @contextmanager
    def place(self, size_bytes: int, count: int = 1) -> Iterator[bool]:
        """Return whether there is room for `count` items of about `size_bytes`, and reserve it for the block."""
        with self._lock:
            fresh = time.monotonic() - self._measured_s < REUSE_S
            if not fresh or self._left < count or self._bytes_left < size_bytes:
                self._measure(size_bytes)
            granted = self._left >= count and self._bytes_left >= size_bytes
            if granted:
                self._left -= count
                self._bytes_left -= size_bytes
                self._in_flight += count
        try:
            yield granted
        finally:
            if granted:
                with self._lock:
                    self._in_flight -= count

    def _reset_in_child(self) -> None:
        """In the child of a fork, forget the parent's threads, which may have held the lock."""
        self._lock = threading.Lock()
        self._in_flight = 0
        self._measured_s = self._refused_s = float("-inf")

    def _measure(self, size_bytes: int) -> None:
        self._left = self._max_count - self._count() - self._in_flight
        self._bytes_left = self._max_bytes - self._used_bytes(self._store().size())
        self._measured_s = time.monotonic()
        if self._bytes_left >= size_bytes:
            return
        if self._measured_s - self._refused_s < REUSE_S:
            self._bytes_left += self._hidden_bytes
            return
        self._hidden_bytes = self._checkpoint_and_measure_inside()
        self._bytes_left = self._max_bytes - self._used_bytes(self._store().size()) + self._hidden_bytes
        if self._bytes_left < size_bytes:
            self._refused_s = self._measured_s

    def _checkpoint_and_measure_inside(self) -> int:
        """Free what can be freed without a loss; returns the free bytes that only opening the columns reveals."""
        try:
            self._store().checkpoint()
            inside = self._store().size(inside=True)
        except (StoreBusy, EngineMissing):
            return 0  # the process that holds the columns may be freeing space; the next call measures again
        return self._used_bytes(self._store().size()) - self._used_bytes(inside)
