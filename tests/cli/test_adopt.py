"""`holdfast adopt OLD NEW`: NEW is whole or not there, and OLD is as it was to the byte, whatever happens."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import OfflineBufferManager, Settings, Store
from repo.engines.sqlite import driver as sqlite
from repo.errors import StoreBusy
from repo.schema import adopt, runner
from repo.schema.adopt import adopt_store
from repo.schema.upgrade import migrate_store
from repo.schema.version import HEAD
from tests.cli.conftest import Command
from tests.migrations.legacy_store import add_pointer, contents, make_legacy_store, original_of
from tests.starter import Process, Starter

pytestmark = pytest.mark.duckdb

ROOT = Path(__file__).resolve().parents[2]
LEGACY_STORE = ROOT.parent / "shared" / "data" / "legacy_store"
POINTS = 3_000
QUIET = Settings(background=False)

Listing = dict[str, tuple[int, int, int, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_legacy_store(tmp_path_factory.mktemp("legacy") / "store", POINTS, records=20)
    for number in range(3):
        name = f"pointer {number}"
        add_pointer(folder, name, (number, original_of(name, "gw", {"value": number})), retry_count=number)
    return folder


@pytest.fixture
def old(made: Path, tmp_path: Path) -> Path:
    """A store of the legacy program, in a folder whose name is no plain word, with settings."""
    folder = Path(shutil.copytree(made, tmp_path / "an old 100% store"))
    (folder / "holdfast.toml").write_text("flush_interval_s = 0.5\n")
    return folder


@pytest.fixture
def old_records(_records: Path, tmp_path: Path) -> Path:
    """A store of the legacy program that has no points: it is adopted sooner."""
    return Path(shutil.copytree(_records, tmp_path / "an old 100% store"))


@pytest.fixture(scope="module")
def _records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_legacy_store(tmp_path_factory.mktemp("records") / "store", 1, records=20)
    (folder / "timeseries.duckdb").unlink()
    return folder


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "the new one"


def listing(folder: Path) -> Listing:
    """Say what is in a folder, and itself: mode, size, time of the last change, digest."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        about = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        size = about.st_size if path.is_file() else 0
        found[str(path.relative_to(folder))] = (about.st_mode, size, about.st_mtime_ns, content)
    return found


def remains(new: Path) -> list[str]:
    return sorted(path.name for path in new.parent.iterdir() if new.name in path.name)


def see_that_it_is_whole(new: Path) -> None:
    with Store(new, QUIET) as store:
        assert len(list(store.points.range(None, None))) == POINTS + 3
        pending = store.records.pending()
    assert len(pending) == 23
    for number, record in enumerate(pending[20:]):
        assert (record["data"], record["retry_count"]) == ({"value": number}, number)


def see_that_the_records_are_there(new: Path) -> None:
    with Store(new, QUIET) as store:
        assert store.status().schema == HEAD
        assert len(store.records.pending()) == 20


def test_the_new_store_has_everything_and_the_old_folder_is_unchanged(
    command: Command, old: Path, new: Path
) -> None:
    before = listing(old)
    report = command.json("adopt", old, new)
    assert listing(old) == before
    assert remains(new) == [new.name]
    assert (report["made"], report["records"], report["points"]) == (True, 23, POINTS + 3)
    assert (report["records_restored"], report["records_without_original"], report["nan_points"]) == (3, 0, 3)
    assert [(one["before"], one["after"]) for one in report["databases"]] == [(None, "0004")] * 2
    assert (new / "holdfast.toml").read_text() == "flush_interval_s = 0.5\n"
    assert not (new / "backups").exists()
    see_that_it_is_whole(new)
    by_itself = Path(shutil.copytree(old, old.parent / "in place"))
    migrate_store(by_itself)
    wanted, found = contents(by_itself), contents(new)
    assert found == wanted
    assert listing(old) == before


def test_the_output_says_what_was_created_and_what_happened_to_the_records(
    command: Command, old: Path, new: Path
) -> None:
    output = command("adopt", old, new).stdout
    assert "3 restored from their points" in output
    assert f"{new} was created; {old} is unchanged" in output


def test_a_dry_run_creates_nothing_and_reports_steps_rows_and_bytes(
    command: Command, old: Path, new: Path
) -> None:
    before = listing(old)
    report = command.json("adopt", "--dry-run", old, new)
    assert (report["made"], report["records_waiting"], report["points"]) == (False, 3, POINTS + 3)
    assert [
        s["rows"] for s in report["steps"] if (s["database"], s["revision"]) == ("timeseries", "0002")
    ] == [POINTS + 3]
    assert report["needed_bytes"] > report["copied_bytes"] > 0
    assert "was not created" in command("adopt", "--dry-run", old, new).stdout
    assert listing(old) == before
    assert remains(new) == []


