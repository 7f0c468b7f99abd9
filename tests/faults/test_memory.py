"""Memory: wide rows in the journal are flushed in batches bounded by bytes, however many there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import start_python

POINTS = {"duckdb": 24_000, "sqlite": 16_000}
METADATA_BYTES = 1_500
ENGINE_BYTES = 64_000_000

MOST_GROWTH_BYTES = {"duckdb": 160_000_000, "sqlite": 100_000_000}
"""Measured: 112 and 58 MB with batches of 8 MiB of journal rows; 227 and 156 MB with batches bounded by points
alone."""

PEAK = """
def peak():  # not `ru_maxrss`, which a process inherits from the one that starts it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
"""

WIDE = """
import random, sys
from repo import Settings, Store

folder, engine, points, wide, limit = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
settings = Settings(engine=engine, background=False, durability="normal", duckdb_memory_limit_bytes=limit)
rng = random.Random(1)

with Store(folder, settings) as store:
    store.points.insert("a", "m", 0.0, timestamp=0)
    store.flush()
    before = peak()
    for value in (1.0, 2.0):
        for start in range(0, points, 1_000):
            store.points.insert_many([
                ("a", "m", at, value, 100, {"x": rng.randbytes(wide // 2).hex()}) for at in range(start, start + 1_000)
            ])
        assert store.status().unflushed == points
        store.flush()
        found = 0
        for page in store.points.range("a", "m").tuples(1_000):
            assert all(row[3] == value and len(row[6]) > wide for row in page)
            found += len(page)
        assert found == points
    print(peak() - before)
"""


@pytest.mark.slow_on("duckdb")
def test_wide_rows_that_are_overwritten_are_flushed_and_read_in_bounded_memory(
    engine: str, tmp_path: Path
) -> None:
    arguments = (tmp_path / "store", engine, POINTS[engine], METADATA_BYTES, ENGINE_BYTES)
    with start_python(PEAK + WIDE, *arguments) as process:
        try:
            said, errors = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0, errors[-3000:]
    grown = int(said)
    assert grown < MOST_GROWTH_BYTES[engine], f"the process grew by {grown:,} bytes"


MOST_DELIVERY_BYTES = 64_000_000

DELIVERING = """
import sys
from repo import Outcome, Settings, Store
from repo.delivery.forwarder import Forwarder

class Nowhere:
    name, exact, takes_records, points = "nowhere", False, False, 0
    def open(self, store_id, epoch): return None
    def send(self, batch):
        self.points += len(batch)
        return Outcome()
    def close(self): pass

folder, engine, points, wide = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
with Store(folder, Settings(engine=engine, background=False, durability="normal")) as store:
    for start in range(0, points, 20_000):
        store.points.insert_many([
            ("a", "m", at, 1.0, 100, {"x": f"{at:0{wide}}"}) for at in range(start, start + 20_000)
        ])
        store.flush()
    for _ in store.points.range("a", "m").tuples(1_000):  # what the engine takes anyway
        pass
    before, sink = peak(), Nowhere()
    assert Forwarder(store, sink, start="beginning").drain()["nowhere"].is_empty
    assert sink.points == points
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("points", "wide"), [(200_000, 40), (40_000, 2_000)])
def test_a_backlog_is_delivered_in_bounded_memory(
    engine: str, tmp_path: Path, points: int, wide: int
) -> None:
    with start_python(PEAK + DELIVERING, tmp_path / "store", engine, points, wide) as process:
        try:
            said, errors = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0, errors[-3000:]
    assert int(said) <= MOST_DELIVERY_BYTES
