"""The HTTP sink: what it sends, what each answer means, and real databases behind it."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import Forwarder, Settings, Store
from repo.delivery.keys import BatchKey
from repo.delivery.protocol import Item, Lane, RecordItem, Sink
from repo.delivery.sinks.http import HttpSink
from repo.delivery.sinks.registry import sink_of
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable
from tests.delivery.impatience import PATIENT_S, impatient
from tests.delivery.servers.certificates import Certificates
from tests.delivery.servers.influxdb import InfluxDB
from tests.delivery.servers.process import closed_port
from tests.delivery.servers.scripted import Asked, Reply, Scripted, receipt
from tests.delivery.servers.victoria_metrics import VictoriaMetrics
from tests.delivery.sink_batches import START_US, STORE, batch_of

POINTS = [("W", "flow", START_US + at, at / 7) for at in range(5)]
BATCH = batch_of(POINTS)


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


def ready(url: str, **options: Any) -> HttpSink:
    sink = HttpSink(url, name="there", **{"timeout_s": PATIENT_S, **options})
    sink.open(STORE, 1)
    return sink


def always(status: int, body: bytes = b"", **headers: str) -> Callable[[Asked], Reply]:
    return lambda _: Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def test_a_batch_is_posted_with_its_key_and_confirmed_by_a_receipt(server: Scripted) -> None:
    sink = ready(server.url + "/points?site=1")
    outcome = sink.send(BATCH)
    assert (outcome.refused, outcome.repeat, 0 < outcome.sent_bytes < 500) == ((), False, True)
    (asked,) = server.asked
    assert asked.path == "/points?site=1"
    assert [json.loads(line)["value"] for line in asked.body.splitlines()] == [at / 7 for at in range(5)]
    assert asked.headers["content-type"] == "application/x-ndjson"
    assert asked.headers["idempotency-key"] == str(BatchKey.of(BATCH, asked.body))
    assert (asked.headers["holdfast-lane"], asked.headers["holdfast-attempt"]) == ("live", "1")
    server.answer = lambda asked: receipt(asked, repeat=True)
    again = batch_of(POINTS, lane=Lane.BACKFILL, attempt=2)
    assert sink.send(again).repeat
    assert (server.asked[1].headers["holdfast-lane"], server.asked[1].headers["holdfast-attempt"]) == (
        "backfill",
        "2",
    )
    assert server.asked[1].headers["idempotency-key"] == asked.headers["idempotency-key"]
    sink.close()
    sink.close()


def test_json_and_compressions_carry_the_same_points(server: Scripted) -> None:
    for compression in ("none", "gzip", "zstd"):
        with_zstd = compression == "zstd"
        if with_zstd:
            zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
        sink = ready(server.url, format="json", compression=compression)
        sink.send(BATCH)
        sink.close()
        body = server.asked[-1].body
        content = zstandard.ZstdDecompressor().decompressobj().decompress(body) if with_zstd else body
        assert [one["seq"] for one in json.loads(content)] == [1, 2, 3, 4, 5]
        assert server.asked[-1].headers.get("content-encoding", "none") == compression


def test_records_are_posted_as_json(server: Scripted) -> None:
    sink = ready(server.url)
    assert sink.takes_records
    sink.send(batch_of([], lane=Lane.RECORDS, records=[RecordItem("r1", "opcua", '{"x":1}', 5)]))
    assert json.loads(server.asked[0].body)["data"] == {"x": 1}
    assert server.asked[0].headers["holdfast-lane"] == "records"
    sink.close()
    assert not HttpSink(server.url, name="x", format="influx1").takes_records


def test_a_receipt_may_refuse_items(server: Scripted) -> None:
    """What else it says, such as the receiver's clock, means nothing."""
    server.answer = lambda asked: receipt(
        asked, refused=[[3, "too hot"], [1, "too old", True]], time="1970-01-01T00:00:00Z", clock=-1e300
    )
    sink = ready(server.url)
    assert sink.send(BATCH).refused == (Item(1, "too old", too_late=True), Item(3, "too hot"))
    sink.close()


