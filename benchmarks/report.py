"""Reports the figures: a table with the targets, and the single runs with bars."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Figure, Plan, Samples
from benchmarks.peers import duckdb_autocommit, sqlite_commits
from benchmarks.peers.duckdb_sorted import DuckDBSorted
from benchmarks.peers.influxdb import InfluxDB
from benchmarks.peers.legacy_duckdb import LegacyDuckDB
from benchmarks.peers.legacy_sqlite import LegacySQLite, LegacySQLiteFiltered
from benchmarks.peers.persist_queue import PersistQueue
from benchmarks.peers.postgresql import PostgreSQL
from benchmarks.peers.sqlite_tuned import TunedSQLite
from benchmarks.peers.tinyflux_file import TinyFluxFile
from benchmarks.peers.victoria_metrics import VictoriaMetrics
from repo import Settings

__all__ = [
    "LOAD",
    "Target",
    "load_targets",
    "print_conditions",
    "print_figure",
    "print_table",
]

FOLDER = Path(__file__).parent
PEERS: tuple[Any, ...] = (
    TunedSQLite,
    LegacySQLite,
    LegacySQLiteFiltered,
    LegacyDuckDB,
    DuckDBSorted,
    PostgreSQL,
    InfluxDB,
    VictoriaMetrics,
    TinyFluxFile,
    PersistQueue,
)
"""The peers that have settings to print."""

LOAD = "load of the machine at the start"
"""The condition that shows whether something else was running."""

_BAR = 30
_AT_LEAST = ("x", "% saved")
_SYNC_TRIES = 200
_DISKS = {
    "vd": "a virtual disk",
    "xvd": "a virtual disk",
    "nvme": "NVMe",
    "mmcblk": "an SD card or eMMC",
    "sd": "a SATA, SCSI or USB disk",
}


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of targets.toml.

    A target is a minimum for ratios (`x`) and for what is saved, and a maximum for all other units. A job with several
    peers has a table of targets, by the peers' keys.
    """

    what: str
    unit: str
    peer: str = ""
    final: float | Mapping[str, float] | None = None
    slack_ms: Mapping[str, float] = field(default_factory=dict)
    """A ratio against a peer is also met if one query takes at most this much longer than the peer's."""

    def wanted(self, peer: str) -> float | None:
        """Return the target against a peer."""
        return self.final.get(peer) if isinstance(self.final, Mapping) else self.final

    def against(self, figure: Figure) -> str:
        """Return what a figure is compared with."""
        return figure.sides[1].name if figure.peer and len(figure.sides) > 1 else self.peer

    def met(self, figure: Figure) -> bool | None:
        """Return whether a figure meets its target; None if it has none."""
        wanted, value = self.wanted(figure.peer), figure.median
        if wanted is None or figure.skipped:
            return None
        if self.unit not in _AT_LEAST:
            return value <= wanted
        if value >= wanted:
            return True
        if figure.peer not in self.slack_ms:
            return False
        ours, theirs = (1000 / side.median for side in figure.sides[:2])
        return ours - theirs <= self.slack_ms[figure.peer]

    def verdict(self, figure: Figure) -> str:
        """Return whether the target is met, with the target; `no target` if there is none."""
        met, wanted = self.met(figure), self.wanted(figure.peer)
        if met is None:
            return "no target"
        sign = "≥" if self.unit in _AT_LEAST else "≤"
        return f"{sign} {wanted:g} {'met' if met else 'MISSED'}"


def load_targets() -> dict[str, Target]:
    """Read targets.toml."""
    with open(FOLDER / "targets.toml", "rb") as file:
        return {key: Target(**entry) for key, entry in tomllib.load(file).items()}


def print_conditions(plans: Sequence[Plan]) -> dict[str, Any]:
    """Print machine, versions and settings; returns them."""
    conditions: dict[str, Any] = {
        "machine": f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "disk": _disk(plans[0].cache),
        LOAD: f"{os.getloadavg()[0]:.1f}",
        "synced 4 KiB appends per second": f"{_syncs_a_second(plans[0]):.0f}",
        "versions": ", ".join(
            [f"python {platform.python_version()}", f"sqlite {sqlite3.sqlite_version}"]
            + [f"{name} {_version(name)}" for name in ("duckdb", "sqlalchemy", "duckdb-engine")]
        ),
        "commit": _commit(),
        "store": ", ".join(f"{one.name} {getattr(Settings(), one.name)}" for one in fields(Settings)),
        "raw sqlite3": ", ".join(sqlite_commits.PRAGMAS),
        "DuckDB autocommit": ", ".join(f"{name} {value}" for name, value in duckdb_autocommit.CONFIG.items()),
    }
    conditions |= {peer.name: peer.settings for peer in PEERS}
    for plan in plans:
        conditions[f"data, {plan.shape}"] = (
            f"seed {plan.seed}, {plan.rounds} rounds and a warm-up, {plan.run_s:g} s per run of single inserts, "
            f"{plan.points:,} points per run of batches, {plan.store_points:,} points in the cached store, "
            f"{plan.claimed_points:,} in the legacy designs"
        )
    for name, text in conditions.items():
        print(f"{name + ':':20}{text}")
    print(flush=True)
    return conditions


def print_figure(figure: Figure, target: Target) -> None:
    """Print one figure with the runs of each side."""
    print(
        f"{figure.key} ({figure.shape or 'any data'}): {target.what}\n    against: {target.against(figure)}"
    )
    if figure.skipped:
        print(f"    skipped: {figure.skipped}\n", flush=True)
        return
    print(f"    {_range(figure.values, target.unit)}   {target.verdict(figure)}")
    most = max((side.median for side in figure.sides), default=1.0)
    for side in figure.sides:
        bar = "█" * max(1, round(side.median / most * _BAR))
        print(f"    {side.name:34} {_side(side, figure.per):>44} {bar}")
    if figure.note:
        print(f"    {figure.note}")
    print(flush=True)


def print_table(figures: Iterable[Figure], targets: dict[str, Target]) -> None:
    """Print all figures, one per line."""
    print(f"\n{'job':22} {'data':10} {'measured':24} {'target':14} what")
    for figure in figures:
        target = targets[figure.key]
        measured = "skipped" if figure.skipped else _range(figure.values, target.unit)
        verdict = "" if figure.skipped else target.verdict(figure)
        what = f"{target.what}; against {target.against(figure)}"
        print(f"{figure.key:22} {figure.shape or '-':10} {measured:24} {verdict:14} {what}")


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


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _disk(folder: Path) -> str:
    """Return the kind of disk and file system, because a sync to a RAM disk means nothing."""
    found, best = "unknown", ""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except FileNotFoundError:
        return found
    for line in mounts:
        device, point, kind, *_ = line.split()
        if folder.resolve().is_relative_to(point) and len(point) > len(best):
            name = device.rpartition("/")[2]
            disk = next((text for start, text in _DISKS.items() if name.startswith(start)), "unknown device")
            found, best = f"{kind} on {disk}", point
    return found


def _syncs_a_second(plan: Plan) -> float:
    sync = getattr(os, "fdatasync", os.fsync)
    with plan.scratch() as folder, open(folder / "probe", "wb", buffering=0) as file:
        started = time.perf_counter()
        for _ in range(_SYNC_TRIES):
            file.write(bytes(4096))
            sync(file.fileno())
        return _SYNC_TRIES / (time.perf_counter() - started)
