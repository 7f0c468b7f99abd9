"""Under load: all processes that write at full speed make progress, and so does a concurrent reader."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from repo import Settings, Store

ROOT = Path(__file__).resolve().parents[2]
WRITERS = 8
LOAD_S = 15.0

WRITER = """
import sys, time
from repo import Settings, Store
folder, name, until = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
with Store(folder, Settings(engine="sqlite", background=name == "w0")) as store:
    took, at = [], 0
    while time.monotonic() < until:
        started = time.perf_counter()
        store.points.insert(name, "m", 1.0, timestamp=at)
        took.append(time.perf_counter() - started)
        at += 1
took.sort()
print(at, took[-1], took[int(len(took) * 0.99)])
"""


@pytest.mark.slow
def test_eight_processes_that_insert_at_full_speed_and_a_reader_all_make_progress(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    Store(folder, Settings(engine="sqlite")).close()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), f"w{number}", str(LOAD_S)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]
    reads = []
    with Store(folder, Settings(engine="sqlite", background=False)) as store:
        until = time.monotonic() + LOAD_S
        while time.monotonic() < until:
            started = time.perf_counter()
            store.points.range("w0", "m").all()
            reads.append(time.perf_counter() - started)
        ends = [(writer.communicate(timeout=300), writer.returncode) for writer in writers]
        assert [said[1][-2000:] for said, code in ends if code] == []
        reported = [said[0].split() for said, _ in ends]
        for number, (count, worst, most) in enumerate(reported):
            print(f"w{number}: {count} inserts, worst {float(worst):.3f} s, 99 % within {float(most):.3f} s")
            assert int(count) > 0
            assert len(store.points.range(f"w{number}", "m").all()) == int(count)
    print(f"reader: {len(reads)} reads, worst {max(reads):.3f} s")
    assert reads
