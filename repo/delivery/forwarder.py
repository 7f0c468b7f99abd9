"""The forwarder: delivers to the sinks of a store, each in a thread of its own or step by step.

It decides which sinks are served, and when; `repo.delivery.worker` delivers to one of them.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, cast

from repo.core.read_only import refuse_change
from repo.core.stop import Stop
from repo.core.undisturbed import undisturbed
from repo.delivery.protocol import Sink
from repo.delivery.sinks.registry import sink_of
from repo.delivery.steps import Backoff, Progress, Step
from repo.delivery.worker import Worker
from repo.errors import HoldfastError, InvalidQuery, InvalidSettings, StoreBusy, StoreClosed
from repo.inputs.arguments import check_count, check_function, check_seconds, check_text, shown
from repo.repositories.sinks import SinkInfo
from repo.store.claims import Claim
from repo.store.sink_cursors import Start
from repo.store.store import Store

__all__ = ["Backoff", "Drained", "Forwarder", "Progress", "Step"]

log = logging.getLogger("holdfast.delivery")

CHECK_S = 1.0
"""How often a running forwarder checks for sinks that were added or removed."""

OWN = "own"
"""The kind of sinks whose class is the caller's."""

_DONE = (Progress.IDLE, Progress.PAUSED)
_STUCK = (Progress.HALTED, Progress.FORKED)

OnStep = Callable[[str, Step], object]


class Drained(NamedTuple):
    """The result of draining one sink."""

    delivered: int
    """The points and records that the sink has stored."""
    refused: int
    """Those that are in quarantine."""
    last: Step
    """The last step: its `progress` is `idle` if everything was delivered."""

    @property
    def is_empty(self) -> bool:
        """Whether everything was delivered."""
        return self.last.progress is Progress.IDLE


