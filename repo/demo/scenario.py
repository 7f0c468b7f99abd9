"""The scenario: runs the demo and checks its result. Owns the order of events and the checks, not their presentation.

No step depends on the clock: each waits for events of the processes, so a slow machine only takes longer.
"""

from __future__ import annotations

import math
import queue
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from repo.demo.events import Events
from repo.demo.evidence import Received, Stored, attempt, compare, opened, read_receiver, read_store
from repo.demo.process import Child, Inbox
from repo.demo.receiver import DISPUTED
from repo.demo.result import Check, DemoResult, Figures
from repo.demo.sender import SINK
from repo.demo.site import ticks
from repo.errors import DemoFailed, InvalidSettings

__all__ = ["Scenario"]

WRITER_DIES_AT, WRITER_DIES_BEFORE = 0.4, 0.7
LINK_RETURNS_AT = 0.75
"""Fractions of all points that are acknowledged at that time. On a slow machine, the writer waits to be killed."""

SENDER_DIES_AFTER = 3
"""Batches that the receiver has stored."""

PATIENCE_S = 60.0


class _WriterKill(NamedTuple):
    """The first kill: whether SIGKILL ended the writer, and the points acknowledged until then."""

    killed: bool
    acknowledged: int


class _Outage(NamedTuple):
    """The state when the link comes back, at `ended_s` (monotonic seconds)."""

    ended_s: float
    backlog: int
    """The points that wait."""
    failed_tries: int
    """The attempts of the sender to connect."""
    arrived: int
    """The points that arrived nevertheless."""


class _SenderKill(NamedTuple):
    """The second kill: whether SIGKILL ended the sender, and the seqs of the batch on its way, first and last."""

    killed: bool
    held: tuple[int, int]
    """As the sender reported them."""
    recorded: tuple[int, int]
    """As the store has recorded them."""


