"""Outages: links that break, answers that never come, servers that restart, a forwarder that is killed.

For a sink that keeps no position, nothing may be missing; what arrives twice has the key of the same range; and no
older value of a point may arrive after a newer one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Backoff, Forwarder
from repo.delivery.keys import BatchKey
from tests.conftest import ROOT
from tests.delivery.servers.influxdb import InfluxDB
from tests.delivery.servers.kafka import MockKafka
from tests.delivery.servers.mosquitto import Mosquitto, Subscriber
from tests.delivery.servers.proxy import Proxy
from tests.delivery.servers.scripted import Asked, Reply, Scripted, receipt
from tests.delivery.sink_batches import START_US

BATCH_POINTS = 100
QUICK = Backoff(first_s=0.01, longest_s=0.05)
Identity = tuple[str, str, int]


class Arrival(NamedTuple):
    """A point that has arrived, with the key of the range that it came in."""

    identity: Identity
    value: float
    seq: int
    range: tuple[str, ...]


class Site(ABC):
    """A server behind a proxy, and what has arrived there."""

    proxy: Proxy | None = None
    target: str
    options: dict[str, Any]

    @abstractmethod
    def values(self) -> dict[Identity, float]:
        """The value of each point, as it is there now."""

    def arrivals(self) -> list[Arrival]:
        """Every arrival, in order; empty if the server keeps only the last one."""
        return []

    @abstractmethod
    def outage(self) -> None:
        """Make the server itself fail for a moment, without losing what it has confirmed."""

    def trouble(self, rng: random.Random) -> None:
        """Break the link in one of several ways."""
        assert self.proxy is not None
        kind = rng.randrange(6)
        if kind == 0:
            self.proxy.cut()
            time.sleep(rng.random() * 0.1)
            self.proxy.mend()
        elif kind == 1:
            self.proxy.blink(reset=rng.random() < 0.5)
        elif kind == 2:
            self.proxy.drop_answers(rng.randint(1, 2))
        elif kind == 3:
            self.proxy.cut_after(rng.randint(1, 20_000))
        elif kind == 4:
            self.proxy.hang()
            time.sleep(0.35)  # longer than the sink waits
            self.proxy.blink()
            self.proxy.mend()
        else:
            self.proxy.delay_s = rng.choice((0.0, 0.001, 0.005))


class HttpSite(Site):
    def __init__(self, server: Scripted, proxy: Proxy) -> None:
        self.proxy, self.server = proxy, server
        self.target, self.options = f"{proxy.url}/points", {"timeout_s": 0.3}
        self.found: list[Arrival] = []
        self.busy = 0
        server.answer = self._answer

    def _answer(self, asked: Asked) -> Reply:
        if self.busy:
            self.busy -= 1
            return Reply(503, b"restarting")
        key = BatchKey.parse(asked.headers["idempotency-key"])
        where = tuple(map(str, key[:4]))
        for line in map(json.loads, asked.body.splitlines()):
            identity = line["sensor_id"], line["metric_name"], line["timestamp_us"]
            self.found.append(Arrival(identity, line["value"], line["seq"], where))
        return receipt(asked)

    def arrivals(self) -> list[Arrival]:
        return self.found

    def values(self) -> dict[Identity, float]:
        return {arrival.identity: arrival.value for arrival in self.found}

    def outage(self) -> None:
        self.busy = 2


class InfluxSite(Site):
    def __init__(self, server: InfluxDB, proxy: Proxy) -> None:
        self.proxy, self.server = proxy, server
        self.target = proxy.url
        self.options = {"format": "influx1", "database": "site", "timeout_s": 0.3}

    def values(self) -> dict[Identity, float]:
        return {identity: found[0] for identity, found in self.server.points().items()}

    def outage(self) -> None:
        self.server.restart()


class MqttSite(Site):
    def __init__(self, server: Mosquitto, proxy: Proxy, subscriber: Subscriber) -> None:
        self.proxy, self.server, self.subscriber = proxy, server, subscriber
        self.target, self.options = f"mqtt://127.0.0.1:{proxy.port}/holdfast", {"timeout_s": 0.3}

    def arrivals(self) -> list[Arrival]:
        found = []
        for _, payload, properties in self.subscriber.settled():
            where = tuple(dict(properties)["holdfast-batch"].split("."))
            line = json.loads(payload)
            identity = line["sensor_id"], line["metric_name"], line["timestamp_us"]
            found.append(Arrival(identity, line["value"], line["seq"], where))
        return found

    def values(self) -> dict[Identity, float]:
        return {arrival.identity: arrival.value for arrival in self.arrivals()}

    def outage(self) -> None:
        self.server.stop()  # it writes what it has acknowledged to its disk only then
        self.server.start()


class KafkaSite(Site):
    def __init__(self, server: MockKafka) -> None:
        self.server = server
        self.target, self.options = f"kafka://{server.servers}/points", {"timeout_s": 0.3}

    def arrivals(self) -> list[Arrival]:
        found = []
        for _, value, headers in self.server.messages("points"):
            line = json.loads(value)
            identity = line["sensor_id"], line["metric_name"], line["timestamp_us"]
            where = tuple(headers["holdfast-batch"].split("."))
            found.append(Arrival(identity, line["value"], line["seq"], where))
        return found

    def values(self) -> dict[Identity, float]:
        return {arrival.identity: arrival.value for arrival in self.arrivals()}

    def outage(self) -> None:
        self.server.freeze()
        time.sleep(0.5)
        self.server.thaw()

    def trouble(self, rng: random.Random) -> None:
        self.outage()


Begin = Callable[[str], Site]


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a site by its name."""
    with ExitStack() as stack:

        def start(name: str) -> Site:
            folder = tmp_path / name
            folder.mkdir()
            if name == "http":
                server = stack.enter_context(Scripted())
                return HttpSite(server, stack.enter_context(Proxy(server.server_port)))
            if name == "influxdb":
                database = stack.enter_context(InfluxDB(folder))
                return InfluxSite(database, stack.enter_context(Proxy(database.port)))
            if name == "mqtt":
                broker = stack.enter_context(Mosquitto(folder))
                proxy = stack.enter_context(Proxy(broker.port))
                return MqttSite(broker, proxy, stack.enter_context(Subscriber(broker.port)))
            return KafkaSite(stack.enter_context(MockKafka(folder)))

        yield start


