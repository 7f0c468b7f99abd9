"""The background thread of an open store: decides when to flush, compact and release the lease, never how."""

from __future__ import annotations

import logging
import threading
import time

from repo.core.compaction import LARGEST_SPAN, Compaction, is_sorted_by_key
from repo.core.handle import Handle
from repo.core.keep_open import CHECK_INTERVAL_S
from repo.core.reserve import Reserve
from repo.core.stop import Stop
from repo.core.undisturbed import undisturbed
from repo.errors import EngineMissing, StoreBusy
from repo.repositories.state import State, StateRepository

__all__ = ["BackgroundThread", "stop_all"]

log = logging.getLogger("holdfast.background")

RENEWAL_INTERVAL_S = 60.0
"""How often the reserve is made again or enlarged, if there is room."""


FIRST_COMPACTION_S = 5.0
"""The delay before the first compaction, so that a program that opens the store briefly is not slowed down."""

COMPACTION_PAUSE = 3.0
"""How long slices wait for each other, as a multiple of the time that the last one took: others come first."""

COMPACTION_RETRY_S = 60.0
"""How long to wait after an error."""


class BackgroundThread:
    """Flushes every `flush_interval_s`, checkpoints when due, and hands the lease over when others wait.

    With `compact_background`, it also compacts the slices that are closed, one at a time.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._stop = Stop()
        self._failing: str | None = None
        self._compaction = _Compactions(handle, self._stop) if handle.settings.compact_background else None
        self._thread = threading.Thread(target=self._run, name="holdfast-background", daemon=True)
        undisturbed(self._thread.start)
        _running.add(self)

    def is_current(self) -> bool:
        """Return whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Stop and join the thread; a running flush ends after its next commit, a compaction after its next step."""
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
                    state = self._state()
                    self._flush(state)
                    if self._compaction is not None:
                        self._compaction.run_if_due(state.copied_through)
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

    def _state(self) -> State:
        with self._handle.metadata.read() as connection:
            state = StateRepository(connection).get()
        assert state is not None
        return state

    def _flush(self, state: State) -> None:
        columns, flusher = self._handle.columns, self._handle.flusher
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


class _Compactions:
    """Compacts a closed slice now and then. An error is logged once, and the slice is tried again later."""

    def __init__(self, handle: Handle, stop: Stop) -> None:
        self._handle = handle
        self._stop = stop
        self._next_s = time.monotonic() + FIRST_COMPACTION_S
        self._closes_at = LARGEST_SPAN.first
        """The watermark at which the next slice closes, as far as this process knows."""
        self._failing: type[Exception] | None = None

    def run_if_due(self, watermark: int) -> None:
        """Compact one slice, if one is closed, enough time has passed, and nobody waits for the columns."""
        began_s = time.monotonic()
        if watermark < self._closes_at or began_s < self._next_s:
            return
        try:
            if is_sorted_by_key(self._handle) or self._step():
                return
            self._failing = None
        except (StoreBusy, EngineMissing):
            pass  # the process that holds the lease, or has the engine, compacts, too
        except Exception as error:  # noqa: BLE001  the flush goes on, and no point depends on this
            if type(error) is not self._failing:  # the text may have a number of bytes that changes
                self._failing = type(error)
                log.warning("compacting in the background failed and will be retried: %s", error)
            self._next_s = began_s + COMPACTION_RETRY_S
            return
        now_s = time.monotonic()
        self._next_s = now_s + COMPACTION_PAUSE * (now_s - began_s)

    def _step(self) -> bool:
        """Compact one slice, and return whether no other one is closed."""
        columns = self._handle.columns
        with columns.alone("background compaction", timeout_s=0.0) as opened:
            if self._stop.is_asked() or columns.is_awaited(by_processes=True):
                return False
            run = Compaction(self._handle, only_closed=True, stop=self._stop.is_asked)
            if run.step(opened, self._handle.flusher.watermark) is not None:
                return False
            self._closes_at = run.closes_at
            return True


_running: set[BackgroundThread] = set()


def stop_all() -> None:
    """Stop the threads of stores that were not closed. Called at interpreter exit.

    A thread that is inside DuckDB when the interpreter exits would abort the process.
    """
    for thread in list(_running):
        thread.stop()
