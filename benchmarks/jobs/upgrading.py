"""Upgrades of a large store of the legacy program: time, memory and disk space of the whole command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Contest, Figure, Plan, Samples
from tests.migrations.legacy_store import make_legacy_store

__all__ = ["upgrading"]

RECORDS = 100_000

_ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.02
_LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
# The peak of a process includes that of the process that forked it, so a small one starts it.
_PRODUCT = "holdfast migrate"
_BY_HAND = "by hand"


@dataclass(slots=True)
class _Run:
    seconds: float
    peak_mib: float
    before_bytes: int
    peak_bytes: int
    after_bytes: int


def upgrading(plan: Plan) -> Iterator[Contest | Figure]:
    """Compare the command, with its backups and checks, with a copy and plain SQL on the same file."""
    with plan.scratch() as folder:
        made = make_legacy_store(folder / "made", plan.legacy_points, RECORDS)
        runs: dict[str, list[_Run]] = {_PRODUCT: [], _BY_HAND: []}
        for number in range(plan.rounds + 1):
            for name, command in {
                _PRODUCT: ["cli.py", "--store", str(folder / "run"), "migrate"],
                _BY_HAND: ["benchmarks/peers/duckdb_by_hand.py", str(folder / "run" / "timeseries.duckdb")],
            }.items():
                shutil.copytree(made, folder / "run")
                os.sync()
                run = _run(command, folder / "run")
                shutil.rmtree(folder / "run")
                if number:
                    runs[name].append(run)
    sides = {name: Samples(name, [run.seconds for run in of]) for name, of in runs.items()}
    ours, theirs = runs[_PRODUCT], runs[_BY_HAND]
    note = f"{plan.legacy_points:,} points with the legacy key and indexes, {RECORDS:,} records"
    yield Figure(
        "upgrade",
        [b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True)],
        list(sides.values()),
        "s",
        note,
    )
    yield Figure("upgrade-memory", [run.peak_mib for run in ours], _samples(runs, "peak_mib", 1), "MiB")
    size = f"{ours[-1].before_bytes:,} bytes before, {ours[-1].after_bytes:,} after, backups included"
    yield Figure(
        "upgrade-disk",
        [run.peak_bytes / run.before_bytes for run in ours],
        _samples(runs, "peak_bytes", 2**20),
        "MiB",
        size,
    )


def _samples(runs: dict[str, list[_Run]], field: str, unit: int) -> list[Samples]:
    return [Samples(name, [getattr(run, field) / unit for run in of]) for name, of in runs.items()]


def _run(command: list[str], folder: Path) -> _Run:
    """Run a process, and measure the peak size of the folder."""
    before = peak = _size(folder)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(_POLL_S):
            peak = max(peak, _size(folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LAUNCHER, sys.executable, *command],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
    finally:
        ended.set()
        watcher.join()
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stderr}")
    return _Run(seconds, int(done.stdout) / 1024, before, peak, _size(folder))


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
