"""Every sink of ours that keeps no position passes the contract, with a real server behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from repo.delivery.protocol import Sink
from repo.delivery.sinks.http import HttpSink
from repo.delivery.sinks.kafka import KafkaSink
from repo.delivery.sinks.mqtt import MqttSink
from repo.testing import Destination, SinkContract
from tests.delivery.impatience import PATIENT_S, impatient
from tests.delivery.servers.influxdb import InfluxDB
from tests.delivery.servers.kafka import MockKafka
from tests.delivery.servers.mosquitto import Mosquitto, Subscriber
from tests.delivery.servers.proxy import Proxy
from tests.delivery.servers.scripted import Asked, Reply, Scripted, receipt


class Reached(Destination):
    """A destination behind a proxy."""

    proxy: Proxy

    def cut(self) -> None:
        self.proxy.cut()

    def mend(self) -> None:
        self.proxy.mend()


class JsonReceiver(Reached):
    """A receiver that keeps the lines that it gets, and refuses one value."""

    unacceptable = ("W", "hot", 5, 451.0)

    def __init__(self, server: Scripted, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy
        self.lines: list[dict[str, Any]] = []
        server.answer = self._keep

    def sink(self) -> Sink:
        return HttpSink(self.proxy.url, name="there", timeout_s=PATIENT_S)

    def _keep(self, asked: Asked) -> Reply:
        lines = [json.loads(line) for line in asked.body.splitlines()]
        refused = [[row, "too hot"] for row, line in enumerate(lines) if line.get("value") == 451.0]
        self.lines += [line for line in lines if line.get("value") != 451.0]
        return receipt(asked, refused=refused)

    def points(self) -> Iterable[Any]:
        return [
            (one["sensor_id"], one["metric_name"], one["timestamp_us"], one["value"]) for one in self.lines
        ]

    def records(self) -> Iterable[tuple[str, Any]]:
        return [(one["record_id"], one["data"]) for one in self.lines]


class TestHttp(SinkContract):
    @pytest.fixture
    def destination(self) -> Iterator[Destination]:
        with Scripted() as server, Proxy(server.server_port) as proxy:
            yield JsonReceiver(server, proxy)


class Influx(Reached):
    """A database of a running InfluxDB, where `typed` of `W` is a text."""

    unacceptable = ("W", "typed", 5, 1.0)

    def __init__(self, server: InfluxDB, proxy: Proxy, database: str) -> None:
        self.server = server
        self.proxy = proxy
        self.database = database
        server.query(f"CREATE DATABASE {database}")
        server.write('typed,sensor_id=W value="text" 4', database)

    def sink(self) -> Sink:
        return HttpSink(
            self.proxy.url, name="there", timeout_s=PATIENT_S, format="influx1", database=self.database
        )

    def points(self) -> Iterable[Any]:
        found = self.server.points(self.database)
        found.pop(("W", "typed", 4))
        return [(*key, value if text is None else text) for key, (value, text, _, _) in found.items()]


@pytest.fixture(scope="module")
def influxdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxDB]:
    with InfluxDB(tmp_path_factory.mktemp("influxdb")) as server:
        yield server


class TestInfluxDB(SinkContract):
    @pytest.fixture
    def destination(self, influxdb: InfluxDB, request: pytest.FixtureRequest) -> Iterator[Destination]:
        with Proxy(influxdb.port) as proxy:
            yield Influx(influxdb, proxy, f"db{abs(hash(request.node.name))}")


class Broker(Reached):
    """A broker with a subscriber."""

    def __init__(self, proxy: Proxy, subscriber: Subscriber, **options: Any) -> None:
        self.proxy = proxy
        self.subscriber = subscriber
        self.options = options
        subscriber.settled()
        subscriber.messages.clear()

    def sink(self) -> Sink:
        target = f"mqtt://127.0.0.1:{self.proxy.port}/holdfast"
        return MqttSink(target, name="there", timeout_s=PATIENT_S, **self.options)

    def _lines(self) -> Iterable[dict[str, Any]]:
        payloads = [payload for _, payload, _ in self.subscriber.settled()]
        return [json.loads(line) for payload in payloads for line in payload.splitlines()]

    def points(self) -> Iterable[Any]:
        return [
            (one["sensor_id"], one["metric_name"], one["timestamp_us"], one["value"]) for one in self._lines()
        ]

    def records(self) -> Iterable[tuple[str, Any]]:
        return [(one["record_id"], one["data"]) for one in self._lines()]


@pytest.fixture(scope="module")
def subscribed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mosquitto, Subscriber]]:
    pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as broker, Subscriber(broker.port) as subscriber:
        yield broker, subscriber


class TestMqtt(SinkContract):
    @pytest.fixture
    def destination(self, subscribed: tuple[Mosquitto, Subscriber]) -> Iterator[Destination]:
        broker, subscriber = subscribed
        with Proxy(broker.port) as proxy:
            yield Broker(proxy, subscriber)


@pytest.mark.slow
class TestMqttTwo(SinkContract):
    @pytest.fixture
    def destination(self, subscribed: tuple[Mosquitto, Subscriber]) -> Iterator[Destination]:
        broker, subscriber = subscribed
        with Proxy(broker.port) as proxy:
            yield Broker(proxy, subscriber, qos=2, version="3.1.1", format="ndjson")


class Topic(Destination):
    """A topic of a mock cluster, which is frozen for an outage."""

    unacceptable = ("W", "flow", 5, "x" * 20_000)

    def __init__(self, cluster: MockKafka, topic: str) -> None:
        self.cluster = cluster
        self.topic = topic
        self.made: list[KafkaSink] = []
        self.until_mended = ExitStack()

    def sink(self) -> Sink:
        limits = {"librdkafka.message.max.bytes": 15_000, "timeout_s": PATIENT_S}
        self.made.append(KafkaSink(f"kafka://{self.cluster.servers}/{self.topic}", name="there", **limits))
        return self.made[-1]

    def cut(self) -> None:
        self.cluster.freeze()
        self.until_mended.callback(self.cluster.thaw)
        for sink in self.made:
            self.until_mended.enter_context(impatient(sink, 0.5))

    def mend(self) -> None:
        self.until_mended.close()

    def _lines(self) -> Iterable[dict[str, Any]]:
        return [json.loads(value) for _, value, _ in self.cluster.messages(self.topic)]

    def points(self) -> Iterable[Any]:
        return [
            (one["sensor_id"], one["metric_name"], one["timestamp_us"], one["value"]) for one in self._lines()
        ]

    def records(self) -> Iterable[tuple[str, Any]]:
        return [(one["record_id"], one["data"]) for one in self._lines()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockKafka]:
    with MockKafka(tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest.mark.slow
class TestKafka(SinkContract):
    @pytest.fixture
    def destination(self, cluster: MockKafka, request: pytest.FixtureRequest) -> Destination:
        return Topic(cluster, request.node.name)