@pytest.mark.parametrize(
    "page",
    [
        b"<html>Welcome! Please log in.</html>",
        b"[]",
        b"{}",
        b"",
        b'"key"',
        b'{"key":"holdfast-2.other"}',
        b'{"key":KEY,"refused":[[5,"no such row"]]}',
        b'{"key":KEY,"refused":[1]}',
        b'{"key":KEY,"refused":{"a":1}}',
        b"[" * 5000,
    ],
)
def test_an_answer_200_without_a_receipt_does_not_confirm(server: Scripted, page: bytes) -> None:
    sink = ready(server.url)
    server.answer = lambda asked: Reply(
        200, page.replace(b"KEY", json.dumps(asked.headers["idempotency-key"]).encode())
    )
    with pytest.raises(SinkUnreachable, match=r"without a receipt|receipt for another batch"):
        sink.send(BATCH)
    sink.close()


def test_without_receipts_any_success_confirms_but_a_web_page(server: Scripted) -> None:
    sink = ready(server.url, receipts=False)
    server.answer = always(202, b"thanks", Content_Type="text/plain")
    sink.send(BATCH)
    server.answer = always(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(SinkUnreachable, match="login page"):
        sink.send(BATCH)
    sink.close()


@pytest.mark.parametrize("status", [302, 303, 307, 408, 425, 429, 500, 502, 503, 504, 511])
def test_these_answers_mean_to_try_again(server: Scripted, status: int) -> None:
    sink = ready(server.url)
    server.answer = always(status, b"busy", Retry_After="7", Location="http://127.0.0.1:1/")
    with pytest.raises(SinkUnreachable, match=f"{status}.*busy") as raised:
        sink.send(BATCH)
    assert raised.value.retry_after_s == 7
    server.answer = always(status, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")
    with pytest.raises(SinkUnreachable) as raised:
        sink.send(BATCH)
    assert raised.value.retry_after_s is None
    assert len(server.asked) == 2
    sink.close()


@pytest.mark.parametrize("status", [400, 413, 422])
def test_these_answers_mean_that_an_item_is_refused(server: Scripted, status: int) -> None:
    sink = ready(server.url)
    server.answer = always(status, b"no, thanks")
    with pytest.raises(SinkRefused, match=f"{status}.*no, thanks"):
        sink.send(BATCH)
    sink.close()


@pytest.mark.parametrize("status", [301, 308, 401, 403, 404, 405, 415, 501])
def test_any_other_answer_halts(server: Scripted, status: int) -> None:
    sink = ready(server.url)
    server.answer = always(status, b"no, thanks", Location="http://127.0.0.1:1/")
    what_to_do = {
        401: "check the token",
        403: "may do there",
        404: "check the URL and the options of the sink",
    }.get(status, "")
    with pytest.raises(SinkHalted, match=f"{status}.*no, thanks.*{what_to_do}"):
        sink.send(BATCH)
    sink.close()


def test_credentials_are_sent_as_the_format_wants_them(
    server: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SITE_TOKEN", "s3cret")
    (tmp_path / "password").write_text("pa:ss\n")
    influx = {"format": "influx2", "org": "o", "bucket": "b"}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"token": "env:SITE_TOKEN"}, "authorization", "Bearer s3cret"),
        ({"token": "env:SITE_TOKEN", **influx}, "authorization", "Token s3cret"),
        ({"user": "me", "password": f"file:{tmp_path}/password"}, "authorization", "Basic bWU6cGE6c3M="),
        ({"header.X-Api-Key": "env:SITE_TOKEN"}, "x-api-key", "s3cret"),
        ({"header.X-Site": "7"}, "x-site", "7"),
    ]
    for options, header, value in cases:
        sink = sink_of("there", "http", server.url, options)
        server.answer = receipt if "format" not in options else always(204)
        sink.open(STORE, 1)
        sink.send(BATCH)
        assert server.asked[-1].headers[header] == value
        sink.close()
    monkeypatch.delenv("SITE_TOKEN")
    with pytest.raises(SinkHalted, match="SITE_TOKEN"):
        sink_of("there", "http", server.url, {"token": "env:SITE_TOKEN"}).open(STORE, 1)
    with pytest.raises(SinkHalted, match="header Authorization must be ASCII"):
        ready(server.url, token="s3crét")
    for secret in ({"token": "s3cret"}, {"header.X-Api-Key": "s3cret"}):
        with pytest.raises(InvalidSettings) as raised:
            sink_of("there", "http", server.url, secret)
        assert "s3cret" not in str(raised.value)


