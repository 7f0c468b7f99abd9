"""The code of the processes that are interrupted: a program that catches Ctrl-C and continues, like a notebook.

Its main thread writes, flushes and reads; a SIGINT raises KeyboardInterrupt there, at a named step of `steps.py` or
at a random time. After each interrupt the same process continues, and everything in the store is counted and judged.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from repo.core import compaction
from repo.engines.registry import companions_of
from repo.schema.version import HEAD
from repo.settings import Settings
from repo.store.store import Store
from tests.faults import child, steps
from tests.faults.child import Counted, perform
from tests.faults.judge import Expected, judge
from tests.faults.steps import Place
from tests.faults.workload import MOST_UNDER_WAY, Operation, State, operation

__all__ = ["RANDOM", "Beside", "Program"]

RANDOM = Place("at a random time", race=True)
"""By a timer, anywhere in the main thread."""

MAIN = 0
"""The writer whose operations the main thread does."""

ROUND_CPU_S = 2.0
"""How much CPU time of the process a round takes at most to reach its place, as on a busy machine all takes longer."""

ROUND_S = 30.0
"""How long a round takes at most, as a process that waits takes no CPU time."""

HANG_S = 300.0
"""If no call ends for this long, the stacks are dumped and the process ends."""

LONGEST_TIMER_S = 0.03

FLUSHED_OPERATIONS = 20
"""Another writer flushes after so many of its operations. On a busy machine, it would otherwise be ahead of all flushes
by so much that a call that flushes takes longer than `HANG_S`."""

_TRACED = ("journal COMMIT", "WAL checkpoint", "before CHECKPOINT", "CHECKPOINT")


class _Interrupter:
    """Raises KeyboardInterrupt in the main thread, once per round, and only while it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self.raised = False
        self.lost = False
        """Whether it was raised where the interpreter swallows it: in a finalizer or a callback of a C library."""
        self._place: Place | None = None
        self._left = 0
        self._anywhere = False
        self._main = threading.main_thread()
        self._delays: queue.SimpleQueue[float] = queue.SimpleQueue()
        threading.Thread(target=self._send, name="sender", daemon=True).start()
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGALRM, self._handle)
        sys.unraisablehook = self._swallowed

    def aim(self, place: Place, nth: int, *, anywhere: bool) -> None:
        """Choose the next place; with `anywhere` it counts in any thread."""
        self._place, self._left, self._anywhere = place, nth, anywhere
        self.raised = self.lost = False

    def reach(self, name: str) -> None:
        """Interrupt here if this is the chosen place and time."""
        place = self._place
        if not self.armed or place is None or name != place.name:
            return
        here = threading.current_thread() is self._main
        if not here and not self._anywhere:
            return
        self._left -= 1
        if self._left != 0:
            return
        if here and not place.race and name not in _TRACED:
            signal.raise_signal(signal.SIGINT)
        else:
            # In a race the signal arrives during the work of the engine, or a little later.
            self._delays.put(0.0 if self._left % 2 else 0.000_3)

    def passed(self, name: str) -> None:
        """Do nothing, because a late interrupt is valid, too."""

    def _send(self) -> None:
        while True:
            time.sleep(self._delays.get())
            signal.pthread_kill(self._main.ident or 0, signal.SIGINT)

    def _handle(self, _number: int, frame: FrameType | None) -> None:
        if not self.armed:
            return
        at = frame
        while at is not None:
            if at.f_code.co_name == "trace" and at.f_code.co_filename == steps.__file__:
                self._delays.put(0.0)  # SQLite would swallow it here
                return
            at = at.f_back
        self.armed, self.raised = False, True
        raise KeyboardInterrupt

    def _swallowed(self, unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            self.lost = True
        else:
            sys.__unraisablehook__(unraisable)


class _Wrong(Exception):
    """A violated expectation."""


@dataclass(slots=True)
class Program:
    """A program: its store, the places at which it is interrupted, and its other writing threads."""

    folder: Path
    seed: str
    settings: dict[str, Any]
    places: list[Place]
    writers: tuple[int, ...] = ()
    """Writers in their own threads, in addition to that of the main thread."""
    anywhere: bool = False
    """Whether a place counts in any thread."""
    beside: bool = False
    """Whether another process uses the store, too, so that nothing may be done that needs exclusive use."""

    def live(self, say: Callable[[str], None]) -> None:
        """Go through the places; print `ROUND` for each, `PROBLEM` at the first failure, and `DONE`."""
        compaction.SLICE_ROWS = child.SLICE_ROWS
        _Running(self, say).run()


class _Running:
    """A running program."""

    def __init__(self, program: Program, say: Callable[[str], None]) -> None:
        self._program = program
        self._say = say
        self._rng = Random(f"{program.seed}/program")
        self._expected = {writer: Expected(State(), 0) for writer in (MAIN, *program.writers)}
        self._turns = {writer: threading.Lock() for writer in program.writers}
        self._errors: list[str] = []
        self._interrupter = _Interrupter()
        steps.watch(self._interrupter, trace_sqlite=True)  # before the store opens its connections
        self._store = self._open()
        self._number = 0
        self._doing = ""

    def run(self) -> None:
        for writer in self._program.writers:
            threading.Thread(
                target=self._write_on, args=(writer,), name=f"writer-{writer}", daemon=True
            ).start()
        self._say("READY")
        try:
            for place in self._program.places:
                self._number += 1
                self._round(place)
            with _watchdog():
                with self._paused():
                    self._store.close()
                self._program.folder.with_suffix(".expected").write_bytes(pickle.dumps(self._expected))
            self._say("DONE")
        except BaseException as error:  # noqa: BLE001  the parent must hear of anything
            traceback.print_exc()
            self._say(f"PROBLEM {self._doing}: {type(error).__name__}: {error}".replace("\n", " ")[:3000])
        sys.stderr.flush()
        os._exit(0)

    # --- one round --------------------------------------------------------------------------------------

    def _round(self, place: Place) -> None:
        acts = self._acts(place)
        interrupter = self._interrupter
        interrupter.aim(place, self._rng.randint(1, 3), anywhere=self._program.anywhere)
        deadline, cpu_deadline = time.monotonic() + ROUND_S, time.process_time() + ROUND_CPU_S
        while not interrupter.raised and time.process_time() < cpu_deadline and time.monotonic() < deadline:
            act = self._rng.choice(acts)
            self._doing = f"round {self._number}, {place.name}, {act.__name__.strip('_')}"
            with _watchdog():
                self._interruptible(act, place)
        outcome = "lost" if interrupter.lost else "hit" if interrupter.raised else "missed"
        if interrupter.raised:
            with _watchdog():
                self._doing += ", afterwards"
                self._everybody_goes_on()
                with self._paused():
                    self._judge()
        self._say(f"ROUND {outcome} {place.name}")

    def _interruptible(self, act: Callable[[], _Act], place: Place) -> None:
        call, then, recover = act()
        interrupter = self._interrupter
        try:
            interrupter.armed = True
            if place is RANDOM or place == RANDOM:
                signal.setitimer(signal.ITIMER_REAL, self._rng.uniform(0.000_3, LONGEST_TIMER_S))
            call()
            interrupter.armed = False
        except KeyboardInterrupt:
            recover()
        except BaseException as error:
            interrupter.armed = False
            reported = "after an interrupt in it" if interrupter.raised else "without an interrupt in it"
            raise _Wrong(f"{reported} the call raised {error!r}") from error
        else:
            if interrupter.raised and not interrupter.lost:
                raise _Wrong("the interrupt in it was swallowed")
            then()
        finally:
            interrupter.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _everybody_goes_on(self) -> None:
        """Check that every other thread does one more operation, and that none of them was interrupted."""
        before = {writer: self._expected[writer].next_index for writer in self._turns}
        deadline = time.monotonic() + HANG_S / 2
        for writer, index in before.items():
            while self._expected[writer].next_index == index and not self._errors:
                if time.monotonic() > deadline:
                    faulthandler.dump_traceback(all_threads=True)
                    raise _Wrong(f"writer {writer} does not go on")
                time.sleep(0.001)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            for writer, turn in self._turns.items():
                if not turn.acquire(timeout=HANG_S / 2):
                    faulthandler.dump_traceback(all_threads=True)
                    raise _Wrong(f"writer {writer} hangs")
                held.callback(turn.release)
            if self._errors:
                raise _Wrong("; ".join(self._errors))
            yield

    def _judge(self) -> None:
        counted, store = Counted(), self._store
        # Points of an interrupted `submit` may still be in the queue. If the writer's thread committed them between two
        # of the counts below, these would differ.
        store.points.submit([]).result()
        child.count_as_found(counted, store.path)
        child.count_through(counted, store, checkpoint=self._rng.random() < 0.3)
        child.count_metadata(counted, store.path)
        with store._handle.reading("a count of everything") as (connection, _):
            child.count_columns(counted, lambda query: [tuple(r) for r in connection.exec_driver_sql(query)])
        verdict = judge(counted, self._expected, self._program.seed, HEAD)
        reported = {(info.sensor_id, info.metric_name): info.points for info in store.series.list()}
        stored: dict[tuple[str, str], int] = {}
        for sensor, metric, *_ in counted.rows:
            stored[sensor, metric] = stored.get((sensor, metric), 0) + 1
        if {pair: points for pair, points in reported.items() if points} != stored:
            verdict.problems.append(f"series.list says {reported}, stored are {stored}")
        if verdict.problems:
            raise _Wrong("; ".join(verdict.problems[:4]))
        mine = self._expected[MAIN]
        self._expected[MAIN] = Expected(verdict.standing[MAIN], mine.next_index + MOST_UNDER_WAY)

    # --- what the main thread does ----------------------------------------------------------------------

    def _acts(self, place: Place) -> list[Callable[[], _Act]]:
        alone = not self._program.writers and not self._program.beside
        name = place.name
        if place == RANDOM:
            acts = [
                self._write,
                self._write,
                self._table,
                self._delete,
                self._flush,
                self._checkpoint,
                self._read,
                self._compact,
            ]
            return [*acts, self._read, *([self._reopen] if alone else [])]
        if name.removeprefix("before ").removeprefix("after ").startswith("compact"):
            return [self._write, self._compact]
        if "shrink" in name:
            return [self._write, self._shrink]
        if "aside" in name:
            return [self._write, self._move_over_a_file]
        if "move" in name:
            return [self._write, self._move]
        if "bulk" in name:
            return [self._table]
        if name == "creation":
            return [self._create]
        if name == "query":
            return [self._read]
        if any(word in name for word in ("CHECKPOINT", "prune", "copy", "copied")):
            return [self._write, self._checkpoint]
        if any(word in name for word in ("delete", "append", "incoming", "summaries")):
            return [self._write, self._delete, self._flush]
        return [self._write, self._write, self._flush, self._read]

    def _write(self) -> _Act:
        return self._operation(lambda _: True)

    def _table(self) -> _Act:
        return self._operation(lambda act: act.kind == "table")

    def _delete(self) -> _Act:
        return self._operation(lambda act: act.kind == "delete")

    def _operation(self, wanted: Callable[[Operation], bool]) -> _Act:
        mine = self._expected[MAIN]
        while not wanted(act := operation(self._program.seed, MAIN, mine.next_index)):
            mine.next_index += 1

        def then() -> None:
            mine.state.apply(act)
            mine.next_index += 1

        if act.kind == "submit":
            rows = child.dicts(act.parts[0])
            return (lambda: self._store.points.submit(rows).result()), then, _nothing
        return (lambda: perform(self._store, act)), then, _nothing

    def _flush(self) -> _Act:
        return self._store.flush, _nothing, _nothing

    def _checkpoint(self) -> _Act:
        return self._store.checkpoint, _nothing, _nothing

    def _read(self) -> _Act:
        points, series, sensor = self._store.points, self._store.series, f"site{MAIN}"
        threading.current_thread().name = steps.READER
        call = self._rng.choice(
            (
                lambda: list(points.range(sensor, "pressure")),
                lambda: points.latest(None),
                lambda: points.latest(sensor, "flow", limit=3),
                lambda: points.aggregate(sensor, ["pressure", "flow"], agg=["avg", "count"], every="1h"),
                lambda: points.after(0, limit=500),
                series.list,
            )
        )
        return call, _nothing, _nothing

    def _compact(self) -> _Act:
        return self._store.compact, _nothing, _nothing

    def _shrink(self) -> _Act:
        return self._store.shrink, _nothing, _nothing

    def _move(self) -> _Act:
        store = self._store

        def tidy() -> None:
            for file in store.files.kept():
                file.unlink(missing_ok=True)

        return (store.demote if store.status().engine == "duckdb" else store.promote), tidy, tidy

    def _move_over_a_file(self) -> _Act:
        """Move to where a file is, as after a move that was interrupted between its naming and its switch."""
        files, active = self._store.files, self._store.status().engine
        target = files.columns("sqlite" if active == "duckdb" else "duckdb")
        if files.columns(active).exists():
            for left in (target, *companions_of(target)):
                left.write_bytes(b"left by a move")
        return self._move()

    def _create(self) -> _Act:
        folder = self._program.folder.with_name(f"created-{self._number}")

        def then() -> None:
            with self._open(folder) as made:
                made.points.insert("a", "m", 1.0, timestamp=1)
                if [row["value"] for row in made.points.range("a", "m")] != [1.0]:
                    raise _Wrong("a new store does not hold its first point")
            shutil.rmtree(folder)

        return (lambda: self._open(folder).close()), then, then

    def _reopen(self) -> _Act:
        def call() -> None:
            self._store.close()
            self._store = self._open()

        def recover() -> None:
            self._store.close()
            self._store = self._open()

        return call, _nothing, recover

    def _open(self, folder: Path | None = None) -> Store:
        return Store(folder or self._program.folder, Settings(**self._program.settings))

    # --- what the other threads do ----------------------------------------------------------------------

    def _write_on(self, writer: int) -> None:
        expected, rng = self._expected[writer], Random(f"{self._program.seed}/{writer}/pauses")
        try:
            while True:
                with self._turns[writer]:
                    act = operation(self._program.seed, writer, expected.next_index)
                    if act.kind == "submit":
                        self._store.points.submit(child.dicts(act.parts[0])).result()
                    else:
                        perform(self._store, act)
                    expected.state.apply(act)
                    expected.next_index += 1
                    if expected.next_index % FLUSHED_OPERATIONS == 0:
                        self._store.flush()
                time.sleep(rng.random() * 0.004)
        except BaseException as error:  # noqa: BLE001  KeyboardInterrupt above all
            traceback.print_exc()
            self._errors.append(f"{threading.current_thread().name} met {error!r}")


_Act = tuple[Callable[[], object], Callable[[], object], Callable[[], object]]
"""What may be interrupted, what follows if it was not, and what follows if it was."""


@dataclass(slots=True)
class Beside:
    """Another process on the same store, which writes no points: it flushes, reads, and sometimes holds both locks."""

    folder: Path
    seed: str
    settings: dict[str, Any] = field(default_factory=dict)

    def live(self, say: Callable[[str], None]) -> None:
        """Run until killed."""
        rng = Random(f"{self.seed}/beside")
        store = Store(self.folder, Settings(**self.settings))
        handle = store._handle
        say("READY")
        while True:
            time.sleep(rng.uniform(0.0, 0.03))
            match rng.randrange(4):
                case 0:
                    store.flush()
                case 1:
                    list(store.points.range(f"site{MAIN}", None))
                case 2:
                    with handle.columns.alone("a long read"):
                        time.sleep(rng.uniform(0.0, 0.06))
                case 3:
                    with handle.metadata.write():
                        time.sleep(rng.uniform(0.0, 0.04))


def _nothing() -> None:
    pass


@contextmanager
def _watchdog() -> Iterator[None]:
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
