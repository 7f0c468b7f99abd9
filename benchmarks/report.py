"""Reports the figures: a table with the targets, the single runs with bars, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Figure, Plan, Samples
from benchmarks.peers import duckdb_autocommit, sqlite_commits, sqlite_tuned
from repo import Settings

__all__ = ["Target", "load_targets", "print_conditions", "print_figure", "print_table", "save"]

FOLDER = Path(__file__).parent
_BAR = 30
_AT_LEAST = "x"
_SYNC_TRIES = 200


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of targets.toml. A target is a minimum for ratios (`x`), and a maximum for all other units."""

    what: str
    peer: str
    unit: str
    first: float | None = None
    final: float | None = None

    def verdict(self, wanted: float | None, value: float) -> str:
        """Return whether the target is met, with the target; `no target` if there is none."""
        if wanted is None:
            return "no target"
        sign, met = ("≥", value >= wanted) if self.unit == _AT_LEAST else ("≤", value <= wanted)
        return f"{sign} {wanted:g} {'met' if met else 'MISSED'}"


def load_targets() -> dict[str, Target]:
    """Read targets.toml."""
    with open(FOLDER / "targets.toml", "rb") as file:
        return {key: Target(**entry) for key, entry in tomllib.load(file).items()}


def print_conditions(plans: Sequence[Plan]) -> dict[str, Any]:
    """Print machine, versions and settings; returns them."""
    conditions: dict[str, Any] = {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}",
        "disk": f"{_file_system(plans[0].cache)}, {_syncs_a_second(plans[0]):,.0f} synced 4 KiB appends per second",
        "versions": ", ".join(
            [f"python {platform.python_version()}", f"sqlite {sqlite3.sqlite_version}"]
            + [f"{name} {_version(name)}" for name in ("duckdb", "sqlalchemy", "duckdb-engine")]
        ),
        "commit": _commit(),
        "store": ", ".join(f"{field.name} {getattr(Settings(), field.name)}" for field in fields(Settings)),
        "tuned SQLite": ", ".join(sqlite_tuned.PRAGMAS),
        "raw sqlite3": ", ".join(sqlite_commits.PRAGMAS),
        "DuckDB autocommit": ", ".join(f"{name} {value}" for name, value in duckdb_autocommit.CONFIG.items()),
    }
    for plan in plans:
        conditions[f"data, {plan.shape}"] = (
            f"seed {plan.seed}, {plan.rounds} rounds and a warm-up, {plan.run_s:g} s per run of single inserts, "
            f"{plan.points:,} points per run of batches, {plan.store_points:,} points in the cached store"
        )
    for name, text in conditions.items():
        print(f"{name + ':':20}{text}")
    print(flush=True)
    return conditions


def print_figure(figure: Figure, target: Target) -> None:
    """Print one figure with the runs of each side."""
    print(f"{figure.key} ({figure.shape or 'any data'}): {target.what}\n    against: {target.peer}")
    if figure.skipped:
        print(f"    skipped: {figure.skipped}\n", flush=True)
        return
    print(f"    {_range(figure.values, target.unit)}   {_verdicts(figure, target)}")
    most = max((side.median for side in figure.sides), default=1.0)
    for side in figure.sides:
        bar = "█" * max(1, round(side.median / most * _BAR))
        print(f"    {side.name:34} {_side(side, figure.per):>44} {bar}")
    if figure.note:
        print(f"    {figure.note}")
    print(flush=True)


def print_table(figures: Iterable[Figure], targets: dict[str, Target]) -> None:
    """Print all figures, one per line."""
    print(f"\n{'job':22} {'data':10} {'measured':24} {'first':14} {'final':14} what")
    for figure in figures:
        target = targets[figure.key]
        measured = "skipped" if figure.skipped else _range(figure.values, target.unit)
        first = "" if figure.skipped else target.verdict(target.first, figure.median)
        final = "" if figure.skipped else target.verdict(target.final, figure.median)
        print(f"{figure.key:22} {figure.shape or '-':10} {measured:24} {first:14} {final:14} {target.what}")


def save(conditions: dict[str, Any], figures: Iterable[Figure], targets: dict[str, Target]) -> Path:
    """Write all results to a JSON file and return its path."""
    folder = FOLDER / "out"
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("%Y%m%dT%H%M%S.json")
    rows = [
        {
            **asdict(figure),
            "median": figure.median if figure.values else None,
            "target": asdict(targets[figure.key]),
        }
        for figure in figures
    ]
    path.write_text(json.dumps({"conditions": conditions, "argv": sys.argv, "figures": rows}, indent=1))
    return path


def _verdicts(figure: Figure, target: Target) -> str:
    first, final = target.verdict(target.first, figure.median), target.verdict(target.final, figure.median)
    return first if first == final == "no target" else f"first {first}, final {final}"


def _range(values: Sequence[float], unit: str) -> str:
    middle = median(values)
    if len(values) == 1:
        return f"{middle:.2f} {unit}"
    return f"{middle:.2f} {unit} ({min(values):.2f}-{max(values):.2f})"


def _side(side: Samples, per: str) -> str:
    low, middle, high = min(side.values), side.median, max(side.values)
    if per == "queries/s":  # shown as the time of one query
        return f"{1000 / middle:,.2f} ms ({1000 / high:,.2f}-{1000 / low:,.2f})"
    digits = 0 if middle >= 1000 else 2
    return f"{middle:,.{digits}f} {per} ({low:,.{digits}f}-{high:,.{digits}f})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    run = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def _file_system(folder: Path) -> str:
    """Return the type of the file system, because a sync to a RAM disk means nothing."""
    found, best = "unknown file system", ""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except FileNotFoundError:
        return found
    for line in mounts:
        _device, point, kind, *_ = line.split()
        if folder.resolve().is_relative_to(point) and len(point) > len(best):
            found, best = kind, point
    return found


def _syncs_a_second(plan: Plan) -> float:
    sync = getattr(os, "fdatasync", os.fsync)
    with plan.scratch() as folder, open(folder / "probe", "wb", buffering=0) as file:
        started = time.perf_counter()
        for _ in range(_SYNC_TRIES):
            file.write(bytes(4096))
            sync(file.fileno())
        return _SYNC_TRIES / (time.perf_counter() - started)
