"""Destinations behind a proxy, and what has arrived there; for tests that break the link, the server or the sender.

For a sink that keeps no position, nothing may be missing; what arrives twice has the key of the same range; and no
older value of a point may arrive after a newer one. An exact sink stores each batch once.
"""

from __future__ import annotations

import gzip
import json
import random
import signal
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from repo import Receiver, Settings, Store
from repo.delivery.keys import BatchKey
from tests.delivery.servers.influxdb import InfluxDB
from tests.delivery.servers.kafka import MockKafka
from tests.delivery.servers.mosquitto import Mosquitto, Subscriber
from tests.delivery.servers.postgresql import PostgresqlServer
from tests.delivery.servers.proxy import Proxy
from tests.delivery.servers.scripted import Asked, Reply, Scripted, receipt
from tests.delivery.servers.victoria_metrics import VictoriaMetrics
from tests.delivery.sink_batches import START_US

__all__ = [
    "NAMES",
    "TROUBLES",
    "Arrival",
    "Identity",
    "Site",
    "check",
    "check_unordered",
    "expected",
    "insert",
    "insert_refused",
    "points_of",
    "started",
]

TROUBLES = 6
"""The ways in which a link has trouble."""

STEP_US = 1_000
"""Between two times: VictoriaMetrics keeps milliseconds."""

_REFUSED = 13.5

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
    exact = False
    answers_to = b""
    """What the sender sends last before the destination stores the batch."""
    keeps_every_value = False
    """Whether all values of a point that was overwritten stay."""
    takes_records = False
    knows_seqs = False
    """Whether what arrives has its seq, so that the destination can leave out what arrives too late."""

    @abstractmethod
    def values(self) -> dict[Identity, float]:
        """The value of each point, as it is there now."""

    def arrivals(self) -> list[Arrival]:
        """Every arrival, in order; empty if the server keeps only the last one."""
        return []

    def records(self) -> dict[str, Any]:
        """The data of each record, as it is there now."""
        return {}

    def count(self) -> int | None:
        """How many points an exact destination has stored, overwritten ones included."""
        return None

    def outage(self) -> None:
        """Make the server itself fail for a moment, without losing what it has confirmed."""
        raise NotImplementedError

    def judge(self, *, strictly: bool) -> None:
        """Let the destination refuse what `insert_refused` writes, without saying which item it is, or take it."""
        raise NotImplementedError

    def trouble(self, kind: int, rng: random.Random) -> bool:
        """Break the link in one of `TROUBLES` ways, or make it slower (the last); returns whether it was broken."""
        assert self.proxy is not None
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
        return kind < TROUBLES - 1


class LinesSite(Site):
    """A destination of messages or lines of JSON, all of which it keeps."""

    takes_records = knows_seqs = True

    @abstractmethod
    def lines(self) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
        """Every line that has arrived, in order, with the range that it came in."""

    def arrivals(self) -> list[Arrival]:
        return [
            Arrival(
                (line["sensor_id"], line["metric_name"], line["timestamp_us"]),
                line["value"],
                line["seq"],
                where,
            )
            for line, where in self.lines()
            if "seq" in line
        ]

    def values(self) -> dict[Identity, float]:
        return {arrival.identity: arrival.value for arrival in self.arrivals()}

    def records(self) -> dict[str, Any]:
        return {line["record_id"]: line["data"] for line, _ in self.lines() if "record_id" in line}


class HttpSite(LinesSite):
    """A receiver of NDJSON that gives receipts."""

    def __init__(self, server: Scripted, proxy: Proxy) -> None:
        self.proxy, self.server = proxy, server
        self.target, self.options = f"{proxy.url}/points", {"timeout_s": 0.3}
        self.found: list[tuple[dict[str, Any], tuple[str, ...]]] = []
        self.busy = 0
        server.answer = self._answer

    def _answer(self, asked: Asked) -> Reply:
        if self.busy:
            self.busy -= 1
            return Reply(503, b"restarting")
        key = BatchKey.parse(asked.headers["idempotency-key"])
        where = tuple(map(str, key[:4]))
        self.found += [(json.loads(line), where) for line in asked.body.splitlines()]
        return receipt(asked)

    def lines(self) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
        return self.found

    def outage(self) -> None:
        self.busy = 2


