"""The receiver of a store and the sink that delivers to it: exactly once, tokens, refused items, and bad requests."""

from __future__ import annotations

import gzip
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import pytest

from repo import Settings, Store
from repo.delivery.encodings.packed import pack_points
from repo.delivery.protocol import Batch
from repo.delivery.receiver import Receiver
from repo.delivery.sinks.holdfast import HoldfastSink
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable, StoreForked
from repo.store.receiving import Receiving, Taken
from repo.testing import Batches
from tests.conftest import Templates
from tests.delivery.impatience import PATIENT_S
from tests.delivery.servers.certificates import Certificates
from tests.delivery.servers.proxy import Proxy

START_US = 1_767_225_600_000_000
TOKEN, OTHER = "a token of 24 characters", "another one for a second"

Received = Callable[..., Receiver]


@pytest.fixture
def store(tmp_path: Path, templates: Templates) -> Iterator[Store]:
    templates.copy("sqlite", 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(engine="sqlite", background=False)) as opened:
        yield opened


@pytest.fixture
def receiver(store: Store) -> Iterator[Receiver]:
    with Receiver(store) as started:
        yield started


@pytest.fixture
def sink(receiver: Receiver) -> Iterator[HoldfastSink]:
    made = HoldfastSink(receiver.url, name="hub", timeout_s=PATIENT_S)
    yield made
    made.close()


def numbers(count: int, first: int = 0, value: float = 1.5) -> list[Any]:
    return [("W-1", "flow", START_US + at, value) for at in range(first, first + count)]


def count(store: Store) -> int:
    return len(store.points.range(None, None).all())


def test_points_and_position_are_one_commit_and_refused_items_are_named_in_a_repeat_too(
    store: Store, sink: HoldfastSink
) -> None:
    store.points.insert("W-1", "state", "open", timestamp=1)
    batches = Batches("hub")
    good = ("W-1", "mode", START_US, "closed", -3, '{"b":1,"a":"\\u0000"}')
    batch = batches.points([*numbers(2), ("W-1", "state", 5, 1.0), ("W\n", "flow", 5, 1.0), good])
    outcome = sink.send(batch)
    assert [item.row for item in outcome.refused] == [2, 3]
    assert "holds text values" in outcome.refused[0].reason
    assert "control character" in outcome.refused[1].reason
    again = sink.send(batch)
    assert (again.refused, again.repeat) == (outcome.refused, True)
    position = store.receiving.position(batches.store_id, 1, "hub")
    assert position is not None
    assert (position.token, position.points) == (batch.tokens.next, 3)
    assert position.taken.ranges == ((1, 5),)
    assert store.receiving.positions() == [position]
    batches.confirm(batch)
    late = batches.points(numbers(3, 100), first_seq=100)
    sink.send(late)
    assert [(held.epoch, held.taken.ranges) for held in sink.held("")] == [(1, ((1, 5), (100, 102)))]
    stored = store.points.range("W-1", "mode").all()[-1]
    assert (stored["value"], stored["quality"], stored["metadata"]) == ("closed", -3, {"a": "\0", "b": 1})


def test_a_fork_fails_alone_and_leaves_no_trace(store: Store, sink: HoldfastSink) -> None:
    batches = Batches("hub")
    first = batches.points(numbers(1))
    sink.send(first)
    copy = Batches("hub", store_id=batches.store_id)
    writers = [
        threading.Thread(target=lambda n=n: store.points.insert("local", "n", n)) for n in range(8)
    ]  # share their commits with the batch
    for writer in writers:
        writer.start()
    with pytest.raises(StoreForked, match="sinks rekey"):
        sink.send(copy.points([("new", "series", START_US, "x")]))
    for writer in writers:
        writer.join()
    assert store.series.list("new") == []
    assert count(store) == 9
    sink.open(batches.store_id, 1)
    batches.confirm(first)
    sink.send(batches.points(numbers(1, 1)))
    restored = Batches("hub", store_id=batches.store_id, epoch=2)
    assert sink.open(batches.store_id, 2) is None
    sink.send(restored.points(numbers(1, 2)))


def test_the_position_survives_and_a_lost_answer_is_a_repeat(store: Store, receiver: Receiver) -> None:
    batches = Batches("hub")
    with Proxy(receiver.port) as proxy:
        sink = HoldfastSink(
            f"http+holdfast://127.0.0.1:{proxy.port}/any/path", name="hub", timeout_s=PATIENT_S
        )
        assert sink.open(batches.store_id, 1) is None
        proxy.drop_answers(2)  # the sink tries a second time by itself
        batch = batches.points(numbers(5))
        with pytest.raises(SinkUnreachable):
            sink.send(batch)
        assert sink.open(batches.store_id, 1) == batch.tokens.next
        assert sink.send(batch).repeat
        sink.close()
    assert count(store) == 5


