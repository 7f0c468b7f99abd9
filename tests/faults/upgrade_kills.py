"""Kills in upgrades: each store is at a complete revision with every row, and another run completes the upgrade.

    python -m tests.faults.upgrade_kills kills --kills 100 --points 200000 [--seed N]
    python -m tests.faults.upgrade_kills fleet --stores 300 [--seed N]

`kills` cuts the upgrade of one legacy store off, each time from its beginning on, half of the time at a random
moment of the whole, else at one of the state that was hit least so far. `fleet` has four processes upgrade many
stores, of the legacy program and of each revision, and kills and restarts them all the time. A failure keeps its
folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from repo.engines.sqlite import driver as sqlite
from repo.files import StoreFiles
from repo.repositories.pointers import POINTER_START
from repo.schema import runner
from repo.schema.backup import list_backups
from repo.schema.upgrade import migrate_store
from repo.schema.version import HEAD, REVISIONS
from repo.settings import Settings
from repo.store.store import Store
from tests.faults import upgrading
from tests.faults.fork_server import Child, ForkServer
from tests.faults.upgrading import (
    BACKED_UP,
    BACKING_UP,
    BEGUN,
    DONE,
    NUMBERING,
    RESTORED,
    Rollout,
    Upgrade,
    reached,
)
from tests.migrations.legacy_store import Contents, add_pointers, contents, make_legacy_store, wrong_seqs
from tests.starter import Starter

__all__ = ["MOMENTS", "PROCESSES", "Fleet", "UpgradeKills"]

MOMENTS = (
    BEGUN,
    BACKING_UP,
    BACKED_UP,
    *(reached("timeseries", revision) for revision in REVISIONS[:2]),
    *NUMBERING,
    *(reached("timeseries", revision) for revision in REVISIONS[2:]),
    *(reached("metadata", revision) for revision in REVISIONS),
    RESTORED,
)
"""In their order; the state between one and the next has the name of the first. Those of `NUMBERING` leave nothing of
their own in the files, so the process says which one it was killed in."""

ROWS = ("points", "records", "sequence")
TIMEOUT_S = 300.0
PROCESSES = 4
SHORTEST_PAUSE_S = 0.15
"""The mean time between two kills of a fleet's processes, where they live long enough to complete a store."""


def state_of(folder: Path, found: Contents) -> str:
    """Return the state that an upgrade has reached, from the content of the store's files."""
    if found["metadata"] == HEAD and not pointers(found):
        return RESTORED
    if found["metadata"] is not None:
        return reached("metadata", found["metadata"])
    if found["columns"] is not None:
        return reached("timeseries", found["columns"])
    if list_backups(StoreFiles.of(folder)):
        return BACKED_UP
    return BACKING_UP if any((folder / "backups").glob("*.part")) else BEGUN


def pointers(found: Contents) -> int:
    """Count the records that are pointers to their data."""
    return sum(record.data.startswith(POINTER_START) for record in found["records"])


def restored(found: Contents) -> list[tuple[Any, ...]]:
    """Return the expected records after those of `add_pointers` have their data again."""
    return [
        (*record[:3], f'{{"value":{record.record_id[2:]}}}', *record[4:])
        if record.record_id.startswith("R-")
        else tuple(record)
        for record in found["records"]
    ]


