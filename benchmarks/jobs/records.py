"""Records through the documented class, one after the other, compared with raw commits of SQLite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any

from benchmarks.data import START_US
from benchmarks.measure import Contest, Figure, Plan, Side, ratio
from benchmarks.peers.sqlite_commits import SQLiteCommits
from repo import OfflineBufferManager, Store

__all__ = ["records"]

_PRODUCT = "holdfast"
_MOST = 4_000


def records(plan: Plan) -> Iterator[Contest | Figure]:
    """Measure `add_record` with a reading, and `mark_sent`."""
    numbers = count()
    new: list[int] = []
    waiting: list[int] = []

    with plan.scratch() as folder, ExitStack() as open_:
        buffer = OfflineBufferManager(str(folder / "buffer"), max_buffer_size=10**9, max_buffer_size_mb=10**5)
        open_.callback(buffer.shutdown)
        store = open_.enter_context(Store(folder / "buffer"))
        sqlite = SQLiteCommits(folder)
        open_.callback(sqlite.close)

        def prepare() -> None:
            new[:] = [next(numbers) for _ in range(_MOST)]
            waiting[:] = [next(numbers) for _ in range(_MOST)]
            with store.transaction() as tx:
                for number in waiting:
                    tx.records.add(f"REC-{number}", "gateway", _data(number))

        def add(number: int) -> None:
            if not buffer.add_record(f"REC-{number}", "gateway", _data(number)):
                raise RuntimeError("the buffer is full")

        def sent(number: int) -> None:
            if not buffer.mark_sent(f"REC-{number}"):
                raise RuntimeError(f"record {number} is not pending")

        def insert(number: int) -> None:
            sqlite.insert((1, START_US + number, number / 8, 100, None))

        yield Contest(
            ("add-record", "mark-sent"),
            [
                Side(_PRODUCT, lambda: _for_a_while(add, new, plan.run_s)),
                Side(f"{_PRODUCT}, mark_sent", lambda: _for_a_while(sent, waiting, plan.run_s)),
            ],
            [Side(sqlite.name, lambda: _for_a_while(insert, new, plan.run_s))],
            lambda samples: [
                ratio("add-record", samples, _PRODUCT, sqlite.name, "calls/s"),
                ratio("mark-sent", samples, f"{_PRODUCT}, mark_sent", sqlite.name, "calls/s"),
            ],
            prepare,
            times=2,
        )


def _data(number: int) -> dict[str, Any]:
    at = START_US / 1e6 + number
    return {"sensor_id": "S-1", "metric_name": "pressure", "value": number / 8, "timestamp": at}


def _for_a_while(call: Callable[[int], Any], numbers: Sequence[int], run_s: float) -> float:
    """Make calls until the time or the numbers are used up; returns calls per second."""
    done = 0
    started = time.perf_counter()
    for number in numbers:
        call(number)
        done += 1
        if time.perf_counter() - started >= run_s:
            break
    return done / (time.perf_counter() - started)
