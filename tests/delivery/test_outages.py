"""Outages: links that break, answers that never come, servers that restart. Nothing is missing after them."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Backoff, Forwarder
from tests.delivery.servers.postgresql import PASSWORD
from tests.delivery.sites import TROUBLES, Site, check, insert, points_of, started

BATCH_POINTS = 100
OUTAGE = -1
QUICK = Backoff(first_s=0.01, longest_s=0.05)


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


def endured(
    site: Site, folder: Path, rng: random.Random, troubles: int, outages: int, points: int
) -> tuple[Store, int]:
    """Write and deliver while the link and the server fail.

    Returns the store, once all is delivered, and how often the link was broken.
    """
    store = Store(folder, Settings(engine="sqlite", background=False))
    insert(store, points_of(rng, 0, points // 2))
    store.sinks.add("there", site.target, start="beginning", **site.options)
    forwarder = Forwarder(store, "there", batch_points=BATCH_POINTS, poll_s=0.02, backoff=QUICK)
    events = [at % TROUBLES for at in range(troubles)] + [OUTAGE] * outages
    rng.shuffle(events)
    written, cuts = points // 2, 0
    with forwarder:
        for number, event in enumerate(events, 1):
            until = points // 2 + (points - points // 2) * number // len(events)
            insert(store, points_of(rng, written, until - written))
            written = until
            if event == OUTAGE:
                site.outage()
            else:
                cuts += site.trouble(event, rng)
            time.sleep(rng.random() * 0.05)
        if site.proxy is not None:
            site.proxy.mend()
            site.proxy.drop_answers(0)
            site.proxy.delay_s = 0
        limit = time.monotonic() + 600
        while store.sinks.show("there").behind:
            assert time.monotonic() < limit, store.sinks.show("there")
            time.sleep(0.02)
    return store, cuts


@pytest.mark.parametrize("name", ["http", "mqtt"])
def test_nothing_is_missing_after_outages(tmp_path: Path, rng: random.Random, name: str) -> None:
    with started(name, tmp_path / name) as site:
        store, _ = endured(site, tmp_path / "store", rng, troubles=5, outages=1, points=1_500)
        with store:
            check(site, store)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["http", "influxdb", "victoria-metrics", "mqtt", "kafka", "postgresql", "holdfast"]
)
def test_nothing_is_missing_after_many_outages(
    tmp_path: Path,
    rng: random.Random,
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exact destination also has each batch once: what it has counted is what the store has confirmed."""
    monkeypatch.setenv("HUB_PASSWORD", PASSWORD)
    points = 40_000
    with started(name, tmp_path / name, lambda: request.getfixturevalue("postgresql")) as site:
        store, cuts = endured(site, tmp_path / "store", rng, troubles=75, outages=20, points=points)
        with store:
            check(site, store)
            info, arrivals = store.sinks.show("there"), site.arrivals()
            again = len(arrivals) - len({arrival.seq for arrival in arrivals})
            print(
                f"{name}: {points:,} writes; {cuts} cuts, 20 outages; 0 missing, 0 wrong; "
                f"{again} points arrived again, {info.repeats} batches recognized"
            )
            if site.exact:
                count = site.count()
                assert count is not None
                assert info.sent_points <= count <= points
    assert cuts >= 50