def test_each_version_of_influxdb_has_its_endpoint(server: Scripted) -> None:
    server.answer = always(204)
    cases: list[tuple[str, dict[str, Any], str]] = [
        (
            "",
            {"format": "influx1", "database": "site 1", "retention_policy": "r"},
            "/write?db=site+1&rp=r&precision=u",
        ),
        ("/insert/0/influx/write", {"format": "influx1", "precision": "ns"}, "/insert/0/influx/write"),
        (
            "/",
            {"format": "influx2", "org": "o&p", "bucket": "b"},
            "/api/v2/write?org=o%26p&bucket=b&precision=us",
        ),
        (
            "",
            {"format": "influx3", "database": "d", "precision": "ns"},
            "/api/v3/write_lp?db=d&precision=nanosecond&accept_partial=true",
        ),
    ]
    for path, options, expected in cases:
        sink = ready(server.url + path, **options)
        sink.send(BATCH)
        sink.close()
        assert server.asked[-1].path == expected
        zeros = "000" if options.get("precision") == "ns" else ""
        assert server.asked[-1].body.splitlines()[1].decode() == (
            f"flow,sensor_id=W value={1 / 7},quality=100i {START_US + 1}{zeros}"
        )
    for options in (
        {"format": "influx2", "org": "o"},
        {"format": "influx2", "bucket": "b"},
        {"format": "influx3"},
    ):
        with pytest.raises(InvalidSettings, match="needs the option"):
            HttpSink(server.url, name="there", **options)


def test_only_204_confirms_line_protocol(server: Scripted) -> None:
    sink = ready(server.url, format="influx1", database="site")
    for status in (200, 202):
        server.answer = always(status, b"<html>log in</html>")
        with pytest.raises(SinkUnreachable, match="did not answer 204"):
            sink.send(BATCH)
    sink.close()


def test_a_partial_write_of_version_3_names_the_refused_lines(server: Scripted) -> None:
    points = [
        ("W", "flow", 1, 1.0),
        ("W", "flow", 2, float("inf")),
        ("W", "flow", 3, 3.0),
        ("W", "flow", 4, 4.0),
    ]
    data: Any = [{"original_line": "...", "line_number": 2, "error_message": "invalid column type"}]
    server.answer = always(
        400, json.dumps({"error": "partial write of line protocol occurred", "data": data}).encode()
    )
    sink = ready(server.url, format="influx3", database="site")
    assert sink.send(batch_of(points)).refused == (
        Item(1, "line protocol has no infinity"),
        Item(2, "invalid column type"),
    )
    for broken in ([{"line_number": 9}], [{"line_number": "2"}], [7], [], {"line_number": 2}):
        server.answer = always(
            400, json.dumps({"error": "partial write of line protocol occurred", "data": broken}).encode()
        )
        with pytest.raises(SinkRefused):
            sink.send(batch_of(points))
    sink.close()


