"""The soak: programs whose main thread is interrupted, as by Ctrl-C, continue; everything is counted each time.

    python -m tests.faults.soak --engine duckdb --hits 10 [--seed N] [--place "flush COMMIT"]

A program is a process with its own store that is interrupted at several places, one after another. It runs alone,
with two more writing threads, or next to a process that sometimes holds the locks. It judges itself after each
interrupt (`interrupted.py`); at its end a new process counts again, as after a kill. A hang dumps the stacks of all
threads. Timing differs from run to run: a seed repeats the choices, not the scheduling.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

from repo.schema.version import HEAD
from tests.faults.child import Census, Counted
from tests.faults.fork_server import ForkServer
from tests.faults.interrupted import HANG_S, RANDOM, Beside, Program
from tests.faults.judge import Expected, judge
from tests.faults.kills import settings_of
from tests.faults.steps import DUCKDB_ALONE, MOVES, STEPS, Place
from tests.starter import Starter

__all__ = ["PLACES", "Soak", "places_of", "until_hit"]

COMPANIES = ("alone", "threads", "process")
"""The other users of the store."""

ROUNDS_A_PROGRAM = 10
PROGRAM_S = 1800.0

PLACES: dict[str, Place] = {
    RANDOM.name: RANDOM,
    **{place.name: place for step in STEPS for place in STEPS[step]},
}


@dataclass(slots=True)
class Tally:
    """A row of the table."""

    rounds: int = 0
    hits: int = 0
    wrong: int = 0


def places_of(engine: str) -> list[str]:
    """Return the names of the places that a store on this engine reaches; moves need both engines."""
    alone = DUCKDB_ALONE if engine == "sqlite" else ()
    absent = {place.name for step in alone for place in STEPS[step]}
    if find_spec("duckdb") is None:
        absent |= {place.name for step in MOVES for place in STEPS[step]}
    return [name for name in PLACES if name not in absent]


RELEASES = {"lease released", "before release"}


class Soak:
    """Programs that are interrupted, each on its own store in one folder."""

    def __init__(self, fork_server: ForkServer, root: Path, seed: int, engine: str) -> None:
        self._fork_server = fork_server
        self._root = root
        self._seed = seed
        self._engine = engine
        self._numbers = itertools.count(1)
        self.tallies: dict[str, Tally] = {}
        self.failures: list[str] = []

    def program(self, names: Sequence[str], company: str) -> None:
        """Interrupt one program at these places, in this order, and judge."""
        number = next(self._numbers)
        folder = self._root / f"{self._engine}-{self._seed}-{number}"
        folder.mkdir(parents=True)
        seed = f"{self._seed}/{number}"
        rng = Random(seed)
        settings = settings_of(rng, self._engine) | {"background": rng.random() < 0.6}
        if company == "threads":  # small batches would never catch up with threads that write at full speed
            settings["flush_batch_points"] = 65_536
        program = Program(folder / "store", seed, settings, [PLACES[name] for name in names])
        if company == "threads":
            program.writers, program.anywhere = (1, 2), rng.random() < 0.4
        program.beside = company == "process"
        # The main thread releases the lease in another one, where no interrupt comes.
        program.anywhere = program.anywhere or not RELEASES.isdisjoint(names)
        problem = self._play(program, folder)
        if problem is None:
            problem = self._counted(program, folder)
        if problem is None:
            shutil.rmtree(folder)
        else:
            self.failures.append(f"seed {self._seed}, {self._engine}, {company}, {folder}:\n    {problem}")

    def table(self) -> str:
        """Return place x rounds x hits x wrong as text."""
        lines = [f"{'interrupted (' + self._engine + ')':46}{'rounds':>7}{'hits':>6}{'wrong':>7}"]
        total = Tally()
        for name, tally in self.tallies.items():
            lines.append(_line(name, tally))
            total.rounds, total.hits = total.rounds + tally.rounds, total.hits + tally.hits
            total.wrong += tally.wrong
        return "\n".join([*lines, _line("all", total)])

    def _play(self, program: Program, folder: Path) -> str | None:
        child = self._fork_server.start(program, folder / "program.request")
        beside = None
        try:
            if child.wait_for("READY", "PROBLEM", "ERROR", timeout_s=HANG_S) is not None and program.beside:
                asked = Beside(program.folder, program.seed, program.settings)
                beside = self._fork_server.start(asked, folder / "beside.request")
            child.wait_for("DONE", "PROBLEM", "ERROR", timeout_s=PROGRAM_S)
        finally:
            child.kill()
            ended = beside.kill() if beside is not None else -9
        rounds = [line.split(maxsplit=2)[1:] for line in child.lines if line.startswith("ROUND")]
        for outcome, name in rounds:
            tally = self.tallies.setdefault(name, Tally())
            tally.rounds += 1
            tally.hits += outcome == "hit"
        problems = [line for line in child.lines if line.startswith(("PROBLEM", "ERROR"))]
        if not problems and "DONE" in child.lines and ended == -9:
            return None
        if len(rounds) < len(program.places):
            tally = self.tallies.setdefault(program.places[len(rounds)].name, Tally())
            tally.rounds, tally.wrong = tally.rounds + 1, tally.wrong + 1
        stderr = child.errors.read_text()[-6000:]
        if ended != -9 and beside is not None:
            problems.append(f"the process beside ended with {ended}: {beside.errors.read_text()[-2000:]}")
        return "\n    ".join([*(problems or ["it hung or died"]), stderr])

    def _counted(self, program: Program, folder: Path) -> str | None:
        """Count in another process, after the program has ended."""
        expected: dict[int, Expected] = pickle.loads(program.folder.with_suffix(".expected").read_bytes())
        child = self._fork_server.start(Census(program.folder, checkpoint=True), folder / "census.request")
        answer = child.read_all(timeout_s=HANG_S)
        errors = child.errors.read_text()
        if not answer or errors:
            return f"the count afterwards failed or complained: {errors[-3000:]}"
        counted: Counted = pickle.loads(answer)
        problems = judge(counted, expected, program.seed, HEAD).problems
        return f"counted afterwards: {problems[:6]}" if problems else None


def until_hit(soak: Soak, hits: int, names: Sequence[str]) -> Iterator[None]:
    """Repeat the places, with all companions, until each was hit the given number of times."""
    company = itertools.cycle(COMPANIES)
    for _ in range(hits * 4):
        short = [name for name in names if soak.tallies.get(name, Tally()).hits < hits]
        if not short:
            return
        for start in range(0, len(short), ROUNDS_A_PROGRAM):
            soak.program(short[start : start + ROUNDS_A_PROGRAM], next(company))
            yield
    short = [name for name in names if soak.tallies.get(name, Tally()).hits < hits]
    if short:
        soak.failures.append(f"not hit {hits} times: {short}")


def _line(name: str, tally: Tally) -> str:
    return f"{name:46}{tally.rounds:>7}{tally.hits:>6}{tally.wrong:>7}"


def main() -> int:
    """Run the long form and print its table; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("duckdb", "sqlite"), default="duckdb")
    parser.add_argument("--hits", type=int, default=10, help="interrupts at each place")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument(
        "--place", action="append", choices=tuple(PLACES), help="only this place (repeatable)"
    )
    parser.add_argument("--without-moves", action="store_true", help="leave out promotions and demotions")
    chosen = parser.parse_args()
    names = chosen.place or places_of(chosen.engine)
    if chosen.without_moves:
        moves = {place.name for step in MOVES for place in STEPS[step]}
        names = [name for name in names if name not in moves]
    root = Path(tempfile.mkdtemp(prefix="holdfast-soak-"))
    started = time.monotonic()
    with Starter() as starter, ForkServer(starter) as fork_server:
        soak = Soak(fork_server, root, chosen.seed, chosen.engine)
        reported = 0
        for _ in until_hit(soak, chosen.hits, names):
            for failure in soak.failures[reported:]:
                print(failure, flush=True)
            reported = len(soak.failures)
            done = sum(tally.hits for tally in soak.tallies.values())
            print(f"\r{done} interrupts, {len(soak.failures)} failed", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(soak.table())
    print(f"seed {chosen.seed}, {time.monotonic() - started:.0f} s")
    if not soak.failures:
        shutil.rmtree(root)
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