def test_logs_and_a_journal_left_by_a_kill_are_adopted(
    command: Command, old: Path, new: Path, starter: Starter
) -> None:
    code = """
import os, sqlite3, sys, duckdb
records = sqlite3.connect(sys.argv[1] + "/offline_buffer.db", isolation_level=None)
records.execute("PRAGMA journal_mode = WAL")
records.execute("INSERT INTO buffered_records (record_id, source, data, timestamp, created_at) "
    "VALUES ('in the log', 'gw', '{}', 1, 1)")
points = duckdb.connect(sys.argv[1] + "/timeseries.duckdb")
points.execute("INSERT INTO time_series_data VALUES (5, 'in the log', 'm', 1.5, 100, NULL)")
os._exit(0)
"""
    assert starter.run(["-c", code, old]).returncode == 0
    assert (old / "offline_buffer.db-wal").exists()
    assert (old / "timeseries.duckdb.wal").exists()
    before = listing(old)
    report = command.json("adopt", old, new)
    assert (report["records"], report["points"]) == (24, POINTS + 4)
    assert listing(old) == before
    with Store(new, QUIET) as store:
        assert store.records.has("in the log")
        assert len(list(store.points.range("in the log", "m"))) == 1


def test_a_hot_rollback_journal_is_applied_only_to_the_copy(
    command: Command, old_records: Path, new: Path, starter: Starter
) -> None:
    code = """
import os, sqlite3, sys
records = sqlite3.connect(sys.argv[1] + "/offline_buffer.db", isolation_level=None)
records.execute("PRAGMA cache_size = 1")
records.execute("PRAGMA cache_spill = 1")
records.execute("BEGIN")
records.execute("UPDATE buffered_records SET source = source || hex(randomblob(9000))")
os._exit(0)
"""
    assert starter.run(["-c", code, old_records]).returncode == 0
    assert (old_records / "offline_buffer.db-journal").exists()
    before = listing(old_records)
    command("adopt", old_records, new)
    assert listing(old_records) == before
    see_that_the_records_are_there(new)


