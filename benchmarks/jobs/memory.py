"""The peak memory of each job, in a process that does nothing else, with DuckDB's memory limited to 128 MB."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.acts import ACTS
from benchmarks.cached import cached_readings
from benchmarks.jobs.carrying import MEMORY_LIMIT_BYTES
from benchmarks.measure import Contest, Figure, Plan, Samples

__all__ = ["KEYS", "memory"]

KEYS = ("job-memory",)

_ROOT = Path(__file__).resolve().parents[2]
_LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
# The peak of a process includes that of the process that forked it, so a small one starts it.


def memory(plan: Plan) -> Iterator[Contest | Figure]:
    """Do each job once on a store that nothing has compacted; the figure is the largest peak."""
    held = cached_readings(plan)
    with plan.scratch() as folder:
        shutil.copytree(held.store(compacted=False), folder / "store")
        file = folder / "points.parquet"
        mib = {}
        for name in ACTS:
            # An import would find the same points in the store that they were exported from.
            where = folder / ("empty" if name == "import Parquet" else "store")
            arguments = [name, where, file, plan.carried_points, MEMORY_LIMIT_BYTES]
            command = ["-m", "benchmarks.acts", *map(str, arguments)]
            done = subprocess.run(
                [sys.executable, "-c", _LAUNCHER, sys.executable, *command],
                cwd=_ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            mib[name] = int(done.stdout) / 1024
    sides = [Samples(f"holdfast, {name}", [peak]) for name, peak in mib.items()]
    note = (
        f"{held.points:,} points in the store, {plan.carried_points:,} inserted; DuckDB's memory_limit "
        f"{MEMORY_LIMIT_BYTES:,} bytes"
    )
    yield Figure(KEYS[0], [max(mib.values())], sides, "MiB", note)