class Forwarder:
    """Delivers to the sinks of a store: to all of them, to the named ones, or to a sink of your own.

    `start` delivers in the background, with one thread for each sink, until `stop`; it notices sinks that are
    added, paused, changed or removed in the store. `step` and `drain` deliver in the calling thread instead.
    Only one forwarder, in all processes, delivers to a sink at a time: others get `StoreBusy`, which names
    the process.

    A sink of your own (`repo.delivery.protocol.Sink`) needs no entry in the store. It is added under its name, as kind
    `own`, when it is new; `start` says where it begins: "now", "beginning", or a time.

    A batch has at most `batch_points` points, by default as many as the kind of the sink takes. A backlog of more than
    ten batches of that size, or of 10,000 points if that is less, is sent in two lanes. `poll_s` is the delay when
    everything is delivered. `on_step` is called after each step, with the name of the sink, in the thread that made the
    step, and must return soon; what it raises ends the delivery, as an error of the sink does. Thread-safe, except that
    `step` and `drain` are for one thread at a time. Stop it before you close the store.
    """

    def __init__(
        self,
        store: Store,
        sinks: str | Sequence[str] | Sink | None = None,
        *,
        start: Start | None = None,
        batch_points: int | None = None,
        poll_s: float = 0.5,
        backoff: Backoff | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        if not isinstance(store, Store):
            raise InvalidSettings(f"store = {shown(store)}: an open Store is expected")
        if store.read_only:
            refuse_change(store.files)
        if backoff is not None and not isinstance(backoff, Backoff):
            raise InvalidSettings(f"backoff = {shown(backoff)}: a Backoff is expected")
        self._store = store
        self._batch_points = (
            None if batch_points is None else check_count(batch_points, "batch_points", error=InvalidSettings)
        )
        self._poll_s = check_seconds(poll_s, "poll_s", error=InvalidSettings)
        self._backoff = backoff or Backoff()
        self._on_step: OnStep = (
            _unseen if on_step is None else check_function(on_step, "on_step", error=InvalidSettings)
        )
        self._own: Sink | None = None
        self._names = self._checked_names(sinks, start)
        self._threads: dict[str, _SinkThread] = {}
        self._workers: dict[str, _Claimed] = {}
        self._stop: Stop | None = None
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()
        self._waits = Stop()
        """Ends the waits of `drain`."""
        self._is_draining = False
        self._pid = os.getpid()

    # --- in the background -----------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._watcher is not None and self._pid == os.getpid()

    def start(self) -> Self:
        """Start delivering in the background; does nothing if it was started. Returns itself.

        Raises `StoreBusy` if another forwarder serves one of the sinks; nothing was started then.
        """
        with self._lock:
            if self.is_running:
                return self
            self._give_up_steps()
            claimed = [self._claimed(name) for name in self._wanted()]
            undisturbed(lambda: self._begin(claimed))
            return self

    def _begin(self, claimed: Sequence[_Claimed]) -> None:
        """Claim the sinks and start the threads; no interrupt comes in between."""
        try:
            for each in claimed:
                each.claim.take()
        except BaseException:  # whatever it is, no sink may stay claimed by a forwarder that does not run
            for each in claimed:
                each.claim.close()
            raise
        self._pid = os.getpid()
        self._stop = stop = Stop()
        self._threads = {each.worker.name: self._thread(each) for each in claimed}
        self._watcher = threading.Thread(
            target=self._watch, args=(stop,), name="holdfast-forwarder", daemon=True
        )
        _running.add(self)
        self._watcher.start()

    def stop(self) -> None:
        """Finish the batches in hand, and stop.

        Other waits end at once; the timeout of a sink limits how long an answer may take. A batch that the store is too
        busy to confirm is sent again later. Safe to call again. The next `start` continues where it ended.
        """
        with self._lock:
            self._waits.ask()
            watcher, stop, threads = self._watcher, self._stop, list(self._threads.values())
            if self._pid == os.getpid():  # a child of a fork has no such threads
                if stop is not None:
                    stop.ask()
                for thread in threads:
                    thread.ask()
                if watcher is not None:
                    watcher.join()
                for thread in self._threads.values():  # the watcher may have added one
                    thread.ask()
                    thread.join()
                # A `drain` in another thread may be sending a batch; it gives them up itself.
                if not self._is_draining:
                    self._give_up_steps()
            self._watcher = self._stop = None
            self._threads = {}
            _running.discard(self)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- step by step ----------------------------------------------------------------------------------

    def step(self) -> dict[str, Step]:
        """Make one step for each sink, in order of their names, without waiting; returns the steps by name.

        The sinks stay connected, and closed to other forwarders, until `stop`. A delivered batch is confirmed on
        return. If the store is busy or full then, the step is `busy`, with the items and the error, and the next one
        confirms the batch; after `stop` or a restart, it is sent again instead. Raises only errors that waiting cannot
        cure: a closed or damaged store, an error of `on_step`. An interrupt leaves everything as committed.
        """
        return {name: self._one_step(each) for name, each in self._stepped().items()}

    def drain(self, timeout_s: float | None = None) -> dict[str, Drained]:
        """Deliver until nothing is left, sink by sink, in the calling thread; returns what became of each.

        A sink that cannot be reached, or whose rate is 0 now, is given up at once or, with `timeout_s`, tried
        again until that time is over, which all sinks share; so is a store that is busy or full. A sink that
        rejects everything is given up at once. What was written in between is delivered, too. `stop`, from
        another thread, ends it after the batch in hand. On return the sinks are disconnected and free for
        other forwarders.
        """
        self._waits = Stop()
        deadline_s = None
        if timeout_s is not None:
            deadline_s = time.monotonic() + check_seconds(timeout_s, "timeout_s", error=InvalidSettings)
        self._is_draining = True
        try:
            return {name: self._drain_one(each, deadline_s) for name, each in self._stepped().items()}
        finally:
            try:
                self._give_up_steps()
            finally:
                self._is_draining = False

    def _drain_one(self, each: _Claimed, deadline_s: float | None) -> Drained:
        delivered = refused = 0
        each.worker.drain()
        while True:
            step = each.worker.step()
            if step.wait_s:
                step = each.worker.settle(step)
            self._on_step(each.worker.name, step)
            delivered, refused = delivered + step.items, refused + step.refused
            if step.progress in _DONE or step.progress in _STUCK:
                break
            if step.wait_s:
                left_s = (deadline_s or 0.0) - time.monotonic()
                if left_s <= 0 and (step.progress is not Progress.LIMITED or step.error is not None):
                    break
                if deadline_s is not None and left_s <= 0:
                    break
                self._waits.wait(step.wait_s if deadline_s is None else min(step.wait_s, left_s))
            if self._waits.is_asked():
                break
        return Drained(delivered, refused, each.worker.settle(step))

    def _one_step(self, each: _Claimed) -> Step:
        step = each.worker.settle(each.worker.step())
        self._on_step(each.worker.name, step)
        return step

    def _stepped(self) -> dict[str, _Claimed]:
        """Return the workers of `step` and `drain`, for the sinks that are in the store now."""
        if self.is_running:
            raise StoreBusy(
                "this forwarder delivers in the background; stop it before you call step or drain"
            )
        wanted = self._wanted()
        for name in set(self._workers).difference(wanted):
            self._workers[name].close()
            del self._workers[name]
        for name in wanted:
            if name not in self._workers:
                self._workers[name] = self._claimed(name)
            self._workers[
                name
            ].claim.take()  # known before it is taken, so that no interrupt can leave it taken
        return {name: self._workers[name] for name in wanted}

    def _give_up_steps(self) -> None:
        while self._workers:
            name, each = next(iter(self._workers.items()))
            each.close()
            self._workers.pop(name, None)

    # --- which sinks -----------------------------------------------------------------------------------

    def _checked_names(self, sinks: object, start: Start | None) -> tuple[str, ...] | None:
        names: tuple[str, ...] | None = None
        if sinks is None:
            pass
        elif isinstance(sinks, str):
            names = (sinks,)
        elif isinstance(sinks, (list, tuple)):
            names = tuple(check_text(name, "sinks", error=InvalidSettings) for name in sinks)
        elif callable(getattr(sinks, "send", None)) and callable(getattr(sinks, "open", None)):
            self._own = own = cast("Sink", sinks)
            names = (own.name,)
            if own.name not in {info.name for info in self._store.sinks.list()}:
                self._store.sinks.add(own.name, "", start="beginning" if start is None else start)
            return names
        else:
            raise InvalidSettings(f"sinks = {shown(sinks)}: a name, a list of names, or a sink is expected")
        if start is not None:
            raise InvalidSettings(
                "start is only for a sink of your own; pass it to `store.sinks.add` for others"
            )
        for name in names or ():
            self._store.sinks.show(name)  # raises for an unknown one
        return names

    def _wanted(self) -> list[str]:
        """Return the sinks to serve: those that exist, and whose class is known."""
        infos = self._store.sinks.list()
        if self._names is not None:
            return [info.name for info in infos if info.name in self._names]
        return [info.name for info in infos if info.kind != OWN]

    def _make_sink(self, info: SinkInfo) -> Sink:
        if self._own is not None:
            return self._own
        return sink_of(info.name, info.kind, info.target, info.options)

    def _claimed(self, name: str) -> _Claimed:
        worker = Worker(
            self._store,
            name,
            self._make_sink,
            backoff=self._backoff,
            poll_s=self._poll_s,
            batch_points=self._batch_points,
        )
        return _Claimed(worker, Claim(self._store.files, self._store.now_us, name))

    # --- threads ---------------------------------------------------------------------------------------

    def _thread(self, each: _Claimed) -> _SinkThread:
        thread = _SinkThread(each, self._on_step)
        thread.start()
        return thread

    def _watch(self, stop: Stop) -> None:
        """Start threads for new sinks, and forget those of removed ones."""
        busy: set[str] = set()
        while not stop.wait(CHECK_S):
            try:
                wanted = self._wanted()
            except StoreClosed:
                return
            except HoldfastError as error:
                log.warning("the sinks of the store cannot be read; trying again: %s", error)
                continue
            for name, thread in list(self._threads.items()):
                if thread.has_ended():
                    thread.join()
                    del self._threads[name]
            for name in wanted:
                if name not in self._threads and not stop.is_asked():
                    self._serve(name, busy)

    def _serve(self, name: str, busy: set[str]) -> None:
        try:
            each = self._claimed(name)
        except InvalidQuery:
            return  # removed just now
        try:
            each.claim.take()
        except StoreBusy as error:
            each.claim.close()
            if name not in busy:
                log.warning("%s", error)
            busy.add(name)
            return
        busy.discard(name)
        self._threads[name] = self._thread(each)


class _Claimed(NamedTuple):
    """The worker of a sink, and the right to run it."""

    worker: Worker
    claim: Claim

    def close(self) -> None:
        try:
            self.worker.close()
        except InvalidQuery:
            pass  # the sink was removed, and with it what it confirmed
        finally:
            self.claim.close(forget=self.worker.is_removed())


class _SinkThread:
    """The thread that delivers to one sink."""

    def __init__(self, each: _Claimed, on_step: OnStep) -> None:
        self._each = each
        self._on_step = on_step
        self._stop = Stop()
        self._thread = threading.Thread(
            target=self._run, name=f"holdfast-deliver-{each.worker.name[:40]}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """Ask it to end after the batch in hand."""
        self._stop.ask()

    def join(self) -> None:
        self._thread.join()

    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        worker, stop = self._each.worker, self._stop
        troubled = False
        try:
            while not stop.is_asked():
                try:
                    step = worker.step()
                    if step.wait_s or stop.is_asked():
                        step = worker.settle(step)
                    self._on_step(worker.name, step)
                    wait_s, troubled = step.wait_s, False
                except (InvalidQuery, StoreClosed) as error:
                    log.info("the delivery to %s ends: %s", worker.name, error)
                    return
                except Exception as error:
                    if not troubled:
                        log.error(
                            "the delivery to %s failed and will be retried", worker.name, exc_info=error
                        )
                    wait_s, troubled = CHECK_S, True
                if wait_s:
                    stop.wait(wait_s)
        finally:
            try:
                self._each.close()
            except HoldfastError as error:
                log.warning(
                    "the last batch to %s is not confirmed, so it will be sent again: %s", worker.name, error
                )


def _unseen(_name: str, _step: Step) -> None:
    """Ignore a step."""


_running: weakref.WeakSet[Forwarder] = weakref.WeakSet()


def _stop_all(forwarders: Iterable[Forwarder]) -> None:
    """Stop what runs at interpreter exit, before the stores are closed."""
    for forwarder in list(forwarders):
        forwarder.stop()


atexit.register(_stop_all, _running)