@pytest.mark.parametrize("given", ["option", "environment", "link"])
def test_points_outside_the_folder_are_found_as_the_legacy_program_found_them(
    command: Command, old: Path, new: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = old.parent / "elsewhere"
    elsewhere.mkdir()
    (old / "timeseries.duckdb").rename(elsewhere / "points.duckdb")
    refused = command("adopt", old, new, code=1)
    assert "3 records" in refused.stderr
    assert "--timeseries" in refused.stderr
    assert remains(new) == []
    options: list[object] = []
    if given == "option":
        options = ["--timeseries", elsewhere / "points.duckdb"]
    elif given == "environment":
        monkeypatch.setenv("DUCKDB_STORAGE_PATH", str(elsewhere / "points.duckdb"))
    else:
        (old / "timeseries.duckdb").symlink_to("../elsewhere/points.duckdb")
    before = listing(old), listing(elsewhere)
    command("adopt", *options, old, new)
    assert (listing(old), listing(elsewhere)) == before
    assert not (new / "timeseries.duckdb").is_symlink()
    see_that_it_is_whole(new)


def test_a_time_series_file_that_is_not_the_stores_own_is_refused(
    command: Command, old: Path, new: Path
) -> None:
    other = old.parent / "other.duckdb"
    shutil.copy(old / "timeseries.duckdb", other)
    assert "has its points in" in command("adopt", "--timeseries", other, old, new, code=2).stderr
    assert "there is no" in command("adopt", "--timeseries", old.parent / "none", old, new, code=1).stderr
    assert remains(new) == []


def test_a_store_of_an_earlier_revision_is_adopted_and_one_at_the_head_is_refused(
    command: Command, old: Path, new: Path
) -> None:
    migrate_store(old, to="0001", backup=False)
    before = listing(old)
    report = command.json("adopt", old, new)
    assert {one["before"] for one in report["databases"]} == {"0001"}
    assert listing(old) == before
    see_that_it_is_whole(new)
    newest = new.with_name("another")
    before = listing(new)
    assert "nothing to adopt" in command("adopt", new, newest, code=2).stderr
    assert listing(new) == before
    assert not newest.exists()


def test_a_store_of_an_earlier_revision_that_has_its_points_in_sqlite_is_adopted(
    command: Command, old: Path, new: Path
) -> None:
    (old / "timeseries.duckdb").unlink()
    for name in ("timeseries.sqlite", "offline_buffer.db"):
        engine = sqlite.open_engine(old / name)
        runner.upgrade(engine, "metadata" if name == "offline_buffer.db" else "timeseries", "0001")
        with engine.begin() as connection:
            if name == "timeseries.sqlite":
                text = original_of("pointer 1", "gw", {"value": 1})
                connection.exec_driver_sql(
                    "INSERT INTO time_series_data VALUES (1, 's', 'm', 2.5, 100, ?)", (text,)
                )
        engine.dispose()
    report = command.json("adopt", old, new)
    assert (report["points"], report["records_restored"], report["records_without_original"]) == (1, 1, 2)
    with Store(new, QUIET) as store:
        assert store.status().engine == "sqlite"
        assert [row["value"] for row in store.points.range("s", "m")] == [2.5]


def test_a_store_that_has_only_records_is_adopted(command: Command, new: Path, tmp_path: Path) -> None:
    old = make_legacy_store(tmp_path / "old", 10, records=4)
    (old / "timeseries.duckdb").unlink()
    assert command.json("adopt", old, new)["records"] == 4
    with Store(new, QUIET) as store:
        store.points.insert("s", "m", 1.0)
        assert (store.records.count(), len(list(store.points.range(None, None)))) == (4, 1)


def test_a_whole_legacy_store_is_adopted_record_by_record(command: Command, new: Path) -> None:
    if not LEGACY_STORE.exists():
        pytest.skip(f"the legacy store is missing: {LEGACY_STORE}")
    given = json.loads((LEGACY_STORE / "expected.json").read_text())
    before = listing(LEGACY_STORE)
    report = command.json("adopt", LEGACY_STORE, new)
    assert listing(LEGACY_STORE) == before
    assert (report["records"], report["records_restored"], report["points"]) == (1384, 1112, 1199)
    buffer = OfflineBufferManager(new)
    try:
        pending = buffer.get_pending_records(limit=10_000)
    finally:
        buffer.shutdown()
    wanted = {record["record_id"]: record for record in given["records"]}
    assert [record["record_id"] for record in pending] == given["pending_ids"]
    for record in pending:
        want = wanted[record["record_id"]]
        assert (record["data"], record["source"], record["timestamp"]) == (
            want["data"], want["source"], want["timestamp"],
        )  # fmt: skip
        assert record["retry_count"] == given["retry"].get(record["record_id"], 0)


# --- refused, with nothing done --------------------------------------------------------------------------


def test_unsuitable_folders_are_refused_and_nothing_is_created(
    command: Command, old: Path, new: Path, tmp_path: Path
) -> None:
    before = listing(old)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a file").write_text("kept")
    (tmp_path / "a file").write_text("kept")
    assert "not an empty folder" in command("adopt", old, tmp_path / "full", code=2).stderr
    command("adopt", old, tmp_path / "a file", code=2)
    assert "is inside the old store" in command("adopt", old, old / "new", code=2).stderr
    command("adopt", old, old, code=2)
    assert "create it first" in command("adopt", old, tmp_path / "none" / "new", code=2).stderr
    assert "no store" in command("adopt", tmp_path / "none", new, code=1).stderr
    assert "no store" in command("adopt", tmp_path / "full", new, code=1).stderr
    foreign = tmp_path / f".{new.name}.adopting"
    foreign.mkdir()
    (foreign / "mine").write_text("kept")
    assert "move it away" in command("adopt", old, new, code=2).stderr
    assert (foreign / "mine").read_text() == "kept"
    assert listing(old) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [foreign.name, "a file", "full", old.name]
    )


def test_an_empty_folder_is_accepted(command: Command, old_records: Path, new: Path) -> None:
    new.mkdir()
    command("adopt", old_records, new)
    see_that_the_records_are_there(new)


