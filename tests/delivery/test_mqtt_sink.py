"""The MQTT sink with a real broker: topics, formats, what is acknowledged, and what halts."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repo.delivery.protocol import Lane, RecordItem
from repo.delivery.sinks import mqtt
from repo.delivery.sinks.registry import sink_of
from repo.errors import InvalidSettings, SinkHalted, SinkUnreachable
from repo.testing import Batches
from tests.delivery.impatience import PATIENT_S, impatient
from tests.delivery.servers.certificates import Certificates
from tests.delivery.servers.mosquitto import Mosquitto, Subscriber, password_file
from tests.delivery.servers.process import closed_port
from tests.delivery.sink_batches import START_US, STORE, batch_of

pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")

from repo.delivery.sinks.mqtt import MqttSink

POINTS = [(f"W-{at % 2}", "flow", START_US + at, at / 7) for at in range(6)]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("mosquitto"), "max_packet_size 20000") as broker:
        yield broker


@pytest.fixture
def subscriber(broker: Mosquitto) -> Iterator[Subscriber]:
    with Subscriber(broker.port) as subscriber:
        subscriber.settled()
        subscriber.messages.clear()
        yield subscriber


def ready(port: int, **options: Any) -> MqttSink:
    sink = MqttSink(f"mqtt://127.0.0.1:{port}/holdfast", name="there", **{"timeout_s": PATIENT_S, **options})
    sink.open(STORE, 1)
    return sink


def test_each_point_is_a_message_of_its_series_with_the_key_of_the_batch(
    broker: Mosquitto, subscriber: Subscriber
) -> None:
    sink = ready(broker.port)
    outcome = sink.send(batch_of(POINTS, lane=Lane.BACKFILL))
    sink.close()
    arrived = subscriber.settled()
    assert outcome.sent_bytes == sum(len(topic) + len(payload) for topic, payload, _ in arrived)
    assert [topic for topic, *_ in arrived] == [f"holdfast/W-{at % 2}/flow" for at in range(6)]
    assert [json.loads(payload)["value"] for _, payload, _ in arrived] == [at / 7 for at in range(6)]
    key = ("holdfast-batch", f"{STORE}.1.1.6")
    assert all(properties == [key, ("holdfast-lane", "backfill")] for *_, properties in arrived)


def test_a_batch_may_have_more_messages_than_there_are_ids(
    broker: Mosquitto, subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_MOST_IDS", 4)
    sink = ready(broker.port)
    points = [*POINTS, ("W", "text", START_US, "x" * 30_000), *POINTS]
    assert [item.row for item in sink.send(batch_of(points)).refused] == [6]
    sink.close()
    seqs = [json.loads(payload)["seq"] for _, payload, _ in subscriber.settled()]
    assert seqs == [*range(1, 7), *range(8, 14)]


def test_series_share_messages_in_the_other_formats(broker: Mosquitto, subscriber: Subscriber) -> None:
    topic = "{store_id}/{metric_name}/{sensor_id}"
    for form, first in (("ndjson", '{"seq":1,'), ("influx", "flow,sensor_id=W-0 value=0.0,quality=100i ")):
        sink = ready(broker.port, format=form, topic=topic, qos="2")
        sink.send(batch_of(POINTS))
        sink.close()
        arrived = subscriber.settled()
        subscriber.messages.clear()
        assert [topic for topic, *_ in arrived] == [
            f"holdfast/{STORE}/flow/W-0",
            f"holdfast/{STORE}/flow/W-1",
        ]
        assert all(len(payload.splitlines()) == 3 for _, payload, _ in arrived)
        assert arrived[0][1].decode().startswith(first)
    long = [("W", "text", START_US + at, "x" * 9_000) for at in range(30)]
    sink = ready(broker.port, format="ndjson")
    refused = {item.row: item.reason for item in sink.send(batch_of(long)).refused}
    sink.close()
    assert refused.keys() == set(range(30))
    assert "larger than the" in refused[0]


def test_names_become_levels_of_a_topic_and_records_have_their_own(
    broker: Mosquitto, subscriber: Subscriber
) -> None:
    sink = ready(broker.port, topic="{sensor_id}.{metric_name}")
    sink.send(batch_of([("a/b+#%", "$m$", 1, 1.0), ("é 日", "m", 1, 1.0)]))
    sink.send(batch_of([], lane=Lane.RECORDS, records=[RecordItem("r", "op/c", '{"x":1}', 5)]))
    sink.close()
    topics = [topic for topic, *_ in subscriber.settled()]
    assert topics == ["holdfast/a%2Fb%2B%23%25.%24m$", "holdfast/é 日.m", "holdfast/records/op%2Fc"]


def test_a_batch_is_confirmed_only_when_all_is_acknowledged(tmp_path: Path) -> None:
    for options in ({"qos": 1}, {"qos": 2, "version": "3.1.1"}):
        with Mosquitto(tmp_path) as broker:
            sink = ready(broker.port, **options)
            sink.send(batch_of(POINTS))
            broker.freeze()
            with impatient(sink, 0.3):
                with pytest.raises(SinkUnreachable, match=r"acknowledged nothing within 0\.3 s"):
                    sink.send(batch_of(POINTS, 7))
                with pytest.raises(SinkUnreachable, match=r"did not answer within|timed out"):
                    sink.send(batch_of(POINTS, 7))
            broker.thaw()
            sink.send(batch_of(POINTS, 7))
            broker.stop()
            with pytest.raises(SinkUnreachable, match=r"did not answer|closed the connection"):
                sink.send(batch_of(POINTS, 13))
            broker.start()
            sink.send(batch_of(POINTS, 13))
            broker.restart()
            sink.send(batch_of(POINTS, 19))  # over a new connection, because the broker closed the idle one
            sink.close()


def delivered_at_last(sink: Any) -> dict[int, str]:
    """Deliver, as often as it takes: mosquitto closes a connection after a denial, at times before the next answer."""
    while True:
        try:
            return Batches("there").deliver(sink, POINTS)
        except SinkUnreachable:
            sink.close()


def test_wrong_credentials_halt_and_a_denied_topic_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = password_file(tmp_path, "site", "s3cret")
    rules = tmp_path / "rules"
    rules.write_text("user site\ntopic write holdfast/W-0/#\n")
    more = (f"password_file {passwords}", f"acl_file {rules}")
    monkeypatch.setenv("SITE_PASSWORD", "s3cret")
    with Mosquitto(tmp_path, *more, anonymous=False) as broker:
        for options in ({}, {"user": "site", "password": "wrong"}, {"version": "3.1.1", "user": "site"}):
            with pytest.raises(SinkHalted, match=r"refuses the connection.*check user"):
                ready(broker.port, **options)
        target = f"mqtt://127.0.0.1:{broker.port}/holdfast"
        login = {"user": "site", "password": "env:SITE_PASSWORD"}
        sink = sink_of("there", "mqtt", target, login)
        refused = delivered_at_last(sink)
        assert [row for row, reason in refused.items() if "Not authorized (135)" in reason] == [1, 3, 5]
        assert refused.keys() == {1, 3, 5}
        sink.close()
        sink = sink_of("there", "mqtt", target, {**login, "qos": "2"})
        with pytest.raises(SinkUnreachable, match="it may deny a topic: qos=1 shows which"):
            sink.send(batch_of(POINTS))
        sink.close()


# paho-mqtt leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_checks_the_certificate(certificates: Certificates, tmp_path: Path) -> None:
    files = [f"certfile {certificates.certificate}", f"keyfile {certificates.key}"]
    with Mosquitto(tmp_path, *files) as broker:
        target = f"mqtts://127.0.0.1:{broker.port}"
        sink = MqttSink(target, name="there", ca_file=str(certificates.certificate))
        sink.send(batch_of(POINTS))
        sink.close()
        with pytest.raises(SinkHalted, match="is not trusted"):
            MqttSink(target, name="there").send(batch_of(POINTS))
    with Mosquitto(tmp_path) as plain, pytest.raises((SinkHalted, SinkUnreachable)):
        MqttSink(f"mqtts://127.0.0.1:{plain.port}", name="there", timeout_s=2).send(batch_of(POINTS))


def test_a_broker_that_is_absent_or_silent_is_unreachable() -> None:
    with closed_port() as port, pytest.raises(SinkUnreachable, match="did not answer"):
        ready(port)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        with pytest.raises(SinkUnreachable, match=r"did not answer within 0\.2 s"):
            ready(deaf.getsockname()[1], timeout_s=0.2)
        deaf.accept()[0].close()

        def talk() -> None:
            for _ in range(2):
                connection, _ = deaf.accept()
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=talk)
        thread.start()
        for version in ("5", "3.1.1"):
            with pytest.raises(SinkUnreachable):
                ready(deaf.getsockname()[1], version=version)
        thread.join()


def test_retained_messages_stay(broker: Mosquitto) -> None:
    sink = ready(broker.port, retain=True, topic="retained/{sensor_id}/{metric_name}")
    sink.send(batch_of([("W", "flow", START_US, 7.5)]))
    sink.close()
    with Subscriber(broker.port, "holdfast/retained/#", client_id="late") as late:
        late.wait(lambda: len(late.messages) == 1)
        assert json.loads(late.messages[0][1])["value"] == 7.5


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("http://host", {}),
        ("mqtt://", {}),
        ("mqtt://host:port", {}),
        ("mqtt://host/topic/#", {}),
        ("mqtt://host/topic/+", {}),
        ("mqtt://host/topic?x=1", {}),
        ("mqtt://host", {"qos": 0}),
        ("mqtt://host", {"topic": "a/{sensor}"}),
        ("mqtt://host", {"topic": "a/{sensor_id!r}"}),
        ("mqtt://host", {"topic": "a/{"}),
        ("mqtt://host", {"topic": "a/+"}),
        ("mqtt://host", {"records_topic": "{sensor_id}"}),
        ("mqtt://host", {"inflight": 0}),
        ("mqtt://host", {"retain": "perhaps"}),
        ("mqtt://host", {"tpoic": "a"}),
    ],
)
def test_a_wrong_target_or_option_is_refused(target: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        MqttSink(target, name="there", **options)