class InfluxSite(Site):
    """InfluxDB 1: the value that arrives last counts."""

    def __init__(self, server: InfluxDB, proxy: Proxy) -> None:
        self.proxy, self.server = proxy, server
        self.target = proxy.url
        self.options = {"format": "influx1", "database": "site", "timeout_s": 0.3}

    def values(self) -> dict[Identity, float]:
        return {identity: found[0] for identity, found in self.server.points().items()}

    def outage(self) -> None:
        self.server.restart()


class VictoriaSite(Site):
    """VictoriaMetrics: keeps every value that a point ever had."""

    keeps_every_value = True

    def __init__(self, server: VictoriaMetrics, proxy: Proxy) -> None:
        self.proxy, self.server = proxy, server
        self.target, self.options = proxy.url, {"format": "influx1", "timeout_s": 0.3}

    def every_value(self) -> dict[Identity, set[float]]:
        self.server.settled()
        found: defaultdict[Identity, set[float]] = defaultdict(set)
        for (sensor, metric, at_ms), value in self.server.samples():
            found[sensor, metric, at_ms * 1_000].add(value)
        return found

    def values(self) -> dict[Identity, float]:
        return {identity: max(found) for identity, found in self.every_value().items()}

    def outage(self) -> None:
        self.server.stop()  # what it has acknowledged is in its memory only, for a second
        self.server.start()


class MqttSite(LinesSite):
    """Mosquitto, and a subscriber with a lasting session."""

    def __init__(self, server: Mosquitto, proxy: Proxy, subscriber: Subscriber, **options: Any) -> None:
        self.proxy, self.server, self.subscriber = proxy, server, subscriber
        self.target = f"mqtt://127.0.0.1:{proxy.port}/holdfast"
        self.options = {"timeout_s": 0.3, **options}
        self._has_ranges = options.get("version") != "3.1.1"

    def lines(self) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
        return [
            (
                json.loads(payload),
                tuple(dict(properties)["holdfast-batch"].split(".")) if self._has_ranges else (),
            )
            for _, payload, properties in self.subscriber.settled()
        ]

    def outage(self) -> None:
        self.server.stop()  # it writes what it has acknowledged to its disk only then
        self.server.start()


class KafkaSite(LinesSite):
    """A cluster of one broker, whose topic keeps every message."""

    def __init__(self, server: MockKafka, proxy: Proxy) -> None:
        self.proxy, self.server = proxy, server
        self.target, self.options = f"kafka://127.0.0.1:{proxy.port}/points", {"timeout_s": 0.3}

    def lines(self) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
        return [
            (json.loads(value), tuple(headers["holdfast-batch"].split(".")))
            for _, value, headers in self.server.messages("points")
        ]

    def outage(self) -> None:
        self.server.freeze()
        time.sleep(0.5)
        self.server.thaw()


class PostgresqlSite(Site):
    """A hub in a schema of its own."""

    exact = takes_records = True
    answers_to = b"COMMIT"

    def __init__(self, server: PostgresqlServer, proxy: Proxy) -> None:
        self.proxy, self.server = proxy, server
        self.schema = f"site_{uuid4().hex[:12]}"
        self.target = f"postgresql://127.0.0.1:{proxy.port}/postgres"
        self.options = {
            "user": "admin",
            "password": "env:HUB_PASSWORD",
            "schema": self.schema,
            "timeout_s": 2,
        }

    def values(self) -> dict[Identity, float]:
        query = f"SELECT sensor_id, metric_name, timestamp_us, value FROM {self.schema}.points"
        return {(sensor, metric, us): value for sensor, metric, us, value in self.server.ask(query)}

    def count(self) -> int:
        [(count,)] = self.server.ask(f"SELECT sum(points)::bigint FROM {self.schema}.positions")
        return int(count)

    def outage(self) -> None:
        self.server.stop(signal.SIGQUIT)  # as in a crash
        self.server.start()

    def judge(self, *, strictly: bool) -> None:
        self.server.ask(
            f"CREATE OR REPLACE FUNCTION {self.schema}.judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NEW.value = {_REFUSED} THEN RAISE EXCEPTION 'not that'; END IF; RETURN NEW; END $$"
        )
        self.server.ask(f"DROP TRIGGER IF EXISTS judge ON {self.schema}.points")
        if strictly:
            self.server.ask(
                f"CREATE TRIGGER judge BEFORE INSERT ON {self.schema}.points FOR EACH ROW "
                f"EXECUTE FUNCTION {self.schema}.judge()"
            )

    def records(self) -> dict[str, Any]:
        return dict(self.server.ask(f"SELECT record_id, data FROM {self.schema}.records"))


