"""Wherever Ctrl-C arrives, a program that catches it continues with an intact store. See `soak.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.soak import COMPANIES, Soak, places_of, until_hit
from tests.faults.steps import MOVES, SHRINKS, STEPS

LONG_HITS = 4

_REBUILDING = {place.name for step in (*MOVES, *SHRINKS) for place in STEPS[step]}


@pytest.fixture
def soak(fork_server: ForkServer, seed: int, tmp_path: Path, engine: str) -> Soak:
    """Programs on stores of one engine."""
    return Soak(fork_server, tmp_path, seed, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
@pytest.mark.parametrize("company", COMPANIES)
def test_a_program_continues_after_interrupts_and_its_store_is_intact(
    soak: Soak, seed: int, engine: str, company: str
) -> None:
    names = [name for name in places_of(engine) if name not in _REBUILDING]
    start = seed % len(names)
    soak.program((names[start:] + names)[:5] + ["at a random time"] * 3, company)
    assert soak.failures == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_hundreds_of_interrupts_at_every_place_leave_the_store_intact(soak: Soak, engine: str) -> None:
    for _ in until_hit(soak, LONG_HITS, places_of(engine)):
        pass
    print(f"\n{soak.table()}")
    assert soak.failures == []