def test_a_disk_that_is_too_small_is_refused_with_the_bytes_unless_forced(
    command: Command, old_records: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(old_records)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    needed = command("adopt", old_records, new, code=1).stderr
    assert "may need" in needed
    assert "1,000 are free" in needed
    assert remains(new) == []
    command("adopt", "--force", old_records, new)
    see_that_the_records_are_there(new)


HOLDERS = {
    "records": "import sqlite3; c = sqlite3.connect(F + '/offline_buffer.db', isolation_level=None); "
    "c.execute('PRAGMA journal_mode = WAL'); c.execute('SELECT * FROM buffered_records').fetchone()",
    "writing": "import sqlite3; c = sqlite3.connect(F + '/offline_buffer.db', isolation_level=None); "
    "c.execute('BEGIN IMMEDIATE')",
    "points": "import duckdb; c = duckdb.connect(F + '/timeseries.duckdb')",
    "reading points": "import duckdb; c = duckdb.connect(F + '/timeseries.duckdb', read_only=True)",
    "lease": "from pathlib import Path; from repo.processes.lease import Lease; c = Lease(Path(F), lambda: 0); "
    "c.acquire(5, 'a test')",
}


def test_a_program_that_has_the_old_store_open_keeps_it(
    command: Command, old: Path, new: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    for what, hold in HOLDERS.items():
        process = spawn(
            f"import sys; F = sys.argv[1]; {hold}; print('open', flush=True); sys.stdin.read()", old
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n", what
        before = listing(old)
        command("adopt", old, new, code=4)
        assert listing(old) == before, what
        assert remains(new) == [], what
        process.communicate()
    command("adopt", old, new)
    see_that_it_is_whole(new)


def test_a_store_that_this_process_has_open_keeps_its_locks(old_records: Path, new: Path) -> None:
    connection = sqlite3.connect(old_records / "offline_buffer.db")
    connection.execute("SELECT * FROM buffered_records").fetchone()
    with pytest.raises(StoreBusy):
        adopt_store(old_records, new)
    connection.close()
    assert adopt_store(old_records, new).made


def test_a_store_that_is_changed_while_it_is_copied_is_not_adopted(
    old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adopt._refuse_busy
    looked: list[int] = []

    def changed(*given: Any) -> None:
        looked.append(1)
        if len(looked) == 2:
            writer = sqlite3.connect(old / "offline_buffer.db")
            writer.execute("DELETE FROM buffered_records WHERE id = 1")
            writer.commit()
            writer.close()
        whole(*given)

    monkeypatch.setattr(adopt, "_refuse_busy", changed)
    with pytest.raises(StoreBusy, match="was changed while it was copied"):
        adopt_store(old, new)
    assert remains(new) == []


def test_a_file_that_this_duckdb_would_destroy_is_refused_by_its_own_name(
    command: Command, old: Path, new: Path
) -> None:
    (old / "timeseries.duckdb.wal").write_bytes(bytes.fromhex("0123456789abcdef"))
    before = listing(old)
    refused = command("adopt", old, new, code=1).stderr
    assert f"{old}/timeseries.duckdb.wal" in refused
    assert "0.9.2" in refused
    assert listing(old) == before
    assert remains(new) == []


def test_without_duckdb_a_store_that_needs_it_is_refused_by_its_own_name(
    old: Path, new: Path, starter_without_duckdb: Starter
) -> None:
    before = listing(old)
    done = starter_without_duckdb.run(["-m", "cli", "adopt", old, new])
    assert done.returncode == 1, done.stderr
    assert f"{old}/timeseries.duckdb needs DuckDB" in done.stderr
    assert listing(old) == before
    assert remains(new) == []


# --- kills -----------------------------------------------------------------------------------------------


def kill_at_random(starter: Starter, old: Path, new: Path, rng: random.Random, kills: int) -> dict[str, int]:
    def adopting_process() -> Process:
        return starter.start(["-m", "cli", "-q", "adopt", old, new])

    before = listing(old)
    begun = time.monotonic()
    assert adopting_process().wait() == 0
    whole_s = time.monotonic() - begun
    shutil.rmtree(new)
    states = {"new": 0, "nothing": 0, "left over": 0}
    for _ in range(kills):
        process = adopting_process()
        time.sleep(rng.uniform(0.0, 1.05) * whole_s)
        process.kill()
        process.wait()
        assert listing(old) == before
        left = [name for name in remains(new) if name != new.name]
        states["new" if new.exists() else "left over" if left else "nothing"] += 1
        if not new.exists():
            assert adopting_process().wait() == 0
            assert remains(new) == [new.name]
        see_that_it_is_whole(new)
        assert listing(old) == before
        for name in remains(new):
            shutil.rmtree(new.with_name(name))
    return states


def test_a_kill_at_any_moment_leaves_the_old_store_and_the_next_run_completes(
    starter: Starter, old: Path, new: Path, seed: int
) -> None:
    kill_at_random(starter, old, new, random.Random(seed), 1)


@pytest.mark.slow
def test_sixty_kills_at_random_moments(starter: Starter, old: Path, new: Path, seed: int) -> None:
    print(kill_at_random(starter, old, new, random.Random(seed), 60))


def test_two_processes_that_adopt_into_one_folder_create_one_store(
    command: Command, old_records: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adopt._copy

    def second(*given: Any) -> None:
        assert "another process is adopting" in command("adopt", old_records, new, code=4).stderr
        whole(*given)

    monkeypatch.setattr(adopt, "_copy", second)
    assert adopt_store(old_records, new).made
    see_that_the_records_are_there(new)
