"""Whenever an upgrade is killed, the store is at a complete revision with every row, and the next run completes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.upgrade_kills import MOMENTS, PROCESSES, Fleet, UpgradeKills
from tests.migrations.legacy_store import add_pointers, make_legacy_store

pytestmark = pytest.mark.duckdb

SHORT, LONG = 1, 100
LONG_HITS = 5
FLEET = 80


def kills(fork_server: ForkServer, folder: Path, seed: int, points: int, records: int) -> UpgradeKills:
    made = make_legacy_store(folder / "made", points)
    add_pointers(made, records)
    campaign = UpgradeKills(fork_server, folder, made, seed)
    campaign.prepare()
    return campaign


def fleet(fork_server: ForkServer, folder: Path, seed: int, stores: int, processes: int = PROCESSES) -> Fleet:
    rollout = Fleet(fork_server, folder, seed, processes)
    rollout.make(stores)
    rollout.upgrade()
    rollout.judge()
    return rollout


def test_a_killed_upgrade_is_at_a_complete_revision_and_can_be_completed(
    fork_server: ForkServer, tmp_path: Path, seed: int
) -> None:
    campaign = kills(fork_server, tmp_path, seed, 3_000, 500)
    for number in range(SHORT):
        campaign.round(number)
    assert campaign.failures == []
    assert campaign.hits.total() == SHORT


@pytest.mark.slow
def test_a_hundred_kills_of_the_upgrade_of_a_large_store(
    fork_server: ForkServer, tmp_path: Path, seed: int
) -> None:
    campaign = kills(fork_server, tmp_path, seed, 60_000, 2_000)
    number = 0
    while number < LONG or (
        min(campaign.hits[moment] for moment in MOMENTS) < LONG_HITS and number < 3 * LONG
    ):
        campaign.round(number)
        number += 1
    print(f"\n{campaign.table()}")
    assert campaign.failures == []
    assert min(campaign.hits[moment] for moment in MOMENTS) >= LONG_HITS


@pytest.mark.slow
def test_a_few_stores_are_upgraded_by_processes_that_are_killed(
    fork_server: ForkServer, tmp_path: Path, seed: int
) -> None:
    assert fleet(fork_server, tmp_path, seed, 3, processes=2).failures == []


@pytest.mark.slow
def test_a_fleet_is_upgraded_by_processes_that_are_killed(
    fork_server: ForkServer, tmp_path: Path, seed: int
) -> None:
    rollout = fleet(fork_server, tmp_path, seed, FLEET)
    print(f"{rollout.kills} kills, %d points, %d records" % rollout.rows())
    assert rollout.failures == []
