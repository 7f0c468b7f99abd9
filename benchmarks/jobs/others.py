"""Other stores for time series, and queues, on the jobs that they can do: beside the store, each installed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from math import isclose
from typing import Any

from benchmarks.asking import PRODUCT, QUERIES, asked
from benchmarks.cached import cached_readings, total_bytes
from benchmarks.data import START_US, Source
from benchmarks.measure import Contest, Figure, Plan, Samples, Side, ratio, timed
from benchmarks.peers.arrow import arrow_of
from benchmarks.peers.influxdb import InfluxDB
from benchmarks.peers.persist_queue import PersistQueue
from benchmarks.peers.postgresql import PostgreSQL
from benchmarks.peers.tinyflux_file import TinyFluxFile
from benchmarks.peers.victoria_metrics import VictoriaMetrics
from repo import Store

__all__ = ["KEYS", "QUEUE_KEYS", "others", "queues"]

_PEERS: tuple[Any, ...] = (PostgreSQL, InfluxDB, VictoriaMetrics, TinyFluxFile)
_ASKED = ("range-1h", "aggregate-24h", "latest-one", "latest-all")
_PREFIX = "other-"
_BATCH = 1_000
_BATCHES = 20
_MOST_ROUNDS = 3
_RECORDS = 300

KEYS = (f"{_PREFIX}ingest", *(f"{_PREFIX}{key}" for key in _ASKED), f"{_PREFIX}size")
QUEUE_KEYS = ("queue-put", "queue-take")


def others(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure batches of 1,000 readings, and queries on what was loaded before."""
    held = cached_readings(plan, plan.other_points)
    with ExitStack() as open_:
        peers = []
        for make in _PEERS:
            if missing := make.missing():
                yield Figure(KEYS[0], [], skipped=f"{make.name}: {missing}", peer=make.key)
                continue
            print(f"  loading {make.name}, {held.points:,} points", flush=True)
            peer = make(plan.cache / "servers", held.series)
            open_.callback(peer.close)
            for piece in held.readings():
                peer.load(piece)
            peer.settle()
            if peer.count() != held.points:
                raise RuntimeError(f"{peer.name} holds {peer.count():,} of {held.points:,} points")
            peers.append(peer)
        if not peers:
            return
        folder = open_.enter_context(plan.scratch())
        store = open_.enter_context(Store(folder / "store"))
        for piece in held.readings():
            store.points.insert_table(arrow_of(piece))
        store.checkpoint()
        store.compact()
        ours = total_bytes(folder / "store")
        for peer in peers:
            theirs = peer.size_bytes()
            sides = [Samples(PRODUCT, [ours / held.points]), Samples(peer.name, [theirs / held.points])]
            saved = [100 * (1 - ours / theirs)]
            yield Figure(KEYS[-1], saved, sides, "bytes per point", f"{held.points:,} points", peer=peer.key)
        for key in _ASKED:
            query = replace(QUERIES[key], key=f"{_PREFIX}{key}")
            yield asked(query, store, held, peers, same=_alike, most_rounds=_MOST_ROUNDS)
        yield _ingest(plan, store, peers, held.points)