@dataclass(slots=True)
class UpgradeKills:
    """Killed upgrades of copies of one legacy store."""

    fork_server: ForkServer
    root: Path
    made: Path
    seed: int
    hits: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _expected: Contents = field(default_factory=dict)
    _restored: Contents = field(default_factory=dict)
    """The expected content after the records have their data again."""
    _longest_s: dict[str, float] = field(default_factory=dict)
    """The duration of each state; `DONE` is the total."""

    def prepare(self) -> None:
        """Measure the content of the store, and how long its upgrade and each state take."""
        copy = self._copy("reference")
        self._expected = contents(copy)
        child = self._start(copy, opens=False)
        since = begun = self._wait(child, BEGUN)
        for moment, following in zip(MOMENTS, (*MOMENTS[1:], DONE), strict=True):
            now = self._wait(child, following)
            self._longest_s[moment], since = now - since, now
        self._longest_s[DONE] = since - begun
        child.end()
        self._restored = contents(copy)
        assert self._restored["points"] == self._expected["points"]
        assert self._restored["records"] == restored(self._expected)
        self._complete(copy)
        shutil.rmtree(copy)

    def round(self, number: int) -> None:
        """Kill one upgrade, check what it left, and complete it; mostly after a second kill."""
        chance = Random(f"{self.seed}/{number}")
        copy = self._copy(str(number))
        for attempt in range(2):
            if attempt and chance.random() < 0.3:
                break
            said = self._kill(copy, chance, aimed=attempt == 0 and chance.random() < 0.5)
            if not self._judged(copy, number, said, counted=attempt == 0):
                return
        try:
            self._complete(copy)
        except AssertionError as error:
            self._failed(number, copy, f"completed wrongly: {error}")
            return
        shutil.rmtree(copy)

    def table(self) -> str:
        """Return the states with their hits and durations."""
        lines = [f"{'state at the kill':26}{'hits':>6}{'lasts':>10}"]
        lines += [
            f"{moment:26}{self.hits[moment]:>6}{self._longest_s[moment] * 1000:>7.0f} ms"
            for moment in MOMENTS
        ]
        lines.append(f"{'all':26}{self.hits.total():>6}{self._longest_s[DONE] * 1000:>7.0f} ms")
        return "\n".join(lines)

    # --- one round --------------------------------------------------------------------------------------

    def _copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.made, self.root / name))

    def _start(self, copy: Path, *, opens: bool) -> Child:
        return self.fork_server.start(Upgrade(copy, opens), copy.with_suffix(".request"))

    def _kill(self, copy: Path, chance: Random, *, aimed: bool) -> str:
        """Kill an upgrade, and return what it said last."""
        child = self._start(copy, opens=chance.random() < 0.3)
        try:
            moment, span = BEGUN, self._longest_s[DONE]
            if aimed:
                moment = min(MOMENTS, key=lambda name: (self.hits[name], chance.random()))
                span = self._longest_s[moment]
            self._wait(child, moment, DONE)
            time.sleep(chance.random() * span)
        finally:
            code = child.kill()
        said = child.errors.read_text()
        if code not in (-9, 0) or "Traceback" in said:
            raise AssertionError(f"the upgrade of {copy} ended with {code}: {said[-2000:]}")
        return child.lines[-1]

    def _wait(self, child: Child, *words: str) -> float:
        if not any(line in words for line in child.lines):
            said = child.wait_for(*words, "ERROR", timeout_s=TIMEOUT_S)
            assert said is not None, child.errors.read_text()
            assert not said.startswith("ERROR"), said
        return time.monotonic()

    def _judged(self, copy: Path, number: int, said: str, *, counted: bool) -> bool:
        """Inspect a copy of what was left, so that only the next run repairs the original."""
        looked = Path(shutil.copytree(copy, copy.with_name(f"{copy.name}-looked")))
        found = contents(looked)
        state = state_of(looked, found)
        if counted:
            self.hits[said if said in NUMBERING else state] += 1
        expected = self._restored if state == RESTORED else self._expected
        wrong = [name for name in ROWS if found[name] != expected[name]]
        if found["columns"] not in (None, *REVISIONS) or found["metadata"] not in (None, *REVISIONS):
            wrong.append("revision")
        if found["columns"] == HEAD and wrong_seqs(looked):
            wrong.append("seqs")
        if wrong:
            self._failed(number, copy, f"{', '.join(wrong)} wrong in the state {state!r}")
            return False
        shutil.rmtree(looked)
        return True

    def _complete(self, copy: Path) -> None:
        assert all(database.after == HEAD for database in migrate_store(copy).databases)
        found = contents(copy)
        assert {name: found[name] for name in ROWS} == {name: self._restored[name] for name in ROWS}
        assert wrong_seqs(copy) == 0
        [backup] = list_backups(StoreFiles.of(copy))
        assert [saved.revision for saved in backup.saved] == [None, None]
        assert not list((copy / "backups").glob("*.part"))
        engine = sqlite.open_engine(copy / "offline_buffer.db")
        try:
            assert runner.check(engine, "metadata") == []
        finally:
            engine.dispose()

    def _failed(self, number: int, copy: Path, why: str) -> None:
        self.failures.append(f"seed {self.seed}, round {number}, {copy}: {why}")