def test_a_partial_write_of_version_2_is_judged_by_its_message(server: Scripted) -> None:
    """The texts are those of version 2.7. It says how many points it dropped, never which."""
    points = [("W", "flow", at, float(at)) for at in range(1, 5)]
    sink = ready(server.url, format="influx2", org="o", bucket="b")
    bound = "dropped because it violates a Retention Policy Lower Bound at 2025-05-20T19:06:17.612973Z"
    late = (
        "failure writing points to database: partial write: dropped {0} points outside retention policy of duration "
        "24h0m0s - oldest point flow,sensor_id=W at 1970-01-01T00:00:00.000001Z {1}, newest point flow,sensor_id=W at "
        "1970-01-01T00:00:00.000004Z {1} dropped={0} for database: 0a1b2c3d4e5f6071 for retention policy: autogen"
    )
    conflict = (
        'failure writing points to database: partial write: field type conflict: input field "value" on measurement '
        '"flow" is type float, already exists as type integer dropped={0}'
    )

    def answer(status: int, code: str, message: str) -> None:
        server.answer = always(status, json.dumps({"code": code, "message": message}).encode())

    for message, too_late in ((late.format(4, bound), True), (conflict.format(4), False)):
        answer(422, "unprocessable entity", message)
        refused = sink.send(batch_of(points)).refused
        assert [(item.row, item.too_late) for item in refused] == [(row, too_late) for row in range(4)]
    for message in (late.format(1, bound), conflict.format(3)):
        answer(422, "unprocessable entity", message)
        with pytest.raises(SinkRefused, match="a part of the batch"):
            sink.send(batch_of(points))
    answer(400, "invalid", "unable to parse 'flow value=1 x': bad timestamp")
    with pytest.raises(SinkRefused, match="bad timestamp"):  # nothing was stored
        sink.send(batch_of(points))
    answer(404, "not found", 'bucket "b" not found')
    with pytest.raises(SinkHalted, match="bucket"):
        sink.send(batch_of(points))
    # Some clusters of version 3 answer 201 at this endpoint.
    answer(201, "invalid", "partial write has occurred, first rejected line: 2")
    with pytest.raises(SinkRefused, match="a part of the batch"):
        sink.send(batch_of(points))
    sink.close()


def test_a_check_asks_a_database_by_an_empty_write_and_sends_other_receivers_nothing(
    server: Scripted,
) -> None:
    sink = ready(server.url, token="s3cret-of-the-site")
    assert "is known only after a delivery" in sink.check()
    assert server.asked == []
    sink.close()
    sink = ready(server.url, format="influx2", org="o", bucket="b", token="s3cret-of-the-site")
    for answer, error in (
        (always(401), SinkHalted),
        (always(404, b'{"message": "bucket not found"}'), SinkHalted),
        (always(503), SinkUnreachable),
        (always(200, b"<html>login</html>"), SinkUnreachable),
    ):
        server.answer = answer
        with pytest.raises(error):
            sink.check()
    server.answer = always(400, b'{"message": "writing requires points"}')  # version 2.0
    assert "answered an empty write with 400" in sink.check()
    sink.close()
    assert {(asked.body, asked.headers["authorization"]) for asked in server.asked} == {
        (b"", "Token s3cret-of-the-site")
    }


def test_a_database_that_answers_a_write_without_points_alike_refuses_no_point(server: Scripted) -> None:
    """A wrong path or name may get the status and the words of a wrong point."""
    first = batch_of(POINTS[:1])
    sink = ready(server.url, format="influx1", database="site")
    server.answer = always(400, b"bad request")
    with pytest.raises(SinkRefused):  # it may be a point: the forwarder splits the batch
        sink.send(BATCH)
    with pytest.raises(
        SinkHalted, match=r"400.*bad request; a write without points gets the same answer: check"
    ):
        sink.send(first)
    assert [len(asked.body.splitlines()) for asked in server.asked] == [5, 1, 0]

    server.answer = lambda asked: Reply(400, b"bad point" if asked.body else b"no points")
    with pytest.raises(SinkRefused, match="bad point"):
        sink.send(first)

    server.answer = lambda asked: Reply(400 if asked.body else 204, b"bad point" if asked.body else b"")
    for _ in range(2):
        [refused] = sink.send(first).refused
        assert (refused.row, "400 Bad Request: bad point" in refused.reason) == (0, True)
    assert [len(asked.body.splitlines()) for asked in server.asked[5:]] == [1, 0, 1], "asked once"

    server.answer = always(400, b"bad request")
    assert len(sink.send(first).refused) == 1, "it has accepted something, so the URL is right"
    sink.open(STORE, 1)
    with pytest.raises(SinkHalted):
        sink.send(first)
    sink.close()


