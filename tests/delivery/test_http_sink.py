import http.client
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from repo.delivery.batch import DeliveryBatch
from repo.delivery.sinks.http import HttpSink
from repo.demo.receiver import Receiver
from repo.errors import InvalidSettings, SinkRefused, SinkUnreachable

POINT = {
    "sensor_id": "W",
    "metric_name": "m",
    "timestamp_us": 7,
    "value": 1.5,
    "quality": 100,
    "metadata": None,
}
BATCH = DeliveryBatch.of("ab" * 16, 1, [{"seq": seq, **POINT, "timestamp_us": seq} for seq in (1, 2)])


def send(url: str, **options: Any) -> Any:
    with HttpSink(url, name="there", **{"timeout_s": 2.0, **options}) as sink:
        return sink.send(BATCH)


def test_a_batch_gets_a_receipt_and_its_repeat_is_recognized_by_the_key(receiver: Receiver) -> None:
    receiver.listen()
    with HttpSink(receiver.url, name="there") as sink:
        assert not sink.send(BATCH).repeat
        assert sink.send(BATCH).repeat
        assert sink.send(BATCH).key == BATCH.key
    report = receiver.keeping.report()
    assert (report["points"], report["repeated_batches"], report["repeated_keys"]) == (2, 2, [BATCH.key])


def test_a_link_that_is_down_is_unreachable(receiver: Receiver) -> None:
    with pytest.raises(SinkUnreachable, match="did not answer") as raised:
        send(receiver.url)
    assert isinstance(raised.value.__cause__, OSError)


def test_a_receiver_that_never_answers_is_unreachable_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(SinkUnreachable, match="timed out"):
        send(f"http://127.0.0.1:{deaf.getsockname()[1]}/points", timeout_s=0.2)


def test_a_200_response_without_a_receipt_does_not_count_as_one(answering: Callable[..., str]) -> None:
    for page in (
        b"<html>Welcome! Please log in.</html>",
        b"[]",
        b"{}",
        b"",
        b'"' + BATCH.key.encode() + b'"',
    ):
        with pytest.raises(SinkUnreachable, match="without a receipt"):
            send(answering(200, page))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_receiver_that_returns_a_server_error_is_tried_again(
    answering: Callable[..., str], status: int
) -> None:
    with pytest.raises(SinkUnreachable, match=str(status)) as raised:
        send(answering(status, b"busy", Retry_After="7"))
    assert raised.value.retry_after_s == 7


def test_a_retry_after_that_is_not_a_number_of_seconds_is_ignored(answering: Callable[..., str]) -> None:
    with pytest.raises(SinkUnreachable) as raised:
        send(answering(503, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"))
    assert raised.value.retry_after_s is None


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 422])
def test_every_other_status_refuses_the_batch(answering: Callable[..., str], status: int) -> None:
    with pytest.raises(SinkRefused, match=f"{status}.*no, thanks"):
        send(answering(status, b"no, thanks", Location="http://127.0.0.1:1/"))


def test_a_connection_that_was_closed_while_idle_is_reopened(receiver: Receiver) -> None:
    receiver.listen()
    with HttpSink(receiver.url, name="there") as sink:
        sink.send(BATCH)
        sock = sink._connection.sock
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)
        assert sink.send(BATCH).repeat


def test_the_receiver_sends_a_damaged_body_back_for_another_try(receiver: Receiver) -> None:
    receiver.listen()
    connection = http.client.HTTPConnection("127.0.0.1", receiver.server_port, timeout=5)
    connection.request("POST", "/points", BATCH.body.replace(b"1.5", b"2.5"), {"Idempotency-Key": BATCH.key})
    answer = connection.getresponse()
    assert (answer.status, "checksum" in json.loads(answer.read())["error"]) == (503, True)
    connection.close()
    assert receiver.keeping.report()["points"] == 0


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://host/x", "http://", "http://host:port/", "http://me:secret@host/"]
)
def test_an_invalid_url_is_refused_and_the_message_contains_no_secret(url: str) -> None:
    with pytest.raises(InvalidSettings) as raised:
        HttpSink(url, name="there")
    assert "secret" not in str(raised.value)
