"""A process to which the system refuses one call on its store's files; run as a script, under strace.

Prints one JSON object: errors that are not ours, what still failed afterwards, and what was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from repo import HoldfastError, Settings, Store


def end_refusals() -> None:
    """End strace, which traces from another process; from then on no call is refused."""
    while (tracer := _tracer()) != 0:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(tracer, signal.SIGTERM)
        time.sleep(0.01)


def _tracer() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


def main(folder: str, engine: str) -> None:
    # One DuckDB thread, because strace counts the calls of each thread separately.
    settings = Settings(
        engine=engine,  # type: ignore[arg-type]
        background=False,
        duckdb_threads=1,
        busy_timeout_s=5.0,
        lease_timeout_s=5.0,
    )
    reported: dict[str, list[str]] = {"bare": [], "unhealed": [], "typed": []}
    acknowledged: dict[int, float] = {}

    def tried(what: str, call: Callable[[], Any], wrong: str) -> Any:
        try:
            return call()
        except Exception as error:  # noqa: BLE001  this is the finding
            kind = "typed" if isinstance(error, HoldfastError) and wrong == "bare" else wrong
            if kind != "typed":
                traceback.print_exc()
            reported[kind].append(f"{what}: {type(error).__name__}: {error}")

    def work(store: Store, start: int, wrong: str) -> None:
        for at in range(start, start + 30, 10):
            rows = [("a", "m", at + n, float(n)) for n in range(5)]
            if tried("insert", partial(store.points.insert_many, rows), wrong) is not None:
                acknowledged.update({row[2]: row[3] for row in rows})
            tried("read", lambda: store.points.range("a", "m").all(), wrong)
            tried("checkpoint", store.checkpoint, wrong)
        tried("shrink", store.shrink, wrong)

    def points(store: Store) -> dict[int, float]:
        return {row["timestamp_us"] // 10**6: row["value"] for row in store.points.range("a", "m")}

    store = None
    for _ in range(3):
        store = store or tried("open", lambda: Store(folder, settings), "bare")
    if store is None:
        reported["unhealed"].append("it does not open")
    else:
        work(store, 1000, "bare")
        end_refusals()
        work(store, 2000, "unhealed")
        found = tried("read", lambda: points(store), "unhealed")
        reported["lost"] = [str(at) for at in acknowledged if (found or {}).get(at) != acknowledged[at]]
        tried("close", store.close, "unhealed")
    print(json.dumps(reported))


if __name__ == "__main__":
    main(*sys.argv[1:])