def test_nothing_goes_into_quarantine_at_a_wrong_target_and_all_is_delivered_at_the_right_one(
    server: Scripted, tmp_path: Path
) -> None:
    server.answer = always(400, b"no such table")
    with Store(tmp_path / "store", Settings(background=False, engine="sqlite")) as store:
        store.points.insert_many([("W", "flow", 1e9 + at, 1.0) for at in range(40)])
        store.sinks.add("there", server.url + "/x", start="beginning", format="influx1", database="d")
        halted = Forwarder(store).drain()["there"]
        assert (halted.delivered, halted.refused, halted.last.progress) == (0, 0, "halted")
        assert store.sinks.show("there").state == "halted"
        assert store.quarantine.count("there") == 0
        server.answer = always(204)
        done = Forwarder(store).drain()["there"]
        assert (done.delivered, done.refused, done.is_empty) == (40, 0, True)


def test_points_that_no_line_can_express_are_refused_without_a_request(server: Scripted) -> None:
    sink = ready(server.url, format="influx1", database="site")
    outcome = sink.send(batch_of([("W\\", "flow", 1, 1.0), ("W", "#flow", 1, 1.0)]))
    assert [item.row for item in outcome.refused] == [0, 1]
    assert server.asked == []
    sink.close()


def test_a_link_that_is_down_is_unreachable() -> None:
    with closed_port() as port:
        with pytest.raises(SinkUnreachable, match="did not answer"):
            ready(f"http://127.0.0.1:{port}")
        with pytest.raises(SinkUnreachable, match="did not answer"):
            HttpSink(f"http://127.0.0.1:{port}", name="there").send(BATCH)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        sink = ready(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(SinkUnreachable, match="timed out"):
            sink.send(BATCH)


def test_a_connection_that_was_closed_while_idle_is_opened_again(server: Scripted) -> None:
    sink = ready(server.url)
    sink.send(BATCH)
    assert sink._connection._connection is not None
    sink._connection._connection.sock.shutdown(socket.SHUT_RDWR)
    sink.send(BATCH)
    assert len(server.asked) == 2
    sink.close()


def test_a_receipt_that_comes_late_or_twice_confirms_no_other_batch(server: Scripted) -> None:
    came, gave_up = threading.Event(), threading.Event()

    def answer(asked: Asked) -> Reply:
        came.set()
        gave_up.wait(300)
        reply = receipt(asked)
        # The same answer once more, as of a proxy that has gone mad.
        extra = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply.body)
        return Reply(200, reply.body, {}, extra + reply.body)

    server.answer = answer
    sink = ready(server.url)
    with impatient(sink, 0.3):
        sink.open(STORE, 1)
        with pytest.raises(SinkUnreachable, match="timed out"):
            sink.send(BATCH)
    assert came.wait(300)
    gave_up.set()
    sink.open(STORE, 1)
    sink.send(BATCH)
    other = batch_of(POINTS, 6)
    server.answer = receipt
    try:  # if the second receipt is read as the answer to this batch
        sink.send(other)
    except SinkUnreachable:
        sink.open(STORE, 1)
        sink.send(other)
    assert BatchKey.parse(server.asked[-1].headers["idempotency-key"]).first_seq == 6
    sink.close()


def test_an_answer_that_comes_before_the_body_was_read_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
            connection.close()

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        sink = ready(f"http://127.0.0.1:{listener.getsockname()[1]}", compression="none")
        with pytest.raises(SinkRefused, match="413"):
            sink.send(batch_of([("W", "text", at, "x" * 60_000) for at in range(200)]))
        thread.join()
        sink.close()


