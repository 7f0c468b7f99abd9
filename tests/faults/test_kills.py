"""Whatever is killed, and when: what was acknowledged is stored exactly once. See `kills.py`.

The long campaigns of what rewrites the columns are in `test_rewriting_kills.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.faults.kills import MOST_PASSED, Campaign, until_hit
from tests.faults.steps import BULK, COMPACTIONS, DUCKDB_ALONE, MOVES, MOVES_BESIDE, SHRINKS, STEPS

LONG_HITS = {"duckdb": 8, "sqlite": 4}

STEPS_OF_SQLITE = [step for step in STEPS if step not in DUCKDB_ALONE]
AT_RANDOM = (
    *("at a random time of a promotion or demotion", "at a random time of a shrink"),
    "at a random time of a compaction",
)
"""The steps of a promotion, a demotion, a shrink and a compaction are stopped at one by one as well.

Two processes in a move take the longest, so that is slow on both: a move and a hand-over are stopped alone.
"""


def in_turn(steps: Iterable[str], first: int) -> list[Any]:
    """Mark as slow every other step, so that each is fast on one of the engines, and on both those at random."""
    alternating = [step for step in STEPS_OF_SQLITE if step not in AT_RANDOM]
    short = {BULK, *COMPACTIONS[:2], *alternating[first::2]} - {MOVES_BESIDE}
    return [pytest.param(step, marks=[] if step in short else pytest.mark.slow) for step in steps]


@pytest.mark.parametrize("step", in_turn(STEPS, 1))
def test_a_kill_loses_and_doubles_nothing_on_duckdb(step: str, duckdb_campaign: Campaign) -> None:
    before = len(duckdb_campaign.failures)
    duckdb_campaign.round(step)
    assert duckdb_campaign.failures[before:] == []


@pytest.mark.parametrize("step", in_turn(STEPS_OF_SQLITE, 0))
def test_a_kill_loses_and_doubles_nothing_on_sqlite(step: str, sqlite_campaign: Campaign) -> None:
    if step in MOVES:
        pytest.importorskip("duckdb")
    before = len(sqlite_campaign.failures)
    sqlite_campaign.round(step)
    assert sqlite_campaign.failures[before:] == []


@pytest.mark.slow
def test_many_kills_at_every_step_lose_and_double_nothing_on_duckdb(own_campaign: Campaign) -> None:
    steps = [step for step in STEPS if step not in (*MOVES, *SHRINKS, *COMPACTIONS)]
    for _ in until_hit(own_campaign, LONG_HITS["duckdb"], steps):
        pass
    print(f"\n{own_campaign.table()}")
    assert own_campaign.failures == []


@pytest.mark.slow
def test_many_kills_at_every_step_lose_and_double_nothing_on_sqlite(sqlite_campaign: Campaign) -> None:
    steps = [step for step in STEPS_OF_SQLITE if step not in MOVES]
    sqlite_campaign.most_passed = MOST_PASSED
    for _ in until_hit(sqlite_campaign, LONG_HITS["sqlite"], steps):
        pass
    print(f"\n{sqlite_campaign.table()}")
    assert sqlite_campaign.failures == []
