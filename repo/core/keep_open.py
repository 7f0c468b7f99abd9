"""Keeps the columns open between the steps of a long job, and hands them over to a waiting process.

In a store without a background thread nothing checks for waiting processes, so each use opens the file and closes it
again. A job that uses the columns many times keeps them open and runs that check itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from repo.core.columns import Columns
from repo.core.stop import Stop
from repo.core.undisturbed import undisturbed

__all__ = ["CHECK_INTERVAL_S", "kept_open"]

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


def _watch(columns: Columns, stop: Stop) -> None:
    ended = False
    while not ended:
        ended = stop.wait(CHECK_INTERVAL_S)
        try:
            columns.release_if_due(at_once=ended)  # in this thread, which no interrupt reaches
        except Exception as error:  # noqa: BLE001  the lease was released anyway; the next use reports the cause
            log.error("the columns could not be closed cleanly: %s", error)
