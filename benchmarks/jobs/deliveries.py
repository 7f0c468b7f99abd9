"""Deliveries: the backlog of a store to each kind of sink, compared with the destination's own bulk loader.

Every run delivers to an empty destination. The backlog is compacted, as it is after a long outage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.asking import PRODUCT
from benchmarks.measure import Contest, Figure, Plan, Side, ratio
from benchmarks.peers.arrow import arrow_of
from benchmarks.peers.postgresql import PostgreSQL
from benchmarks.peers.sqlite_tuned import TunedSQLite
from benchmarks.peers.victoria_metrics import VictoriaMetrics
from benchmarks.standing import Standing, standing
from repo import Forwarder, Store
from repo.delivery.protocol import Batch, Outcome
from repo.delivery.receiver import Receiver
from repo.delivery.sinks.postgresql import PostgresqlSink

__all__ = ["KEYS", "deliveries"]

KEYS = ("deliver-columns", "deliver-postgresql", "deliver-holdfast", "deliver-folder", "deliver-influx")

_PAGE_ROWS = 100_000
_STORE_ID = "0" * 32
_COLUMNS = "store_id, sensor_id, metric_name, timestamp_us, value, quality, epoch, seq"
_LINES = 10_000
_DAY_US = 86_400_000_000
_number = count()


def deliveries(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure each kind of sink that needs no broker."""
    yield from _columns(standing(plan))
    held = standing(plan, plan.carried_points)
    with ExitStack() as open_:
        folder = open_.enter_context(plan.scratch())
        store = open_.enter_context(Store(held.store(compacted=True)))
        for key, make in (
            ("deliver-postgresql", _postgresql),
            ("deliver-holdfast", _holdfast),
            ("deliver-folder", _folder),
            ("deliver-influx", _influx),
        ):
            with ExitStack() as until_done:
                yield make(key, store, held, _Places(folder / key, plan.cache / "servers"), until_done)


class _Places(NamedTuple):
    """Where a comparison writes: a folder of its own, and one that the servers' user may enter."""

    folder: Path
    servers: Path


class _Discards:
    """A sink that takes the columns and forgets them."""

    exact = False
    takes_records = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.points = 0

    def open(self, _store_id: str, _epoch: int) -> str | None:
        """Nothing to connect to."""
        return None

    def send(self, batch: Batch) -> Outcome:
        """Count the points."""
        self.points += len(batch)
        return Outcome()

    def close(self) -> None:
        """Nothing to disconnect from."""


def _columns(held: Standing) -> Iterator[Contest]:
    with ExitStack() as open_:
        store = open_.enter_context(Store(held.store(compacted=True)))
        sqlite: Any = held.peer(TunedSQLite, TunedSQLite.key)
        open_.callback(sqlite.close)

        def ours() -> float:
            sink = _Discards(f"discards-{next(_number)}")
            return _drained(store, Forwarder(store, sink), sink.name, held.points)

        def theirs() -> float:
            started = time.perf_counter()
            rows = sum(len(page) for page in sqlite.drain(_PAGE_ROWS))
            return rows / (time.perf_counter() - started)

        yield _contest("deliver-columns", ours, sqlite.name, theirs, sqlite.key, f"{held.points:,} points")


def _postgresql(
    key: str, store: Store, held: Standing, places: _Places, open_: ExitStack
) -> Contest | Figure:
    missing = PostgreSQL.missing()
    if missing:
        return Figure(key, [], skipped=missing)
    server = PostgreSQL(places.servers, held.series)
    open_.callback(server.close)
    file = _copy_file(held, places.folder)

    def ours() -> float:
        schema = f"hub{next(_number)}"
        store.sinks.add(schema, server.url, start="beginning", user="bench", schema=schema)
        return _drained(store, Forwarder(store, schema), schema, held.points)

    def theirs() -> float:
        import psycopg

        schema = f"peer{next(_number)}"
        sink = PostgresqlSink(server.url, name=schema, user="bench", schema=schema)
        sink.open(_STORE_ID, 1)  # the same tables
        sink.close()
        with psycopg.connect(server.url, user="bench", autocommit=True) as connection:
            connection.execute(f"SET search_path TO {schema}")
            for us in range(held.first_us, held.last_us + _DAY_US, _DAY_US):
                connection.execute("SELECT make_partition(%s)", (us,))
            started = time.perf_counter()
            with (
                file.open("rb") as lines,
                connection.cursor() as cursor,
                cursor.copy(f"COPY points ({_COLUMNS}) FROM STDIN") as copy,
            ):
                while piece := lines.read(1_048_576):
                    copy.write(piece)
            return held.points / (time.perf_counter() - started)

    return _contest(key, ours, "COPY of a file into the same table", theirs, "postgresql-copy", _of(held))


