"""The PostgreSQL sink against a real server: exactly once, partitions, refused items, and what halts it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Forwarder, Progress
from repo.delivery.protocol import Outcome, RecordItem
from repo.delivery.sinks import postgresql_server
from repo.delivery.sinks.postgresql import PostgresqlSink
from repo.delivery.sinks.registry import sink_of
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable, StoreForked
from repo.testing import Batches
from tests.delivery.servers.postgresql import PASSWORD, PostgresqlServer
from tests.delivery.servers.proxy import Proxy

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED_RIGHTS = ROOT / "docs" / "formats.md"
DAY_US = 86_400_000_000
MOMENT_US = 1_767_225_600_000_000
"""2026-01-01, UTC."""


class Chain(Batches):
    """The batches of a store to the sink `hub`."""

    def __init__(self, **identity: Any) -> None:
        super().__init__("hub", **identity)

    def numbers(self, count: int, value: float = 1.5) -> list[Any]:
        """Return the next points: two sensors, a second apart."""
        first = self.last_seq + 1
        return [
            (f"S-{seq % 2}", "flow", MOMENT_US + seq * 1_000_000, value)
            for seq in range(first, first + count)
        ]


@pytest.fixture
def server(postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch) -> PostgresqlServer:
    # What is not answered in this time counts as unreachable.
    monkeypatch.setattr(postgresql_server, "_PING_S", 300)
    return postgresql


@pytest.fixture
def sink(server: PostgresqlServer) -> Iterator[PostgresqlSink]:
    opened = made(server)
    yield opened
    opened.close()


def made(server: PostgresqlServer, **options: Any) -> PostgresqlSink:
    given: dict[str, Any] = {"name": "hub", "user": "admin", "password": PASSWORD} | options
    return PostgresqlSink(given.pop("target", server.url), **given)


def stored(server: PostgresqlServer, chain: Chain, what: str = "value, epoch, seq") -> list[tuple[Any, ...]]:
    return server.ask(f"SELECT {what} FROM holdfast.points WHERE store_id = %s ORDER BY seq", chain.store_id)


def test_batches_arrive_exactly_once_and_the_higher_seq_wins(
    server: PostgresqlServer, sink: PostgresqlSink
) -> None:
    chain = Chain()
    assert sink.open(chain.store_id, 1) is None
    first = chain.points(chain.numbers(3))
    assert sink.send(first).repeat is False
    assert sink.send(first) == Outcome(repeat=True)
    assert sink.open(chain.store_id, 1) == first.tokens.next
    chain.confirm(first)
    # A live batch overwrites a point; the older value, which another batch brings later, does not replace it.
    overwriting = chain.points([("S-1", "flow", MOMENT_US + 4_000_000, 9.5)], first_seq=9)
    sink.send(overwriting)
    chain.confirm(overwriting)
    late = chain.points([("S-1", "flow", MOMENT_US + 4_000_000, 1.5)], first_seq=4, last_seq=8)
    sink.send(late)
    assert stored(server, chain) == [(1.5, 1, 1), (1.5, 1, 2), (1.5, 1, 3), (9.5, 1, 9)]
    ranges = "SELECT ranges::text, points FROM holdfast.positions WHERE store_id = %s"
    assert server.ask(ranges, chain.store_id) == [("{[1,10)}", 5)]


def test_a_copy_of_a_store_and_a_lost_position_are_noticed(
    server: PostgresqlServer, sink: PostgresqlSink
) -> None:
    chain = Chain()
    first, other = chain.points(chain.numbers(2)), chain.points(chain.numbers(2, 7.5))
    sink.send(first)
    with pytest.raises(StoreForked, match=r"127\.0\.0\.1.*sinks rekey"):
        sink.send(other)
    chain.confirm(first)
    sink.send(chain.points(chain.numbers(2)))
    with pytest.raises(StoreForked):
        sink.send(chain.points(chain.numbers(2)))
    assert [row[2] for row in stored(server, chain)] == [1, 2, 3, 4]
    restored = Chain(store_id=chain.store_id, epoch=2)
    assert sink.open(chain.store_id, 2) is None
    sink.send(restored.points(restored.numbers(1, 8.5)))
    assert stored(server, chain)[0] == (8.5, 2, 1)


def test_every_value_of_a_point_and_records_are_kept(server: PostgresqlServer, sink: PostgresqlSink) -> None:
    chain = Chain()
    odd = "tab\t line\n back\\slash \\N Ω \r"
    points: list[Any] = [
        ("S'1", odd, MOMENT_US, float("inf"), -5, None),
        ("S'1", odd, MOMENT_US + 1, 1e-320, 100, '{"a":"\\\\u0000 \\u0000"}'),
        ("S'1", "state", MOMENT_US, odd, 100, '{"b":[1,2.5,"\\n"]}'),
        ("S'1", "state", MOMENT_US + 1, "", 100, None),
        ("S'1", "state", MOMENT_US + 2, None, None, None),
    ]
    batch = chain.points(points)
    assert sink.send(batch).refused == ()
    chain.confirm(batch)
    what = "sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata::text, seq"
    assert stored(server, chain, what) == list(zip(*batch.columns, strict=True))
    records = [RecordItem("r-1", "app", '{"x":1}', MOMENT_US), RecordItem("r-2", odd, "[]", MOMENT_US)]
    batch = chain.records(records)
    sink.send(batch)
    assert sink.send(batch).repeat
    found = "SELECT record_id, source, data::text, timestamp_us FROM holdfast.records WHERE store_id = %s ORDER BY 1"
    assert server.ask(found, chain.store_id) == [tuple(record) for record in records]
    chain.confirm(batch)
    assert (
        sink.send(chain.points([], last_seq=20)).refused == ()
    )  # a range without points moves the position, too


def test_a_month_has_its_partition_whatever_the_clock_of_a_device_says(
    server: PostgresqlServer, sink: PostgresqlSink
) -> None:
    chain = Chain()
    days = [-800_000, 0, 10_956, 10_957, 20_484, 20_485, 47_481, 47_482, 2_900_000]
    batch = chain.points([("S-1", "flow", day * DAY_US, 1.0) for day in days])
    sink.send(batch)
    chain.confirm(batch)
    assert [row[0] for row in stored(server, chain, "tableoid::regclass::text")] == [
        f"holdfast.points_{month}"
        for month in (
            "early", "early", "early", "2000_01", "2026_01", "2026_02", "2099_12", "late", "late"
        )
    ]  # fmt: skip
    server.ask("DROP TABLE holdfast.points_2026_02")
    sink.send(chain.points([("S-2", "flow", 20_485 * DAY_US, 1.0)]))
    assert len(stored(server, chain)) == len(days)


def test_sites_that_need_a_new_month_at_the_same_moment_share_its_partition(
    server: PostgresqlServer, sink: PostgresqlSink
) -> None:
    chain = Chain()
    sink.open(chain.store_id, 1)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    moment_us = MOMENT_US + 400 * DAY_US
    with ThreadPoolExecutor(1) as pool, server.connect(autocommit=False) as other:
        other.execute("SELECT holdfast.make_partition(%s)", (moment_us,))  # not committed yet
        sending = pool.submit(sink.send, chain.points([("S-1", "flow", moment_us, 1.5)]))
        while server.ask(waiting) == [(0,)]:
            assert not sending.done()
            time.sleep(0.01)
        other.commit()
        assert not sending.result().refused
    assert stored(server, chain, "seq") == [(1,)]


def test_items_that_postgresql_cannot_hold_are_named_and_others_lead_to_a_bisection(
    server: PostgresqlServer, sink: PostgresqlSink
) -> None:
    chain = Chain()
    points = chain.numbers(4)
    points[1] = ("S-1", "state", MOMENT_US, "a\0b")
    points[2] = ("S-\ud800", "flow", MOMENT_US, 1.0)
    batch = chain.points(points)
    outcome = sink.send(batch)
    assert [item.row for item in outcome.refused] == [1, 2]
    assert [row[2] for row in stored(server, chain)] == [1, 4]
    chain.confirm(batch)
    bad = chain.points([*chain.numbers(1), ("S-1", "flow", MOMENT_US, 1.0, 100, "{not JSON")])
    with pytest.raises(SinkRefused, match="invalid input syntax for type json"):
        sink.send(bad)
    assert len(stored(server, chain)) == 2
    sink.send(chain.points(chain.numbers(1)))  # the connection still works


def test_a_store_delivers_all_but_one_bad_point_and_waits_for_a_wrong_password(
    server: PostgresqlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_PASSWORD", "wrong")
    with Store(tmp_path / "store", Settings(engine="sqlite", background=False)) as store:
        options: Any = {"user": "admin", "password": "env:HUB_PASSWORD", "schema": "checked"}
        store.sinks.add("hub", server.url, start="beginning", **options)
        store.points.insert_many([("W", "flow", at, float(at)) for at in range(3_000)])
        forwarder = Forwarder(store, "hub")
        assert forwarder.drain()["hub"].last.progress is Progress.HALTED
        assert "password authentication failed" in str(store.sinks.show("hub").last_error)
        monkeypatch.setenv("HUB_PASSWORD", PASSWORD)
        first = made(server, schema="checked")
        first.open("0" * 32, 1)  # creates the tables
        first.close()
        server.ask("ALTER TABLE checked.points ADD CONSTRAINT no_fire CHECK (value <> 451)")
        drained = forwarder.drain()["hub"]
        assert (drained.is_empty, drained.delivered, drained.refused) == (True, 2_999, 1)
        (item,) = store.quarantine.list("hub")
        assert (item.value, item.seq) == (451.0, 452)
        assert "no_fire" in item.reason
        server.ask("ALTER TABLE checked.points DROP CONSTRAINT no_fire")
        store.quarantine.retry(item.id or 0)
        assert forwarder.drain()["hub"].delivered == 1
        assert store.quarantine.count("hub") == 0
    assert server.ask("SELECT count(*), sum(value) FROM checked.points") == [(3_000, 4_498_500.0)]


def test_what_an_administrator_must_mend_halts(server: PostgresqlServer, sink: PostgresqlSink) -> None:
    chain = Chain()
    wrong = (
        rf'^PostgreSQL at 127\.0\.0\.1:{server.port}: password authentication failed for user "admin"; check'
    )
    with pytest.raises(SinkHalted, match=wrong):
        made(server, password="wrong").open(chain.store_id, 1)
    with pytest.raises(SinkHalted, match=r'database "nowhere" does not exist; create the database'):
        made(server, target=server.url.replace("/postgres", "/nowhere")).open(chain.store_id, 1)
    with pytest.raises(SinkHalted, match="SSL"):
        made(server, target=server.url + "?sslmode=require").open(chain.store_id, 1)
    with pytest.raises(SinkHalted, match=r"has no tables of a hub.*formats\.md"):
        made(server, schema="other", create=False).open(chain.store_id, 1)
    sink.send(chain.points(chain.numbers(1)))
    server.ask("CREATE ROLE site LOGIN PASSWORD 'site'")
    site = {"user": "site", "password": "site"}
    with pytest.raises(SinkHalted, match="may not create them"):
        made(server, schema="other", **site).open(chain.store_id, 1)
    with pytest.raises(SinkHalted, match="may not use the schema"):
        made(server, **site).open(chain.store_id, 1)
    for right in ("USAGE ON SCHEMA holdfast", "SELECT, INSERT ON holdfast.points, holdfast.holdfast_version"):
        server.ask(f"GRANT {right} TO site")
    with pytest.raises(SinkHalted, match="may not do all") as halted:
        made(server, **site).open(chain.store_id, 1)
    assert [grant.strip() for grant in str(halted.value).split("grants it:")[1].split(";")] == [
        "GRANT UPDATE ON holdfast.points TO site",
        "GRANT INSERT, SELECT, UPDATE ON holdfast.positions TO site",
        "GRANT INSERT, SELECT, UPDATE ON holdfast.records TO site",
    ]
    server.ask(DOCUMENTED_RIGHTS.read_text().partition("```sql\n")[2].partition("```")[0])
    granted, later = made(server, **site), Chain()
    granted.send(later.points([("S", "flow", MOMENT_US + 900 * DAY_US, 1.0)]))
    granted.close()
    assert len(stored(server, later)) == 1
    for change, back, words in (
        ("RENAME TO elsewhere", "ALTER TABLE holdfast.elsewhere RENAME TO points", "lacks the table points"),
        (
            "RENAME COLUMN quality TO q",
            "ALTER TABLE holdfast.points RENAME COLUMN q TO quality",
            '"quality".*does not exist',
        ),
    ):
        server.ask(f"ALTER TABLE holdfast.points {change}")
        with pytest.raises(SinkHalted, match=words):
            made(server).send(Chain().points(chain.numbers(1)))
        server.ask(back)
    server.ask("UPDATE holdfast.holdfast_version SET version_num = 'h999'")
    with pytest.raises(SinkHalted, match="newer version of this program"):
        sink.open(chain.store_id, 1)
    server.ask("UPDATE holdfast.holdfast_version SET version_num = 'h001'")


def test_a_lost_connection_is_unreachable_and_the_token_says_what_arrived(
    server: PostgresqlServer, sink: PostgresqlSink
) -> None:
    chain = Chain()
    first = chain.points(chain.numbers(2))
    sink.send(first)
    chain.confirm(first)
    server.stop(signal.SIGQUIT)
    second = chain.points(chain.numbers(2))
    with pytest.raises(SinkUnreachable):
        sink.send(second)
    # Refused, or closed by a process that the server started just before it died.
    with pytest.raises(SinkUnreachable):
        sink.open(chain.store_id, 1)
    server.start()
    assert sink.open(chain.store_id, 1) == first.tokens.next
    sink.send(second)
    server.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'holdfast%'"
    )
    chain.confirm(second)
    with pytest.raises(SinkUnreachable):
        sink.send(chain.points(chain.numbers(2)))
    assert sink.open(chain.store_id, 1) == second.tokens.next
    assert [row[2] for row in stored(server, chain)] == [1, 2, 3, 4]


def test_an_internal_error_of_the_server_is_tried_again(server: PostgresqlServer) -> None:
    chain, sink = Chain(), made(server, schema="internal")
    first = chain.points(chain.numbers(1))
    sink.send(first)
    chain.confirm(first)
    server.ask(
        "CREATE FUNCTION internal.fail() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'tuple concurrently deleted' USING ERRCODE = 'XX000'; END $$; "
        "CREATE TRIGGER fail BEFORE UPDATE ON internal.positions EXECUTE FUNCTION internal.fail()"
    )
    with pytest.raises(SinkUnreachable, match="tuple concurrently deleted"):
        sink.send(chain.points(chain.numbers(1)))
    server.ask("DROP TRIGGER fail ON internal.positions")
    assert sink.send(chain.points(chain.numbers(1))).repeat is False
    sink.close()


def answered(call: Callable[[], Any]) -> Any:
    """Call it until the server answers: on a busy machine it may take longer than a hasty sink waits."""
    until_s = time.monotonic() + 300
    while True:
        try:
            return call()
        except SinkUnreachable:
            if time.monotonic() > until_s:
                raise


@pytest.mark.slow
def test_a_link_that_hangs_half_open_is_unreachable(server: PostgresqlServer) -> None:
    chain = Chain()
    with Proxy(server.port) as proxy:
        target = f"postgresql://127.0.0.1:{proxy.port}/postgres?client_encoding=latin1"
        sink = made(server, target=target, timeout_s=2)
        first = chain.points(chain.numbers(2))
        answered(lambda: sink.send(first))
        chain.confirm(first)
        second = chain.points(chain.numbers(2))
        proxy.hang()
        with pytest.raises(SinkUnreachable, match="no answer in 4 s"):
            sink.send(second)
        proxy.mend()
        assert answered(lambda: sink.open(chain.store_id, 1)) == first.tokens.next
        answered(lambda: sink.send(second))
        sink.close()
    assert [row[2] for row in stored(server, chain)] == [1, 2, 3, 4]


def test_the_models_and_the_revisions_of_the_hub_agree(
    server: PostgresqlServer, sink: PostgresqlSink
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from repo.delivery.hub import HUB_VERSION_TABLE, HubBase, enter_schema

    sink.open("0" * 32, 0)
    engine = create_engine("postgresql+psycopg://", creator=lambda: server.connect(autocommit=False))
    with engine.connect() as connection:
        connection.exec_driver_sql(enter_schema("holdfast"))
        options = {"compare_server_default": True, "version_table": HUB_VERSION_TABLE}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), HubBase.metadata)
    engine.dispose()
    assert [found for found in differences if found[0] != "remove_table"] == []


@pytest.mark.slow
def test_an_administrator_creates_the_tables_from_the_command_line(server: PostgresqlServer) -> None:
    url = server.url.replace("postgresql://", f"postgresql+psycopg://admin:{PASSWORD}@")
    command = [sys.executable, "-m", "alembic", "-n", "hub", "-x", f"url={url}", "-x", "schema=by hand"]
    subprocess.run([*command, "upgrade", "head"], cwd=ROOT, check=True, capture_output=True)
    printed = subprocess.run(
        [*command, "upgrade", "head", "--sql"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert 'SET search_path TO "by hand"' in printed.stdout
    assert "CREATE FUNCTION make_partition" in printed.stdout
    sink, chain = made(server, schema="by hand", create=False), Chain()
    sink.send(chain.points(chain.numbers(2)))
    sink.close()
    assert server.ask('SELECT count(*) FROM "by hand".points_2026_01') == [(2,)]


def test_wrong_settings_are_refused_before_anything_is_opened() -> None:
    pytest.importorskip("psycopg")
    for target, options, words in (
        ("postgresql://u:p@h/d", {}, "must not contain a password"),
        ("postgresql://h:port:1/d", {}, "not the URL"),
        ("postgresql://h/d?nosuch=1", {}, "not the URL"),
        ("postgresql://h/d", {"create": "perhaps"}, "True or False"),
        ("postgresql://h/d", {"timeout_s": 0}, "at least 2"),
        ("postgresql://h/d", {"password": "literal"}, "env:NAME"),
    ):
        with pytest.raises(InvalidSettings, match=words):
            sink_of("hub", "postgresql", target, options)
