"""A process that delivers the backlog of a store to one sink: `python -m benchmarks.drain STORE SINK SECONDS`.

Prints as JSON the points that arrived, the seconds, and in KiB the memory with the store just opened, with DuckDB's
cache as full as the backlog makes it, and at the peak. After SECONDS it stops. The sink `discards` takes the columns of
each batch and forgets them; others are in the store.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import NamedTuple

from repo import Batch, Forwarder, Outcome, Settings, Store
from repo.delivery.limits import AS_COLUMNS

__all__ = ["DISCARDS", "Delivered", "delivered"]

DISCARDS = "discards"

_SCAN = (
    "SELECT bit_xor(hash(sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, seq)) "
    "FROM time_series_data"
)
"""Fills DuckDB's cache, which a setting limits and all reads and sinks share; it is not memory of one delivery."""

_RETURNED_S = 5.0
"""By then DuckDB has returned what the scan has freed."""

_OPEN_S = 3_600.0
"""The columns stay open: closing them would return the cache."""


class Delivered(NamedTuple):
    """What such a process has measured."""

    points: int
    seconds: float
    opened_kib: int
    before_kib: int
    peak_kib: int

    @property
    def rate(self) -> float:
        """Points per second."""
        return self.points / self.seconds

    @property
    def own_mb(self) -> float:
        """What the delivery added at its peak to a store in use, with the packages that its sink loads."""
        return (self.peak_kib - self.before_kib) * 1024 / 1e6

    @property
    def with_engine_mb(self) -> float:
        """What it added to a store whose columns are closed: the same, and what DuckDB takes for any reads."""
        return (self.peak_kib - self.opened_kib) * 1024 / 1e6


def delivered(folder: Path, name: str, seconds: float) -> Delivered:
    """Deliver in a process of its own; nobody else may have the store open."""
    command = [sys.executable, "-m", "benchmarks.drain", str(folder), name, str(seconds)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return Delivered(*json.loads(done.stdout))


class _Discards:
    name = DISCARDS
    exact = False
    takes_records = False
    limits = AS_COLUMNS

    def open(self, _store_id: str, _epoch: int) -> str | None:
        """Nothing to connect to."""
        return None

    def send(self, batch: Batch) -> Outcome:
        """Have the columns."""
        assert len(batch.columns[7]) == len(batch)
        return Outcome()

    def close(self) -> None:
        """Nothing to disconnect from."""


def _main(folder: str, name: str, seconds: float) -> Delivered:
    with Store(folder, Settings(lease_idle_s=_OPEN_S)) as store:
        opened_kib = _kib("VmRSS")
        is_own = name == DISCARDS
        forwarder = Forwarder(store, _Discards() if is_own else name, start="beginning" if is_own else None)
        store.sql(_SCAN)
        time.sleep(_RETURNED_S)
        timer = Timer(seconds, forwarder.stop)
        timer.start()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before_kib, started = _kib("VmRSS"), time.perf_counter()
        done = forwarder.drain()[name]
        took_s = time.perf_counter() - started
        timer.cancel()
        peak_kib = _kib("VmHWM")
        forwarder.stop()
        store.sinks.remove(name)
    if not done.delivered or done.refused or done.last.error is not None:
        raise RuntimeError(f"{name} got {done.delivered:,} points: {done.last}")
    return Delivered(done.delivered, took_s, opened_kib, before_kib, peak_kib)


def _kib(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0])


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
