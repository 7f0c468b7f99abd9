"""A process that inserts tuples into one side until all are in its table, and prints the rate of each piece as JSON.

It is a separate process so that a store without NumPy can be measured, too. Making the tuples is not timed, and nothing
waits to be applied at the end of a piece. Compaction is measured by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PIECE = 200_000
BATCH = 10_000
_OPTIONAL = ("numpy", "pandas", "pyarrow", "polars")


def main() -> None:
    """Insert the points in batches of 10,000."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("holdfast", "holdfast-without-numpy", "tuned-sqlite"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape")
    parser.add_argument("seed", type=int)
    parser.add_argument("points", type=int)
    options = parser.parse_args()
    if options.side == "holdfast-without-numpy":
        without: dict[str, Any] = dict.fromkeys(_OPTIONAL)
        sys.modules.update(without)  # each import of them raises ImportError

    from benchmarks.data import Readings, Source
    from benchmarks.peers.sqlite_tuned import TunedSQLite
    from repo import Settings, Store

    source = Source(options.shape, options.seed)
    rates: list[float] = []
    left = options.points
    with ExitStack() as open_:
        insert: Callable[[list[Any]], object]
        finish: Callable[[], object]
        if options.side == "tuned-sqlite":
            sqlite = TunedSQLite(options.folder / "peer.sqlite", source.series)
            open_.callback(sqlite.close)
            insert, finish, form, count = sqlite.insert_many, int, Readings.keyed_tuples, sqlite.count
        else:
            store = open_.enter_context(
                Store(options.folder / options.side, Settings(compact_background=False))
            )
            insert, finish, form = store.points.insert_many, store.flush, Readings.named_tuples

            def count() -> int:
                return int(store.sql("SELECT count(*) AS n FROM time_series_data")[0]["n"])

        while left:
            rows = form(source.take(min(left, PIECE)))
            left -= len(rows)
            started = time.perf_counter()
            for start in range(0, len(rows), BATCH):
                insert(rows[start : start + BATCH])
            finish()
            rates.append(len(rows) / (time.perf_counter() - started))
        print(json.dumps({"rates": rates, "count": count()}))


if __name__ == "__main__":
    main()
