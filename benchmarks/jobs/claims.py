"""The claims of the founding document: ranges, aggregates, latest values and files, against what it replaced.

The peers are the SQLite buffer and the DuckDB storage of the legacy program, and tuned SQLite. The claim about Parquet
is measured by the job `carrying`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.asking import PRODUCT, QUERIES, asked
from benchmarks.cached import CachedReadings, cached_readings, total_bytes
from benchmarks.measure import Contest, Figure, Plan, Samples
from benchmarks.peers.base import Database
from benchmarks.peers.legacy_duckdb import LegacyDuckDB
from benchmarks.peers.legacy_sqlite import LegacySQLite, LegacySQLiteFiltered
from benchmarks.peers.sqlite_tuned import TunedSQLite
from repo import Store

__all__ = ["KEYS", "claims"]

_ASKED = ("range-1h", "range-24h", "aggregate-24h", "buckets-one", "buckets-all", "latest-one", "latest-all")
_FILTERED = ("range-1h", "range-24h", "aggregate-24h", "buckets-one")
"""Where the legacy buffer can be asked better than the legacy program did."""

_PREFIX = "claim-"
_MOST_ROUNDS = 3
"""The legacy buffer takes up to a minute for an answer."""


KEYS = (*(f"{_PREFIX}{key}" for key in _ASKED), f"{_PREFIX}size")


def claims(plan: Plan) -> Iterator[Contest | Figure]:
    """Compare a compacted store with three designs of other hands; the legacy ones hold fewer points."""
    yield from _against(cached_readings(plan), [TunedSQLite])
    yield from _against(cached_readings(plan, plan.claimed_points), [LegacySQLite, LegacyDuckDB])


def _against(held: CachedReadings, designs: Sequence[type[Any]]) -> Iterator[Contest | Figure]:
    with ExitStack() as open_:
        folder = held.store(compacted=True)
        peers = [held.peer(make, make.key) for make in designs]
        filtered = [
            LegacySQLiteFiltered(peer.path, held.series) for peer in peers if isinstance(peer, LegacySQLite)
        ]
        for peer in (*peers, *filtered):
            open_.callback(peer.close)
        Store(folder).close()  # it has its reserve from now on, which counts
        yield from _sizes(folder, held.points, peers)
        store = open_.enter_context(Store(folder))
        for key in _ASKED:
            query = replace(QUERIES[key], key=f"{_PREFIX}{key}")
            sides = [*peers, *filtered] if key in _FILTERED else peers
            yield asked(query, store, held, sides, most_rounds=_MOST_ROUNDS)


def _sizes(folder: Path, points: int, peers: Sequence[Database]) -> Iterator[Figure]:
    """Compare the bytes on disk; the figure is the part of the peer's bytes that the store saves."""
    ours = total_bytes(folder)
    for peer in peers:
        theirs = peer.size_bytes()
        sides = [Samples(PRODUCT, [ours / points]), Samples(peer.name, [theirs / points])]
        note = f"{points:,} points, all files of the store"
        yield Figure(KEYS[-1], [100 * (1 - ours / theirs)], sides, "bytes per point", note, peer=peer.key)