class Scenario:
    """One run in an empty folder, which afterwards has the stores `store/` and `receiver/`, and the processes' logs.

    It writes for `seconds` at `rate` points per second. `on_event` receives each event as it happens.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float = 8.0,
        rate: float = 10_000.0,
        seed: int = 1,
        on_event: Callable[[float, str], None] = lambda _at_s, _what: None,
    ) -> None:
        if not (seconds > 0 and rate > 0 and 1_000 <= seconds * rate <= 10_000_000):
            raise InvalidSettings(
                f"{seconds!r} s at {rate!r} points/s: the demo needs 1,000 to 10,000,000 points in total"
            )
        if folder.exists() and any(folder.iterdir()):
            raise InvalidSettings(f"{folder} is not empty; give a new or empty folder", path=folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._store_path = folder / "store"
        self._receiver_path = folder / "receiver"
        self._rate, self._seed = rate, seed
        self._patience_s = PATIENCE_S + 4 * seconds
        self._end, self._points = _length(seed, math.ceil(seconds * rate))
        self._batch_points = max(25, min(2_500, self._points // 32))
        self._on_event = on_event
        self._inbox = Inbox()
        self._children: list[Child] = []
        self._heard = Events()
        self._start_s = 0.0
        self._events: list[tuple[float, str]] = []

    def run(self) -> DemoResult:
        """Run it to the end; raises `DemoFailed` if that is impossible. No process outlives the call."""
        self._start_s = time.monotonic()
        try:
            return self._run()
        finally:
            for child in self._children:
                child.stop()

    # --- the run --------------------------------------------------------------------------------------

    def _run(self) -> DemoResult:
        heard = self._heard
        receiver = self._start("receiver", "receiver", str(self._receiver_path))
        self._until("the receiver is ready", lambda: "receiver" in heard.ready)
        self._prepare(heard.ready["receiver"]["url"])
        self._report("the link is down: the receiver's port refuses connections")

        end, _ = _length(self._seed, math.ceil(WRITER_DIES_BEFORE * self._points))
        writer = self._start_writer("writer", 0, end, "--until-killed")
        sender = self._start_sender("sender", "--hold-after", str(SENDER_DIES_AFTER))
        self._report(f"the writer writes {self._rate:,.0f} points/s; the sender cannot connect")

        writer_kill = self._kill_writer(writer)
        writer = self._start_writer("second writer", heard.tick, self._end)
        self._report("a second writer continues")

        outage = self._end_outage(receiver)
        sender_kill = self._kill_sender(sender)
        sender = self._start_sender("second sender")
        self._until("the backlog has arrived", lambda: heard.arrived >= outage.backlog)
        cleared_s = heard.arrivals[-1][0] - outage.ended_s
        self._report(
            f"the backlog has arrived, in {heard.batches['backfill']} batches beside {heard.batches['live']} of live "
            f"readings; sent again and recognized: {heard.repeats}"
        )
        self._finish(writer, sender, receiver)

        stored, received = read_store(self._store_path), read_receiver(self._receiver_path)
        checks = self._checks(writer_kill, outage, sender_kill, stored, received)
        self._report("both sides have been counted and compared")
        return DemoResult(
            seed=self._seed,
            rate=self._rate,
            engine=stored.status.engine,
            checks=checks,
            figures=Figures(
                acknowledged_points=heard.points,
                arrived_points=received.points,
                backlog_points=outage.backlog,
                backlog_cleared_s=round(cleared_s, 3),
                failed_tries=outage.failed_tries,
                written_points_per_s=round(heard.writing_rate()),
                drained_points_per_s=round(heard.delivered / heard.delivering_s) if heard.delivering_s else 0,
                store_bytes=stored.status.bytes_total,
                receiver_bytes=received.bytes,
                wire_bytes=stored.wire_bytes,
                wall_s=round(time.monotonic() - self._start_s, 3),
            ),
            events=tuple(self._events),
            acknowledged=[(at_s - self._start_s, points) for at_s, points in heard.acknowledgements],
            arrived=[(at_s - self._start_s, points) for at_s, points in heard.arrivals],
        )

    def _kill_writer(self, writer: Child) -> _WriterKill:
        self._until("writing has begun", lambda: self._heard.points >= WRITER_DIES_AT * self._points)
        time.sleep(random.uniform(0, 0.02))  # noqa: S311  anywhere in a write, or between two
        killed = writer.kill()
        self._hear_all()
        acknowledged = self._heard.points
        self._report(f"SIGKILL to the writer, after {acknowledged:,} acknowledged points")
        return _WriterKill(killed, acknowledged)

    def _end_outage(self, receiver: Child) -> _Outage:
        heard = self._heard
        self._until("there is a backlog", lambda: heard.points >= LINK_RETURNS_AT * self._points)
        # On a slow machine, the sender may take longer to start than the writer to write the backlog.
        self._until("the sender has failed to connect", lambda: heard.failed_tries > 0)
        outage = _Outage(time.monotonic(), heard.points, heard.failed_tries, heard.arrived)
        receiver.order("listen")
        self._report(f"the link is up; {outage.backlog:,} points are waiting, and the writer continues")
        return outage

    def _kill_sender(self, sender: Child) -> _SenderKill:
        self._until("the receiver has a batch that the sender holds", lambda: self._heard.held is not None)
        killed = sender.kill()
        self._hear_all()
        held = self._heard.held or {}
        recorded = attempt(self._store_path)
        self._report(
            f"SIGKILL to the sender, after the receiver stored seqs {held['first']:,} to {held['last']:,}, and before "
            "the store confirmed them"
        )
        return _SenderKill(killed, (held["first"], held["last"]), recorded)

    def _finish(self, writer: Child, sender: Child, receiver: Child) -> None:
        self._until("the writer has finished", lambda: "second writer" in self._heard.finished)
        writer.wait()
        sender.order("finish")
        self._until("the sender has finished", lambda: "second sender" in self._heard.finished)
        sender.wait()
        receiver.order("close")
        self._until("the receiver has finished", lambda: "receiver" in self._heard.finished)
        receiver.wait()
        self._report("the writer has finished, and the sender has sent the rest")

    def _checks(
        self,
        writer_kill: _WriterKill,
        outage: _Outage,
        sender_kill: _SenderKill,
        stored: Stored,
        received: Received,
    ) -> tuple[Check, ...]:
        heard = self._heard
        missing, different = compare(self._receiver_path, self._seed, heard.tick)
        left = stored.status.sinks[0].behind
        return (
            _equal("acknowledged / arrived", heard.points, received.points),
            _equal("in the store / arrived", stored.points, received.points),
            Check(
                "missing / different points",
                "",
                f"{missing:,} / {different:,}",
                (missing, different, heard.tick) == (0, 0, self._end),
            ),
            Check(
                "acknowledged when the writer was killed",
                f"{writer_kill.acknowledged:,}",
                "",
                writer_kill.killed,
            ),
            Check(
                "attempts / arrivals with the link down",
                f"{outage.failed_tries:,}",
                f"{outage.arrived:,}",
                outage.failed_tries > 0 and outage.arrived == 0,
            ),
            Check(
                "last seq on its way when sender died",
                f"{sender_kill.recorded[1]:,}",
                f"{sender_kill.held[1]:,}",
                sender_kill.killed and sender_kill.recorded == sender_kill.held,
            ),
            Check("that batch, sent again and recognized", "", f"{heard.repeats:,}", heard.repeats == 1),
            Check(
                "batches of live readings / of back-fill",
                f"{heard.batches['live']:,} / {heard.batches['backfill']:,}",
                "",
                min(heard.batches.values()) > 0 and heard.is_overtaken,
            ),
            Check(
                "the bad item: in quarantine / stored",
                f"{stored.quarantined:,}",
                f"{received.disputed:,}",
                (stored.quarantined, received.disputed) == (1, 0),
            ),
            Check("left to send", f"{left:,}", "", left == 0),
            Check(
                "SHA-256 of all points",
                stored.sha256[:12],
                received.sha256[:12],
                stored.sha256 == received.sha256,
            ),
        )

    # --- processes ------------------------------------------------------------------------------------

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        child = Child(name, module, list(arguments), self._inbox, self._folder)
        self._children.append(child)
        return child

    def _start_writer(self, name: str, first: int, end: int, *more: str) -> Child:
        options = {"--seed": self._seed, "--rate": self._rate, "--first": first, "--end": end}
        given = (str(part) for pair in options.items() for part in pair)
        child = self._start(name, "writer", str(self._store_path), *given, *more)
        self._until(f"the {name} is ready", lambda: name in self._heard.ready)
        return child

    def _start_sender(self, name: str, *more: str) -> Child:
        return self._start(
            name, "sender", str(self._store_path), "--batch-points", str(self._batch_points), *more
        )

    def _prepare(self, url: str) -> None:
        """Create the store, with the receiver as its sink, and with a point that the receiver will refuse."""
        with opened(self._store_path, create=True) as store:
            store.sinks.add(SINK, url, start="beginning")
            store.points.insert(*DISPUTED, "NOT SYNCHRONIZED", 1.0)

    def _report(self, what: str) -> None:
        at_s = time.monotonic() - self._start_s
        self._events.append((at_s, what))
        self._on_event(at_s, what)

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + self._patience_s
        while not condition():
            try:
                message = self._inbox.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise DemoFailed(
                    f"the demo gave up waiting until {what}, after {self._patience_s:.0f} s; see the logs in "
                    f"{self._folder}",
                    path=self._folder,
                ) from None
            self._heard.note(message)

    def _hear_all(self) -> None:
        while not self._inbox.empty():
            self._heard.note(self._inbox.get())


def _equal(what: str, here: int, there: int) -> Check:
    return Check(what, f"{here:,}", f"{there:,}", here == there)


def _length(seed: int, points: int) -> tuple[int, int]:
    """Return the number of ticks until the site has at least this many points, and the number of points then."""
    total = 0
    for tick, readings in enumerate(ticks(seed), 1):
        total += len(readings)
        if total >= points:
            return tick, total
    raise AssertionError("the site never ends")