def _copy_file(held: Standing, folder: Path) -> Path:
    folder.mkdir()
    file, seq = folder / "points.copy", 0
    with file.open("w") as lines:
        for piece in held.readings():
            for number, us, value, quality, _ in piece.keyed_tuples():
                seq += 1
                sensor, metric = held.series[number]
                lines.write(f"{_STORE_ID}\t{sensor}\t{metric}\t{us}\t{value!r}\t{quality}\t1\t{seq}\n")
    return file


def _holdfast(key: str, store: Store, held: Standing, places: _Places, _open: ExitStack) -> Contest:
    tables = [arrow_of(piece) for piece in held.readings()]

    def ours() -> float:
        name = f"store{next(_number)}"
        with Store(places.folder / name) as receiving, Receiver(receiving, "127.0.0.1", 0) as receiver:
            store.sinks.add(name, f"http+holdfast://127.0.0.1:{receiver.port}", start="beginning")
            return _drained(store, Forwarder(store, name), name, held.points)

    def theirs() -> float:
        with Store(places.folder / f"peer{next(_number)}") as receiving:
            started = time.perf_counter()
            for table in tables:
                receiving.points.insert_table(table)
            return held.points / (time.perf_counter() - started)

    return _contest(key, ours, "insert_table of Arrow tables into a store", theirs, "insert-table", _of(held))


def _folder(key: str, store: Store, held: Standing, places: _Places, _open: ExitStack) -> Contest:
    def ours() -> float:
        name = f"stick{next(_number)}"
        stick = places.folder / name
        stick.mkdir(parents=True)
        (stick / "holdfast-folder.json").touch()
        store.sinks.add(name, stick.as_uri(), start="beginning")
        return _drained(store, Forwarder(store, name), name, held.points)

    def theirs() -> float:
        started = time.perf_counter()
        store.export(places.folder / f"export{next(_number)}", partition="day")
        return held.points / (time.perf_counter() - started)

    places.folder.mkdir()
    return _contest(key, ours, "export of a bundle", theirs, "export", _of(held))


def _influx(key: str, store: Store, held: Standing, places: _Places, open_: ExitStack) -> Contest | Figure:
    missing = VictoriaMetrics.missing()
    if missing:
        return Figure(key, [], skipped=missing)
    server = VictoriaMetrics(places.servers, held.series)
    open_.callback(server.close)
    rows = [row for piece in held.readings() for row in server.rows(piece)]

    def ours() -> float:
        name = f"influx{next(_number)}"
        url = f"{server.url}/write"
        store.sinks.add(name, url, start="beginning", format="influx1", database="points")
        return _drained(store, Forwarder(store, name), name, held.points)

    def theirs() -> float:
        started = time.perf_counter()
        for at in range(0, len(rows), _LINES):
            server.insert(rows[at : at + _LINES])
        return held.points / (time.perf_counter() - started)

    return _contest(key, ours, "lines of 10,000 rows each in one loop", theirs, "influx-lines", _of(held))


def _drained(store: Store, forwarder: Forwarder, name: str, points: int) -> float:
    started = time.perf_counter()
    done = forwarder.drain()[name]
    seconds = time.perf_counter() - started
    forwarder.stop()
    store.sinks.remove(name)
    if done.delivered != points:
        raise RuntimeError(f"{name} got {done.delivered:,} of {points:,} points: {done.last}")
    return points / seconds


def _contest(
    key: str, ours: Callable[[], float], peer: str, theirs: Callable[[], float], peer_key: str, note: str
) -> Contest:
    judge = partial(ratio, key, product=PRODUCT, peer=peer, per="points/s", note=note, peer_key=peer_key)
    return Contest(
        (key,),
        [Side(PRODUCT, ours)],
        [Side(peer, theirs)],
        lambda samples: [judge(samples=samples)],
        most_rounds=3,
    )


def _of(held: Standing) -> str:
    return f"{held.points:,} points, {len(held.series)} series"