@dataclass(slots=True)
class Fleet:
    """Many stores, upgraded by processes that are killed and restarted."""

    fork_server: ForkServer
    root: Path
    seed: int
    processes: int = PROCESSES
    kills: int = 0
    made: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _expected: dict[Path, Contents] = field(default_factory=dict)

    def make(self, stores: int) -> None:
        """Create stores with random content: of the legacy program, and of each revision on each engine."""
        chance = Random(f"{self.seed}/fleet")
        for number in range(stores):
            folder = self.root / f"gateway {number:03}%"
            kind = ("legacy", "legacy", *REVISIONS)[number % (2 + len(REVISIONS))]
            self.made[kind] += 1
            make_legacy_store(
                folder,
                chance.choice((1, chance.randrange(2, 50), chance.randrange(50, 4_000))),
                chance.randrange(1, 400),
            )
            if chance.random() < 0.5:
                add_pointers(folder, chance.randrange(1, 200))
            if kind != "legacy":
                migrate_store(folder, to=kind, backup=chance.random() < 0.5)
            if kind == HEAD:
                with Store(folder, Settings(background=False)) as store:
                    for row in range(chance.randrange(1, 200)):
                        store.points.insert(f"new-{row % 7}", "m", chance.random(), 1.8e9 + row)
                    store.flush()
            self._expected[folder] = contents(folder)

    def upgrade(self) -> None:
        """Run the processes until every store is at the head; each is killed repeatedly.

        The kills become rarer while the killed processes have completed nothing, as on a busy machine.
        """
        chance = Random(f"{self.seed}/upgrade")
        children: dict[int, Child] = {}
        left = dict.fromkeys(self._expected)
        numbers = iter(range(1_000_000))
        pause_s = SHORTEST_PAUSE_S
        while left:
            for slot in range(self.processes):
                if slot not in children:
                    folders = list(left)
                    chance.shuffle(folders)
                    children[slot] = self.fork_server.start(
                        Rollout(folders), self.root / f"{next(numbers)}.request"
                    )
            time.sleep(chance.expovariate(1 / pause_s))
            slot = chance.randrange(self.processes)
            child = children.pop(slot)
            code = child.kill()
            self.kills += code == -9
            said = (
                child.errors.read_text() if child.errors.exists() else ""
            )  # killed before it created the file
            if code not in (-9, 0) or "Traceback" in said:
                self.failures.append(f"a process ended with {code}: {said[-2000:]}")
                break
            pause_s = max(SHORTEST_PAUSE_S, pause_s * (0.9 if child.lines else 1.1))
            for line in child.lines:
                left.pop(self.root / line.removeprefix(f"{DONE} "), None)
        for child in children.values():
            child.kill()

    def judge(self) -> None:
        """Count the rows of every store."""
        for folder, expected in self._expected.items():
            found = contents(folder)
            if (found["columns"], found["metadata"]) != (HEAD, HEAD):
                self.failures.append(f"{folder} is at {found['columns']}, {found['metadata']}")
            for name in ROWS:
                if found[name] != (restored(expected) if name == "records" else expected[name]):
                    self.failures.append(f"{folder}: {name} differ")

    def rows(self) -> tuple[int, int]:
        """Return the number of points and records."""
        return (
            sum(found["points"][0] for found in self._expected.values()),
            sum(len(found["records"]) for found in self._expected.values()),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the long forms and print their tables; returns 1 if anything was lost or stuck."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "fleet"))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--hits", type=int, default=10, help="of each state, at least")
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--records", type=int, default=5_000)
    parser.add_argument("--stores", type=int, default=300)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    chosen = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="holdfast-upgrades-"))
    started = time.monotonic()
    with Starter() as starter, ForkServer(starter) as fork_server:
        if chosen.what == "kills":
            made = make_legacy_store(root / "made", chosen.points, chosen.records)
            add_pointers(made, chosen.records)
            campaign = UpgradeKills(fork_server, root, made, chosen.seed)
            campaign.prepare()
            number = 0
            while number < chosen.kills or (
                min(campaign.hits[moment] for moment in MOMENTS) < chosen.hits and number < chosen.kills * 3
            ):
                number += 1
                campaign.round(number)
                print(f"\r{number} kills, {len(campaign.failures)} failed", end="", file=sys.stderr)
            print(f"\n{campaign.table()}")
            failures = campaign.failures
        else:
            fleet = Fleet(fork_server, root, chosen.seed)
            fleet.make(chosen.stores)
            begun = time.monotonic()
            fleet.upgrade()
            print(
                f"{chosen.stores} stores ({dict(fleet.made)}), {fleet.kills} kills of {PROCESSES} processes"
            )
            print(
                f"all at {HEAD} after {time.monotonic() - begun:.0f} s; %d points, %d records" % fleet.rows()
            )
            fleet.judge()
            failures = fleet.failures
    print(f"seed {chosen.seed}, {len(failures)} failed, {time.monotonic() - started:.0f} s")
    for failure in failures:
        print(failure)
    if not failures:
        shutil.rmtree(root)
    return 1 if failures else 0


if __name__ == "__main__":
    # Pickled objects refer to `upgrading`, which the fork server imports.
    assert upgrading.__name__ == "tests.faults.upgrading"
    sys.exit(main())
