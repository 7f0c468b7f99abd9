"""Undisturbed: runs a step to completion even if Ctrl-C or another signal arrives.

Signal handlers run in the main thread, between any two of its instructions. A step that must not be interrupted, such
as opening a file and recording that it is open, therefore runs in another thread while the main thread waits.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable

__all__ = ["undisturbed"]


def undisturbed(step: Callable[[], object]) -> None:
    """Run the step and raise what it raises. An interrupt is raised after the step. Keep the step short."""
    if threading.current_thread() is not threading.main_thread():
        step()
        return
    run = _StepThread(step)
    try:
        run.wait()
    except BaseException:  # raised by a signal handler: wait for the step anyway
        while not run.is_done:
            try:
                run.wait()
            except KeyboardInterrupt:
                continue  # the first one is raised below
        raise
    if run.error is not None:
        raise run.error


class _StepThread:
    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step
        self._mutex = _thread.allocate_lock()
        self._done = _thread.allocate_lock()
        self._done.acquire()
        self._is_started = False
        self.is_done = False
        self.error: BaseException | None = None

    def wait(self) -> None:
        if not self._is_started:
            try:
                with self._mutex:
                    self._is_started = True
                    _thread.start_new_thread(self._run, ())
            except RuntimeError:  # no thread can be started, or the interpreter is shutting down
                self._run()
        self._done.acquire()
        self._done.release()

    def _run(self) -> None:
        try:
            self._step()
        except BaseException as error:  # noqa: BLE001  the waiting thread raises it
            self.error = error
        self.is_done = True
        self._done.release()
