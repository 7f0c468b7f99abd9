"""Memory: wide rows in the journal are flushed in batches bounded by bytes, however many there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import start_python

POINTS = {"duckdb": 24_000, "sqlite": 16_000}
METADATA_BYTES = 1_500
ENGINE_BYTES = 64_000_000

MOST_GROWTH_BYTES = {"duckdb": 130_000_000, "sqlite": 100_000_000}
"""Measured: 99 and 56 MB with batches of 8 MiB of journal rows; 169 and 154 MB with batches bounded by points
alone."""

WIDE = """
import random, resource, sys
from repo import Settings, Store

folder, engine, points, wide, limit = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
settings = Settings(engine=engine, background=False, durability="normal", duckdb_memory_limit_bytes=limit)
rng = random.Random(1)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

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
    with start_python(WIDE, *arguments) as process:
        try:
            said, errors = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0, errors[-3000:]
    grown = int(said)
    assert grown < MOST_GROWTH_BYTES[engine], f"the process grew by {grown:,} bytes"
