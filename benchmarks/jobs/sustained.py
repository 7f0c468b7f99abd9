"""Tuples, batch after batch, until all are in the columns: with and without NumPy, and whether the rate decays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.measure import Contest, Figure, Plan, Samples

__all__ = ["KEYS", "sustained"]

KEYS = ("sustained-numpy", "sustained-plain", "sustained-decay")

_ROOT = Path(__file__).resolve().parents[2]
_WITH, _WITHOUT, _SQLITE = "holdfast", "holdfast-without-numpy", "tuned-sqlite"
_ROUNDS = 2


def sustained(plan: Plan) -> Iterator[Contest | Figure]:
    """Feed a new database of each side in each round; a figure is the rate of all points."""
    found: dict[str, list[list[float]]] = {_WITH: [], _WITHOUT: [], _SQLITE: []}
    for _ in range(min(plan.rounds, _ROUNDS)):
        for side, rates in found.items():
            rates.append(_fed(plan, side))
    # The pieces have the same size, so that the harmonic mean of their rates is the rate of the whole.
    totals = {
        side: [len(rates) / sum(1 / rate for rate in rates) for rates in rounds]
        for side, rounds in found.items()
    }
    samples = {side: Samples(side.replace("-", " "), values) for side, values in totals.items()}
    note = f"{plan.sustained_points:,} points into an empty database, batches of 10,000"
    for key, side in ((KEYS[0], _WITH), (KEYS[1], _WITHOUT)):
        values = [a / b for a, b in zip(totals[side], totals[_SQLITE], strict=True)]
        yield Figure(key, values, [samples[side], samples[_SQLITE]], "points/s", note)
    decay = {side: [_last_by_first(rates) for rates in rounds] for side, rounds in found.items()}
    sides = [Samples(side.replace("-", " "), values) for side, values in decay.items()]
    pieces = {side: [median(rates) for rates in zip(*rounds, strict=True)] for side, rounds in found.items()}
    yield Figure(KEYS[2], decay[_WITH], sides, "x", note, details={"points/s of each piece": pieces})


def _last_by_first(rates: list[float]) -> float:
    part = max(1, len(rates) // 5)
    return mean(rates[-part:]) / mean(rates[:part])


def _fed(plan: Plan, side: str) -> list[float]:
    with plan.scratch() as folder:
        command: list[Any] = ["-m", "benchmarks.feeding", side, folder, plan.shape, plan.seed]
        done = subprocess.run(
            [sys.executable, *map(str, [*command, plan.sustained_points])],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        shutil.rmtree(folder)
        folder.mkdir()
    answer = json.loads(done.stdout)
    if answer["count"] != plan.sustained_points:
        raise RuntimeError(f"{side} holds {answer['count']:,} of {plan.sustained_points:,} points")
    rates: list[float] = answer["rates"]
    return rates
