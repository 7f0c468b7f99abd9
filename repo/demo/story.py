"""The story: runs the demo and checks its result. Owns the order of events and the checks, not their presentation.

No step depends on the clock: each waits for events of the processes, so a slow machine runs the same story more slowly.
"""

from __future__ import annotations

import itertools
import math
import queue
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from repo.delivery.batch import BatchKey, checksum_of
from repo.demo.chart import Samples
from repo.demo.process import Child, Inbox, Message
from repo.demo.receiver_store import stored_points
from repo.demo.sender import SINK
from repo.demo.site import Reading, ticks
from repo.errors import DemoFailed, InvalidSettings
from repo.settings import Settings
from repo.store.status import Status
from repo.store.store import Store

__all__ = ["Check", "DemoResult", "Figures", "Story"]

WRITER_DIES_AT = 0.4
LINK_RETURNS_AT = 0.75
"""Fractions of all points that are acknowledged at that time."""

SENDER_DIES_AFTER = 3
"""Receipts."""

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """One check: the value on the store's side, and the value on the receiver's."""

    what: str
    store: str
    receiver: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The measurements. Rates are points per second; drained covers reading, sending, storing and confirming."""

    acknowledged_points: int
    arrived_points: int
    backlog_points: int
    backlog_cleared_s: float
    failed_tries: int
    written_points_per_s: float
    drained_points_per_s: float
    store_bytes: int
    receiver_bytes: int
    wire_bytes: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """The result. `acknowledged` and `arrived` are counts over time, for the plot."""

    seed: int
    rate: float
    engine: str
    checks: tuple[Check, ...]
    figures: Figures
    events: tuple[tuple[float, str], ...]
    acknowledged: Samples = field(repr=False)
    arrived: Samples = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether all checks hold."""
        return all(check.holds for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain dicts, lists and numbers; the documented form of `holdfast --json demo`."""
        result = {"ok": self.ok, **asdict(self)}
        result["events"] = [{"at_s": round(at_s, 3), "what": what} for at_s, what in self.events]
        del result["acknowledged"], result["arrived"]
        return result


class Story:
    """One run in an empty folder, which afterwards has `store/`, `receiver.db` and the processes' logs.

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
        self._receiver_path = folder / "receiver.db"
        self._rate, self._seed = rate, seed
        self._patience_s = PATIENCE_S + 4 * seconds
        self._end, self._points = _length(seed, math.ceil(seconds * rate))
        self._batch_points = max(50, min(5_000, self._points // 16))
        self._on_event = on_event
        self._inbox = Inbox()
        self._children: list[Child] = []
        self._heard = _Heard()
        self._start_s = 0.0
        self._events: list[tuple[float, str]] = []

    def play(self) -> DemoResult:
        """Run it to the end; raises `DemoFailed` if that is impossible. No process outlives the call."""
        self._start_s = time.monotonic()
        try:
            return self._play()
        finally:
            for child in self._children:
                child.stop()

    # --- the run --------------------------------------------------------------------------------------

    def _play(self) -> DemoResult:
        heard = self._heard
        receiver = self._start("receiver", "receiver", str(self._receiver_path))
        self._until("the receiver is ready", lambda: "receiver" in heard.ready)
        url = heard.ready["receiver"]["url"]
        self._report("the link is down: the receiver's port refuses connections")

        writer = self._start_writer("writer", 0)
        sender = self._start_sender("sender", url, "--hold-after", str(SENDER_DIES_AFTER))
        self._report(f"the writer writes {self._rate:,.0f} points/s; the sender cannot connect")

        self._until("writing has begun", lambda: heard.points >= WRITER_DIES_AT * self._points)
        time.sleep(random.uniform(0, 0.02))  # noqa: S311  anywhere in a write, or between two
        writer_killed = writer.kill()
        self._hear_all()
        before_kill = heard.points
        self._report(f"SIGKILL to the writer, after {before_kill:,} acknowledged points")
        writer = self._start_writer("second writer", heard.tick)
        self._report("a second writer continues")

        self._until("there is a backlog", lambda: heard.points >= LINK_RETURNS_AT * self._points)
        # On a slow machine, the sender may take longer to start than the writer to write the backlog.
        self._until("the sender has failed to connect", lambda: heard.failed_tries > 0)
        failed_tries, too_early = heard.failed_tries, heard.arrived
        link_s, backlog = time.monotonic(), heard.points
        receiver.order("listen")
        self._report(f"the link is up; {backlog:,} points are waiting, and the writer continues")

        self._until("the sender has a receipt", lambda: heard.held is not None)
        sender_killed = sender.kill()
        self._hear_all()
        held = BatchKey.parse((heard.held or {})["key"])
        cursor = self._status().sinks[0].confirmed_seq
        self._report(
            f"SIGKILL to the sender between the receipt (seq {held.last_seq:,}) and the commit of its cursor "
            f"(seq {cursor:,})"
        )
        sender = self._start_sender("second sender", url)
        self._until("the backlog has arrived", lambda: heard.arrived >= backlog)
        cleared_s = heard.arrivals[-1][0] - link_s
        self._report(f"the backlog has arrived; repeated batches dropped by key: {heard.repeats}")

        self._until("the writer has finished", lambda: "second writer" in heard.finished)
        writer.wait()
        sender.order("finish")
        self._until("the sender has finished", lambda: "second sender" in heard.finished)
        sender.wait()
        self._report("the writer has finished, and the sender has sent the rest")

        receiver.order("report")
        self._until("the receiver has reported", lambda: heard.report is not None)
        report = heard.report or {}
        status, stored, stored_sha256 = self._read_store()
        missing, different = self._compare()
        self._report("both sides have been counted and compared")
        left = status.sinks[0].behind
        checks = (
            _equal("acknowledged / arrived", heard.points, report["points"]),
            _equal("in the store / arrived", stored, report["points"]),
            Check(
                "missing / different points",
                "",
                f"{missing:,} / {different:,}",
                (missing, different, heard.tick) == (0, 0, self._end),
            ),
            Check("acknowledged when the writer was killed", f"{before_kill:,}", "", writer_killed),
            Check(
                "attempts / arrivals with the link down",
                f"{failed_tries:,}",
                f"{too_early:,}",
                failed_tries > 0 and too_early == 0,
            ),
            Check(
                "cursor / receipt when sender was killed",
                f"{cursor:,}",
                f"{held.last_seq:,}",
                sender_killed and cursor == held.first_seq - 1,
            ),
            Check(
                "repeats of that batch dropped by key",
                "",
                f"{report['repeated_batches']:,}",
                report["repeated_keys"] == [str(held)] and report["repeated_batches"] == 1,
            ),
            Check(
                "points out of order / missing batches",
                "",
                f"{report['out_of_order']:,} / {report['holes']:,}",
                report["out_of_order"] == 0 and report["holes"] == 0,
            ),
            Check("left to send", f"{left:,}", "", left == 0),
            Check(
                "SHA-256 of all points, in order",
                stored_sha256[:12],
                report["sha256"][:12],
                stored_sha256 == report["sha256"],
            ),
        )
        receiver.order("close")
        receiver.wait()
        return DemoResult(
            seed=self._seed,
            rate=self._rate,
            engine=status.engine,
            checks=checks,
            figures=Figures(
                acknowledged_points=heard.points,
                arrived_points=report["points"],
                backlog_points=backlog,
                backlog_cleared_s=round(cleared_s, 3),
                failed_tries=failed_tries,
                written_points_per_s=round(heard.writing_rate()),
                drained_points_per_s=round(heard.delivered / heard.delivering_s),
                store_bytes=status.bytes_total,
                receiver_bytes=self._receiver_path.stat().st_size,
                wire_bytes=heard.wire_bytes,
                wall_s=round(time.monotonic() - self._start_s, 3),
            ),
            events=tuple(self._events),
            acknowledged=[(at_s - self._start_s, points) for at_s, points in heard.acknowledgements],
            arrived=[(at_s - self._start_s, points) for at_s, points in heard.arrivals],
        )

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        child = Child(name, module, list(arguments), self._inbox, self._folder)
        self._children.append(child)
        return child

    def _start_writer(self, name: str, first: int) -> Child:
        options = {"--seed": self._seed, "--rate": self._rate, "--first": first, "--end": self._end}
        child = self._start(
            name, "writer", str(self._store_path), *(str(part) for pair in options.items() for part in pair)
        )
        self._until(f"the {name} is ready", lambda: name in self._heard.ready)
        return child

    def _start_sender(self, name: str, url: str, *more: str) -> Child:
        return self._start(
            name, "sender", str(self._store_path), url, "--batch-points", str(self._batch_points), *more
        )

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

    # --- the evidence ---------------------------------------------------------------------------------

    def _open(self) -> Store:
        return Store(self._store_path, Settings.load(self._store_path, background=False), create=False)

    def _status(self) -> Status:
        with self._open() as store:
            return store.status()

    def _read_store(self) -> tuple[Status, int, str]:
        """Return the store's status after a checkpoint, its number of points, and their checksum in order of seq."""
        count = 0

        def counted(points: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            nonlocal count
            for point in points:
                count += 1
                yield point

        with self._open() as store:
            store.checkpoint()
            sha256 = checksum_of(counted(_all_points(store)))
            assert [sink.name for sink in store.status().sinks] == [SINK]
            return store.status(), count, sha256

    def _compare(self) -> tuple[int, int]:
        """Compare the receiver's file with the site; return the numbers of missing and of different points."""
        missing = different = 0
        database = sqlite3.connect(f"{self._receiver_path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            arrived = itertools.groupby(
                stored_points(database, "timestamp_us"), lambda point: point["timestamp_us"]
            )
            at_us, group = next(arrived, (None, iter(())))
            for readings in itertools.islice(ticks(self._seed), self._heard.tick):
                expected = {_identity(reading): _content(reading) for reading in readings}
                if expected and at_us == next(iter(expected))[2]:
                    for point in group:
                        identity = point["sensor_id"], point["metric_name"], point["timestamp_us"]
                        content = point["value"], point["quality"], point["metadata"]
                        different += expected.pop(identity, None) != content
                    at_us, group = next(arrived, (None, iter(())))
                missing += len(expected)
        finally:
            database.close()
        return missing, different


@dataclass(slots=True)
class _Heard:
    """The events of the processes so far. Points count as acknowledged when their writer has reported it."""

    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    tick: int = 0
    points: int = 0
    arrived: int = 0
    repeats: int = 0
    failed_tries: int = 0
    delivered: int = 0
    delivering_s: float = 0.0
    wire_bytes: int = 0
    held: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    acknowledgements: list[tuple[float, int]] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    lives: dict[str, list[float]] = field(default_factory=dict)

    def note(self, message: Message) -> None:
        """Process one message; raises `DemoFailed` for a process that ended unexpectedly."""
        facts = message.facts
        match message.event:
            case "ready":
                self.ready[message.child.name] = facts
                self.lives[message.child.name] = [message.at_s, message.at_s]
            case "acknowledged":
                self.tick = facts["tick"]
                self.points += facts["points"]
                self.acknowledgements.append((message.at_s, self.points))
                self.lives[message.child.name][1] = message.at_s
            case "taken":
                self.arrived += facts["points"]
                self.repeats += facts["repeat"]
                self.arrivals.append((message.at_s, self.arrived))
            case "retry":
                self.failed_tries += 1
            case "delivered":
                self.delivered += facts["points"]
                self.delivering_s += facts["took_s"]
                self.wire_bytes += facts["bytes"]
            case "held":
                self.held = facts
            case "report":
                self.report = facts
            case "finished":
                self.finished.add(message.child.name)
                message.child.expect_end()
            case "ended":
                message.child.check()

    def writing_rate(self) -> float:
        """Return the points per second over the time in which a writer was running."""
        alive_s = sum(last - first for name, (first, last) in self.lives.items() if "writer" in name)
        return self.points / alive_s if alive_s else 0.0


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


def _all_points(store: Store) -> Iterator[dict[str, Any]]:
    seq = 0
    while page := store.points.after(seq, 20_000):
        yield from page
        seq = page[-1]["seq"]


def _identity(reading: Reading) -> tuple[str, str, int]:
    return reading[0], reading[1], round(reading[2] * 1e6)


def _content(reading: Reading) -> tuple[Any, ...]:
    value = reading[3]
    return None if value != value else value, reading[4], reading[5]
