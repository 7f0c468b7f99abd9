"""Capacity: whether a store may grow by one more thing, by its count and by its bytes. Drops nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from repo import forks
from repo.errors import EngineMissing, StoreBusy
from repo.store.store import Store
from repo.upkeep.usage import Size

__all__ = ["Capacity"]

LOOK_S = 1.0
"""How long counts and sizes are believed while there is room: other processes write too. In that time they can
carry the store past its limit by what they write meanwhile."""


class Capacity:
    """The room that is left. Thread-safe; nobody is refused without a count and a measurement made for it.

    Bytes are those of the files less the free blocks inside. Before anybody is refused, logs are folded in and the
    free blocks of the columns are counted; a refusal then holds for `LOOK_S`.
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
        self._looked_s = self._refused_s = float("-inf")
        self._hidden_bytes = 0
        forks.after_fork(self, Capacity._begin_anew)

    @contextmanager
    def place(self, size_bytes: int, count: int = 1) -> Iterator[bool]:
        """Say whether there is room for `count` things of about `size_bytes`, and keep it during the block."""
        with self._lock:
            fresh = time.monotonic() - self._looked_s < LOOK_S
            if not fresh or self._left < count or self._bytes_left < size_bytes:
                self._look(size_bytes)
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

    def _begin_anew(self) -> None:
        """Forget, in a child of fork, the threads of the parent, which may have held the lock."""
        self._lock = threading.Lock()
        self._in_flight = 0
        self._looked_s = self._refused_s = float("-inf")

    def _look(self, size_bytes: int) -> None:
        self._left = self._max_count - self._count() - self._in_flight
        self._bytes_left = self._max_bytes - self._used_bytes(self._store().size())
        self._looked_s = time.monotonic()
        if self._bytes_left >= size_bytes:
            return
        if self._looked_s - self._refused_s < LOOK_S:
            self._bytes_left += self._hidden_bytes
            return
        self._hidden_bytes = self._fold_and_look_inside()
        self._bytes_left = self._max_bytes - self._used_bytes(self._store().size()) + self._hidden_bytes
        if self._bytes_left < size_bytes:
            self._refused_s = self._looked_s

    def _fold_and_look_inside(self) -> int:
        """Make what room there is without a loss; returns how much only a look inside can tell."""
        try:
            self._store().checkpoint()
            inside = self._store().size(inside=True)
        except (StoreBusy, EngineMissing):
            return 0  # who holds the columns may be the one that makes room; it is looked at again
        return self._used_bytes(self._store().size()) - self._used_bytes(inside)
