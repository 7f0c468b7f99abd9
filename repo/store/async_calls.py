"""Calls from asyncio: runs blocking calls in threads, and finds the outcome of a write whose task is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from repo.errors import StoreClosed, counted

__all__ = ["AsyncCalls"]

T = TypeVar("T")


class AsyncCalls:
    """Threads for the calls of one store: one that queues writes, in the order of the calls, and some for the rest.

    Each call may come from another event loop.
    """

    def __init__(self, workers: int) -> None:
        self._queuer = ThreadPoolExecutor(1, "holdfast-async-write")
        self._workers = ThreadPoolExecutor(workers, "holdfast-async")

    def start(self, call: Callable[[], T]) -> Future[T]:
        """Start a call in a thread, and return its future, which also completes if the event loop has ended."""
        return _started(self._workers, call)

    async def read(self, call: Callable[[], T]) -> T:
        """Run a call that changes nothing. If the task is cancelled, the thread finishes it for nothing."""
        return await asyncio.wrap_future(self.start(call))

    async def write(self, call: Callable[[], T]) -> T:
        """Run a call that changes the store. If the task is cancelled, its outcome is awaited; see `_settled`."""
        running = self.start(call)
        return await _settled(running, running)

    async def queue(self, call: Callable[[], Future[T]]) -> T:
        """Run a call that queues a write, and return when it is durable; as `write` if the task is cancelled."""
        outcome: Future[T] = Future()

        def pass_on(done: Future[T]) -> None:
            error = done.exception()
            if error is None:
                outcome.set_result(done.result())
            else:
                outcome.set_exception(error)

        def run() -> None:
            try:
                call().add_done_callback(pass_on)
            except BaseException as error:  # noqa: BLE001  the caller's task raises it
                outcome.set_exception(error)

        return await _settled(_started(self._queuer, run), outcome)

    def close(self) -> None:
        """Wait for the running calls, and end the threads. Safe to call again."""
        self._queuer.shutdown()
        self._workers.shutdown()


def _started(pool: ThreadPoolExecutor, call: Callable[[], T]) -> Future[T]:
    try:
        return pool.submit(call)
    except RuntimeError as error:
        raise StoreClosed("the store is closed; nothing of this call was done") from error


async def _settled(start: Future[Any], outcome: Future[T]) -> T:
    """Wait for a write that begins with `start`.

    The outcome is always known. If the task is cancelled before the write began, nothing is written. If the write has
    begun, this waits until it is durable or has failed, usually a few milliseconds, and only then raises
    CancelledError. Its attribute `written` is the result of the write, or None if nothing was written, and a note says
    so.
    """
    waiting = asyncio.wrap_future(outcome)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError as cancelled:
        if start.cancel():
            waiting.cancel()
            _note(cancelled, None, "it had not begun: nothing was written")
            raise
        while not waiting.done():
            try:
                await asyncio.shield(asyncio.wait([waiting]))
            except asyncio.CancelledError:
                continue  # the outcome is near, and must not stay unknown
        error = waiting.exception()
        if error is None:
            _note(cancelled, waiting.result(), f"it had begun, and is durable: {_shown(waiting.result())}")
        else:
            _note(cancelled, None, f"it had begun, and failed: {error}")
        raise


def _note(cancelled: asyncio.CancelledError, written: object, outcome: str) -> None:
    cancelled.written = written  # type: ignore[attr-defined]
    cancelled.add_note(f"the cancelled write: {outcome}")


def _shown(result: object) -> str:
    return counted(result, "record") if isinstance(result, int) else repr(result)
