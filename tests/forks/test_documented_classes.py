"""The documented classes with `multiprocessing`, as it comes on Linux: made once, used by every worker."""

from __future__ import annotations

import multiprocessing
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from repo import DuckDBTimeSeriesStorage, OfflineBufferManager, StoreClosed
from tests.forks.children import HANG_S, in_child

buffer: OfflineBufferManager


def add(number: int) -> tuple[int, bool]:
    """Add one record to the buffer of the module."""
    return os.getpid(), buffer.add_record(f"r-{number}", "gw", {"sensor_id": "s", "value": float(number)})


def test_a_buffer_of_the_module_works_in_a_pool(tmp_path: Path, engine: str) -> None:
    global buffer
    buffer = OfflineBufferManager(tmp_path / "b", use_duckdb=engine == "duckdb")
    buffer.add_record("before", "gw", {"value": 1.0})
    with multiprocessing.get_context("fork").Pool(3) as pool:
        done = pool.map_async(add, range(60), chunksize=1)
        for number in range(60, 80):
            assert add(number)[1]
        answers = done.get(HANG_S)
        pool.close()
        pool.join()
    assert all(granted for _, granted in answers)
    assert os.getpid() not in {pid for pid, _ in answers}
    found = {record["record_id"] for record in buffer.get_pending_records()}
    assert found == {"before", *(f"r-{number}" for number in range(80))}
    buffer.shutdown()


def test_a_child_has_a_cleanup_thread_and_a_store_of_its_own(tmp_path: Path, engine: str) -> None:
    parent = OfflineBufferManager(tmp_path / "b", use_duckdb=engine == "duckdb")
    parent.add_record("r", "gw", {"sensor_id": "s", "value": 1.0})

    def work() -> list[bool]:
        threads = [thread.name for thread in threading.enumerate()]
        pending = parent.get_pending_records()
        started = [thread.name for thread in threading.enumerate() if thread.name == "holdfast-cleanup"]
        parent.shutdown()
        try:
            parent.get_pending_records()
        except StoreClosed:
            refused = True
        return ["holdfast-cleanup" not in threads, len(pending) == 1, len(started) == 1, refused]

    assert in_child(work) == [True] * 4
    assert parent.mark_sent("r")
    parent.shutdown()


def test_a_child_that_never_used_the_buffer_can_shut_it_down(tmp_path: Path) -> None:
    parent = OfflineBufferManager(tmp_path / "b")
    assert in_child(parent.shutdown) is None
    assert parent.add_record("r", "gw", {"value": 1.0})
    parent.shutdown()


def test_a_storage_works_in_a_child_while_threads_of_the_parent_write(tmp_path: Path) -> None:
    storage = DuckDBTimeSeriesStorage(tmp_path / "t.duckdb")
    stop = threading.Event()

    def write() -> None:
        at = 0
        while not stop.is_set():
            at += 1
            storage.insert_data_point("parent", "m", 1.0, timestamp=at)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            assert in_child(partial(storage.insert_data_point, "child", "m", 1.0, number)) is True
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(storage.query_time_range("child", "m", 0, 10)) == 4
    storage.close()


@pytest.mark.parametrize("closed_first", ["parent", "child"])
def test_whichever_closes_first_the_other_continues(tmp_path: Path, closed_first: str) -> None:
    storage = DuckDBTimeSeriesStorage(tmp_path / "t.duckdb")
    storage.insert_data_point("a", "m", 1.0, timestamp=1)

    def work() -> int:
        storage.insert_data_point("a", "m", 1.0, timestamp=2)
        if closed_first == "child":
            storage.close()
            return 2
        return len(storage.query_time_range("a", "m", 0, 10))

    assert in_child(work) == 2
    assert storage.insert_data_point("a", "m", 1.0, timestamp=3)
    assert len(storage.query_time_range("a", "m", 0, 10)) == 3
    storage.close()