def points_of(rng: random.Random, first: int, count: int) -> list[tuple[Any, ...]]:
    """Points of 20 series; some overwrite earlier ones."""
    found = []
    for at in range(first, first + count):
        us = at if at < 100 or rng.random() < 0.9 else rng.randrange(at)
        found.append((f"W-{us % 10}", "flow" if us % 3 else "pressure", us, round(rng.gauss(0, 100), 3)))
    return found


def insert(store: Store, points: list[tuple[Any, ...]]) -> None:
    store.points.insert_many(
        [
            {"sensor_id": sensor, "metric_name": metric, "timestamp_us": START_US + us, "value": value}
            for sensor, metric, us, value in points
        ]
    )


def expected(store: Store) -> dict[Identity, float]:
    rows = store.sql("SELECT sensor_id, metric_name, timestamp_us, value FROM time_series_data")
    return {(row["sensor_id"], row["metric_name"], row["timestamp_us"]): row["value"] for row in rows}


def check(site: Site, store: Store) -> None:
    """Nothing is missing, repeats have the key of the same range, and the newest value arrives last."""
    assert site.values() == expected(store)
    arrived: defaultdict[int, set[tuple[str, ...]]] = defaultdict(set)
    newest: dict[Identity, int] = {}
    for arrival in site.arrivals():
        arrived[arrival.seq].add(arrival.range)
        assert newest.get(arrival.identity, 0) <= arrival.seq, "an older value arrived after a newer one"
        newest[arrival.identity] = arrival.seq
    assert {seq: ranges for seq, ranges in arrived.items() if len(ranges) > 1} == {}


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
def test_nothing_is_missing_after_outages(
    begin: Begin, tmp_path: Path, rng: random.Random, name: str
) -> None:
    site = begin(name)
    with endured(site, tmp_path / "store", rng, troubles=5, outages=1, points=1_500) as store:
        check(site, store)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["http", "influxdb", "mqtt", "kafka"])
def test_nothing_is_missing_after_many_outages(
    begin: Begin, tmp_path: Path, rng: random.Random, name: str
) -> None:
    site = begin(name)
    with endured(site, tmp_path / "store", rng, troubles=50, outages=20, points=40_000) as store:
        check(site, store)


KILLED = """
import sys
from repo import Settings, Store
from repo.delivery.forwarder import Backoff, Forwarder
with Store(sys.argv[1], Settings(engine="sqlite", background=False)) as store:
    Forwarder(store, "there", batch_points=100, backoff=Backoff(first_s=0.01, longest_s=0.05)).drain(60)
print("drained")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["http", "influxdb", "mqtt", "kafka"])
def test_nothing_is_missing_after_the_forwarder_was_killed(
    begin: Begin, tmp_path: Path, rng: random.Random, name: str
) -> None:
    site = begin(name)
    site.options["timeout_s"] = 5
    folder = tmp_path / "store"
    with Store(folder, Settings(engine="sqlite", background=False)) as store:
        insert(store, points_of(rng, 0, 40_000))
        store.sinks.add("there", site.target, start="beginning", **site.options)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        said, kills, written = "", 0, 40_000
        while not said:
            command = [sys.executable, "-c", KILLED, str(folder)]
            child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            timer = threading.Timer(0.6 + rng.random() * 0.6, child.send_signal, (signal.SIGKILL,))
            if kills < 20:
                timer.start()
            said, _ = child.communicate(timeout=120)
            timer.cancel()
            kills += not said
            insert(store, points_of(rng, written, 500))
            written += 500
        Forwarder(store, "there", batch_points=BATCH_POINTS, backoff=QUICK).drain(60)
        assert store.sinks.show("there").behind == 0
        assert kills >= 3
        check(site, store)
