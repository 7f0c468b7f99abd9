"""A session with a store, step by step, and the work that each step took, as JSON.

    python -m tests.work.session ENGINE FOLDER

Three series that are some hours long, and then what a gateway does. No background thread, which would work at any time;
the columns stay open between steps, as with one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.starter import without_pandas
from tests.work.counting import Counting, Work

START = 1_714_521_600
SERIES = 3
LENGTH_S = {"duckdb": 44_000, "sqlite": 10_000}
"""In DuckDB more than one row group, because it scans a whole one. SQLite counts finer, and is slower."""


def main(engine: Any, folder: Path) -> None:
    """Print the work of each step."""
    (folder / "logs").mkdir()
    counting = Counting(folder / "logs")
    from repo import Settings, Store
    from repo.core import flush

    flush.PRUNE_INTERVAL_S = 1e6  # no second search for rows to prune because the machine is slow
    length_s = LENGTH_S[engine]
    late = START + length_s
    settings = Settings(
        engine=engine, background=False, bulk_rows=SERIES * length_s, checkpoint_interval_s=1e6
    )  # no checkpoint because the machine is slow
    works: dict[str, Work] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        with counting.step(lambda done: works.update({name: done})):
            return work()

    def opened() -> Store:
        store = Store(folder / "store", settings, clock=lambda: late * 1_000_000)
        store._handle.columns.stays_open = True
        return store

    def rows(sensor: str, start: int, count: int) -> list[tuple[Any, ...]]:
        return [(sensor, "m", start + number, float(number % 50)) for number in range(count)]

    store = step("create", opened)
    points = store.points
    table = {
        "sensor_id": [f"s{number % SERIES}" for number in range(SERIES * length_s)],
        "metric_name": "m",
        "timestamp": [float(START + number // SERIES) for number in range(SERIES * length_s)],
        "value": [float(number % 50) for number in range(SERIES * length_s)],
    }
    step("bulk table", lambda: points.insert_table(table))
    points.insert("new", "m", 0.0, timestamp=START)
    step("100 inserts", lambda: [points.insert("new", "m", 1.0, timestamp=late + n) for n in range(100)])
    batches = [rows("new", late + n * 1_000, 1_000) for n in range(1, 11)]
    step("10 batches of 1,000", lambda: [points.insert_many(batch) for batch in batches])
    step("flush of 10,101", store.flush)
    step("flush of nothing", store.flush)
    hour = step("range of an hour", points.range("s1", "m", START + 600, START + 4_200).all)
    assert len(hour) == 3_600
    pages = step("range of a series, in pages", lambda: [*points.range("s1", "m").pages(length_s // 3)])
    assert sum(map(len, pages)) == length_s
    assert len(step("range of a series, as columns", points.range("s1", "m").to_numpy)["value"]) == length_s
    [average] = step("average of a series", lambda: points.aggregate("s1", "m"))
    assert average["avg"] == 24.5
    buckets = step("buckets of a series", lambda: points.aggregate("s1", "m", agg="count", every="1m"))
    assert sum(bucket["count"] for bucket in buckets) == length_s
    assert len(step("latest of one", lambda: points.latest("s1", "m"))) == 1
    assert len(step("latest of one, again", lambda: points.latest("s1", "m"))) == 1
    assert len(step("latest of all", lambda: points.latest(None))) == 4
    points.insert("new", "m", 2.0, timestamp=late + 20_000)
    assert len(step("insert, then read", points.range("new", "m", late + 19_000).all)) == 1
    step("status", store.status)
    assert len(step("list of series", store.series.list)) == 4
    seq = 0

    def deliver(pages: int) -> None:
        nonlocal seq
        for _ in range(pages):
            seq = points.after(seq, 10_000)[-1]["seq"]

    step("3 pages to deliver", lambda: deliver(3))
    store.sinks.add("cloud", "", start="beginning")
    step("confirmation of a sink", lambda: store.sinks.confirm("cloud", seq))
    step("record with points", lambda: _add_record(store, late))
    step("records pending", store.records.pending)
    step("record sent", lambda: store.records.mark_sent(["r1"]))
    step("export of a series", lambda: store.export_parquet(folder / "day.parquet", sensor_id="s1"))
    step(
        "delete of an hour, applied", lambda: (points.delete("s1", "m", START, START + 3_600), store.flush())
    )
    imported = step(
        "import of a series, an hour is new", lambda: store.import_parquet(folder / "day.parquet")
    )
    assert imported.stored == 3_600, imported
    step("checkpoint", store.checkpoint)
    step("compact", store.compact)
    step("compact, nothing to do", store.compact)
    step("range of an hour, compacted", points.range("s1", "m", START + 4_200, START + 7_800).all)
    step("average of a series, compacted", lambda: points.aggregate("s1", "m"))
    step("close", store.close)
    store = step("open", opened)
    points = store.points
    step("first latest", lambda: points.latest("s1", "m"))
    step("first range of an hour", points.range("s1", "m", START + 600, START + 4_200).all)
    store.close()
    print(json.dumps(works))


def _add_record(store: Any, late: int) -> None:
    with store.transaction() as transaction:
        transaction.points.insert("s2", "m", 1.0, timestamp=late)
        transaction.records.add("r1", source="gateway", data={"value": 1.0}, timestamp=late)


if __name__ == "__main__":
    without_pandas()
    main(sys.argv[1], Path(sys.argv[2]))
