"""A process that does one job with a store and prints its peak memory in KiB: `python -m benchmarks.acts NAME ...`.

The modules that a job does not need stay out of it, because they count.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from typing import Any

from repo import Settings, Store

__all__ = ["ACTS"]

Act = Callable[[Store, str, int], object]
"""Gets an open store, the path of a Parquet file, and the number of points to insert."""


def _tuples(points: int) -> Iterator[list[tuple[Any, ...]]]:
    rows: Iterator[tuple[Any, ...]] = (
        (f"NEW-{number % 100:03}", "pressure", 1.8e9 + number // 100, number / 8) for number in range(points)
    )
    while batch := list(islice(rows, 10_000)):
        yield batch


def _insert(store: Store, _file: str, points: int) -> None:
    for batch in _tuples(points):
        store.points.insert_many(batch)
    store.flush()


def _insert_table(store: Store, _file: str, points: int) -> None:
    import pyarrow

    pa: Any = pyarrow

    def column(kind: Any, code: str, numbers: Iterator[float]) -> Any:
        # Without a list of Python numbers, which would be the peak.
        return pa.Array.from_buffers(kind, points, [None, pa.py_buffer(array(code, numbers))])

    names = pa.array([f"NEW-{number:03}" for number in range(100)])
    codes = column(pa.int32(), "i", (number % 100 for number in range(points)))
    metrics = pa.DictionaryArray.from_arrays(
        column(pa.int32(), "i", repeat(0, points)), pa.array(["pressure"])
    )
    columns = {
        "sensor_id": pa.DictionaryArray.from_arrays(codes, names),
        "metric_name": metrics,
        "timestamp_us": column(pa.int64(), "q", (1_800_000_000_000_000 + number for number in range(points))),
        "value": column(pa.float64(), "d", (number / 8 for number in range(points))),
    }
    store.points.insert_table(pa.table(columns))


def _last_day(store: Store) -> tuple[str, str, float, float]:
    row = store.points.latest(None)[0]
    end_s = row["timestamp_us"] / 1e6 + 1
    return row["sensor_id"], row["metric_name"], end_s - 86_400, end_s


ACTS: dict[str, Act] = {
    "nothing": lambda store, _file, _points: store.status(),
    "insert tuples": _insert,
    "insert an Arrow table": _insert_table,
    "range, 24 h to dicts": lambda store, _file, _points: store.points.range(*_last_day(store)).all(),
    "average, 24 h": lambda store, _file, _points: store.points.aggregate(*_last_day(store)),
    "1-minute averages of all": lambda store, _file, _points: store.points.aggregate(
        None, None, *_last_day(store)[2:], every="1m"
    ),
    "latest of all": lambda store, _file, _points: store.points.latest(None),
    "drain to tuples": lambda store, _file, _points: sum(
        len(page) for page in store.points.since(0).tuples()
    ),
    "drain to Arrow": lambda store, _file, _points: sum(
        len(batch) for batch in store.points.since(0).batches()
    ),
    "export Parquet": lambda store, file, _points: store.export_parquet(file),
    "import Parquet": lambda store, file, _points: store.import_parquet(file),
    "compact": lambda store, _file, _points: store.compact(),
}
"""The jobs, in an order in which each finds what it needs."""


def main() -> None:
    """Do the job named by the first argument."""
    name, folder, file, points, limit = sys.argv[1:]
    settings = Settings(background=False, duckdb_memory_limit_bytes=int(limit))
    with Store(folder, settings) as store:
        ACTS[name](store, file, int(points))
    with open("/proc/self/status") as status:
        print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")))


if __name__ == "__main__":
    main()