def test_a_token_belongs_to_the_first_store_that_uses_it(store: Store) -> None:
    with Receiver(store, tokens=[TOKEN, OTHER]) as receiver:

        def made(token: str | None) -> HoldfastSink:
            return HoldfastSink(receiver.url, name="hub", **({} if token is None else {"token": token}))

        first, second = Batches("hub"), Batches("hub")
        sink = made(TOKEN)
        sink.send(first.points(numbers(1)))
        for token, words in ((None, "bearer token"), ("no such token at all", "bearer token")):
            with pytest.raises(SinkHalted, match=words):
                made(token).open(second.store_id, 1)
        with pytest.raises(
            SinkHalted,
            match=r"403 Forbidden: this token belongs to another store; give each store a token of its own$",
        ):
            made(TOKEN).open(second.store_id, 1)
        large = bytes(9_000_000)  # is not read before the token is checked
        assert request(receiver, first.points(numbers(1)), large, Authorization="Bearer no such token") == 401
        allowed = made(OTHER)
        allowed.send(second.points(numbers(1, 1)))
        for each in (sink, allowed):
            each.close()
    assert count(store) == 2


def test_tls_encrypts_and_a_certificate_that_is_not_trusted_halts(
    store: Store, tmp_path: Path, certificates: Certificates
) -> None:
    certificate, key = certificates
    with Receiver(store, certificate=certificate, key=key, timeout_s=300.0) as receiver:
        assert receiver.url.startswith("https+holdfast://")
        batches = Batches("hub")
        with pytest.raises(SinkHalted, match="not trusted"):
            HoldfastSink(receiver.url, name="hub").open(batches.store_id, 1)
        sink = HoldfastSink(receiver.url, name="hub", ca_file=str(certificate))
        sink.send(batches.points(numbers(3)))
        with socket.create_connection(("127.0.0.1", receiver.port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionError):
                assert not plain.recv(100).startswith(b"HTTP")
        receiver.stop()  # does not wait for the idle connection
        sink.close()
    assert count(store) == 3
    with pytest.raises(InvalidSettings, match="PEM"):
        Receiver(store, certificate=tmp_path / "store", key=key)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_stop_waits_for_the_batch_in_hand_and_its_answer(
    store: Store, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    certificate, key = certificates if tls else (None, None)
    has_arrived, go_on, take = threading.Event(), threading.Event(), Receiving.take_points

    def slow(self: Receiving, *given: Any) -> Taken:
        has_arrived.set()
        go_on.wait(300)
        return take(self, *given)

    monkeypatch.setattr(Receiving, "take_points", slow)
    with Receiver(store, certificate=certificate, key=key) as receiver, ThreadPoolExecutor(2) as pool:
        trust = {"ca_file": str(certificate)} if tls else {}
        sink = HoldfastSink(receiver.url, name="hub", **trust)
        sending = pool.submit(sink.send, Batches("hub").points(numbers(3)))
        assert has_arrived.wait(300)
        stopping = pool.submit(receiver.stop)
        with pytest.raises(OSError, match="refused"):  # noqa: PT012  until its port is closed
            while True:
                socket.create_connection(("127.0.0.1", receiver.port)).close()
        time.sleep(0.05)
        go_on.set()
        assert not sending.result(300).repeat
        stopping.result(300)
        sink.close()
    assert count(store) == 3
    with pytest.raises(InvalidSettings, match="was stopped"):
        receiver.start()


def test_a_fault_of_the_receiver_is_logged_there_and_no_broken_link(
    receiver: Receiver, sink: HoldfastSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_given: Any) -> None:
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setattr(Receiving, "take_points", broken)
    with pytest.raises(SinkUnreachable, match="500 Internal Server Error: nobody expected this"):
        sink.send(Batches("hub").points(numbers(1)))
    [logged] = [record for record in caplog.records if record.name == "holdfast.receiver"]
    assert logged.levelname == "ERROR"
    assert logged.exc_info is not None


def request(receiver: Receiver, batch: Batch, body: bytes | None = None, **headers: str | None) -> int:
    """Send a batch with changed headers (`Next` for `Holdfast-Next`), and return the status."""
    content = pack_points(batch.columns) if body is None else body
    given: dict[str, str | None] = {
        "Holdfast-Format": "holdfast-2",
        "Holdfast-Store": batch.store_id,
        "Holdfast-Epoch": str(batch.epoch),
        "Holdfast-Sink": batch.sink,
        "Holdfast-Lane": batch.lane,
        "Holdfast-First": str(batch.first_seq),
        "Holdfast-Last": str(batch.last_seq),
        "Holdfast-Next": batch.tokens.next,
        "Holdfast-Sha256": sha256(content).hexdigest(),
    }
    plain = ("Authorization", "Content-Encoding", "Content-Length")
    given |= {name if name in plain else f"Holdfast-{name}": value for name, value in headers.items()}
    connection = HTTPConnection("127.0.0.1", receiver.port, timeout=PATIENT_S)
    kept = {name: value for name, value in given.items() if value is not None}
    connection.request("POST", "/", content, kept)
    with connection.getresponse() as answer:
        answer.read()
        status = answer.status
    connection.close()
    return status


def test_a_bad_request_stores_nothing_and_has_a_fitting_answer(store: Store, receiver: Receiver) -> None:
    batch = Batches("hub").points(numbers(3))
    cases: list[tuple[int, dict[str, Any]]] = [
        (400, {"Format": "holdfast-1"}),
        (400, {"Store": "x" * 32}),
        (400, {"Epoch": "1e3"}),
        (400, {"First": str(2**63)}),
        (400, {"First": "9"}),
        (400, {"Lane": "fast"}),
        (400, {"Next": None}),
        (400, {"Token": "short"}),
        (400, {"Sink": "%00"}),
        (400, {"Sink": "x" * 256}),
        (400, {"Sha256": "0"}),
        (503, {"Sha256": "0" * 64}),
        (415, {"Content-Encoding": "br"}),
        (400, {"Content-Encoding": "gzip"}),
        (413, {"Content-Length": str(10**12)}),
        (400, {"body": b"no points"}),
        (400, {"body": pack_points(batch.columns)[:-1]}),
        (413, {"body": gzip.compress(bytes(40_000_000)), "Content-Encoding": "gzip"}),
        (400, {"Lane": "records", "body": b"[[1]]"}),
    ]
    for status, changes in cases:
        body = changes.pop("body", None)
        assert request(receiver, batch, body, **changes) == status, changes
    assert store.receiving.positions() == []
    assert count(store) == 0
    assert request(receiver, batch) == 200


def test_a_damaged_body_never_stops_the_receiver(store: Store, receiver: Receiver) -> None:
    chance = random.Random(5)
    batches = Batches("hub")
    batch = batches.points([*numbers(3), ("W", "state", START_US, "x", 1, '{"a":1}')])
    packed = pack_points(batch.columns)
    for _ in range(60):
        body = bytearray(packed)
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(8, len(body))] = chance.randrange(256)
        body[4:8] = crc32(body[8:]).to_bytes(4, "little")  # damage that the checksum does not show
        damaged = bytes(body)
        assert request(receiver, batch, damaged, Store=uuid4().hex) in (200, 400)
    records = [b"[]", b"[[1,2,3,4]]", b'[["r","s","{}",1e400]]', b'[["r","s","[]",1]]', b"[" * 99_999]
    for content in records:
        assert request(receiver, batch, content, Lane="records", Store=uuid4().hex) in (200, 400)
    assert store.records.count() == 0
    assert request(receiver, batch) == 200


def test_threads_may_start_and_stop_it_at_the_same_time(store: Store) -> None:
    """Each stop waits until it has ended; a start that comes too late says so."""

    def stopped(receiver: Receiver) -> bool:
        receiver.stop()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", receiver.port))
        return True

    def started(receiver: Receiver) -> bool:
        with suppress(InvalidSettings):
            receiver.start()
        return True

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            receiver = Receiver(store).start()
            assert all(pool.map(stopped, [receiver] * 8))
        for _ in range(5):
            receiver = Receiver(store)
            calls = [pool.submit(work, receiver) for work in (started, stopped) * 4]
            assert all(call.result(300) for call in calls)
    assert not [thread for thread in threading.enumerate() if thread.name == "holdfast-receiver"]


def test_a_sender_asks_for_its_own_position_among_those_of_all_others(
    store: Store, sink: HoldfastSink
) -> None:
    """The others are damaged, so it is seen if one of them is read."""
    mine = Batches("hub")
    batch = mine.points(numbers(3))
    sink.send(batch)
    assert sink.open(mine.store_id, 2) is None
    sink.send(Batches("hub", store_id=mine.store_id, epoch=2).points(numbers(1)))
    with store._handle.metadata.write() as connection:
        for other in (uuid4().hex, "0" * 32, "f" * 32):
            values = (other, 1, "hub", "0" * 32, 0, "damaged", 0, 0)
            connection.exec_driver_sql("INSERT INTO positions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    assert sink.open(mine.store_id, 1) == batch.tokens.next
    assert [held.epoch for held in sink.held("")] == [1, 2]


def test_slow_and_many_senders_cannot_block_it(store: Store) -> None:
    with Receiver(store, connections=2, timeout_s=0.3) as receiver:
        slow = socket.create_connection(("127.0.0.1", receiver.port))
        slow.sendall(b"POST / HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012  drips until it is cut off
            while True:
                slow.sendall(b"X")
                time.sleep(0.02)
        slow.close()
        with socket.create_connection(("127.0.0.1", receiver.port)) as idle, suppress(ConnectionError):
            idle.sendall(b"GET")
            while idle.recv(100):  # ends when it is cut off
                pass
    with Receiver(store, connections=2, timeout_s=3_600.0) as receiver:
        many = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(2)]
        for connection in many:
            connection.sendall(b"GET")
        batches = Batches("hub")
        sink = HoldfastSink(receiver.url, name="hub", timeout_s=PATIENT_S)
        with pytest.raises(SinkUnreachable, match=r"503|reset"):
            sink.open(batches.store_id, 1)
        for connection in many:
            connection.close()
        while True:  # until the receiver has noticed
            with suppress(SinkUnreachable):
                sink.send(batches.points(numbers(2)))
                break
        sink.close()
    assert count(store) == 2


def test_only_an_answer_of_a_receiver_is_a_receipt(answering: Callable[..., str]) -> None:
    batches = Batches("hub")
    for status, body, error, words in (
        (200, b"<html>log in</html>", SinkUnreachable, "login page"),
        (200, b'{"token":null}', SinkUnreachable, "login page"),
        (200, b'{"format":"holdfast-2","token":"' + b"0" * 32 + b'"}', SinkUnreachable, "another batch"),
        (200, b'{"format":"holdfast-2"}', SinkUnreachable, "another batch"),
        (302, b"", SinkUnreachable, "302"),
        (404, b"", SinkHalted, "404"),
        (409, b"", SinkHalted, "409"),
        (400, b"", SinkHalted, "400"),
        (413, b"", SinkRefused, "413"),
        (507, b"", SinkUnreachable, "507"),
    ):
        url = answering(status, body).replace("http:", "http+holdfast:")
        sink = HoldfastSink(url, name="hub")
        sink._connection.open({"timeout_s": PATIENT_S})
        with pytest.raises(error, match=words):
            sink.send(batches.points(numbers(1)))
        sink.close()


def test_refused_rows_that_make_no_sense_are_left_out(answering: Callable[..., str]) -> None:
    batch = Batches("hub").points(numbers(2))
    refused = b'[[1,"cold"],[2,"x"],[-1,"x"],[true,"x"],["0","x"],[0],5,null]'
    body = b'{"format":"holdfast-2","token":"%s","refused":%s}' % (batch.tokens.next.encode(), refused)
    sink = HoldfastSink(answering(200, body).replace("http:", "http+holdfast:"), name="hub")
    sink._connection.open({"timeout_s": PATIENT_S})
    assert sink.send(batch).refused == ((1, "cold", False),)
    sink.close()


def test_wrong_settings_are_refused(store: Store, tmp_path: Path) -> None:
    for arguments, words in (
        ({"host": "0.0.0.0"}, "needs tokens"),
        ({"port": -1}, "at least 0"),
        ({"port": 70_000}, "at most 65535"),
        ({"port": "http"}, "integer"),
        ({"tokens": TOKEN}, "a list"),
        ({"tokens": ["short"]}, "at least 16"),
        ({"tokens": 5}, "a list"),
        ({"key": tmp_path / "key.pem"}, "needs its certificate"),
        ({"host": "no such host"}, "needs tokens"),
        ({"host": "no such host", "tokens": [TOKEN]}, "cannot listen on"),
        ({"host": "192.0.2.1", "tokens": [TOKEN]}, "cannot listen on"),
        ({"timeout_s": 0}, "at least"),
    ):
        with pytest.raises(InvalidSettings, match=words):
            Receiver(store, **arguments)
    with Receiver(store) as receiver, pytest.raises(InvalidSettings, match="cannot listen on"):
        Receiver(store, port=receiver.port)
    relaxed = Store(tmp_path / "relaxed", Settings(engine="sqlite", durability="normal", background=False))
    with relaxed, pytest.raises(InvalidSettings, match="durability"):
        Receiver(relaxed)
