"""The story: runs the demo and checks its result. Owns the order of events and the checks, not their presentation.

No step depends on the clock: each waits for events of the processes, so a slow machine runs the same story more slowly.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import queue
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from repo.demo.chart import Samples
from repo.demo.process import Child, Inbox, Message
from repo.demo.receiver import DISPUTED
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
"""Batches that the receiver has stored."""

PATIENCE_S = 60.0

WELLS = "WELL-*"


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
        self._prepare(heard.ready["receiver"]["url"])
        self._report("the link is down: the receiver's port refuses connections")

        writer = self._start_writer("writer", 0)
        sender = self._start_sender("sender", "--hold-after", str(SENDER_DIES_AFTER))
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

        self._until("the receiver has a batch that the sender holds", lambda: heard.held is not None)
        sender_killed = sender.kill()
        self._hear_all()
        held = heard.held or {}
        in_hand = self._attempt()
        self._report(
            f"SIGKILL to the sender, after the receiver stored seqs {held['first']:,} to {held['last']:,}, and before "
            "the store confirmed them"
        )
        sender = self._start_sender("second sender")
        self._until("the backlog has arrived", lambda: heard.arrived >= backlog)
        cleared_s = heard.arrivals[-1][0] - link_s
        self._report(
            f"the backlog has arrived, in {heard.batches['backfill']} batches beside {heard.batches['live']} of live "
            f"readings; sent again and recognized: {heard.repeats}"
        )

        self._until("the writer has finished", lambda: "second writer" in heard.finished)
        writer.wait()
        sender.order("finish")
        self._until("the sender has finished", lambda: "second sender" in heard.finished)
        sender.wait()
        receiver.order("close")
        self._until("the receiver has finished", lambda: "receiver" in heard.finished)
        receiver.wait()
        self._report("the writer has finished, and the sender has sent the rest")

        status, stored, stored_sha256, wire_bytes = self._read_store()
        receiver_bytes, arrived, arrived_sha256, disputed = self._read_receiver()
        missing, different = self._compare()
        self._report("both sides have been counted and compared")
        left = status.sinks[0].behind
        quarantined = self._quarantined()
        checks = (
            _equal("acknowledged / arrived", heard.points, arrived),
            _equal("in the store / arrived", stored, arrived),
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
                "last seq on its way when sender died",
                f"{in_hand[1]:,}",
                f"{held['last']:,}",
                sender_killed and in_hand == (held["first"], held["last"]),
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
                f"{quarantined:,}",
                f"{disputed:,}",
                (quarantined, disputed) == (1, 0),
            ),
            Check("left to send", f"{left:,}", "", left == 0),
            Check(
                "SHA-256 of all points",
                stored_sha256[:12],
                arrived_sha256[:12],
                stored_sha256 == arrived_sha256,
            ),
        )
        return DemoResult(
            seed=self._seed,
            rate=self._rate,
            engine=status.engine,
            checks=checks,
            figures=Figures(
                acknowledged_points=heard.points,
                arrived_points=arrived,
                backlog_points=backlog,
                backlog_cleared_s=round(cleared_s, 3),
                failed_tries=failed_tries,
                written_points_per_s=round(heard.writing_rate()),
                drained_points_per_s=round(heard.delivered / heard.delivering_s) if heard.delivering_s else 0,
                store_bytes=status.bytes_total,
                receiver_bytes=receiver_bytes,
                wire_bytes=wire_bytes,
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

    def _start_sender(self, name: str, *more: str) -> Child:
        return self._start(
            name, "sender", str(self._store_path), "--batch-points", str(self._batch_points), *more
        )

    def _prepare(self, url: str) -> None:
        """Create the store, with the receiver as its sink, and with a point that the receiver will refuse."""
        with Store(self._store_path, Settings.load(self._store_path, background=False)) as store:
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

    # --- the evidence ---------------------------------------------------------------------------------

    def _open(self) -> Store:
        return Store(self._store_path, Settings.load(self._store_path, background=False), create=False)

    def _attempt(self) -> tuple[int, int]:
        """Return the range that the store has recorded as on its way; (0, 0) if there is none."""
        with self._open() as store:
            attempt = store.sinks.show(SINK).attempt
            return (0, 0) if attempt is None else (attempt.first_seq, attempt.last_seq)

    def _quarantined(self) -> int:
        with self._open() as store:
            return len(store.quarantine.list(SINK))

    def _read_store(self) -> tuple[Status, int, str, int]:
        """Return the status after a checkpoint, the number of points and their checksum, and the bytes sent."""
        with self._open() as store:
            store.checkpoint()
            count, sha256 = _checksum(store)
            return store.status(), count, sha256, store.sinks.show(SINK).sent_bytes

    def _open_receiver(self) -> Store:
        return Store(self._receiver_path, Settings.load(self._receiver_path, background=False), create=False)

    def _read_receiver(self) -> tuple[int, int, str, int]:
        """Return the receiver's bytes, points and checksum, and how many of the refused points it has."""
        with self._open_receiver() as store:
            store.checkpoint()
            count, sha256 = _checksum(store)
            disputed = sum(isinstance(row["value"], str) for row in store.points.range(*DISPUTED))
            return store.status().bytes_total, count, sha256, disputed

    def _compare(self) -> tuple[int, int]:
        """Compare the receiver's file with the site; return the numbers of missing and of different points."""
        missing = different = 0
        with self._open_receiver() as store:
            arrived = itertools.groupby(
                store.points.range(WELLS, None), lambda point: int(point["timestamp_us"])
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
    batches: dict[str, int] = field(default_factory=lambda: {"live": 0, "backfill": 0})
    is_overtaken: bool = False
    """Whether a batch of newer readings arrived before one of older readings."""
    highest: int = 0
    held: dict[str, Any] | None = None
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
            case "retry":
                self.failed_tries += 1
            case "delivered" | "held":
                self._note_batch(message, facts)
            case "finished":
                self.finished.add(message.child.name)
                message.child.expect_end()
            case "ended":
                message.child.check()

    def _note_batch(self, message: Message, facts: dict[str, Any]) -> None:
        if message.event == "held":
            self.held = facts
        self.batches[facts["lane"]] += 1
        self.is_overtaken |= facts["first"] < self.highest
        self.highest = max(self.highest, facts["last"])
        if facts["repeat"]:
            self.repeats += 1
            return
        self.arrived += facts["points"]
        self.arrivals.append((message.at_s, self.arrived))
        if facts["took_s"] is not None:
            self.delivered += facts["points"]
            self.delivering_s += facts["took_s"]

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


def _checksum(store: Store) -> tuple[int, str]:
    """Return the number of points of the wells, and the SHA-256 of their content in order of time and names."""
    digest, count = hashlib.sha256(), 0
    for page in store.points.range(WELLS, None).tuples(20_000):
        count += len(page)
        digest.update(repr([row[:7] for row in page]).encode())
    return count, digest.hexdigest()


def _identity(reading: Reading) -> tuple[str, str, int]:
    return reading[0], reading[1], round(reading[2] * 1e6)


def _content(reading: Reading) -> tuple[Any, ...]:
    value = reading[3]
    return None if value != value else value, reading[4], reading[5]
