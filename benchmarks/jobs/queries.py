"""Queries on a large compacted store, compared with tuned SQLite, and with DuckDB's own best written by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any

from benchmarks.asking import PRODUCT, QUERIES, asked
from benchmarks.cached import cached_readings
from benchmarks.measure import Contest, Figure, Plan, Side, ratio
from benchmarks.peers.duckdb_sorted import DuckDBSorted
from benchmarks.peers.sqlite_tuned import TunedSQLite
from repo import Store

__all__ = ["KEYS", "queries"]

KEYS = (*QUERIES, "drain", "drain-tuples", "drain-arrow")

_DRAIN_PAGE_ROWS = 100_000
_DRAIN_PAGES = 10
_TUPLES = "tuned SQLite, to plain tuples"


def queries(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure ranges, aggregates, latest values and drains."""
    held = cached_readings(plan)
    with ExitStack() as open_:
        store = open_.enter_context(Store(held.store(compacted=True)))
        sqlite: Any = held.peer(TunedSQLite, TunedSQLite.key)
        by_hand: Any = held.peer(DuckDBSorted, DuckDBSorted.key)
        open_.callback(sqlite.close)
        open_.callback(by_hand.close)
        for query in QUERIES.values():
            tuples = {_TUPLES: sqlite.range_tuples} if query.key in ("range-1h", "range-24h") else {}
            yield asked(query, store, held, [sqlite, by_hand], others=tuples)
        points = store.points
        yield Contest(
            ("drain",),
            [Side(PRODUCT, lambda: _drained(_after(store)))],
            [Side(sqlite.name, lambda: _drained(sqlite.drain_dicts(_DRAIN_PAGE_ROWS)))],
            lambda samples: [
                ratio("drain", samples, PRODUCT, sqlite.name, "points/s", _PAGES, sqlite.key),
            ],
        )
        yield Contest(
            ("drain-tuples",),
            [Side(PRODUCT, lambda: _drained(points.since(0).tuples(_DRAIN_PAGE_ROWS)))],
            [
                Side(sqlite.name, lambda: _drained(sqlite.drain(_DRAIN_PAGE_ROWS))),
                Side(by_hand.name, lambda: _drained(by_hand.drain(_DRAIN_PAGE_ROWS))),
            ],
            lambda samples: [
                ratio("drain-tuples", samples, PRODUCT, peer.name, "points/s", _PAGES, peer.key)
                for peer in (sqlite, by_hand)
            ],
        )
        yield Contest(
            ("drain-arrow",),
            [Side(PRODUCT, lambda: _drained(points.since(0).batches(), None))],
            [
                Side(sqlite.name, lambda: _drained(sqlite.drain(_DRAIN_PAGE_ROWS))),
                Side(by_hand.name, lambda: _drained(by_hand.drain_arrow(), None)),
            ],
            lambda samples: [
                ratio("drain-arrow", samples, PRODUCT, peer.name, "points/s", _ALL, peer.key)
                for peer in (sqlite, by_hand)
            ],
        )


_PAGES = f"the first {_DRAIN_PAGES} pages of {_DRAIN_PAGE_ROWS:,} points"
_ALL = f"all points; from tuned SQLite {_PAGES}, as tuples"


def _after(store: Store) -> Iterator[list[Any]]:
    seq = 0
    while page := store.points.after(seq, _DRAIN_PAGE_ROWS):
        yield page
        seq = page[-1]["seq"]


def _drained(pages: Iterator[Any], most: int | None = _DRAIN_PAGES) -> float:
    started = time.perf_counter()
    count = sum(len(page) for page in islice(pages, most))
    return count / (time.perf_counter() - started)
