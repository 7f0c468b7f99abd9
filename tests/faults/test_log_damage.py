"""DuckDB's log is disposable: whatever happens to it after a kill, the journal still has its content."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.kills import Campaign, Damage

STEPS = (
    "in flush's COMMIT",
    "between flush's COMMIT and the copy",
    "between the copy and the CHECKPOINT",
    "in the CHECKPOINT",
    "between the CHECKPOINT and the prune",
    "at a random time",
)


def _log(store: Path) -> Path:
    return store / "timeseries.duckdb.wal"


def removed(store: Path, _rng: Random) -> None:
    _log(store).unlink(missing_ok=True)


def emptied(store: Path, _rng: Random) -> None:
    _cut(store, 0)


def truncated(store: Path, rng: Random) -> None:
    if _log(store).exists():
        _cut(store, rng.randint(4, max(4, _log(store).stat().st_size - 1)))


def bit_flipped(store: Path, rng: Random) -> None:
    log = _log(store)
    if log.exists() and (content := bytearray(log.read_bytes())):
        content[rng.randrange(min(4, len(content) - 1), len(content))] ^= 1 << rng.randrange(8)
        log.write_bytes(content)


def garbled(store: Path, rng: Random) -> None:
    log = _log(store)
    if log.exists():
        head, size = log.read_bytes()[:4], log.stat().st_size
        log.write_bytes(head + rng.randbytes(max(0, size - 4)))


def _cut(store: Path, size: int) -> None:
    if _log(store).exists():
        with _log(store).open("r+b") as log:
            log.truncate(size)


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        *(
            pytest.param(damage, marks=pytest.mark.slow)
            for damage in (removed, emptied, bit_flipped, garbled)
        ),
    ],
)
def test_a_log_that_is_damaged_after_a_kill_loses_nothing(damage: Damage, own_campaign: Campaign) -> None:
    own_campaign.round("between the copy and the CHECKPOINT", damage=damage)
    assert own_campaign.failures == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", [removed, emptied, truncated, bit_flipped, garbled])
def test_logs_that_are_damaged_after_many_kills_lose_nothing(damage: Damage, own_campaign: Campaign) -> None:
    for _ in range(2):
        for step in STEPS:
            own_campaign.round(step, damage=damage)
    print(f"\n{damage.__name__}\n{own_campaign.table()}")
    assert own_campaign.failures == []


def test_pruning_before_the_checkpoint_would_be_caught(own_campaign: Campaign) -> None:
    """The negative control: journal rows are deleted at the COMMIT of a flush, and the log is lost."""
    own_campaign.sinks = "none"  # with a sink, the newest rows stay in the journal
    step = "between the copy and the CHECKPOINT"
    for _ in range(5):  # a kill before the first points are flushed leaves nothing to lose
        own_campaign.round(step, damage=removed, prune_at_commit=True)
        if own_campaign.tallies[step].lost:
            break
    assert own_campaign.tallies[step].lost > 0
    assert any("are not as they were acknowledged" in failure for failure in own_campaign.failures)
