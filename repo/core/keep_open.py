"""Keeps the columns open between the steps of a long job, and hands them over to a waiting process.

In a store without a background thread nothing checks for waiting processes, so each use opens the file and closes it
again. A job that uses the columns many times keeps them open and runs that check itself. So does a store that may only
be read.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from repo.core.columns import Columns
from repo.core.stop import Stop
from repo.core.undisturbed import undisturbed

__all__ = ["CHECK_INTERVAL_S", "Watch", "kept_open"]

log = logging.getLogger("holdfast.columns")

CHECK_INTERVAL_S = 0.02
"""How often to check for waiting processes while the lease is held; the longest they wait for an idle holder."""


@contextmanager
def kept_open(columns: Columns) -> Iterator[None]:
    """Keep the file open between uses inside the block, until another process waits for it or it has been idle."""
    if columns.stays_open:
        yield
        return
    stop = Stop()
    thread = threading.Thread(target=_watch, args=(columns, stop), name="holdfast-keep-open", daemon=True)
    try:
        undisturbed(thread.start)
        columns.stays_open = True
        yield
    finally:
        columns.stays_open = False
        stop.ask()
        if thread.ident is not None:
            thread.join()


class Watch:
    """A thread that closes open columns when another process waits for them, or they were idle for long.

    It ends on a request to `stop`, which does not close the columns.
    """

    def __init__(self, columns: Columns) -> None:
        """Start the thread; raises `RuntimeError` if that is not possible."""
        self.stop = Stop()
        self._columns = columns
        self._thread = threading.Thread(target=self._run, name="holdfast-keep-open", daemon=True)
        self._thread.start()
        _watches.add(self)

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def end(self) -> None:
        """Close the columns unless they are in use, and end the thread."""
        _release(self._columns, at_once=True)
        self.stop.ask()
        self.join()

    def _run(self) -> None:
        while not self.stop.wait(CHECK_INTERVAL_S):
            _release(self._columns, at_once=False)
        _watches.discard(self)


_watches: set[Watch] = set()


def _end_all() -> None:
    """End the threads of stores that were not closed: one inside DuckDB at the interpreter's exit would abort it."""
    for watch in list(_watches):
        watch.end()


atexit.register(_end_all)


def _watch(columns: Columns, stop: Stop) -> None:
    ended = False
    while not ended:
        ended = stop.wait(CHECK_INTERVAL_S)
        _release(columns, at_once=ended)


def _release(columns: Columns, *, at_once: bool) -> None:
    try:
        columns.release_if_due(at_once=at_once)  # in a thread that no interrupt reaches
    except Exception as error:  # noqa: BLE001  the lease was released anyway; the next use reports the cause
        log.error("the columns could not be closed cleanly: %s", error)
