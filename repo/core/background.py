"""The background thread of an open store: decides when to flush, checkpoint and release the lease, never how."""

from __future__ import annotations

import logging
import threading
import time

from repo.core.handle import Handle
from repo.core.keep_open import CHECK_INTERVAL_S
from repo.core.reserve import Reserve
from repo.core.stop import Stop
from repo.core.undisturbed import undisturbed
from repo.errors import EngineMissing, StoreBusy
from repo.repositories.state import StateRepository

__all__ = ["BackgroundThread", "stop_all"]

log = logging.getLogger("holdfast.background")

RENEWAL_INTERVAL_S = 60.0
"""How often the reserve is made again or enlarged, if there is room."""


class BackgroundThread:
    """Flushes every `flush_interval_s`, checkpoints when due, and hands the lease over when others wait."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._stop = Stop()
        self._failing: str | None = None
        self._thread = threading.Thread(target=self._run, name="holdfast-background", daemon=True)
        undisturbed(self._thread.start)
        _running.add(self)

    def is_current(self) -> bool:
        """Return whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Stop and join the thread; a running flush ends after its next commit."""
        self._stop.ask()
        self._thread.join()
        _running.discard(self)

    def _run(self) -> None:
        columns = self._handle.columns
        interval_s = self._handle.settings.flush_interval_s
        next_flush_s = time.monotonic() + interval_s
        reserve, next_renewal_s = Reserve(self._handle.files), time.monotonic() + RENEWAL_INTERVAL_S
        while not self._stop.wait(CHECK_INTERVAL_S if columns.is_open else min(interval_s, 0.25)):
            try:
                if time.monotonic() >= next_flush_s:
                    next_flush_s = time.monotonic() + interval_s
                    self._flush()
                columns.release_if_due()
                if time.monotonic() >= next_renewal_s:
                    next_renewal_s = time.monotonic() + RENEWAL_INTERVAL_S
                    reserve.renew()
                self._failing = None
            except Exception as error:  # noqa: BLE001  without this thread nothing would hand the lease over
                # Acknowledged points are safe in the journal. Log the error once, and keep trying.
                if str(error) != self._failing:
                    self._failing = str(error)
                    log.error("the background flush failed and will be retried: %s", error)

    def _flush(self) -> None:
        columns, flusher = self._handle.columns, self._handle.flusher
        with self._handle.metadata.read() as connection:
            state = StateRepository(connection).get()
        assert state is not None
        waits = state.last_seq > state.copied_through
        try:
            if not waits and not flusher.checkpoint_is_due(
                unpruned=state.copied_through > state.pruned_through
            ):
                return  # using the columns now would reset the idle time, and so keep the lease forever
            done = False
            while not (done or self._stop.is_asked()):
                with columns.alone(
                    "background flush", timeout_s=0.0 if not columns.is_open else None
                ) as opened:
                    now_open, done = self._handle.flush_slice(opened, state.last_seq, self._stop.is_asked)
                    if done:
                        flusher.checkpoint_if_due(now_open)
        except (StoreBusy, EngineMissing):
            return  # the process that holds the lease, or has the engine, flushes our points, too


_running: set[BackgroundThread] = set()


def stop_all() -> None:
    """Stop the threads of stores that were not closed. Called at interpreter exit.

    A thread that is inside DuckDB when the interpreter exits would abort the process.
    """
    for thread in list(_running):
        thread.stop()
