"""`DUCKDB_STORAGE_PATH` for the command: the columns of a legacy store that has no link to them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from repo import DuckDBTimeSeriesStorage, OfflineBufferManager, Settings, Store
from repo.files import StoreFiles, find_files
from repo.schema.version import HEAD
from tests.migrations.legacy_store import add_pointers, make_legacy_store
from tests.migrations.stores import digest

pytestmark = pytest.mark.duckdb

QUIET = Settings(background=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a buffer of the legacy program, and its column file in another."""
    place = tmp_path_factory.mktemp("legacy")
    folder = make_legacy_store(place / "buffer", 50, records=5)
    add_pointers(folder, 3)
    (place / "disk").mkdir()
    (folder / "timeseries.duckdb").rename(place / "disk" / "points.duckdb")
    return place


@pytest.fixture
def old(command: Any, made: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, on that buffer, with the variable set."""
    place = command.folder.parent
    shutil.copytree(made, place, dirs_exist_ok=True)
    command.folder = place / "buffer"
    monkeypatch.setenv("DUCKDB_STORAGE_PATH", str(place / "disk" / "points.duckdb"))
    return command


def test_after_migrate_every_command_finds_the_columns(old: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = old.folder.parent
    before = digest(place)
    for look in ("migrate --check", "status"):
        due = old.json(*look.split(), code=5)
        assert [one["file"] for one in due["databases"]] == [
            str(place / "disk" / "points.duckdb"),
            str(old.folder / "offline_buffer.db"),
        ]
        assert due["records_waiting"] == 3
    assert digest(place) == before
    done = old.json("migrate")
    assert [one["after"] for one in done["databases"]] == [HEAD, HEAD]
    assert done["records_restored"] == 3
    monkeypatch.delenv("DUCKDB_STORAGE_PATH")
    assert old.json("migrate", "--check")["outdated"] is False
    assert len(old.json("query", "SENSOR-7", "temperature")) > 0
    assert not (old.folder / "timeseries.duckdb").is_file() or (old.folder / "timeseries.duckdb").is_symlink()
    buffer = OfflineBufferManager(old.folder)
    assert len(buffer.get_pending_records()) == 8
    buffer.shutdown()


def test_restore_puts_the_columns_back_where_the_variable_says(old: Any) -> None:
    columns = old.folder.parent / "disk" / "points.duckdb"
    before = columns.read_bytes()
    old("migrate")
    assert columns.read_bytes() != before
    (old.folder / "timeseries.duckdb").unlink()
    old("migrate", "--restore", "-y")
    assert columns.read_bytes() == before
    assert [one["before"] for one in old.json("migrate", "--check", code=5)["databases"]] == [None, None]


def test_commands_that_write_also_link_the_columns(old: Any) -> None:
    text = "sensor_id,metric_name,timestamp,value\nSENSOR-7,temperature,2024-05-01T00:00:00Z,1\n"
    old("ingest", "-", stdin=text)
    assert StoreFiles.of(old.folder).duckdb == old.folder.parent / "disk" / "points.duckdb"
    assert len(old.json("query", "SENSOR-7", "temperature")) > 1


def test_a_store_that_has_its_own_columns_or_none_yet_is_unchanged(
    old: Any, engine: str, tmp_path: Path
) -> None:
    old.folder = tmp_path / "another"
    old("init", "--engine", engine)
    old.write(("s", "m", 1.7e9, 1.0))
    with Store(old.folder, QUIET) as store:
        store.flush()
    assert [row["value"] for row in old.json("query", "*", "*")] == [1.0]
    assert [one["before"] for one in old.json("migrate")["databases"]] == [HEAD, HEAD]
    assert StoreFiles.of(old.folder) == find_files(old.folder, tmp_path / "disk" / "points.duckdb")


@pytest.mark.parametrize("kind", ["text", "another program's"])
def test_a_file_that_a_wrong_variable_names_is_never_linked(old: Any, kind: str, tmp_path: Path) -> None:
    wrong = tmp_path / "disk" / "wrong"
    if kind == "text":
        wrong.write_text("no database " * 1_000)
    else:
        import duckdb

        connection = duckdb.connect(str(wrong))
        connection.execute("CREATE TABLE prices (i INTEGER)")
        connection.close()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DUCKDB_STORAGE_PATH", str(wrong))
        before = digest(tmp_path)
        for line in ("migrate", "ingest -", "migrate --check"):
            message = old(*line.split(), code=1, stdin="").stderr
            assert str(wrong) in message
            assert "--check" in line or "DUCKDB_STORAGE_PATH names" in message
            assert digest(tmp_path) == before
    assert old.json("migrate")["records_restored"] == 3


def test_if_records_wait_and_no_columns_are_found_the_message_names_the_variable(
    old: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DUCKDB_STORAGE_PATH")
    for line in ("migrate --check", "migrate"):
        message = old(*line.split(), code=5 if "--check" in line else 0).stderr
        assert f"{old.folder} has no time-series file" in message
        assert "set DUCKDB_STORAGE_PATH" in message


def test_columns_of_another_store_are_never_used(old: Any, tmp_path: Path) -> None:
    points = tmp_path / "disk" / "points.duckdb"
    points.rename(tmp_path / "disk" / "timeseries.duckdb")
    with Store(tmp_path / "theirs", QUIET) as store:
        store.points.insert("s", "m", 1.0)
        store.flush()
    with Store(tmp_path / "mine", QUIET):
        pass
    mine = StoreFiles.of(tmp_path / "mine")
    theirs = tmp_path / "theirs" / "timeseries.duckdb"
    assert find_files(tmp_path / "mine", theirs) == mine
    storage = DuckDBTimeSeriesStorage(str(points))
    storage.close()
    for elsewhere in (points, tmp_path / "none.duckdb", None):
        assert find_files(tmp_path / "mine", elsewhere) == mine
