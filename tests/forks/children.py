"""What forked children do to a store, and how a test hears of it."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

HANG_S = 300.0
"""When a child counts as hung."""

PATIENT: dict[str, Any] = {"lease_timeout_s": HANG_S, "busy_timeout_s": HANG_S}
"""Settings of stores that several processes use."""


def in_child(work: Callable[[], Any]) -> Any:
    """Fork, run `work` in the child, and return its result here, or the exception that it raised.

    A child that hangs is killed, and an `AssertionError`.
    """
    return started(work)()


def started(work: Callable[[], Any]) -> Callable[[], Any]:
    """Fork, run `work` in the child, and return what waits for its result."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  the parent judges
                result = error
            try:
                said = pickle.dumps(result)
                pickle.loads(said)
            except Exception:  # noqa: BLE001  an error whose class has arguments of its own
                said = pickle.dumps(RuntimeError(f"{type(result).__name__}: {result}"))
            os.write(writing, said)
        finally:
            os._exit(0)
    os.close(writing)
    killer = threading.Timer(HANG_S, os.kill, (child, signal.SIGKILL))
    killer.daemon = True
    killer.start()

    def wait() -> Any:
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        killer.cancel()
        assert said, "the child hung or died"
        return pickle.loads(said)

    return wait


def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)
