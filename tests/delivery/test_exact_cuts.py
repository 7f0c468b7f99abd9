"""Links that are cut while a batch or its answer is on the way: each point arrives exactly once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from repo import Receiver, Settings, Store, reconcile
from repo.delivery.forwarder import Backoff, Forwarder, Step
from tests.delivery.servers.postgresql import PASSWORD, PostgresqlServer
from tests.delivery.servers.proxy import Proxy

pytestmark = pytest.mark.slow

CUTS = 80
POINTS = 6_000


def cut_off(store: Store, name: str, proxy: Proxy) -> list[Step]:
    """Drain while the link is cut at random; returns the steps."""
    chance = random.Random(CUTS)
    steps: list[Step] = []

    def cut(_name: str, step: Step) -> None:
        steps.append(step)
        if len(steps) <= CUTS:
            match chance.randrange(4):
                case 0:
                    proxy.cut_after(chance.randrange(1, 6_000))
                case 1:
                    proxy.drop_answers(chance.randrange(1, 3), after=chance.randrange(9))
                case 2:
                    proxy.blink(reset=chance.random() < 0.5)
                case _:
                    first = store.sinks.last_seq()
                    store.points.insert_many([("W-1", "flow", at, -at) for at in range(first % 500, 500, 50)])

    backoff = Backoff(first_s=0.001, longest_s=0.002)
    drained = Forwarder(store, name, batch_points=50, backoff=backoff, on_step=cut).drain(timeout_s=600)
    assert drained[name].is_empty, drained
    return steps


@contextmanager
def site(place: Path) -> Iterator[Store]:
    with Store(place, Settings(engine="sqlite", background=False)) as store:
        store.points.insert_many([(f"W-{at % 3}", "flow", at, at / 8) for at in range(POINTS)])
        yield store


def points(store: Store) -> list[tuple[Any, ...]]:
    names = ("sensor_id", "metric_name", "timestamp_us", "value")
    return [tuple(point[name] for name in names) for point in store.points.range(None, None)]


def test_cut_links_to_a_hub(
    tmp_path: Path, postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_PASSWORD", PASSWORD)
    with site(tmp_path / "site") as store, Proxy(postgresql.port) as proxy:
        url = f"postgresql://127.0.0.1:{proxy.port}/postgres"
        options: Any = {"user": "admin", "password": "env:HUB_PASSWORD", "schema": "cut"}
        store.sinks.add("hub", url, start="beginning", **options)
        steps = cut_off(store, "hub", proxy)
        assert sum(step.error is not None for step in steps) > CUTS / 3
        assert any(step.repeat for step in steps)
        found = postgresql.ask("SELECT sensor_id, metric_name, timestamp_us, value FROM cut.points")
        assert sorted(found) == sorted(points(store))
        assert reconcile(store, "hub").missing == 0


def test_cut_links_to_a_receiver(tmp_path: Path) -> None:
    with (
        site(tmp_path / "site") as store,
        Store(tmp_path / "there", Settings(engine="sqlite", background=False)) as there,
        Receiver(there) as receiver,
        Proxy(receiver.port) as proxy,
    ):
        store.sinks.add("there", f"http+holdfast://127.0.0.1:{proxy.port}", start="beginning")
        steps = cut_off(store, "there", proxy)
        assert any(step.error is not None for step in steps)  # most cost only a second try of the sink
        assert any(step.repeat for step in steps)
        assert points(there) == points(store)