def _ingest(plan: Plan, store: Store, peers: list[Any], held: int) -> Contest:
    """Batches of new readings, each acknowledged before the next."""
    source = Source(plan.shape, plan.seed + 1, start_us=START_US + 2 * 86_400_000_000)
    batches: list[Any] = []
    given = held

    def prepare() -> None:
        nonlocal given
        batches[:] = [source.take(_BATCH) for _ in range(_BATCHES)]
        given += _BATCH * _BATCHES

    def run(rows_of: Any, insert: Any) -> float:
        ready = [rows_of(batch) for batch in batches]
        return timed(lambda: [insert(rows) for rows in ready], _BATCH * _BATCHES)

    def judge(samples: dict[str, Samples]) -> list[Figure]:
        counts = {peer.name: peer.count() for peer in peers}
        counts[PRODUCT] = store.sql("SELECT count(*) AS n FROM time_series_data")[0]["n"]
        if set(counts.values()) != {given}:
            raise RuntimeError(f"each side got {given} points, but they have {counts}")
        note = f"{_BATCHES} batches of {_BATCH:,} per run, in a database of {held:,} points"
        return [ratio(KEYS[0], samples, PRODUCT, peer.name, "points/s", note, peer.key) for peer in peers]

    return Contest(
        (KEYS[0],),
        [
            Side(
                PRODUCT,
                lambda: run(lambda batch: batch.named_tuples(), store.points.insert_many),
                store.flush,
            )
        ],
        [Side(peer.name, lambda peer=peer: run(peer.rows, peer.insert)) for peer in peers],  # type: ignore[misc]
        judge,
        prepare,
    )


def queues(plan: Plan) -> Iterator[Contest | Figure]:
    """Compare records one by one with a queue in SQLite: put, then take and confirm."""
    if missing := PersistQueue.missing():
        yield from (Figure(key, [], skipped=missing) for key in QUEUE_KEYS)
        return
    numbers = count()
    new: list[dict[str, Any]] = []
    next_taken: dict[str, int] = {}

    with plan.scratch() as folder, ExitStack() as open_:
        store = open_.enter_context(Store(folder / "store"))
        queue = PersistQueue(folder)
        open_.callback(queue.close)

        def add(record: dict[str, Any]) -> None:
            store.records.add(f"REC-{record['number']}", source="gateway", data=record)

        def take() -> dict[str, Any]:
            (found,) = store.records.pending(limit=1)
            store.records.mark_sent([found["record_id"]])
            data: dict[str, Any] = found["data"]
            return data

        def prepare() -> None:
            # As many records to take as to add, so that neither side runs out.
            with store.transaction() as tx:
                for record in [_record(next(numbers)) for _ in range(_RECORDS)]:
                    tx.records.add(f"REC-{record['number']}", source="gateway", data=record)
                    queue.put(record)
            new[:] = [_record(next(numbers)) for _ in range(_RECORDS)]

        def put_all(put: Callable[[dict[str, Any]], None]) -> float:
            def work() -> None:
                for record in new:
                    put(record)

            return timed(work, _RECORDS)

        def take_all(name: str, one: Callable[[], dict[str, Any]]) -> float:
            got: list[Any] = []
            rate = timed(lambda: got.extend(one() for _ in range(_RECORDS)), _RECORDS)
            first = next_taken.get(name, 0)
            if got != [_record(number) for number in range(first, first + _RECORDS)]:
                raise RuntimeError(f"{name}: the records came back changed, or in another order")
            next_taken[name] = first + _RECORDS
            return rate

        ours, theirs = f"{PRODUCT}, take", f"{queue.name}, take"
        yield Contest(
            QUEUE_KEYS,
            [
                Side(PRODUCT, lambda: put_all(add), store.flush),
                Side(ours, lambda: take_all(ours, take)),
            ],
            [
                Side(queue.name, lambda: put_all(queue.put)),
                Side(theirs, lambda: take_all(theirs, queue.take)),
            ],
            lambda samples: [
                ratio("queue-put", samples, PRODUCT, queue.name, "records/s"),
                ratio("queue-take", samples, ours, theirs, "records/s"),
            ],
            prepare,
        )


def _record(number: int) -> dict[str, Any]:
    return {"number": number, "sensor_id": "S-1", "metric_name": "pressure", "value": number / 8}


def _alike(a: Any, b: Any) -> bool:
    """Return whether answers agree in what every peer keeps: number of rows, names, times to the ms, and values."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict):
        names = all(a[key] == b[key] for key in ("sensor_id", "metric_name"))
        return names and abs(a["timestamp_us"] - b["timestamp_us"]) < 1000 and _alike(a["value"], b["value"])
    return isclose(a, b, rel_tol=1e-9)
