"""Upgrading a store that others have open, or upgrade, at the same moment: who waits, and who is told."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.errors import (
    StoreBusy,
)
from repo.lease import Lease
from repo.schema.upgrade import migrate_store
from repo.schema.version import HEAD
from tests.migrations.legacy_store import contents
from tests.migrations.stores import DONE, POINTS, backups_of, cli, cli_process, digest, versions

pytestmark = pytest.mark.duckdb


def test_a_migration_waits_for_the_columns_and_gives_up_at_its_deadline(legacy: Path) -> None:
    before = digest(legacy)
    lease = Lease(legacy, lambda: 0)
    lease.acquire(1, "a test")
    assert "not handed over" in cli(legacy, "migrate", code=4, HOLDFAST_LEASE_TIMEOUT_S="0.2")
    assert digest(legacy) == before
    threading.Timer(0.5, lease.close).start()
    assert "-> 0002" in cli(legacy, "migrate")


RECORDS_APP = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA journal_mode = WAL")
c.execute("BEGIN IMMEDIATE" if sys.argv[2] == "writing" else "SELECT 1 FROM buffered_records").fetchall()
print("open", flush=True)
sys.stdin.readline()
c.execute("DELETE FROM buffered_records WHERE id = 1")
if c.in_transaction:
    c.execute("COMMIT")
c.close()
"""


@pytest.mark.parametrize("mode", ["idle", "writing"])
def test_a_running_program_that_has_the_records_open_keeps_them_and_the_migration_is_busy(
    legacy: Path, mode: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RECORDS_APP, str(legacy / "offline_buffer.db"), mode],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        refused = cli(legacy, "migrate", code=4, HOLDFAST_LEASE_TIMEOUT_S="0.3")
        assert "is open in another process" in refused
        with pytest.raises(StoreBusy):
            Store(legacy, Settings(lease_timeout_s=0.1))
        other.communicate("go on\n")
    assert backups_of(legacy) == []
    found = contents(legacy)
    assert (found["columns"], found["metadata"], len(found["records"])) == (None, None, 199)
    migrate_store(legacy)
    assert len(contents(legacy)["records"]) == 199


def test_a_running_program_that_has_the_columns_open_makes_the_migration_busy(legacy: Path) -> None:
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(legacy / "timeseries.duckdb")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        assert "does not use Holdfast" in cli(legacy, "migrate", code=4)
        assert backups_of(legacy) == []
        other.communicate()
    assert versions(migrate_store(legacy)) == DONE


def test_a_running_writer_of_this_program_goes_on_while_migrate_finds_nothing_to_do(legacy: Path) -> None:
    with Store(legacy) as store:
        stop = threading.Event()
        failed: list[BaseException] = []
        written = 0

        def write() -> None:
            nonlocal written
            try:
                while not stop.is_set():
                    store.points.insert("w", "m", float(written))
                    written += 1
                    store.flush()
            except BaseException as error:  # noqa: BLE001  told by the test
                failed.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert "at 0002" in cli_process(legacy, "migrate")
        finally:
            stop.set()
            thread.join()
        assert not failed
        assert len(list(store.points.range("w", "m"))) == written > 0


def test_threads_that_open_an_old_store_at_once_upgrade_it_once(legacy: Path) -> None:
    failed: list[BaseException] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        try:
            Store(legacy, Settings(background=False)).close()
        except BaseException as error:  # noqa: BLE001  told by the test
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(backups_of(legacy)) == 1
    assert contents(legacy)["metadata"] == HEAD


def _open_at_once(folder: Path, barrier: Any, told: Any) -> None:
    barrier.wait()
    try:
        done = migrate_store(folder, backup=True) if barrier is None else None
        with Store(folder, Settings(background=False)) as store:
            found = len(list(store.points.range(None, None)))
        told.put(("ok", found, done))
    except BaseException as error:  # noqa: BLE001  told by the test
        told.put((f"{type(error).__name__}: {error}", 0, None))


def opened_at_once(made: Path, tmp_path: Path, times: int) -> None:
    processes = multiprocessing.get_context("spawn")
    for number in range(times):
        folder = Path(shutil.copytree(made, tmp_path / str(number)))
        barrier, told = processes.Barrier(2), processes.Queue()
        both = [processes.Process(target=_open_at_once, args=(folder, barrier, told)) for _ in range(2)]
        for process in both:
            process.start()
        assert [told.get(timeout=300) for _ in both] == [("ok", POINTS, None)] * 2
        for process in both:
            process.join()
        assert len(backups_of(folder)) == 1
        assert len(contents(folder)["records"]) == 200
        shutil.rmtree(folder)


def test_processes_that_open_an_old_store_at_once_upgrade_it_once(made: Path, tmp_path: Path) -> None:
    opened_at_once(made, tmp_path, 1)


@pytest.mark.slow
def test_fifty_times_two_processes_open_an_old_store_at_once(made: Path, tmp_path: Path) -> None:
    opened_at_once(made, tmp_path, 50)


def test_busy_is_an_error_that_names_its_file(legacy: Path) -> None:
    (legacy / "holdfast.toml").write_text("lease_timeout_s = 0.1\n")
    writer = sqlite3.connect(legacy / "offline_buffer.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy) as caught:
        migrate_store(legacy)
    assert caught.value.path == legacy / "offline_buffer.db"
    writer.close()
