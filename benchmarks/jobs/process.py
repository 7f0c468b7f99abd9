"""The cost of a process: its start, its modules, and the memory of steady ingest."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from benchmarks.measure import Contest, Figure, Plan, Samples

__all__ = ["command_help", "imports", "memory"]

ROOT = Path(__file__).resolve().parents[2]

NOT_NEEDED = ("alembic", "numpy", "pandas", "pyarrow")
"""Modules that the use of an existing store must not import."""

_EVERY_NAME = "import repo; [getattr(repo, name) for name in repo.__all__]"
_USE = """
import sys
from repo import Store
with Store(sys.argv[1]) as store:
    store.points.insert("S", "m", 1.5)
    rows = store.points.range("S", "m").all(), store.points.aggregate("S", "m")
"""
_PRINT_MODULES = "import sys, json; print(json.dumps(sorted(sys.modules)))"


def imports(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure a whole process that imports every public name, and list the unneeded modules that it loads."""
    with plan.scratch() as folder:
        store = str(folder / "store")
        sides = {
            "import repo, every name": ["-c", _EVERY_NAME],
            "import repo": ["-c", "import repo"],
            "bare python": ["-c", "pass"],
            "open an existing store, write, read": ["-c", _USE, store],
        }
        _run(["-c", _USE, store])  # the first opening creates the store, and needs alembic
        samples = _starts(sides, plan)
        unneeded = {
            name: _unneeded([*command[:1], f"{command[1]}\n{_PRINT_MODULES}", *command[2:]])
            for name, command in sides.items()
        }
    main = samples["import repo, every name"]
    rest = [side for side in samples.values() if side is not main]
    loaded = [f"{name} imports {', '.join(names)}" for name, names in unneeded.items() if names]
    note = "; ".join(loaded) or "imports none of pyarrow, numpy, pandas, alembic, even in use"
    figure = Figure("import", main.values, [main, *rest], "s", note)
    if unneeded["import repo, every name"]:
        figure.skipped = f"unneeded imports: {note}"
    yield figure


def command_help(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure the whole process of `python cli.py --help`."""
    if not (ROOT / "cli.py").exists():
        yield Figure("help", [], skipped="there is no cli.py")
        return
    samples = _starts({"cli.py --help": ["cli.py", "--help"], "bare python": ["-c", "pass"]}, plan)
    main, *rest = samples.values()
    yield Figure("help", main.values, [main, *rest], "s")


def memory(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure the memory of a process that writes 1,000 points per second and imports only `repo`."""
    with plan.scratch() as folder:
        answer = _run(["benchmarks/steady.py", str(folder / "store"), str(plan.steady_s)])
    report = json.loads(answer)
    mib = [kib / 1024 for kib in report["rss_kib"]]
    peak = report["peak_kib"] / 1024
    slowest = f"slowest acknowledgement {report['slowest_ms']:.0f} ms"
    note = f"{report['points']:,} points in {report['seconds']:.0f} s; {slowest}"
    thirds = len(mib) // 3
    sides = [Samples("resident, every second", mib), Samples("the last third", mib[2 * thirds :])]
    yield Figure("memory", [peak], sides, "MiB", note)


def _starts(sides: dict[str, list[str]], plan: Plan) -> dict[str, Samples]:
    """Start the processes alternately; returns the wall seconds of each side and the CPU seconds of the first."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    main = next(iter(sides))
    cpu_s: list[float] = []
    for number in range(3 * plan.rounds + 1):
        for name, command in sides.items():
            started, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
            _run(command)
            wall_s, after = time.perf_counter() - started, getrusage(RUSAGE_CHILDREN)
            if number:
                values[name].append(wall_s)
            if number and name == main:
                cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    samples = {name: Samples(name, kept) for name, kept in values.items()}
    # On a busy machine the wall time includes the other processes; the CPU time is close to that of an idle one.
    return samples | {"CPU": Samples(f"{main}, CPU time", cpu_s)}


def _unneeded(command: Sequence[str]) -> list[str]:
    modules = set(json.loads(_run(command)))
    return [name for name in NOT_NEEDED if name in modules]


def _run(command: Sequence[str]) -> str:
    run = [sys.executable, *command]
    return subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
