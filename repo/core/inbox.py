"""The inbox of the writer: the bounded queue of `submit`, and the thread that has it committed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from repo.core.changes import PointsChange, Submission
from repo.errors import HoldfastError, StoreClosed
from repo.repositories.points import Written

__all__ = ["Inbox"]

_ROOM_PAUSE_S = 0.001
"""How often `submit` checks for room in a full queue."""


class Inbox:
    """The bounded queue of `submit`, and the thread that empties it.

    Callers poll for room every millisecond, because an interrupt could leave a blocking primitive in an undefined
    state. The thread waits for `_bell`, a lock that is released before anything is queued.
    """

    def __init__(self, commit: Callable[[Sequence[Submission]], None], limit_points: int) -> None:
        self._commit = commit
        self._limit = limit_points
        self._mutex = threading.Lock()
        self._bell = threading.Lock()
        self._running = threading.Lock()
        self._waiting: deque[Submission] = deque()
        self._points = 0
        self._thread: threading.Thread | None = None
        self._runner = 0
        self._closed = False

    def put(self, submission: Submission) -> Future[Written]:
        """Queue a submission; blocks while the queue is full, except in a callback of one of its futures."""
        future: Future[Written] = Future()
        submission.future = future
        future.set_running_or_notify_cancel()  # once queued, it will be written and cannot be cancelled
        submission.points = sum(c.count for c in submission.changes if isinstance(c, PointsChange))
        from_callback = threading.get_ident() == self._runner
        while True:
            with self._mutex:
                if self._closed:
                    raise StoreClosed("the store is closed; nothing of this call was written")
                # A submission larger than the queue is accepted when the queue is empty.
                if from_callback or not self._points or self._points + submission.points <= self._limit:
                    if self._thread is None or not self._thread.is_alive():
                        self._thread = self._started()
                    self._ring()
                    self._points += submission.points
                    self._waiting.append(submission)
                    return future
            time.sleep(_ROOM_PAUSE_S)

    def close(self) -> None:
        """Commit what is queued, then end the thread; later calls of `put` raise `StoreClosed`."""
        with self._mutex:
            self._closed = True
            self._ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="holdfast-writer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise HoldfastError(
                f"the thread that writes submitted points could not be started ({error}); nothing of this call was "
                "written. Raise the limit of threads, or end some, and try again"
            ) from error
        return thread

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    def _run(self) -> None:
        with self._running:  # an interrupted start may have left two threads
            self._runner = threading.get_ident()
            while True:
                self._bell.acquire()
                with self._mutex:
                    group = list(self._waiting)
                    self._waiting.clear()
                    closed = self._closed
                if group:
                    self._settle(group)
                elif closed:
                    self._runner = 0
                    with self._mutex:
                        self._ring()  # for another thread that may be waiting
                    return
                with self._mutex:
                    if self._waiting or self._closed:
                        self._ring()

    def _settle(self, group: Sequence[Submission]) -> None:
        try:
            self._commit(group)
        except BaseException as error:  # noqa: BLE001  the futures raise it in the callers
            for submission in group:
                submission.error = submission.error or error
        with self._mutex:
            self._points -= sum(submission.points for submission in group)
        for submission in group:
            assert submission.future is not None
            if submission.error is not None:
                submission.future.set_exception(submission.error)
            else:
                assert submission.written is not None
                submission.future.set_result(submission.written)
