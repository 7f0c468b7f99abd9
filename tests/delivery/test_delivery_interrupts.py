"""Ctrl-C at any place of a delivery leaves a state from which the next one continues."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from repo import Settings, Store
from repo.delivery import forwarder, planner, reading, worker
from repo.delivery.forwarder import Forwarder
from repo.store import claims, deliveries
from tests.conftest import Templates
from tests.delivery.memory_sink import Destination, MemorySink
from tests.interrupts import interrupted

FILES = {str(module.__file__) for module in (forwarder, worker, planner, reading, claims, deliveries)}
PLACES = 1_500
"""More than a delivery of two batches has."""


def _interrupt(store: Store, places: list[int], *, exact: bool) -> int:
    """Interrupt a delivery at each of these places, and deliver the rest; returns how many came in time."""
    destination, written, hits = Destination(), 0, 0
    store.sinks.add("memory", "", start="beginning")
    for nth in places:
        store.points.insert_many([("S", "flow", float(written + at), 1.0) for at in range(6)])
        written += 6
        sender = Forwarder(store, MemorySink(destination, exact=exact), batch_points=4)
        hit = interrupted(FILES, nth, sender.drain)
        hits += hit
        assert sender.drain()["memory"].is_empty, nth
        assert len(destination.points) == written, nth
        assert not exact or destination.repeated() == 0, nth
        info = store.sinks.show("memory")
        assert (info.behind, info.attempt, info.state) == (0, None, "running"), nth
    return hits


@pytest.mark.parametrize("exact", [True, False])
def test_an_interrupt_loses_nothing(tmp_path: Path, templates: Templates, seed: int, exact: bool) -> None:
    templates.copy("sqlite", 1, tmp_path / "store")
    chance = Random(f"{seed}/{exact}")
    with Store(tmp_path / "store", Settings(background=False)) as store:
        assert _interrupt(store, [chance.randrange(1, 400) for _ in range(25)], exact=exact) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_an_interrupt_at_hundreds_of_places_loses_nothing(
    tmp_path: Path, templates: Templates, seed: int, exact: bool
) -> None:
    templates.copy("sqlite", 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(background=False)) as store:
        assert _interrupt(store, list(range(1 + seed % 4, PLACES, 4)), exact=exact) >= 100
