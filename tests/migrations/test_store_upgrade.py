"""Upgrading a store: what is checked before, the backup, and what comes after a failure."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from repo import Settings, Store
from repo.engines.duckdb import checkpoint
from repo.errors import (
    HoldfastError,
    InvalidSettings,
    MigrationFailed,
    SchemaOutdated,
    SchemaTooNew,
    StoreFull,
)
from repo.schema import runner
from repo.schema.restore import restore_store
from repo.schema.upgrade import migrate_store
from repo.schema.version import HEAD, REVISIONS
from tests.migrations.legacy_store import contents
from tests.migrations.stores import DATA, DONE, POINTS, backups_of, cli, digest, versions

pytestmark = pytest.mark.duckdb


def test_a_legacy_store_is_backed_up_whole_and_then_upgraded(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files = contents(legacy), digest(legacy)
    reported: list[tuple[int, int]] = []
    opened: list[str] = []
    connect, here = duckdb.connect, threading.current_thread()

    def noted(path: str, **given: Any) -> Any:
        if threading.current_thread() is here:  # no thread that another test has left
            opened.append(path)
        return connect(path, **given)

    with monkeypatch.context() as patched:
        patched.setattr(duckdb, "connect", noted)
        done = migrate_store(legacy, progress=lambda done, total: reported.append((done, total)))
    assert opened == [str(legacy / "timeseries.duckdb")] * 2, "to plan, and for all revisions"
    assert versions(done) == DONE
    assert [(s.database, s.revision) for s in done.steps] == [
        *(("timeseries", r) for r in REVISIONS), *(("metadata", r) for r in REVISIONS),
    ]  # fmt: skip
    assert reported[-1][0] == reported[-1][1] > 0
    assert reported == sorted(reported)
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


def test_opening_upgrades_in_the_same_way_and_only_once(legacy: Path) -> None:
    Store(legacy, Settings(background=False)).close()
    [backup] = backups_of(legacy)
    done = migrate_store(legacy)
    assert versions(done) == [(name, HEAD, HEAD) for name in ("timeseries", "metadata")]
    assert (done.steps, done.backup, done.needed_bytes) == ((), None, 0)
    assert backups_of(legacy) == [backup]


def test_latest_and_series_of_an_upgraded_store_are_there_at_once(migrated: Path) -> None:
    with Store(migrated, Settings(background=False)) as store:
        assert store.status().points == POINTS
        assert sum(info.points for info in store.series.list()) == POINTS
        [latest] = store.points.latest("SENSOR-7", "temperature")
        assert latest["timestamp_us"] == 1_700_000_147_000_000
    with Store(migrated, Settings(background=False)) as store:
        assert store.status().points == POINTS


def test_a_dry_run_changes_nothing_and_reports_steps_rows_and_bytes(legacy: Path) -> None:
    before = digest(legacy)
    assert "0004 is due" in cli(legacy, "migrate", "--check", code=5)
    said = json.loads(cli(legacy, "--json", "migrate", "--dry-run"))
    assert said["outdated"] is True
    [moved] = [
        step for step in said["steps"] if (step["database"], step["revision"]) == ("timeseries", "0002")
    ]
    assert moved["rows"] == POINTS
    assert moved["needed_bytes"] >= (legacy / "timeseries.duckdb").stat().st_size
    both = sum((legacy / name).stat().st_size for name in ("timeseries.duckdb", "offline_buffer.db"))
    assert said["needed_bytes"] >= both + moved["needed_bytes"]
    assert "3,000 rows affected" in cli(legacy, "migrate", "--dry-run")
    assert digest(legacy) == before
    cli(legacy, "migrate")
    cli(legacy, "migrate", "--check")
    assert json.loads(cli(legacy, "--json", "migrate", "--dry-run"))["steps"] == []


def test_a_store_can_be_upgraded_to_a_chosen_revision_but_not_downgraded(legacy: Path) -> None:
    assert versions(migrate_store(legacy, to="0001")) == [(d, None, "0001") for d, _, _ in DONE]
    assert "0001 is due" not in cli(legacy, "migrate", "--check", "--to", "0001")
    cli(legacy, "migrate", "--check", code=5)
    cli(legacy, "migrate")
    assert "migrations only upgrade" in cli(legacy, "migrate", "--to", "0001", code=2)
    with pytest.raises(InvalidSettings, match="no revision 0815"):
        migrate_store(legacy, to="0815")


def test_without_auto_migrate_an_old_store_is_refused_with_the_command_to_run(legacy: Path) -> None:
    before = digest(legacy)
    with pytest.raises(SchemaOutdated) as caught:
        Store(legacy, Settings(auto_migrate=False, background=False))
    assert f"holdfast --store {shlex.quote(str(legacy))} migrate" in str(caught.value)
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


def test_a_disk_that_is_too_small_is_reported_with_the_bytes_before_anything_is_changed(
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
        with pytest.raises(StoreFull, match=r"may need [\d,]+ bytes .*1,000 are free; nothing was changed"):
            call()
        assert digest(legacy) == before
    assert versions(migrate_store(legacy, force=True)) == DONE


# --- failures in the middle -----------------------------------------------------------------------------


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put code into revision 0002, at the end of the upgrade of one database."""
    folder = tmp_path / "scripts"
    shutil.copytree(runner._scripts(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runner, "_scripts", lambda: folder)
    original = (folder / "versions" / "0002_present.py").read_text()

    def _end(database: str, code: str) -> None:
        wrapped = (
            f"\n_whole_{database} = upgrade_{database}\nrow_differences = {{}}\n"
            f"def upgrade_{database}():\n    _whole_{database}()\n    {code}\n"
        )
        (folder / "versions" / "0002_present.py").write_text(original + wrapped)

    return _end


@pytest.mark.parametrize("database", ["metadata", "timeseries"])
def test_a_failure_leaves_complete_revisions_and_the_next_run_keeps_the_first_backup(
    legacy: Path, database: str, scripts: Callable[[str, str], None]
) -> None:
    before = contents(legacy)
    scripts(database, "op.execute('SELECT * FROM nowhere')")
    with pytest.raises(HoldfastError, match="nowhere"):
        migrate_store(legacy)
    half = contents(legacy)
    assert (half["columns"], half["metadata"]) == (
        ("0004", "0001") if database == "metadata" else ("0001", None)
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
def test_a_revision_that_loses_rows_is_rolled_back_unless_it_declares_how_many(
    legacy: Path, database: str, table: str, scripts: Callable[[str, str], None]
) -> None:
    before = contents(legacy)
    lose = f"op.execute('DELETE FROM {table} WHERE quality = 99')"
    if database == "metadata":
        lose = f"op.execute('DELETE FROM {table} WHERE id > 190')"
    scripts(database, lose)
    with pytest.raises(MigrationFailed, match=rf"would change {table} from [\d,]+ rows"):
        migrate_store(legacy)
    half = contents(legacy)
    assert half["columns" if database == "timeseries" else "metadata"] == "0001"
    assert {name: half[name] for name in DATA} == {name: before[name] for name in DATA}
    lost = 10 if database == "metadata" else POINTS // 3
    scripts(database, f"{lose}; row_differences['{table}'] = -{lost}")
    assert all(one.after == HEAD for one in migrate_store(legacy).databases)


def test_a_disk_that_fills_up_at_the_checkpoint_after_a_revision_is_reported(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb

    before = contents(legacy)

    def full(path: Path, *_: object) -> Any:
        raise duckdb.FatalException(f'FATAL Error: Could not write file "{path}": No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "noted", full)
        with pytest.raises(StoreFull, match="no space left"):
            migrate_store(legacy, backup=False)
    migrate_store(legacy, backup=False)
    after = contents(legacy)
    assert {name: after[name] for name in DATA} == {name: before[name] for name in DATA}
