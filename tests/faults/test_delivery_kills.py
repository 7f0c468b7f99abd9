"""A sender that is SIGKILLed at any step of a delivery loses nothing and repeats nothing at an exact destination."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from repo import Receiver, Settings, Store
from repo.delivery.forwarder import Forwarder
from tests.conftest import Templates
from tests.faults.delivering import BATCH_POINTS, STEPS
from tests.starter import Starter

SINK = "hub"


def _run(
    starter: Starter,
    templates: Templates,
    folder: Path,
    engine: str,
    seed: int,
    steps: list[str],
    *,
    overwrites: bool,
) -> tuple[int, int]:
    """Deliver through kills at these steps; returns how many kills hit, and how many batches were recognized.

    With `overwrites`, many points are overwritten while they wait.
    """
    chance, hits = Random(seed), 0
    templates.copy("sqlite", 2, folder / "hub")
    templates.copy(engine, 1, folder / "edge")
    with (
        Store(folder / "hub", Settings(background=False)) as hub,
        Receiver(hub) as receiver,
        Store(folder / "edge", Settings(background=False)) as edge,
    ):
        edge.sinks.add(SINK, receiver.url, start="beginning")
        value = 0
        for step in steps:
            count = chance.choice([30, 260])  # two lanes begin at 200
            rows = []
            for _ in range(count):
                value += 1
                at = chance.randrange(400) if overwrites else value
                rows.append((f"S-{chance.randrange(3)}", "flow", float(at), float(value)))
            edge.points.insert_many(rows)
            done = starter.run(
                [
                    *("-m", "tests.faults.delivering", edge.path, SINK, step),
                    chance.randint(1, max(1, count // BATCH_POINTS // 2)),
                ]
            )
            assert done.returncode in (0, -9), done.stderr
            hits += done.returncode == -9
        assert Forwarder(edge, SINK, batch_points=BATCH_POINTS).drain(60.0)[SINK].is_empty
        info = edge.sinks.show(SINK)
        assert (info.behind, info.attempt, info.refused, info.state) == (0, None, 0, "running")

        sent = {row[:3]: row[3:7] for page in edge.points.since(0).tuples() for row in page}
        arrived = {row[:3]: row[3:7] for page in hub.points.since(0).tuples() for row in page}
        assert arrived == sent
        # The receiver counts in the transaction of the points: a batch that was stored twice would count twice. It also
        # counts what was overwritten since, which the sender does not count.
        [position] = hub.receiving.positions()
        assert position.points >= info.sent_points
        assert overwrites or position.points == info.sent_points == value
        return hits, info.repeats


def test_each_step_can_be_the_last_one(
    starter: Starter, templates: Templates, tmp_path: Path, seed: int
) -> None:
    hits, repeats = _run(starter, templates, tmp_path, "sqlite", seed, list(STEPS), overwrites=bool(seed % 2))
    assert hits >= len(STEPS) - 2, "a kill while sending may come too late"
    assert repeats >= 1, "a batch that was stored before the kill is recognized"


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(5))
def test_many_kills_at_random_steps(
    starter: Starter, templates: Templates, tmp_path: Path, engine: str, seed: int, round_: int
) -> None:
    chance = Random(f"{seed}/{round_}")
    steps = [chance.choice(STEPS) for _ in range(20)]
    hits, _ = _run(
        *(starter, templates, tmp_path, engine, chance.randrange(2**32), steps), overwrites=bool(round_ % 2)
    )
    assert hits >= 10
