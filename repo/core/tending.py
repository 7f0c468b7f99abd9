"""Tending: keeps the columns open between the steps of a long job, and hands them to another process that waits.

In a store without a background thread, nobody would notice that another process waits, so each use opens the file and
closes it again. A job that uses it a hundred times keeps it open and looks for waiting processes itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from repo.core.columns import Columns
from repo.core.stop import Stop
from repo.core.undisturbed import undisturbed

__all__ = ["TEND_S", "tended"]

log = logging.getLogger("holdfast.tending")

TEND_S = 0.02
"""How often the turnstile is looked at while the lease is held: the longest that another process waits for
an idle holder."""


@contextmanager
def tended(columns: Columns) -> Iterator[None]:
    """For the block, let the file stay open between uses until another process waits for it, or it is idle."""
    if columns.is_tended:
        yield
        return
    stop = Stop()
    thread = threading.Thread(target=_tend, args=(columns, stop), name="holdfast-tender", daemon=True)
    try:
        undisturbed(thread.start)
        columns.is_tended = True
        yield
    finally:
        columns.is_tended = False
        stop.ask()
        if thread.ident is not None:
            thread.join()


def _tend(columns: Columns, stop: Stop) -> None:
    ended = False
    while not ended:
        ended = stop.wait(TEND_S)
        try:
            columns.tend(at_once=ended)  # here, where no interrupt comes
        except Exception as error:  # noqa: BLE001  it has let go all the same; the job's next use says what is wrong
            log.error("the columns could not be closed in order: %s", error)
