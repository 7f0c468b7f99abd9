"""Trim: keeps the columns under their limit in bytes, by deleting the oldest points, which the loss ledger records."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from repo.errors import EngineMissing, HoldfastError, StoreBusy, counted
from repo.processes import forks
from repo.queries.selection import Selection
from repo.store.store import Store

__all__ = ["Trim"]

log = logging.getLogger("holdfast.cleaning")

CHECK_S = 1.0
"""How long a measurement is reused."""

TARGET = 0.9
"""The share of the limit that is left after a trim, so that it is not repeated at once."""

ENOUGH = 0.95
"""A trim that reached this share is not continued."""

LEAST_BYTES = 2_097_152
"""Below this limit nothing is trimmed: a column file takes as much without points, so all of them would be deleted."""

_ROUNDS = 4
"""A rewritten file may still be larger than its share of the points; the next round deletes more."""

_TIME_OF = "SELECT timestamp_us AS us FROM time_series_data ORDER BY timestamp_us LIMIT 1 OFFSET ?"


class Trim:
    """The limit of one store's columns. Thread-safe.

    Bytes are those in use: free blocks inside the file do not count. The columns are opened only if the file with these
    blocks exceeds the limit.
    """

    def __init__(self, store: Callable[[], Store], max_bytes: float, name: str) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._name = name
        self._lock = threading.Lock()
        self._checked_s = float("-inf")
        self._is_over = False
        self._failing = ""
        forks.after_fork(self, Trim._reset_in_child)

    def apply(self) -> bool:
        """Delete the oldest points if the columns exceed their limit; returns whether they still exceed it.

        The answer is reused for `CHECK_S`, also while another thread is trimming. If another process holds the columns,
        or their engine is missing here, nothing is deleted.
        """
        if time.monotonic() - self._checked_s < CHECK_S or not self._lock.acquire(blocking=False):
            return self._is_over
        try:
            self._is_over = self._exceeds_after_trim(self._store())
            self._failing = ""
        except (StoreBusy, EngineMissing) as error:
            if str(error) != self._failing:
                self._failing = str(error)
                log.warning("the columns may exceed %s, but cannot be trimmed now: %s", self._name, error)
        finally:
            self._checked_s = time.monotonic()
            self._lock.release()
        return self._is_over

    def _exceeds_after_trim(self, store: Store) -> bool:
        if store.size().columns_bytes < self._max_bytes:
            return False
        dropped = 0
        for left in reversed(range(_ROUNDS + 1)):
            store.checkpoint()
            used = store.size(inside=True).columns_used_bytes
            is_rewritten = True
            if dropped and used >= self._max_bytes * ENOUGH:
                is_rewritten = _is_rewritten(store)
                used = store.size(inside=True).columns_used_bytes
            enough = used < self._max_bytes * (ENOUGH if dropped else 1)
            points = sum(info.points for info in store.series.list())
            if enough or not points or not left or self._max_bytes < LEAST_BYTES or not is_rewritten:
                break
            dropped += _oldest_dropped(store, points, 1 - TARGET * self._max_bytes / used)
        if dropped:
            log.warning(
                "%s: the columns exceeded %s = %.6g MB, so the oldest %s were deleted; `holdfast losses` lists them",
                store.path,
                self._name,
                self._max_bytes / 2**20,
                counted(dropped, "point"),
            )
        return used >= self._max_bytes

    def _reset_in_child(self) -> None:
        """Forget the parent's threads in the child of a fork: one may have held the lock."""
        self._lock = threading.Lock()
        self._checked_s = float("-inf")


def _is_rewritten(store: Store) -> bool:
    """Rewrite the columns, if possible; returns whether it was.

    DuckDB frees the space of deleted points only where all points of a row group were deleted. Without this, a trim
    would continue to delete points whose space is not freed either.
    """
    try:
        store.shrink()
    except StoreBusy:
        raise
    except HoldfastError as error:  # a full disk, or objects of the user in the file
        log.warning(
            "the space of the points that were deleted from %s is reused, but not freed, because the columns cannot be "
            "rewritten: %s",
            store.path,
            error,
        )
        return False
    return True


def _oldest_dropped(store: Store, points: int, share: float) -> int:
    """Delete this share of the points, the oldest ones, and return how many."""
    [row] = store.sql(_TIME_OF, [min(points - 1, max(1, round(points * share)))])
    firsts = (info.first_us for info in store.series.list())
    first_us = min(us for us in firsts if us is not None)
    written = store.points.delete_selected(Selection(end_us=max(row["us"], first_us + 1), reason="size"))
    assert written.first_seq is not None
    assert written.last_seq is not None
    store.flush()
    losses = map(store.dropped_by, range(written.first_seq, written.last_seq + 1))
    return sum(loss.dropped or 0 for loss in losses if loss is not None)
