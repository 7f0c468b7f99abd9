"""Kills: children that write to a store are SIGKILLed at named steps; another process counts after each kill.

    python -m tests.faults.kills --engine duckdb --hits 20 [--seed N] [--sinks all]

A chain is one store that survives several kills. About every second one has a destination, so that its newest rows
stay in the journal after they were flushed. Each round starts an application on it (two writers,
a flusher, a reader, and the store's own background thread; for the lease and beside a move, two of them), kills it at
its step (`steps.py` says how a step is hit), lets a fresh process count, and judges. A failure names seed,
round and step, and keeps the folder. Timing differs from run to run: a seed repeats the operations and the
choices, not the scheduling.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from repo.schema.version import HEAD
from tests.faults.child import App, Census, Counted
from tests.faults.fork_server import Child, ForkServer
from tests.faults.judge import Expected, Verdict, judge
from tests.faults.steps import BULK, COMPACTIONS, DUCKDB_ALONE, MOVES, MOVES_BESIDE, SHRINKS, STEPS, Place
from tests.faults.workload import MOST_UNDER_WAY, State, operation
from tests.starter import Starter

__all__ = ["Campaign", "Chain", "Tally", "settings_of"]

CREATION = "in the creation of the store"
HAND_OVER = "in the hand-over of the lease"
RANDOM = "at a random time"

ROUNDS_A_CHAIN = 10
MOST_CREATION_STATEMENTS = 110
STEP_TIMEOUT_S = 300.0
LONGEST_MOVE_S = 0.4
_LONGEST_RACE_S = {"compact": 0.03}
MOST_PASSED = 12

Damage = Callable[[Path, Random], None]


@dataclass(slots=True)
class Tally:
    """A row of the table."""

    kills: int = 0
    hits: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0


@dataclass(slots=True)
class Chain:
    """One store, and the state of each writer in it."""

    folder: Path
    seed: str
    engine: str
    sink: bool
    """Whether it has a destination."""
    expected: dict[int, Expected] = field(
        default_factory=lambda: {writer: Expected(State(), 0) for writer in range(4)}
    )
    rounds: int = 0
    rebuilds: str = ""
    """What is done to its columns continuously; after `moves` their engine is unknown."""

    @property
    def store(self) -> Path:
        """The folder of the store; requests and stderr are next to it."""
        return self.folder / "store"


class Campaign:
    """Rounds of kills, on chains of stores in one folder."""

    def __init__(self, fork_server: ForkServer, root: Path, seed: int, engine: str) -> None:
        self._fork_server = fork_server
        self._root = root
        self._seed = seed
        self._engine = engine
        self._numbers = itertools.count(1)
        self._chain: Chain | None = None
        self.tallies: dict[str, Tally] = {}
        self.failures: list[str] = []
        self.acknowledged = 0
        """Operations that were acknowledged, over all rounds."""
        self.most_passed = MOST_PASSED
        """The last occurrence of a frequent step that a kill may wait for."""
        self.sinks: Literal["all", "some", "none"] = "some"
        """Which stores have a destination."""

    def round(self, step: str, *, damage: Damage | None = None, **app: Any) -> bool:
        """Kill once at `step`, count and judge; returns whether the kill hit its step."""
        number = next(self._numbers)
        rng = Random(f"{self._seed}/{number}/{step}")
        chain = self._chain_for(step)
        place = rng.choice(STEPS[step]) if STEPS[step] else None
        request = chain.folder / f"round{number}.app"
        try:
            hit = self._kill(chain, step, place, rng, request, app)
            if damage is not None:
                damage(chain.store, rng)
            verdict = self._judged(chain, step, rng, request, damaged=damage is not None)
        except _Trouble as trouble:
            hit, verdict = False, Verdict([str(trouble)])
            self._chain = None
        tally = self.tallies.setdefault(step, Tally())
        tally.kills += 1
        tally.hits += hit
        tally.lost += verdict.lost
        tally.doubled += verdict.doubled
        if verdict.problems:
            tally.wrong += 1
            self._chain = None
            problems = "\n    ".join(verdict.problems[:6])
            self.failures.append(
                f"seed {self._seed}, round {number}, {self._engine}{', a sink' * chain.sink}, {step} "
                f"({place.name if place else 'any'}), "
                f"{chain.folder}:\n    {problems}"
            )
        elif self._chain is None or chain.rounds >= ROUNDS_A_CHAIN:
            self._chain = None
            shutil.rmtree(chain.folder)
        return hit

    def close(self) -> None:
        """Remove the last store, unless it failed."""
        if self._chain is not None:
            shutil.rmtree(self._chain.folder)
            self._chain = None

    def table(self) -> str:
        """Return step x kills x hits x lost x doubled as text."""
        lines = [
            f"{'step (' + self._engine + ')':46}{'kills':>6}{'hits':>6}{'lost':>6}{'doubled':>9}{'wrong':>7}"
        ]
        total = Tally()
        for step, tally in self.tallies.items():
            lines.append(_line(step, tally))
            for name in ("kills", "hits", "lost", "doubled", "wrong"):
                setattr(total, name, getattr(total, name) + getattr(tally, name))
        return "\n".join([*lines, _line("all", total)])

    # --- one round --------------------------------------------------------------------------------------

    def _chain_for(self, step: str) -> Chain:
        kinds = {"moves": MOVES, "shrinks": SHRINKS, "compacts": COMPACTIONS}
        rebuilds = next((kind for kind, steps in kinds.items() if step in steps), "")
        if self._chain is None or step == CREATION or self._chain.rebuilds != rebuilds:
            self.close()
            number = next(self._numbers)
            folder = self._root / f"{self._engine}-{self._seed}-{number}"
            folder.mkdir(parents=True)
            has_sink = {
                "all": True,
                "some": Random(f"{self._seed}/{number}").random() < 0.5,
                "none": False,
            }[self.sinks]
            self._chain = Chain(folder, f"{self._seed}/{number}", self._engine, has_sink, rebuilds=rebuilds)
        self._chain.rounds += 1
        return self._chain

    def _kill(
        self,
        chain: Chain,
        step: str,
        place: Place | None,
        rng: Random,
        request: Path,
        options: dict[str, Any],
    ) -> bool:
        settings = settings_of(rng, chain.engine)
        loads = step == BULK  # it waits only briefly for others
        writers = self._writers(chain, (0,) if loads else (0, 1))
        app = App(chain.store, chain.seed, settings, writers, place, **options)
        app.sink, app.rebuilds, app.only_writes = chain.sink, chain.rebuilds, loads
        app.nth = rng.randint(1, MOST_CREATION_STATEMENTS) if step == CREATION else self._nth(place, rng)
        if step in (HAND_OVER, MOVES_BESIDE):
            return self._kill_one_of_two(chain, app, rng, request)
        child = self._fork_server.start(app, request)
        try:
            if place is None:
                _expect(child, "READY")
                time.sleep(rng.uniform(0.02, 0.6))
            elif step == CREATION:
                # The store may be complete before that many statements have run; then it is killed soon after.
                if child.wait_for("STEP", "FLUSHED", "ERROR", timeout_s=STEP_TIMEOUT_S) is None:
                    raise _Trouble(f"the creation neither stopped nor ended: {_last(child)}")
            else:
                _expect(child, "STEP")
            if place is not None and place.race:
                _pause(
                    rng,
                    longest_s=LONGEST_MOVE_S
                    if place.name in ("move", "shrink")
                    else _LONGEST_RACE_S.get(place.name, 0.001),
                )
        finally:
            code = child.kill()
        self._note(chain, child, code)
        return place is None or ("STEP" in child.lines and "PASSED" not in child.lines)

    def _kill_one_of_two(self, chain: Chain, app: App, rng: Random, request: Path) -> bool:
        """Kill one of two processes that holds or wants the lease; the other must get it, continue, and die later."""
        other = App(chain.store, chain.seed, app.settings, self._writers(chain, (2, 3)))
        children = [
            self._fork_server.start(other, request.with_suffix(".other")),
            self._fork_server.start(app, request),
        ]
        survivor, victim = children
        codes: dict[int, int] = {}
        try:
            _expect(victim, "STEP")
            if app.place is not None and app.place.race:
                _pause(rng, longest_s=0.03)
            codes[victim.pid] = victim.kill()
            for _ in range(2):
                _expect(survivor, "FLUSHED")
            time.sleep(rng.uniform(0.0, 0.1))
        finally:
            for child in children:
                if child.pid not in codes:
                    codes[child.pid] = child.kill()
        for child in children:
            self._note(chain, child, codes[child.pid])
        return "PASSED" not in victim.lines

    def _nth(self, place: Place | None, rng: Random) -> int:
        """Choose the occurrence to stop at; rare places are reached only a few times a second."""
        if place is None:
            return 1
        rare = (
            "move",
            "shrink",
            "lease",
            "delete",
            "CHECKPOINT",
            "prune",
            "WAL checkpoint",
            "bulk",
            "compact",
        )
        is_rare = any(word in place.name for word in rare)
        return rng.randint(1, min(3, (self.most_passed + 1) // 2) if is_rare else self.most_passed)

    def _writers(self, chain: Chain, writers: Sequence[int]) -> dict[int, tuple[int, State]]:
        return {w: (chain.expected[w].next_index, chain.expected[w].state) for w in writers}

    def _note(self, chain: Chain, child: Child, code: int) -> None:
        """Advance the expected states by what the child reported before it was killed."""
        if code != -9:
            raise _Trouble(f"the child ended by itself with {code}: {_last(child)}")
        for line in child.lines:
            word, *rest = line.split()
            if word == "ERROR":
                raise _Trouble(f"the child failed: {line}")
            if word == "ACK":
                writer, index = map(int, rest)
                expected = chain.expected[writer]
                if index != expected.next_index:
                    raise _Trouble(f"writer {writer}: {index} acknowledged before {expected.next_index}")
                expected.state.apply(operation(chain.seed, writer, index))
                expected.next_index += 1
                self.acknowledged += 1
        errors = child.errors.read_text()
        if errors:
            raise _Trouble(f"the child complained: {errors[-1500:]}")

    def _judged(self, chain: Chain, step: str, rng: Random, request: Path, *, damaged: bool) -> Verdict:
        # SQLite can be read raw after the kill, but during creation there may be nothing yet.
        census = Census(chain.store, rng.random() < 0.5, create=self._engine if step == CREATION else None)
        child = self._fork_server.start(census, request.with_suffix(".census"))
        answer = child.read_all(timeout_s=STEP_TIMEOUT_S)
        errors = child.errors.read_text()
        if not answer or (errors and not damaged):
            raise _Trouble(f"the count failed or complained: {errors[-3000:]}")
        counted: Counted = pickle.loads(answer)
        verdict = judge(counted, chain.expected, chain.seed, HEAD)
        for writer, state in verdict.standing.items():
            # An operation that may have been running is never repeated: its index would be ambiguous.
            chain.expected[writer] = Expected(state, chain.expected[writer].next_index + MOST_UNDER_WAY)
        return verdict


class _Trouble(Exception):
    """A round that could not be judged."""


def settings_of(rng: Random, engine: str) -> dict[str, Any]:
    """Settings that make every step frequent; sizes are small, so that both checkpoints come often."""
    return {
        "engine": engine,
        "durability": rng.choice(("full", "full", "normal")),
        "flush_interval_s": rng.choice((0.02, 0.1)),
        "flush_batch_points": rng.choice((150, 65_536)),
        "bulk_rows": 1,
        "lease_timeout_s": 120.0,  # more than a busy machine needs, and less than `STEP_TIMEOUT_S`
        "busy_timeout_s": 120.0,
        "lease_idle_s": rng.choice((0.0, 1.0)),
        "checkpoint_log_bytes": rng.choice((10_000, 200_000)),
        "checkpoint_interval_s": rng.choice((0.1, 1.0)),
        "wal_checkpoint_bytes": 65_536,
    }


def _pause(rng: Random, longest_s: float = 0.001) -> None:
    """Let a race run for a moment, mostly not at all, because delivering the signal also takes time."""
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0.0, longest_s))


def _expect(child: Child, word: str) -> None:
    said = child.wait_for(word, "ERROR", timeout_s=STEP_TIMEOUT_S)
    if said is None or said.startswith("ERROR"):
        raise _Trouble(f"waited for {word}: {said or _last(child)}")


def _last(child: Child) -> str:
    return f"{child.lines[-3:]}, stderr: {child.errors.read_text()[-1500:]}"


def _line(name: str, tally: Tally) -> str:
    return f"{name:46}{tally.kills:>6}{tally.hits:>6}{tally.lost:>6}{tally.doubled:>9}{tally.wrong:>7}"


def until_hit(campaign: Campaign, hits: int, steps: Sequence[str] = tuple(STEPS)) -> Iterator[str]:
    """Repeat the steps until each was hit the given number of times; races that came too late are repeated."""
    for _ in range(hits * 4):
        short = [step for step in steps if campaign.tallies.get(step, Tally()).hits < hits]
        if not short:
            return
        for step in short:
            campaign.round(step)
            yield step
    short = [step for step in steps if campaign.tallies[step].hits < hits]
    if short:
        campaign.failures.append(f"not hit {hits} times: {short}")


def main() -> int:
    """Run the long form and print its table; returns 1 if anything was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("duckdb", "sqlite"), default="duckdb")
    parser.add_argument("--hits", type=int, default=20, help="hits of each step")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--step", action="append", choices=tuple(STEPS), help="only this step (repeatable)")
    parser.add_argument(
        "--sinks", choices=("all", "some", "none"), default="some", help="which stores have one"
    )
    chosen = parser.parse_args()
    steps = [step for step in chosen.step or STEPS if step not in DUCKDB_ALONE or chosen.engine == "duckdb"]
    root = Path(tempfile.mkdtemp(prefix="holdfast-kills-"))
    started = time.monotonic()
    seen = 0
    with Starter() as starter, ForkServer(starter) as fork_server:
        campaign = Campaign(fork_server, root, chosen.seed, chosen.engine)
        campaign.sinks = chosen.sinks
        for done, step in enumerate(until_hit(campaign, chosen.hits, steps), 1):
            if len(campaign.failures) > seen:
                seen = len(campaign.failures)
                print(f"\n{campaign.failures[-1]}", file=sys.stderr, flush=True)
            print(
                f"\r{done} kills, {len(campaign.failures)} failed; {step:46}",
                end="",
                file=sys.stderr,
                flush=True,
            )
        campaign.close()
    print(file=sys.stderr)
    print(campaign.table())
    print(
        f"seed {chosen.seed}, {campaign.acknowledged} operations acknowledged, {time.monotonic() - started:.0f} s"
    )
    for failure in campaign.failures:
        print(failure)
    if not campaign.failures:
        shutil.rmtree(root)
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