def test_tls_checks_the_certificate_and_halts_if_it_is_not_trusted(
    certificates: Certificates, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates)
    trusted = {"ca_file": f"{certificates.certificate}"}
    with Scripted(tls=context) as server:
        sink = ready(server.url, **trusted)
        sink.send(BATCH)
        sink.close()
        with pytest.raises(SinkHalted, match=r"is not trusted.*ca_file"):
            ready(server.url)
        with pytest.raises(SinkHalted, match=r"is not trusted.*mismatch|is not trusted.*not valid for"):
            ready(server.url.replace("127.0.0.1", "localhost"), **trusted)
        (tmp_path / "junk.pem").write_text("junk")
        for options, words in (
            ({"ca_file": f"{tmp_path}/junk.pem"}, "contains no PEM certificates"),
            ({"ca_file": f"{tmp_path}/none.pem"}, "cannot be read"),
            ({"cert_file": f"{tmp_path}/junk.pem", **trusted}, "not a PEM certificate"),
            ({"key_file": f"{certificates.key}", **trusted}, "needs the option cert_file"),
        ):
            with pytest.raises(SinkHalted, match=words):
                ready(server.url, **options)
    with Scripted() as plain_server, pytest.raises(SinkHalted, match="TLS with"):
        ready(plain_server.url.replace("http", "https"))


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://host/x", "http://", "http://host:port/", "http://me:s3cret@host/"]
)
def test_an_invalid_url_is_refused_and_the_message_contains_no_secret(url: str) -> None:
    with pytest.raises(InvalidSettings) as raised:
        HttpSink(url, name="there")
    assert "s3cret" not in str(raised.value)


def test_invalid_options_are_refused() -> None:
    for options in (
        {"fromat": "json"},
        {"format": "xml"},
        {"header.a b": "1"},
        {"header.": "1"},
        {"timeout_s": 0},
    ):
        with pytest.raises(InvalidSettings):
            HttpSink("http://host/", name="there", **options)


@pytest.fixture(scope="module")
def influxdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxDB]:
    with InfluxDB(tmp_path_factory.mktemp("influxdb")) as server:
        yield server


def delivered(sink: Sink, points: list[Any]) -> dict[int, str]:
    """Deliver points as a forwarder does; return what was refused, by its row."""
    refused: dict[int, str] = {}

    def part(first: int, stop: int) -> None:
        try:
            for item in sink.send(batch_of(points[first:stop], first + 1)).refused:
                refused[first + item.row] = ("too late: " if item.too_late else "") + item.reason
        except SinkRefused as error:
            if stop - first == 1:
                refused[first] = str(error)
            else:
                half = (first + stop) // 2
                part(first, half)
                part(half, stop)

    part(0, len(points))
    return refused


def test_influxdb_stores_what_was_sent_and_names_what_it_refuses(influxdb: InfluxDB) -> None:
    names = ["plain", "a b", "a,b", "a=b", 'a"b', r"a\b", "é日😀", "/+", "'x'"]
    points: list[tuple[Any, ...]] = [
        (name, f"odd {name}", START_US + at, at + 0.1, 100 - at, None) for at, name in enumerate(names)
    ]
    points += [
        ("W", "state", START_US, 'on "b\\" é', 100, '{"k":"a\\"b"}'),
        ("W", "state", START_US + 1, "", 0, None),
        ("W", "flow", START_US, 1.7976931348623157e308, 100, None),
        ("W", "flow", -5, 5e-324, -(2**31), None),
        ("W", "flow", START_US + 2, None, 3, None),
        ("W", "flow", START_US + 3, float("inf"), 100, None),
        ("W", "flow", 2**55, 1.0, 100, None),
        ("W", "flow", START_US + 4, 4.0, 100, None),
    ]
    sink = ready(influxdb.url, format="influx1", database="site")
    refused = delivered(sink, points)
    assert (refused[14], "time outside range" in refused[15]) == ("line protocol has no infinity", True)
    assert refused.keys() == {14, 15}
    found = influxdb.points()
    for row, point in enumerate(points):
        if row not in refused:
            sensor, metric, us, value, quality, metadata = point
            shown = (None, value) if isinstance(value, str) else (value, None)
            assert found.pop((sensor, metric, us)) == (*shown, quality, metadata)
    assert found == {}
    sink.close()


