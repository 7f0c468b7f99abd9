"""Repeated times in a run are recognized in any order, in bounded memory."""

from __future__ import annotations

import random

from repo.inputs.batch import Batch
from repo.inputs.values import check_rows
from repo.transfer.repeats import Repeats


def batch(*times: int, sensor: str = "S") -> Batch:
    rows = [(sensor, "m", time, 1.0) for time in times]
    return check_rows(rows, accept_bool=False, now_us=0)[0]


def test_repeats_are_counted_in_any_order(seed: int) -> None:
    chosen = random.Random(seed)
    for times in (list(range(100)), list(range(100, 0, -1)), chosen.sample(range(200), 100)):
        repeats = Repeats()
        assert repeats.add(batch(*times)) == 0
        assert repeats.add(batch(*times, sensor="other")) == 0
        assert repeats.add(batch(*times[:50], 1_000)) == 50
        assert repeats.add(batch(1_000, 1_001, 1_001)) == 2


def test_the_oldest_times_are_forgotten() -> None:
    repeats = Repeats(remembered=100)
    assert repeats.add(batch(*range(101))) == 0
    assert repeats.add(batch(100, 0)) == 1
