"""Undisturbed: runs a step to its end even if Ctrl-C or another signal arrives.

Handlers of signals run in the main thread, between any two of its instructions. A step that must not be cut in half,
such as opening a file and noting that it is open, therefore runs in a thread of its own while the main thread waits.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable

__all__ = ["undisturbed"]


def undisturbed(step: Callable[[], object]) -> None:
    """Run the step; raises what it raises. An interrupt is raised after it. Keep the step short."""
    if threading.current_thread() is not threading.main_thread():
        step()
        return
    run = _Run(step)
    try:
        run.wait()
    except BaseException:  # whatever a handler of signals raises: the step is waited for all the same
        while not run.is_done:
            try:
                run.wait()
            except KeyboardInterrupt:
                continue  # the first one is raised already
        raise
    if run.error is not None:
        raise run.error


class _Run:
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
            except RuntimeError:  # no thread is to be had, or the interpreter is ending
                self._run()
        self._done.acquire()
        self._done.release()

    def _run(self) -> None:
        try:
            self._step()
        except BaseException as error:  # noqa: BLE001  it is raised where the step was wanted
            self.error = error
        self.is_done = True
        self._done.release()
