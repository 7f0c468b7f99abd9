"""Putting a backup back: what is damaged or in use is noticed before anything is replaced, and a damaged store is
no obstacle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.disk import durable
from repo.errors import SchemaOutdated, StoreBusy, StoreCorrupt, StoreFull, StoreMissing
from repo.files import StoreFiles
from repo.schema import backup as backups
from repo.schema.restore import restore_store
from repo.schema.upgrade import migrate_store
from tests.migrations.legacy_store import contents, make_legacy_store
from tests.migrations.stores import POINTS, backups_of, cli, cli_process, digest
from tests.starter import Starter

pytestmark = pytest.mark.duckdb


def _backup(folder: Path) -> Path:
    return backups.list_backups(StoreFiles.of(folder))[0].folder


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", ["timeseries.duckdb", "offline_buffer.db"])
@pytest.mark.parametrize(
    ("harm", "reason"),
    [(_cut, "bytes, not"), (_flip, "its SHA-256 is"), (Path.unlink, "it is missing")],
)
def test_a_backup_that_is_damaged_is_refused_before_anything_is_replaced(
    migrated: Path, name: str, harm: Callable[[Path], None], reason: str
) -> None:
    harm(_backup(migrated) / name)
    before = digest(migrated)
    with pytest.raises(StoreCorrupt, match=reason) as refused:
        restore_store(migrated)
    assert refused.value.path == _backup(migrated) / name
    assert digest(migrated) == before
    Store(migrated, Settings(background=False)).close()


def test_a_manifest_that_names_no_database_restores_nothing(migrated: Path) -> None:
    before = digest(migrated)
    manifest = _backup(migrated) / "manifest.json"
    for text in ('{"made_us": 1, "databases": []}', "[]", ""):
        manifest.write_text(text)
        with pytest.raises(StoreCorrupt, match="cannot be read"):
            restore_store(migrated)
    manifest.write_bytes(before[str(manifest.relative_to(migrated))])
    assert digest(migrated) == before


def test_a_damaged_backup_does_not_matter_if_nothing_is_due(migrated: Path) -> None:
    (_backup(migrated) / "manifest.json").write_text("")
    assert "at 0004" in cli(migrated, "migrate", "--check")
    Store(migrated, Settings(background=False)).close()


@pytest.mark.parametrize("left", ["no database\n" * 4_000, "", None])
def test_a_store_whose_metadata_is_damaged_can_be_restored(migrated: Path, left: str | None) -> None:
    database = migrated / "offline_buffer.db"
    database.unlink()
    if left is not None:
        database.write_text(left)
    cli(migrated, "migrate", "--restore", "-y")
    found = contents(migrated)
    assert (found["points"][0], len(found["records"]), found["metadata"]) == (POINTS, 200, None)


def test_files_that_the_legacy_program_has_open_are_not_replaced(migrated: Path, spawn: Any) -> None:
    script = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    columns = migrated / "timeseries.duckdb"
    program = spawn(script, columns)
    assert program.stdout.readline() == "open\n"
    before = columns.stat().st_ino
    with pytest.raises(StoreBusy, match=r"timeseries\.duckdb is open in a running program"):
        restore_store(migrated)
    assert columns.stat().st_ino == before
    program.communicate()
    restore_store(migrated)


def test_a_disk_that_fills_up_during_the_copy_leaves_the_store_unchanged(
    migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(migrated)
    full = OSError(28, "No space left on device")

    def no_room(*_: object) -> str:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(durable, "copy", no_room)
        with pytest.raises(StoreFull, match="was not restored"):
            restore_store(migrated)
    assert digest(migrated) == before
    restore_store(migrated)


@pytest.mark.parametrize("note", ["", "{}", '{"folder": "20200101T000000Z"}'])
def test_an_unreadable_restore_file_is_reported_with_the_next_step(migrated: Path, note: str) -> None:
    marker = migrated / "backups" / "restoring"
    marker.write_text(note)
    for call in (lambda: Store(migrated), lambda: migrate_store(migrated), lambda: restore_store(migrated)):
        with pytest.raises(StoreCorrupt) as refused:
            call()
        assert f"remove {marker} and start the restore again: `holdfast --store '" in str(refused.value)
    marker.unlink()
    restore_store(migrated)


def test_an_empty_revision_does_not_mean_the_head(migrated: Path) -> None:
    restore_store(migrated)
    before = digest(migrated)
    assert "there is no revision" in cli(migrated, "migrate", "--to", "", code=2)
    assert digest(migrated) == before


# --- the command, and interrupted restores --------------------------------------------------------


def test_restore_returns_everything_to_its_earlier_state(legacy: Path) -> None:
    before = contents(legacy)
    with Store(legacy, Settings(background=False)) as store:
        store.points.insert("NEW", "m", 1.0)
        store.flush()
    refused = cli(legacy, "migrate", "--restore", code=1, stdin="n\n")
    assert "will be lost" in refused
    assert "add -y" in cli(legacy, "migrate", "--restore", code=2, stdin="")
    assert "no revision  (timeseries" in cli(legacy, "migrate", "--restore", stdin="y\n")
    assert contents(legacy) == before
    with Store(legacy, Settings(background=False)) as store:
        assert len(list(store.points.range(None, None))) == POINTS
    said = json.loads(cli(legacy, "--json", "migrate", "--restore", "-y"))
    assert [one["revision"] for one in said["databases"]] == [None, None]
    assert contents(legacy) == before


def test_a_store_that_another_process_has_open_is_not_restored(starter: Starter, migrated: Path) -> None:
    with Store(migrated, Settings(background=False)) as store:
        store.status()
        refused = cli_process(
            starter, migrated, "migrate", "--restore", "-y", code=4, HOLDFAST_LEASE_TIMEOUT_S="0.2"
        )
        assert "is open in another process" in refused
        store.points.insert("s", "m", 1.0)
        assert len(list(store.points.range("s", "m"))) == 1


def test_an_interrupted_restore_is_completed_by_the_next_opening(
    migrated: Path, legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(legacy)
    places: list[Path] = []
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if self.suffix == ".restoring":  # a prepared copy, which replaces the file of the store
            if len(places) == 1:
                raise KeyboardInterrupt
            places.append(target)
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            restore_store(migrated)
    [half] = places
    assert half == migrated / "timeseries.duckdb"
    with pytest.raises(SchemaOutdated):
        Store(migrated, Settings(auto_migrate=False))
    assert contents(migrated) == before
    Store(migrated).close()
    assert contents(migrated)["points"] == before["points"]


def test_without_a_backup_nothing_is_restored(legacy: Path) -> None:
    before = digest(legacy)
    with pytest.raises(StoreMissing, match="no backup"):
        restore_store(legacy)
    cli(legacy, "migrate", "--restore", "-y", code=1)
    assert digest(legacy) == before


def test_the_setting_limits_how_many_backups_are_kept(legacy: Path, tmp_path: Path) -> None:
    (legacy / "timeseries.duckdb").unlink()  # the records alone are upgraded sooner
    without = Path(shutil.copytree(legacy, tmp_path / "without"))
    (without / "holdfast.toml").write_text("migration_backups = 0\n")
    migrate_store(without)
    assert backups_of(without) == []
    for kept, expected in ((2, 1), (2, 2), (1, 1)):
        (legacy / "holdfast.toml").write_text(f"migration_backups = {kept}\n")
        migrate_store(legacy)
        assert len(backups_of(legacy)) == expected
        restore_store(legacy)
    done = migrate_store(legacy, backup=False)
    assert (done.backup, len(backups_of(legacy))) == (None, 1)


def test_a_backup_is_no_more_readable_than_its_original_and_neither_is_what_it_restores(
    tmp_path: Path,
) -> None:
    folder = make_legacy_store(tmp_path / "store", 20)
    for path in folder.iterdir():
        path.chmod(0o600)
    migrate_store(folder)
    files = [path for path in _backup(folder).iterdir() if path.suffix != ".json"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    restore_store(folder)
    restored = [folder / "offline_buffer.db", folder / "timeseries.duckdb"]
    assert {path.stat().st_mode & 0o777 for path in restored} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_upgrade_and_a_restore_by_root_leave_the_store_to_its_owner(tmp_path: Path) -> None:
    folder = make_legacy_store(tmp_path / "store", 20)
    for path in (folder, *folder.iterdir()):
        os.chown(path, 54_321, 54_321)
    migrate_store(folder)
    with Store(folder, Settings(background=False)):
        pass
    restore_store(folder)
    assert {path.stat().st_uid for path in folder.rglob("*")} == {54_321}
