"""Backlogs of millions of points: live readings overtake them on a slow link, and one bad item does not hold them up.

`pytest -s -m slow tests/delivery/test_long_backlogs.py` prints the delays.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Forwarder
from tests.delivery.servers.proxy import Proxy
from tests.delivery.servers.scripted import Asked, Reply, Scripted, receipt
from tests.delivery.sink_batches import START_US

pytestmark = [pytest.mark.slow, pytest.mark.duckdb]

MILLION = 1_000_000
LINK_BYTES_PER_S = 500_000
WRITING_S = 20.0
PERIOD_S = 0.1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", Settings(engine="duckdb", background=False)) as opened:
        yield opened


def fill(store: Store, millions: int, seed: int) -> None:
    """Write points of 100 series, one a second each, with random values."""
    chance = random.Random(seed)
    for first in range(0, millions * MILLION, MILLION):
        store.points.insert_table(
            {
                "sensor_id": [f"W-{at % 100}" for at in range(MILLION)],
                "metric_name": ["flow"] * MILLION,
                "timestamp_us": [START_US + (first + at) // 100 * 1_000_000 for at in range(MILLION)],
                "value": [round(chance.gauss(0, 100), 3) for _ in range(MILLION)],
            }
        )


class Receiver:
    """Notes when each live reading arrives, and how many points do."""

    def __init__(self) -> None:
        self.arrived: dict[float, float] = {}
        self.points = 0

    def __call__(self, asked: Asked) -> Reply:
        lines = asked.body.splitlines()
        self.points += len(lines)
        for line in lines:
            if b"LIVE" in line:
                self.arrived[json.loads(line)["value"]] = time.monotonic()
        return receipt(asked)

    def await_live(self, store: Store, count: int) -> None:
        """Wait until so many live readings have arrived, or most of the backlog has."""
        while len(self.arrived) < count and store.sinks.show("web").behind > MILLION:
            time.sleep(0.1)


def write_live(store: Store) -> dict[float, float]:
    """Write a reading now and then, for a while; returns when each was written, by its value."""
    written: dict[float, float] = {}
    until = time.monotonic() + WRITING_S
    while time.monotonic() < until:
        value = float(len(written))
        store.points.insert("LIVE", "flow", value)
        written[value] = time.monotonic()
        time.sleep(PERIOD_S)
    return written


def test_live_readings_overtake_a_backlog_of_five_million_on_a_slow_link(store: Store, seed: int) -> None:
    fill(store, 5, seed)
    found = {}
    for lanes in (True, False):
        receiver = Receiver()
        with ExitStack() as until_done:
            proxy = until_done.enter_context(Proxy(until_done.enter_context(Scripted(receiver)).server_port))
            proxy.bytes_per_s = LINK_BYTES_PER_S
            store.sinks.add("web", f"{proxy.url}/points", start="beginning", lanes=lanes)
            with Forwarder(store, "web"):
                time.sleep(2)  # the backlog is on its way
                written = write_live(store)
                if lanes:
                    receiver.await_live(store, len(written))
                behind = store.sinks.show("web").behind
            store.sinks.remove("web")
        assert behind > MILLION, "the backlog ended too soon"
        delays = [receiver.arrived[value] - at for value, at in written.items() if value in receiver.arrived]
        found[lanes] = (len(written), delays)
        print(
            f"{'two lanes' if lanes else 'one lane'}: {receiver.points:,} points of which {len(delays)} of "
            f"{len(written)} live readings arrived"
            + (f", after {median(delays):.2f} s, p99 {quantiles(delays, n=100)[-1]:.2f} s" if delays else "")
        )
    written_count, delays = found[True]
    assert len(delays) == written_count, "live readings wait for the backlog"
    assert found[False][1] == [], "in one lane, live readings wait for the backlog"


def test_one_bad_item_in_a_million_is_the_only_one_in_quarantine(store: Store, seed: int) -> None:
    fill(store, 1, seed)
    bad = random.Random(seed).randrange(MILLION)
    [point] = store.points.after(bad, limit=1)
    wanted = {name: point[name] for name in ("sensor_id", "timestamp_us")}
    marked = f'"sensor_id":"{wanted["sensor_id"]}"', f'"timestamp_us":{wanted["timestamp_us"]}'
    points = requests = 0

    def answer(asked: Asked) -> Reply:
        nonlocal points, requests
        requests += 1
        lines = asked.body.decode().replace(": ", ":").splitlines()
        if any(all(mark in line for mark in marked) for line in lines):
            return Reply(422, b"no fire, please")
        points += len(lines)
        return receipt(asked)

    with Scripted(answer) as server:
        store.sinks.add("web", f"{server.url}/points", start="beginning")
        drained = Forwarder(store, "web").drain()["web"]
    print(f"{drained.delivered:,} delivered in {requests} requests, {drained.refused} refused")
    assert (drained.is_empty, drained.delivered, drained.refused, points) == (
        True,
        MILLION - 1,
        1,
        MILLION - 1,
    )
    [item] = store.quarantine.list("web")
    assert (item.seq, item.sensor_id, item.timestamp_us) == (bad + 1, *wanted.values())
    assert "no fire" in item.reason
