"""Kills while the columns are rewritten: what was acknowledged is stored exactly once. See `kills.py`."""

from __future__ import annotations

import pytest

from tests.faults.kills import Campaign, until_hit
from tests.faults.steps import COMPACTIONS, MOVES, SHRINKS

pytestmark = pytest.mark.slow

LEAST_KILLS = 100


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(COMPACTIONS, id="compactions"),
        pytest.param(SHRINKS, id="shrinks"),
        pytest.param(MOVES, id="promotions and demotions"),
    ],
)
def test_a_hundred_kills_lose_and_double_nothing(own_campaign: Campaign, steps: tuple[str, ...]) -> None:
    for _ in until_hit(own_campaign, -(-LEAST_KILLS // len(steps)), steps):
        pass
    print(f"\n{own_campaign.table()}")
    assert own_campaign.failures == []
