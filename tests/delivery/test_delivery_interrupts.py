"""Ctrl-C at any place of a delivery leaves a state from which the next one continues."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from repo import Settings, Store
from repo.delivery import doubts, forwarder, planner, reading, sending, worker
from repo.delivery.forwarder import Forwarder
from repo.store import claims, deliveries
from tests.conftest import Templates
from tests.delivery.memory_sink import Destination, MemorySink
from tests.interrupts import interrupted

FILES = {
    str(module.__file__)
    for module in (forwarder, worker, planner, doubts, sending, reading, claims, deliveries)
}
PLACES = 1_500
"""More than a delivery of two batches has."""


KINDS = pytest.mark.parametrize(
    ("exact", "refuses"),
    [(True, False), (False, False), (True, True)],
    ids=["exact", "at least once", "exact and refusing"],
)


def _interrupt(store: Store, places: list[int], *, exact: bool, refuses: bool) -> int:
    """Interrupt a delivery at each of these places, and deliver the rest; returns how many came in time.

    A sink that `refuses` does not say which point it does not want.
    """
    destination, written, hits = Destination(), 0, 0
    store.sinks.add("memory", "", start="beginning")

    def judge(row: tuple[Any, ...]) -> str | None:
        return "not that" if refuses and row[3] == 2.0 else None

    for nth in places:
        store.points.insert_many([("S", "flow", float(written + at), float(at)) for at in range(6)])
        written += 6
        sink = MemorySink(destination, exact=exact, refuses=judge, by_item=False)
        sender = Forwarder(store, sink, batch_points=4)
        hit = interrupted(FILES, nth, sender.drain)
        hits += hit
        assert sender.drain()["memory"].is_empty, nth
        assert len(destination.points) == written - store.quarantine.count(), nth
        assert store.quarantine.count() == (written // 6 if refuses else 0), nth
        assert not exact or destination.repeated() == 0, nth
        info = store.sinks.show("memory")
        assert (info.behind, info.attempt, info.state) == (0, None, "running"), nth
    return hits


@KINDS
def test_an_interrupt_loses_nothing(
    tmp_path: Path, templates: Templates, seed: int, exact: bool, refuses: bool
) -> None:
    templates.copy("sqlite", 1, tmp_path / "store")
    chance = Random(f"{seed}/{exact}/{refuses}")
    with Store(tmp_path / "store", Settings(background=False)) as store:
        places = [chance.randrange(1, 400) for _ in range(12 if refuses else 25)]
        assert _interrupt(store, places, exact=exact, refuses=refuses) >= len(places) // 5


def test_an_interrupt_among_the_first_refusals_loses_nothing(
    tmp_path: Path, templates: Templates, seed: int
) -> None:
    """A sink that keeps no position has accepted nothing yet, so what it refuses is only in memory for a while."""
    templates.copy("sqlite", 1, tmp_path / "store")
    chance, hits = Random(f"{seed}/first"), 0
    with Store(tmp_path / "store", Settings(background=False)) as store:
        for nth in [chance.randrange(100, 1_000) for _ in range(6)]:
            store.sinks.add("memory", "", start="now")
            store.points.insert_many([("S", "flow", float(at), float(nth + at)) for at in range(6)])
            sink = MemorySink(
                exact=False,
                by_item=False,
                refuses=lambda row, nth=nth: "not that" if row[3] - nth < 2 else None,  # type: ignore[misc]
            )
            sender = Forwarder(store, sink, batch_points=4)
            hits += interrupted(FILES, nth, sender.drain)
            assert sender.drain()["memory"].is_empty, nth
            assert (len(sink.destination.points), store.quarantine.count()) == (4, 2), nth
            info = store.sinks.show("memory")
            assert (info.behind, info.attempt, info.refused, info.state) == (0, None, 2, "running"), nth
            store.sinks.remove("memory")
    assert hits >= 2


@pytest.mark.slow
@KINDS
def test_an_interrupt_at_hundreds_of_places_loses_nothing(
    tmp_path: Path, templates: Templates, seed: int, exact: bool, refuses: bool
) -> None:
    templates.copy("sqlite", 1, tmp_path / "store")
    places = list(range(1 + seed % 4, PLACES, 12 if refuses else 4))
    with Store(tmp_path / "store", Settings(background=False)) as store:
        assert _interrupt(store, places, exact=exact, refuses=refuses) >= len(places) // 4
