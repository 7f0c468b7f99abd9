"""The Kafka sink with librdkafka's mock cluster: keys, order, outages, what is refused and what halts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from repo.delivery.protocol import Item, Lane, RecordItem
from repo.delivery.sinks.registry import sink_of
from repo.errors import InvalidSettings, SinkHalted, SinkUnreachable
from tests.delivery.impatience import PATIENT_S, impatient
from tests.delivery.servers.kafka import MockKafka
from tests.delivery.servers.process import closed_port
from tests.delivery.sink_batches import START_US, STORE, batch_of

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from repo.delivery.sinks.kafka import KafkaSink

POINTS = [(f"W-{at % 3}", "flow", START_US + at, at / 7) for at in range(30)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockKafka]:
    with MockKafka(tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


def made(cluster: MockKafka, topic: str, **options: Any) -> KafkaSink:
    return KafkaSink(
        f"kafka://{cluster.servers}/{topic}", name="there", **{"timeout_s": PATIENT_S, **options}
    )


def test_a_series_has_one_key_and_keeps_its_order_and_each_message_names_its_batch(
    cluster: MockKafka,
) -> None:
    sink = made(cluster, "points")
    sink.open(STORE, 1)
    outcome = sink.send(batch_of(POINTS))
    sink.send(batch_of([("a/b%", "é", START_US, "on")], 31, lane=Lane.BACKFILL))
    sink.send(batch_of([], lane=Lane.RECORDS, records=[RecordItem("r", "op/c", '{"x":1}', 5)]))
    sink.close()
    arrived = cluster.messages("points")
    assert outcome.sent_bytes > 2000
    for sensor in range(3):
        seqs = [json.loads(value)["seq"] for key, value, _ in arrived if key == f"W-{sensor}/flow"]
        assert seqs == list(range(1 + sensor, 31, 3))
    rest = {key: headers for key, _, headers in arrived if not key.startswith("W-")}
    assert rest == {
        "a%2Fb%25/é": {"holdfast-batch": f"{STORE}.1.31.31", "holdfast-lane": "backfill"},
        "op%2Fc": {"holdfast-batch": f"{STORE}.1.1.1", "holdfast-lane": "records"},
    }


def test_what_an_outage_leaves_open_arrives_once_and_in_order(cluster: MockKafka) -> None:
    sink = made(cluster, "outage", format="ndjson")
    sink.send(batch_of(POINTS[:10]))
    cluster.freeze()
    second, third = batch_of(POINTS[10:20], 11), batch_of(POINTS[20:], 21)
    try:
        with impatient(sink, 0.5):
            with pytest.raises(SinkUnreachable, match=r"confirmed nothing within 0\.5 s"):
                sink.send(second)
            with pytest.raises(SinkUnreachable):
                sink.open(STORE, 1)
    finally:
        cluster.thaw()
    sink.open(STORE, 1)
    assert sink.send(second).refused == ()
    sink.send(third)
    sink.close()
    lines = [json.loads(line) for _, value, _ in cluster.messages("outage") for line in value.splitlines()]
    assert sorted(line["seq"] for line in lines) == list(range(1, 31))
    for sensor in range(3):
        seqs = [line["seq"] for line in lines if line["sensor_id"] == f"W-{sensor}"]
        assert seqs == sorted(seqs)


def test_a_batch_that_does_not_fit_into_the_producer_is_not_taken_for_delivered(cluster: MockKafka) -> None:
    sink = made(cluster, "narrow", **{"librdkafka.queue.buffering.max.messages": 10})
    sink.open(STORE, 1)
    cluster.freeze()
    try:
        with impatient(sink, 0.5), pytest.raises(SinkUnreachable):
            sink.send(batch_of(POINTS))
    finally:
        cluster.thaw()
    sink.send(batch_of(POINTS))
    sink.close()
    arrived = [
        (json.loads(value)["seq"], headers["holdfast-batch"])
        for _, value, headers in cluster.messages("narrow")
    ]
    assert set(arrived) == {(seq, f"{STORE}.1.1.30") for seq in range(1, 31)}


def test_a_message_that_is_too_large_is_refused_alone(cluster: MockKafka) -> None:
    sink = made(cluster, "large", **{"librdkafka.message.max.bytes": 2_000})
    points = [*POINTS[:3], ("W", "text", START_US, "x" * 3_000), *POINTS[3:5]]
    refused = sink.send(batch_of(points)).refused
    sink.close()
    assert [item.row for item in refused] == [3]
    assert "MSG_SIZE_TOO_LARGE" in refused[0].reason
    assert len(cluster.messages("large")) == 5


def test_points_that_line_protocol_cannot_express_are_refused(cluster: MockKafka) -> None:
    sink = made(cluster, "lines", format="influx")
    points = [("W", "flow", 1, 1.0), ("W", "flow", 2, float("inf")), ("W", "flow", 3, 3.0)]
    assert sink.send(batch_of(points)).refused == (Item(1, "line protocol has no infinity"),)
    sink.close()
    ((key, value, _),) = cluster.messages("lines")
    assert (key, value.count(b"\n")) == ("W/flow", 1)
    assert not sink.takes_records


def test_brokers_that_are_absent_are_unreachable_and_wrong_settings_halt(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_port() as port:
        absent = KafkaSink(f"kafka://127.0.0.1:{port}/t", name="there", timeout_s=0.5)
        with pytest.raises(SinkUnreachable):
            absent.open(STORE, 1)
        absent.close()
        absent.close()
    monkeypatch.setenv("SITE_PASSWORD", "s3cret")
    target = f"kafka+ssl://{cluster.servers}/t"
    login = {"user": "me", "password": "env:SITE_PASSWORD", "timeout_s": 5}
    for options, words in (
        ({"ca_file": "/nowhere/ca.pem"}, "cannot be set up"),
        ({"librdkafka.no.such.property": "1"}, "cannot be set up.*No such configuration property"),
        ({"password": "env:NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
    ):
        with pytest.raises(SinkHalted, match=words) as raised:
            sink_of("there", "kafka", target, {**login, **options}).open(STORE, 1)
        assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("http://host/t", {}),
        ("kafka://", {}),
        ("kafka:///t", {}),
        ("kafka://me@host/t", {}),
        ("kafka://host", {}),
        ("kafka://host/", {}),
        ("kafka://host/a/b", {}),
        ("kafka://host/t", {"compression": "rar"}),
        ("kafka://host/t", {"acks": "0"}),
    ],
)
def test_a_wrong_target_or_option_is_refused(target: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        KafkaSink(target, name="there", **options)


def test_a_secret_of_librdkafka_is_not_stored() -> None:
    with pytest.raises(InvalidSettings, match="not stored"):
        sink_of("there", "kafka", "kafka://host/t", {"librdkafka.ssl.key.password": "s3cret"})
