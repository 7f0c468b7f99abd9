"""Upgrading a store: what is checked before, the backup, what comes after a failure, and who has to wait."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.engines import torn
from repo.engines.lease import Lease
from repo.errors import (
    HoldfastError,
    InvalidSettings,
    MigrationFailed,
    SchemaOutdated,
    SchemaTooNew,
    StoreBusy,
    StoreFull,
    StoreMissing,
)
from repo.files import StoreFiles
from repo.schema import backup as backups
from repo.schema import migrate
from repo.schema.version import HEAD
from repo.store import migrating
from repo.store.migrating import migrate_store
from repo.store.restoring import restore_store
from tests.migrations.legacy_store import contents, make_legacy_store

pytestmark = pytest.mark.duckdb

POINTS = 3_000
DATA = ("points", "records")
DONE = [("timeseries", None, HEAD), ("metadata", None, HEAD)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_legacy_store(tmp_path_factory.mktemp("legacy") / "store", POINTS)


@pytest.fixture
def legacy(made: Path, tmp_path: Path) -> Path:
    """A store of the legacy program, in a folder whose name is no plain word."""
    return Path(shutil.copytree(made, tmp_path / "a 100% store"))


def digest(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".checkpoint")
    }


def cli(folder: Path, *arguments: str, code: int = 0, stdin: str = "", **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--store", str(folder), *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if "--json" in arguments else done.stdout + done.stderr


def versions(found: migrating.Migration) -> list[tuple[str, str | None, str | None]]:
    return [(one.database, one.before, one.after) for one in found.databases]


def backups_of(folder: Path) -> list[backups.Backup]:
    return backups.list_backups(StoreFiles.of(folder))


def test_a_legacy_store_is_backed_up_whole_and_then_upgraded(legacy: Path) -> None:
    before, files = contents(legacy), digest(legacy)
    told: list[tuple[int, int]] = []
    done = migrate_store(legacy, progress=lambda done, total: told.append((done, total)))
    assert versions(done) == DONE
    assert [(s.database, s.revision) for s in done.steps] == [
        *(("timeseries", r) for r in ("0001", "0002")), *(("metadata", r) for r in ("0001", "0002")),
    ]  # fmt: skip
    assert told[-1][0] == told[-1][1] > 0
    assert told == sorted(told)
    after = contents(legacy)
    assert {name: after[name] for name in DATA} == {name: before[name] for name in DATA}
    [backup] = backups_of(legacy)
    assert backup.folder == done.backup
    listed = f"backups/{backup.folder.name}/timeseries.duckdb"
    assert listed in cli(legacy, "status")
    assert json.loads(cli(legacy, "--json", "status"))["bytes_by_kept_file"][listed] == len(
        files["timeseries.duckdb"]
    )
    assert [(s.database, s.revision) for s in backup.saved] == [("timeseries", None), ("metadata", None)]
    assert (backup.folder / "timeseries.duckdb").read_bytes() == files["timeseries.duckdb"]
    copy = sqlite3.connect(backup.folder / "offline_buffer.db")
    assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert copy.execute("SELECT count(*) FROM buffered_records").fetchone() == (200,)
    copy.close()
    with Store(legacy, Settings(background=False)) as store:
        assert store.status().points == POINTS
        assert len(list(store.points.range(None, None))) == POINTS
        assert store.status().records_pending == 200


def test_opening_takes_the_same_road_and_a_second_time_there_is_nothing_to_do(legacy: Path) -> None:
    Store(legacy, Settings(background=False)).close()
    [backup] = backups_of(legacy)
    done = migrate_store(legacy)
    assert versions(done) == [(name, HEAD, HEAD) for name in ("timeseries", "metadata")]
    assert (done.steps, done.backup, done.needed_bytes) == ((), None, 0)
    assert backups_of(legacy) == [backup]


def test_latest_and_series_of_an_upgraded_store_are_there_at_once(legacy: Path) -> None:
    migrate_store(legacy)
    with Store(legacy, Settings(background=False)) as store:
        assert store.status().points == POINTS
        assert sum(info.points for info in store.series.list()) == POINTS
        [latest] = store.points.latest("SENSOR-7", "temperature")
        assert latest["timestamp_us"] == 1_700_000_147_000_000
    with Store(legacy, Settings(background=False)) as store:
        assert store.status().points == POINTS


def test_looking_changes_nothing_and_tells_steps_rows_and_bytes(legacy: Path) -> None:
    before = digest(legacy)
    assert "0002 is due" in cli(legacy, "migrate", "--check", code=5)
    said = json.loads(cli(legacy, "--json", "migrate", "--dry-run"))
    assert said["outdated"] is True
    [moved] = [
        step for step in said["steps"] if (step["database"], step["revision"]) == ("timeseries", "0002")
    ]
    assert moved["rows"] == POINTS
    assert moved["needed_bytes"] >= (legacy / "timeseries.duckdb").stat().st_size
    both = sum((legacy / name).stat().st_size for name in ("timeseries.duckdb", "offline_buffer.db"))
    assert said["needed_bytes"] >= both + moved["needed_bytes"]
    assert "3,000 rows touched" in cli(legacy, "migrate", "--dry-run")
    assert digest(legacy) == before
    cli(legacy, "migrate")
    cli(legacy, "migrate", "--check")
    assert json.loads(cli(legacy, "--json", "migrate", "--dry-run"))["steps"] == []


def test_one_may_go_up_to_a_revision_only_and_never_down(legacy: Path) -> None:
    assert versions(migrate_store(legacy, to="0001")) == [(d, None, "0001") for d, _, _ in DONE]
    assert "0001 is due" not in cli(legacy, "migrate", "--check", "--to", "0001")
    cli(legacy, "migrate", "--check", code=5)
    cli(legacy, "migrate")
    assert "goes up" in cli(legacy, "migrate", "--to", "0001", code=2)
    with pytest.raises(InvalidSettings, match="no revision 0815"):
        migrate_store(legacy, to="0815")


def test_without_leave_an_old_store_is_refused_with_the_very_command(legacy: Path) -> None:
    before = digest(legacy)
    with pytest.raises(SchemaOutdated) as caught:
        Store(legacy, Settings(auto_migrate=False, background=False))
    assert f"holdfast --store '{legacy}' migrate" in str(caught.value)
    assert digest(legacy) == before
    cli(legacy, "status", code=5, HOLDFAST_AUTO_MIGRATE="false")
    cli(legacy, "migrate", HOLDFAST_AUTO_MIGRATE="false")
    Store(legacy, Settings(auto_migrate=False, background=False)).close()


@pytest.mark.parametrize("database", ["metadata", "timeseries"])
def test_a_store_of_a_newer_program_is_refused_before_anything_is_changed(
    legacy: Path, database: str
) -> None:
    import duckdb

    file = legacy / ("offline_buffer.db" if database == "metadata" else "timeseries.duckdb")
    connection: Any = (sqlite3 if database == "metadata" else duckdb).connect(str(file))
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    connection.commit()
    connection.close()
    before = digest(legacy)
    for call in (lambda: migrate_store(legacy), lambda: Store(legacy)):
        with pytest.raises(SchemaTooNew, match=r"9999.*update the package"):
            call()
    cli(legacy, "migrate", code=5)
    assert digest(legacy) == before
    assert backups_of(legacy) == []


def test_a_disk_that_is_too_small_is_told_with_the_bytes_before_anything_is_changed(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(legacy)
    usage = shutil.disk_usage(legacy)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    for call in (
        lambda: migrate_store(legacy),
        lambda: Store(legacy),
        lambda: migrate_store(legacy, backup=False),
    ):
        with pytest.raises(StoreFull, match=r"may take [\d,]+ bytes .*1,000 are free; nothing was changed"):
            call()
        assert digest(legacy) == before
    assert versions(migrate_store(legacy, force=True)) == DONE


def test_restoring_puts_everything_back_as_it_was(legacy: Path) -> None:
    before = contents(legacy)
    with Store(legacy, Settings(background=False)) as store:
        store.points.insert("NEW", "m", 1.0)
        store.flush()
    refused = cli(legacy, "migrate", "--restore", code=1, stdin="n\n")
    assert "is gone then" in refused
    assert "at none" in cli(legacy, "migrate", "--restore", stdin="y\n")
    assert contents(legacy) == before
    with Store(legacy, Settings(background=False)) as store:
        assert len(list(store.points.range(None, None))) == POINTS
    said = json.loads(cli(legacy, "--json", "migrate", "--restore", "-y"))
    assert [one["revision"] for one in said["databases"]] == [None, None]
    assert contents(legacy) == before


def test_a_store_that_is_open_elsewhere_is_not_restored(legacy: Path) -> None:
    migrate_store(legacy)
    with Store(legacy, Settings(background=False)) as store:
        store.status()
        refused = cli(legacy, "migrate", "--restore", "-y", code=4, HOLDFAST_LEASE_TIMEOUT_S="0.2")
        assert "is open in another process" in refused
        store.points.insert("s", "m", 1.0)
        assert len(list(store.points.range("s", "m"))) == 1


def test_a_restore_that_was_cut_off_is_completed_by_the_next_opening(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(legacy)
    migrate_store(legacy)
    places: list[Path] = []
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if len(places) == 1:
            raise KeyboardInterrupt
        places.append(target)
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            restore_store(legacy)
    [half] = places
    assert half == legacy / "timeseries.duckdb"
    with pytest.raises(SchemaOutdated):
        Store(legacy, Settings(auto_migrate=False))
    assert contents(legacy) == before
    Store(legacy).close()
    assert contents(legacy)["points"] == before["points"]


def test_where_there_is_no_backup_nothing_is_restored(legacy: Path) -> None:
    before = digest(legacy)
    with pytest.raises(StoreMissing, match="no backup"):
        restore_store(legacy)
    cli(legacy, "migrate", "--restore", "-y", code=1)
    assert digest(legacy) == before


def test_as_many_backups_are_kept_as_set_and_none_where_none_is_wanted(legacy: Path) -> None:
    for kept, expected in ((0, 0), (2, 1), (2, 2), (2, 2), (1, 1)):
        (legacy / "holdfast.toml").write_text(f"migration_backups = {kept}\n")
        migrate_store(legacy)
        assert len(backups_of(legacy)) == expected
        if expected:
            restore_store(legacy)
        else:
            shutil.copy(_remade(legacy, "offline_buffer.db"), legacy)
            shutil.copy(_remade(legacy, "timeseries.duckdb"), legacy)
    done = migrate_store(legacy, backup=False)
    assert (done.backup, len(backups_of(legacy))) == (None, 1)


def _remade(legacy: Path, name: str) -> Path:
    folder = legacy.parent / "again"
    if not folder.exists():
        make_legacy_store(folder, POINTS)
    for log in ("offline_buffer.db-wal", "offline_buffer.db-shm", "timeseries.duckdb.wal"):
        (legacy / log).unlink(missing_ok=True)
    return folder / name


# --- failures in the middle -----------------------------------------------------------------------------


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put code into revision 0002, at the end of the upgrade of one database."""
    folder = tmp_path / "scripts"
    shutil.copytree(migrate._scripts(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrate, "_scripts", lambda: folder)
    original = (folder / "versions" / "0002_present.py").read_text()

    def _end(database: str, code: str) -> None:
        wrapped = (
            f"\n_whole_{database} = upgrade_{database}\nrow_differences = {{}}\n"
            f"def upgrade_{database}():\n    _whole_{database}()\n    {code}\n"
        )
        (folder / "versions" / "0002_present.py").write_text(original + wrapped)

    return _end


@pytest.mark.parametrize("database", ["metadata", "timeseries"])
def test_a_failure_in_the_middle_leaves_whole_revisions_and_the_next_run_keeps_the_first_backup(
    legacy: Path, database: str, scripts: Callable[[str, str], None]
) -> None:
    before = contents(legacy)
    scripts(database, "op.execute('SELECT * FROM nowhere')")
    with pytest.raises(HoldfastError, match="nowhere"):
        migrate_store(legacy)
    half = contents(legacy)
    assert (half["columns"], half["metadata"]) == (
        ("0002", "0001") if database == "metadata" else ("0001", None)
    )
    assert {name: half[name] for name in DATA} == {name: before[name] for name in DATA}
    first = backups_of(legacy)
    with pytest.raises(HoldfastError, match="nowhere"):
        Store(legacy)
    scripts(database, "pass")
    done = migrate_store(legacy)
    assert backups_of(legacy) == first
    assert done.backup == first[0].folder
    assert contents(legacy)["metadata"] == HEAD
    restore_store(legacy)
    assert contents(legacy) == before


@pytest.mark.parametrize(
    ("database", "table"), [("metadata", "buffered_records"), ("timeseries", "time_series_data")]
)
def test_a_revision_that_loses_rows_is_taken_back_unless_it_says_how_many(
    legacy: Path, database: str, table: str, scripts: Callable[[str, str], None]
) -> None:
    before = contents(legacy)
    lose = f"op.execute('DELETE FROM {table} WHERE quality = 99')"
    if database == "metadata":
        lose = f"op.execute('DELETE FROM {table} WHERE id > 190')"
    scripts(database, lose)
    with pytest.raises(MigrationFailed, match=rf"rows of the [\d,]+ in {table}"):
        migrate_store(legacy)
    half = contents(legacy)
    assert half["columns" if database == "timeseries" else "metadata"] == "0001"
    assert {name: half[name] for name in DATA} == {name: before[name] for name in DATA}
    lost = 10 if database == "metadata" else POINTS // 3
    scripts(database, f"{lose}; row_differences['{table}'] = -{lost}")
    assert all(one.after == HEAD for one in migrate_store(legacy).databases)


def test_a_disk_that_fills_up_at_the_checkpoint_after_a_revision_is_told_as_such(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb

    before = contents(legacy)

    def full(path: Path) -> Any:
        raise duckdb.FatalException(f'FATAL Error: Could not write file "{path}": No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr(torn, "noted", full)
        with pytest.raises(StoreFull, match="no space left"):
            migrate_store(legacy, backup=False)
    migrate_store(legacy, backup=False)
    after = contents(legacy)
    assert {name: after[name] for name in DATA} == {name: before[name] for name in DATA}


# --- others ---------------------------------------------------------------------------------------------


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
        assert "does not go through Holdfast" in cli(legacy, "migrate", code=4)
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
            assert "at 0002" in cli(legacy, "migrate")
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
        assert [told.get(timeout=60) for _ in both] == [("ok", POINTS, None)] * 2
        for process in both:
            process.join()
        assert len(backups_of(folder)) == 1
        assert len(contents(folder)["records"]) == 200
        shutil.rmtree(folder)


def test_processes_that_open_an_old_store_at_once_upgrade_it_once(made: Path, tmp_path: Path) -> None:
    opened_at_once(made, tmp_path, 2)


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
