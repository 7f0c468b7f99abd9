"""Read-only commands change nothing: on an outdated store they name the migration that is due, and its command."""

from __future__ import annotations

import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.schema import upgrade
from repo.schema.upgrade import migrate_store
from repo.schema.version import HEAD
from tests.migrations.legacy_store import add_pointers, make_legacy_store
from tests.migrations.stores import digest

pytestmark = pytest.mark.duckdb

LOOKS = [
    "status",
    "init",
    "query SENSOR-7 pressure",
    "latest",
    "series",
    "export",
    "import --dry-run",
    "cleanup --all --dry-run",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the legacy program, for tests that copy it."""
    return make_legacy_store(tmp_path_factory.mktemp("legacy") / "store", 50, records=5)


@pytest.fixture
def old(command: Any, made: Path) -> Any:
    """The command, on a store of the legacy program."""
    command.folder = command.folder.with_name("it's old")
    shutil.copytree(made, command.folder)
    return command


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A file of points, of another store."""
    with Store(tmp_path / "other", Settings(background=False, engine="sqlite")) as store:
        store.points.insert("s", "m", 1.0, timestamp=1.7e9)
        store.export_parquet(tmp_path / "points.parquet")
    return tmp_path / "points.parquet"


def test_reading_an_outdated_store_names_the_command_and_changes_nothing(
    old: Any, parquet: Path, tmp_path: Path
) -> None:
    for goal in (None, "0001"):
        if goal is not None:
            migrate_store(old.folder, to=goal)
        before = digest(old.folder)
        for line in LOOKS:
            files = {"export": [tmp_path / "out.parquet"], "import": [parquet]}.get(line.split()[0], [])
            message = old(*line.split(), *files, code=5).stderr
            assert f"`holdfast --store {shlex.quote(str(old.folder))} migrate`" in message, line
            assert digest(old.folder) == before, line
    assert not (tmp_path / "out.parquet").exists()


def test_reading_leaves_the_log_of_a_killed_legacy_program_unchanged(old: Any) -> None:
    killed = old.folder.with_name("killed")
    killed.mkdir()
    writing = sqlite3.connect(old.folder / "offline_buffer.db")
    writing.execute("PRAGMA journal_mode = WAL")
    writing.execute("PRAGMA wal_autocheckpoint = 0")
    writing.execute("UPDATE buffered_records SET source = 'only in the log'")
    writing.commit()
    for name in ("offline_buffer.db", "offline_buffer.db-wal", "timeseries.duckdb"):
        shutil.copy(old.folder / name, killed / name)
    writing.close()
    old.folder = killed
    before = digest(killed)
    for line in ("status", "migrate --check", "query SENSOR-7 pressure"):
        old(*line.split(), code=5)
        assert {name: held for name, held in digest(killed).items() if not name.endswith("-shm")} == before
    old("migrate")
    with Store(killed, Settings(background=False)) as store:
        assert {record["source"] for record in store.records.pending()} == {"only in the log"}


def test_status_of_an_outdated_store_shows_the_revisions_of_both_databases(old: Any) -> None:
    said = old("status", code=5).stdout
    assert f"timeseries  no revision, {HEAD} is due  ({old.folder / 'timeseries.duckdb'})" in said
    assert f"metadata    no revision, {HEAD} is due  ({old.folder / 'offline_buffer.db'})" in said
    as_json = old.json("status", code=5)
    assert as_json == old.json("migrate", "--check", code=5) | {"free_bytes": as_json["free_bytes"]}
    assert as_json["outdated"] is True
    migrate_store(old.folder, to="0001")
    assert [one["before"] for one in old.json("status", code=5)["databases"]] == ["0001", "0001"]
    assert "Traceback" not in old("-q", "status", code=5).stderr


def test_status_of_an_outdated_store_works_while_another_process_has_the_columns(
    old: Any, held: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = held()
    monkeypatch.setenv("HOLDFAST_LEASE_TIMEOUT_S", "60")
    before = digest(old.folder)
    result = old("status", code=5)
    assert f"{old.folder / 'offline_buffer.db'} has the schema of the legacy program" in result.stderr
    assert f"process {pid}, doing: holding on for a test" in result.stderr
    assert digest(old.folder) == before


def test_reading_a_store_whose_records_wait_for_their_data_leaves_them_waiting(
    old: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pointers(old.folder, 3)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(upgrade, "restore_records", stopped)
        with pytest.raises(KeyboardInterrupt):
            migrate_store(old.folder)
    for line in ("status", "latest SENSOR-7", "status"):
        message = old(*line.split()).stderr
    assert "3 pending records" in message
    assert f"`holdfast --store {shlex.quote(str(old.folder))} migrate`" in message
    assert old.json("migrate")["records_restored"] == 3
    assert "held back" not in old("status").stderr


def test_reading_current_metadata_with_outdated_columns_leaves_the_columns_unchanged(old: Any) -> None:
    columns = old.folder / "timeseries.duckdb"
    columns.rename(columns.with_suffix(".aside"))
    migrate_store(old.folder)
    columns.with_suffix(".aside").rename(columns)
    before = columns.read_bytes()
    for line in ("status", "query SENSOR-7 pressure", "status"):
        assert f"{columns} has the schema of the legacy program" in old(*line.split(), code=5).stderr
    assert columns.read_bytes() == before
    assert [one["before"] for one in old.json("status", code=5)["databases"]] == [None, HEAD]
