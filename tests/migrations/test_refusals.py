"""A migration that cannot succeed is refused before it changes either database; a failure names the way back."""

from __future__ import annotations

import os
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from repo import DuckDBTimeSeriesStorage, Settings, Store
from repo.commands import holdfast
from repo.errors import HoldfastError, StoreCorrupt
from repo.schema import runner, upgrade
from repo.schema.adopt import adopt_store
from repo.schema.restore import restore_store
from repo.schema.upgrade import migrate_store
from tests.migrations.stores import POINTS, backups_of, cli, digest

pytestmark = pytest.mark.duckdb


def run_sql(folder: Path, script: str) -> None:
    connection = sqlite3.connect(folder / "offline_buffer.db")
    connection.executescript(script)
    connection.close()


@pytest.mark.parametrize(
    "script",
    [
        "ALTER TABLE buffered_records RENAME COLUMN data TO body",
        "ALTER TABLE buffer_metadata DROP COLUMN value",
    ],
)
def test_records_of_another_shape_are_refused_before_the_columns_are_touched(
    legacy: Path, script: str, tmp_path: Path
) -> None:
    run_sql(legacy, script)
    before = digest(legacy)
    for check, whatever in ((True, False), (False, False), (False, True)):
        with pytest.raises(StoreCorrupt, match="where the legacy schema has"):
            migrate_store(legacy, check=check, force=whatever, backup=not whatever)
        assert digest(legacy) == before
    with pytest.raises(StoreCorrupt, match="where the legacy schema has"):
        Store(legacy)
    with pytest.raises(StoreCorrupt) as refused:
        adopt_store(legacy, tmp_path / "new")
    assert refused.value.path == legacy / "offline_buffer.db"
    assert digest(legacy) == before


def test_an_emptied_metadata_database_beside_columns_of_a_store_is_damage_for_migrate_too(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "site"
    with Store(folder, Settings(background=False)) as store:
        store.points.insert("s", "m", 1.0)
        store.flush()
    for log in ("", "-wal", "-shm"):
        (folder / f"offline_buffer.db{log}").unlink(missing_ok=True)
    (folder / "offline_buffer.db").touch()
    before = digest(folder)
    for check in (True, False):
        with pytest.raises(StoreCorrupt, match="this is a damaged store, not a new one"):
            migrate_store(folder, check=check)
    assert digest(folder) == before


def test_an_interrupted_upgrade_of_a_single_legacy_file_is_continued(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (legacy / "offline_buffer.db").unlink()
    whole, left = runner.upgrade, 0

    def cut(*arguments: Any, **named: Any) -> runner.Migrated:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return whole(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "upgrade", cut)
        for steps in (1, 1, 1, 0):  # each revision of the columns, then nothing of the metadata
            left = steps
            with pytest.raises(KeyboardInterrupt):
                DuckDBTimeSeriesStorage(str(legacy / "timeseries.duckdb"))
    storage = DuckDBTimeSeriesStorage(str(legacy / "timeseries.duckdb"))
    assert storage.get_storage_stats()["total_records"] == POINTS
    storage.close()


def test_a_failure_names_the_backup_and_the_command_that_restores_it(legacy: Path) -> None:
    run_sql(legacy, "CREATE TABLE journal (x)")
    message = cli(legacy, "migrate", code=1)
    [backup] = backups_of(legacy)
    quoted = str(legacy).replace("'", "'\"'\"'")
    assert (
        f"`holdfast --store '{quoted}' migrate --restore` restores the backup from before, {backup.folder}"
        in message
    )


def test_two_revisions_in_one_database_are_reported_with_its_file(migrated: Path) -> None:
    run_sql(migrated, "INSERT INTO alembic_version VALUES ('0001')")
    with pytest.raises(HoldfastError) as refused:
        migrate_store(migrated, check=True)
    assert f"alembic_version of {migrated / 'offline_buffer.db'} has 2 revisions" in str(refused.value)


def test_metadata_that_cannot_be_written_are_refused_before_the_columns_are_touched(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(legacy)
    # For root every file can be written, so the system's answer is given here.
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).suffix != ".db")
    with pytest.raises(
        HoldfastError, match=r"offline_buffer\.db cannot be read or written .*nothing was changed"
    ):
        migrate_store(legacy)
    assert digest(legacy) == before


def test_each_migration_makes_a_backup_even_after_a_completed_one(legacy: Path) -> None:
    (legacy / "timeseries.duckdb").unlink()  # the records alone are upgraded sooner
    first = migrate_store(legacy, to="0001").backup
    run_sql(legacy, "UPDATE buffered_records SET retry_count = 77")
    second = migrate_store(legacy).backup
    assert second is not None
    assert second != first
    restore_store(legacy)
    with closing(sqlite3.connect(legacy / "offline_buffer.db")) as connection:
        asked = connection.execute("SELECT DISTINCT retry_count FROM buffered_records")
        assert asked.fetchall() == [(77,)]


def test_columns_that_come_after_the_metadata_were_migrated_are_backed_up_as_well(
    legacy: Path, tmp_path: Path
) -> None:
    columns, elsewhere = legacy / "timeseries.duckdb", tmp_path / "elsewhere.duckdb"
    columns.rename(elsewhere)
    migrate_store(legacy)
    elsewhere.rename(columns)
    migrate_store(legacy)
    assert [saved.database for saved in backups_of(legacy)[0].saved] == ["timeseries", "metadata"]
    restore_store(legacy)
    assert migrate_store(legacy, check=True).databases[0].before is None


def test_the_newest_backup_is_the_one_made_last_even_if_the_clock_was_set_back(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (legacy / "timeseries.duckdb").unlink()  # the records alone are upgraded sooner
    for now_us, to in ((1_990_000_000_000_000, "0001"), (0, "0002")):
        monkeypatch.setattr(upgrade, "system_clock", lambda now_us=now_us: now_us)
        made = migrate_store(legacy, to=to).backup
        assert [backup.folder for backup in backups_of(legacy)] == [made]
    assert [saved.revision for saved in restore_store(legacy).backup.saved] == ["0001"]


def test_ctrl_c_inside_duckdb_exits_with_130_and_without_a_traceback(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise RuntimeError("Query interrupted")  # what DuckDB 2.0 makes of it

    monkeypatch.setattr(upgrade, "migrate_store", interrupted)
    done = CliRunner().invoke(holdfast, ["--store", str(legacy), "migrate"])
    assert (done.exit_code, type(done.exception)) == (130, SystemExit)


def test_a_legacy_column_file_alone_is_upgraded_by_its_name_and_its_folder_says_so(legacy: Path) -> None:
    file = legacy / "timeseries.duckdb"
    (legacy / "offline_buffer.db").unlink()
    before = file.read_bytes()
    assert "--store FILE" in cli(legacy, "migrate", code=1)
    assert f"holdfast --store {shlex.quote(str(file))} init" in cli(legacy, "status", code=1)
    assert file.read_bytes() == before
    assert "0004 is due" in cli(file, "migrate", "--check", code=5)
    assert "none -> 0004" in cli(file, "migrate")
    cli(file, "init")
    for named in (file, legacy):
        assert "3,000 in" in cli(named, "status")
        assert "SENSOR-7" in cli(named, "query", "SENSOR-7", "temperature", "--limit", "1")
    assert "no revision" in cli(file, "migrate", "--restore", "-y")
    assert file.read_bytes() == before