def test_influxdb_refuses_one_point_of_another_type_and_old_ones_as_too_late(influxdb: InfluxDB) -> None:
    influxdb.query("CREATE DATABASE other")
    sink = ready(influxdb.url, format="influx1", database="other")
    influxdb.query('CREATE RETENTION POLICY "short" ON other DURATION 1h REPLICATION 1')
    sink.send(batch_of([("W", "flow", START_US, 1.0)]))
    other_type = ready(f"{influxdb.url}/write?db=other&precision=u", format="influx1", precision="ns")
    points = [("W", "m", START_US * 1000 + at, float(at)) for at in range(100)]
    with pytest.raises(SinkRefused):  # times of another unit are outside of the range
        other_type.send(batch_of(points))
    late = ready(influxdb.url, format="influx1", database="other", retention_policy="short")
    refused = delivered(late, [("W", "flow", START_US + at, 1.0) for at in range(4)])
    assert refused.keys() == {0, 1, 2, 3}
    assert all(
        reason.startswith("too late: partial write: points beyond retention") for reason in refused.values()
    )
    for one in (sink, other_type, late):
        one.close()


def test_influxdb_halts_for_a_wrong_database_policy_or_password(
    influxdb: InfluxDB, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wrong: list[dict[str, Any]] = [{"database": "nix"}, {}, {"database": "site", "retention_policy": "nix"}]
    for options in wrong:
        sink = ready(influxdb.url, format="influx1", **options)
        with pytest.raises(SinkHalted, match=r"not found|required"):
            sink.send(BATCH)
        with pytest.raises(SinkHalted, match=r"not found|required"):
            sink.check()
        sink.close()
    with InfluxDB(tmp_path_factory.mktemp("auth"), auth=True) as guarded:
        sink = ready(guarded.url, format="influx1", database="site", user="admin", password="wrong")
        for ask in (sink.check, lambda: sink.send(BATCH)):
            with pytest.raises(SinkHalted, match="401"):
                ask()
        sink.close()
        sink = ready(guarded.url, format="influx1", database="site", user="admin", password="s3cret")
        assert "accepts the login" in sink.check()
        assert guarded.points() == {}
        sink.send(BATCH)
        sink.close()
        assert len(guarded.points()) == 5


def test_victoria_metrics_stores_what_was_sent(tmp_path: Path) -> None:
    """Also at the endpoint of InfluxDB 2, whose units of times have other names."""
    formats: tuple[dict[str, str], ...] = (
        {"format": "influx1"},
        {"format": "influx2", "org": "o", "bucket": "b"},
        {"format": "influx2", "org": "o", "bucket": "b", "precision": "ns"},
    )
    with VictoriaMetrics(tmp_path) as database:
        for number, options in enumerate(formats):
            sink = ready(database.url, **options)
            assert "accepts the login" in sink.check()
            points = [(f"a,{number}", "m x", START_US + at * 1000, float(at)) for at in range(9)]
            assert sink.send(batch_of(points)).refused == ()
            sink.close()
        sink = ready(database.url + "/wrong", format="influx1")
        for ask in (sink.check, lambda: sink.send(batch_of(points))):
            with pytest.raises(SinkHalted, match="check the path in the URL"):
                ask()
        sink.close()
        found = database.points(27)
    expected = {
        (f"a,{number}", "m x", START_US // 1000 + at): float(at) for number in range(3) for at in range(9)
    }
    assert found == expected