class HoldfastSite(Site):
    """Another store."""

    exact = takes_records = True

    def __init__(self, store: Store, receiver: Receiver, proxy: Proxy) -> None:
        self.proxy, self.store, self.receiver = proxy, store, receiver
        self.target = f"http+holdfast://127.0.0.1:{proxy.port}"
        self.options = {"timeout_s": 5}

    def values(self) -> dict[Identity, float]:
        return expected(self.store)

    def count(self) -> int:
        return sum(position.points for position in self.store.receiving.positions())

    def outage(self) -> None:
        self.receiver.stop()
        self.receiver = Receiver(self.store, port=self.receiver.port).start()

    def judge(self, *, strictly: bool) -> None:
        server = self.receiver._server  # a new receiver would end the connections
        server.bounds = server.bounds._replace(body_bytes=2_000 if strictly else 8_388_608)

    def records(self) -> dict[str, Any]:
        return {record["record_id"]: record["data"] for record in self.store.records.pending(limit=100_000)}


class FolderSite(Site):
    """A folder, which has no link."""

    exact = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "holdfast-folder.json").touch()
        self.target, self.options = folder.as_uri(), {}

    def values(self) -> dict[Identity, float]:
        found = {}
        for path in sorted(self.folder.glob("store=*/*/*/*.ndjson.gz")):
            for line in map(json.loads, gzip.decompress(path.read_bytes()).splitlines()):
                if "sensor_id" in line:
                    found[line["sensor_id"], line["metric_name"], line["timestamp_us"]] = line["value"]
        return found

    def count(self) -> int:
        lines = 0
        for path in self.folder.glob("store=*/*/*/*.ndjson.gz"):
            lines += sum(
                "sensor_id" in json.loads(one) for one in gzip.decompress(path.read_bytes()).splitlines()
            )
        return lines


NAMES = (
    *("http", "influxdb", "victoria-metrics", "mqtt", "mqtt-qos-2", "mqtt-3.1.1"),
    *("kafka", "postgresql", "holdfast", "folder"),
)
_MQTT_OPTIONS: dict[str, dict[str, Any]] = {
    "mqtt": {},
    "mqtt-qos-2": {"qos": 2},
    "mqtt-3.1.1": {"qos": 2, "version": "3.1.1"},
}


@contextmanager
def started(
    name: str, folder: Path, postgresql: Callable[[], PostgresqlServer] | None = None
) -> Iterator[Site]:
    """Start the site of a name, with its server, in a new folder; skips the test where the server is not installed."""
    folder.mkdir()
    with ExitStack() as stack:
        enter = stack.enter_context
        match name:
            case "http":
                server = enter(Scripted())
                yield HttpSite(server, enter(Proxy(server.server_port)))
            case "influxdb":
                database = enter(InfluxDB(folder))
                yield InfluxSite(database, enter(Proxy(database.port)))
            case "victoria-metrics":
                metrics = enter(VictoriaMetrics(folder))
                yield VictoriaSite(metrics, enter(Proxy(metrics.port)))
            case "mqtt" | "mqtt-qos-2" | "mqtt-3.1.1":
                broker = enter(Mosquitto(folder))
                subscriber = enter(Subscriber(broker.port))
                yield MqttSite(broker, enter(Proxy(broker.port)), subscriber, **_MQTT_OPTIONS[name])
            case "kafka":
                brokers = enter(MockKafka(folder))
                yield KafkaSite(brokers, enter(Proxy(brokers.port, announced=True)))
            case "postgresql":
                assert postgresql is not None
                hub = postgresql()
                yield PostgresqlSite(hub, enter(Proxy(hub.port)))
            case "holdfast":
                store = enter(Store(folder / "there", Settings(engine="sqlite", background=False)))
                receiver = Receiver(store).start()
                there = HoldfastSite(store, receiver, enter(Proxy(receiver.port)))
                stack.callback(lambda: there.receiver.stop())
                yield there
            case _:
                yield FolderSite(folder)


