"""Outages: links that break, answers that never come, servers that restart. Nothing is missing after them."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Backoff, Forwarder
from tests.delivery.sites import Site, check, insert, points_of, started

BATCH_POINTS = 100
QUICK = Backoff(first_s=0.01, longest_s=0.05)


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


def endured(site: Site, folder: Path, rng: random.Random, troubles: int, outages: int, points: int) -> Store:
    """Write and deliver while the link and the server fail; returns the store, once all is delivered."""
    store = Store(folder, Settings(engine="sqlite", background=False))
    insert(store, points_of(rng, 0, points // 2))
    store.sinks.add("there", site.target, start="beginning", **site.options)
    forwarder = Forwarder(store, "there", batch_points=BATCH_POINTS, poll_s=0.02, backoff=QUICK)
    events = ["trouble"] * troubles + ["outage"] * outages
    rng.shuffle(events)
    written = points // 2
    with forwarder:
        for number, event in enumerate(events, 1):
            until = points // 2 + (points - points // 2) * number // len(events)
            insert(store, points_of(rng, written, until - written))
            written = until
            site.trouble(rng) if event == "trouble" else site.outage()
            time.sleep(rng.random() * 0.05)
        if site.proxy is not None:
            site.proxy.mend()
            site.proxy.drop_answers(0)
            site.proxy.delay_s = 0
        limit = time.monotonic() + 120
        while store.sinks.show("there").behind:
            assert time.monotonic() < limit, store.sinks.show("there")
            time.sleep(0.02)
    return store


@pytest.mark.parametrize("name", ["http", "mqtt"])
def test_nothing_is_missing_after_outages(tmp_path: Path, rng: random.Random, name: str) -> None:
    with (
        started(name, tmp_path / name) as site,
        endured(site, tmp_path / "store", rng, troubles=5, outages=1, points=1_500) as store,
    ):
        check(site, store)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["http", "influxdb", "victoria-metrics", "mqtt", "kafka"])
def test_nothing_is_missing_after_many_outages(tmp_path: Path, rng: random.Random, name: str) -> None:
    with (
        started(name, tmp_path / name) as site,
        endured(site, tmp_path / "store", rng, troubles=50, outages=20, points=40_000) as store,
    ):
        check(site, store)
