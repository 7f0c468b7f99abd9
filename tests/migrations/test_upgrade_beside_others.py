"""Upgrading a store that others have open, or upgrade, at the same moment: who waits, and who gets an error."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.errors import (
    StoreBusy,
)
from repo.processes.lease import Lease
from repo.schema.upgrade import migrate_store
from repo.schema.version import HEAD
from tests.migrations.legacy_store import contents
from tests.migrations.stores import DONE, POINTS, backups_of, cli, cli_process, digest, versions
from tests.starter import Starter

pytestmark = pytest.mark.duckdb

PATIENT: dict[str, Any] = {"HOLDFAST_LEASE_TIMEOUT_S": "300"}
"""For what must succeed beside others, on a machine of any speed."""


def test_a_migration_waits_for_the_columns_and_gives_up_at_its_deadline(legacy: Path) -> None:
    before = digest(legacy)
    lease = Lease(legacy, lambda: 0)
    lease.acquire(1, "a test")
    assert "not handed over" in cli(legacy, "migrate", code=4, HOLDFAST_LEASE_TIMEOUT_S="0.2")
    assert digest(legacy) == before
    threading.Timer(0.5, lease.close).start()
    assert "-> 0004" in cli(legacy, "migrate", **PATIENT)


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
    legacy: Path, mode: str, spawn: Any
) -> None:
    other = spawn(RECORDS_APP, legacy / "offline_buffer.db", mode)
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


def test_a_running_program_that_has_the_columns_open_makes_the_migration_busy(
    legacy: Path, spawn: Any
) -> None:
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    other = spawn(code, legacy / "timeseries.duckdb")
    other.stdout.readline()
    assert "does not use Holdfast" in cli(legacy, "migrate", code=4)
    assert backups_of(legacy) == []
    other.communicate()
    assert versions(migrate_store(legacy)) == DONE


def test_a_running_writer_of_this_program_continues_while_migrate_finds_nothing_to_do(
    starter: Starter, legacy: Path
) -> None:
    with Store(legacy, Settings(lease_timeout_s=300)) as store:
        begun, stop = threading.Event(), threading.Event()
        failed: list[BaseException] = []
        written = 0

        def write() -> None:
            nonlocal written
            try:
                while not stop.is_set():
                    store.points.insert("w", "m", float(written))
                    written += 1
                    store.flush()
                    begun.set()
            except BaseException as error:  # noqa: BLE001  reported by the test
                failed.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert begun.wait(300)
            assert "at 0004" in cli_process(starter, legacy, "migrate", **PATIENT)
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
            Store(legacy, Settings(background=False, lease_timeout_s=300)).close()
        except BaseException as error:  # noqa: BLE001  reported by the test
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(backups_of(legacy)) == 1
    assert contents(legacy)["metadata"] == HEAD


OPENER = """
import sys, time
from pathlib import Path
from repo import Settings, Store
folder, ready, start = map(Path, sys.argv[1:])
ready.touch()
while not start.exists():
    time.sleep(0.001)
with Store(folder, Settings(background=False, lease_timeout_s=300)) as store:
    print(len(list(store.points.range(None, None))))
"""


def opened_at_once(starter: Starter, made: Path, tmp_path: Path, times: int) -> None:
    for number in range(times):
        home = tmp_path / str(number)
        folder = Path(shutil.copytree(made, home / "store"))
        ready, said = ([home / f"{name} {one}" for one in range(2)] for name in ("ready", "said"))
        both = []
        for here, answer in zip(ready, said, strict=True):
            errors = answer.with_suffix(".stderr")
            with answer.open("wb") as stdout, errors.open("wb") as stderr, open(os.devnull, "rb") as null:
                script = ["-c", OPENER, folder, here, home / "start"]
                both.append(starter.start(script, streams=(null, stdout, stderr)))
        while not all(here.exists() for here in ready):
            assert not any(process.has_ended for process in both)
            time.sleep(0.001)
        (home / "start").touch()
        ended = [process.wait() for process in both]
        assert ended == [0, 0], [answer.with_suffix(".stderr").read_text() for answer in said]
        assert [answer.read_text() for answer in said] == [f"{POINTS}\n"] * 2
        assert len(backups_of(folder)) == 1
        assert len(contents(folder)["records"]) == 200
        shutil.rmtree(home)


def test_processes_that_open_an_old_store_at_once_upgrade_it_once(
    starter: Starter, made: Path, tmp_path: Path
) -> None:
    opened_at_once(starter, made, tmp_path, 1)


@pytest.mark.slow
def test_twenty_times_two_processes_open_an_old_store_at_once(
    starter: Starter, made: Path, tmp_path: Path
) -> None:
    opened_at_once(starter, made, tmp_path, 20)


def test_busy_is_an_error_that_names_its_file(legacy: Path) -> None:
    (legacy / "holdfast.toml").write_text("lease_timeout_s = 0.1\n")
    writer = sqlite3.connect(legacy / "offline_buffer.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy) as caught:
        migrate_store(legacy)
    assert caught.value.path == legacy / "offline_buffer.db"
    writer.close()