def points_of(
    rng: random.Random, first: int, count: int, *, overwrites: bool = True
) -> list[tuple[Any, ...]]:
    """Points of 20 series; with `overwrites`, some overwrite earlier ones."""
    found = []
    for at in range(first, first + count):
        number = at if at < 100 or not overwrites or rng.random() < 0.9 else rng.randrange(at)
        name = "flow" if number % 3 else "pressure"
        found.append((f"W-{number % 10}", name, number * STEP_US, round(rng.gauss(0, 100), 3)))
    return found


def insert(store: Store, points: list[tuple[Any, ...]]) -> None:
    """Write points, with times in µs from the start."""
    store.points.insert_many(
        [
            {"sensor_id": sensor, "metric_name": metric, "timestamp_us": START_US + us, "value": value}
            for sensor, metric, us, value in points
        ]
    )


def insert_refused(store: Store, us: int) -> None:
    """Write a point that a destination refuses if it judges strictly: it is large, and its value is not wanted."""
    store.points.insert_many(
        [
            {
                "sensor_id": "W-bad",
                "metric_name": "flow",
                "timestamp_us": START_US + us * STEP_US,
                "value": _REFUSED,
                "metadata": {"text": random.Random(us).randbytes(3_000).hex()},
            }
        ]
    )


def expected(store: Store) -> dict[Identity, float]:
    """The value of each point of a store."""
    rows = store.sql("SELECT sensor_id, metric_name, timestamp_us, value FROM time_series_data")
    return {(row["sensor_id"], row["metric_name"], row["timestamp_us"]): row["value"] for row in rows}


def check(site: Site, store: Store) -> None:
    """Nothing is missing, repeats have the key of the same range, and the newest value arrives last."""
    if isinstance(site, VictoriaSite):
        found, wanted = site.every_value(), expected(store)
        assert found.keys() == wanted.keys()
        assert {identity for identity, value in wanted.items() if value not in found[identity]} == set()
    else:
        assert site.values() == expected(store)
    newest: dict[Identity, int] = {}
    for arrival in site.arrivals():
        assert newest.get(arrival.identity, 0) <= arrival.seq, "an older value arrived after a newer one"
        newest[arrival.identity] = arrival.seq
    check_keys(site)


def check_unordered(site: Site, store: Store) -> None:
    """Nothing is missing, and repeats have the key of the same range, if requests may arrive late or twice.

    A destination that knows the seqs leaves out what is older than what it has. One that does not may keep a value that
    was overwritten in between.
    """
    if not site.knows_seqs:
        check(site, store)
        return
    newest: dict[Identity, Arrival] = {}
    for arrival in site.arrivals():
        if arrival.identity not in newest or newest[arrival.identity].seq <= arrival.seq:
            newest[arrival.identity] = arrival
    assert {identity: arrival.value for identity, arrival in newest.items()} == expected(store)
    check_keys(site)


def check_keys(site: Site) -> None:
    """What arrived twice has the key of one range."""
    arrived: defaultdict[int, set[tuple[str, ...]]] = defaultdict(set)
    for arrival in site.arrivals():
        arrived[arrival.seq].add(arrival.range)
    assert {seq: ranges for seq, ranges in arrived.items() if len(ranges) > 1} == {}
