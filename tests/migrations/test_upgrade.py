"""Upgrading: an empty file, a legacy one, a newer one, and one where a step fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from repo.engines.duckdb import driver as duckdb
from repo.engines.sqlite import driver as sqlite
from repo.errors import HoldfastError, SchemaOutdated, SchemaTooNew, StoreCorrupt
from repo.models import MetadataBase, TimeSeriesBase
from repo.schema import runner
from repo.schema.version import HEAD, REVISIONS, VersionStatus, compare, version_of

OpenEngine = Callable[[Path], Engine]


def _database(path: Path) -> runner.Database:
    return "metadata" if path.name == "offline_buffer.db" else "timeseries"


def _rows(engine: Engine, statement: str) -> list[Any]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def test_the_versions_that_the_program_knows_are_those_of_the_scripts() -> None:
    scripts = ScriptDirectory.from_config(runner.config())
    assert scripts.get_heads() == [HEAD]
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == REVISIONS
    assert all(
        Path(script.path).name.startswith(script.revision + "_") for script in scripts.walk_revisions()
    )


def test_no_revision_imports_the_models() -> None:
    for script in ScriptDirectory.from_config(runner.config()).walk_revisions():
        assert "import repo" not in Path(script.path).read_text()
        assert "from repo" not in Path(script.path).read_text()


def test_the_version_can_be_read_without_alembic() -> None:
    code = "import sys, repo.schema.version; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_an_upgraded_empty_file_equals_the_models(database_file: Path, open_engine: OpenEngine) -> None:
    engine, database = open_engine(database_file), _database(database_file)
    assert runner.upgrade(engine, database) == (None, HEAD)
    assert runner.check(engine, database) == []
    assert runner.upgrade(engine, database) == (HEAD, HEAD)
    assert runner.current(engine) == HEAD


def _structure(engine: Engine) -> Any:
    if engine.dialect.name == "duckdb":
        return (
            _rows(
                engine,
                "SELECT table_name, column_name, data_type, is_nullable, column_default "
                "FROM duckdb_columns() WHERE table_name <> 'alembic_version' ORDER BY 1, column_index",
            ),
            _rows(
                engine,
                "SELECT table_name, constraint_text FROM duckdb_constraints() "
                "WHERE table_name <> 'alembic_version' ORDER BY ALL",
            ),
            _rows(engine, "SELECT table_name, index_name FROM duckdb_indexes() ORDER BY ALL"),
        )
    tables = _rows(
        engine,
        "SELECT name, wr, strict FROM pragma_table_list "
        "WHERE schema = 'main' AND name NOT IN ('alembic_version', 'sqlite_schema') ORDER BY name",
    )
    columns = {
        name: _rows(engine, f"SELECT name, type, pk FROM pragma_table_xinfo('{name}')") for name, *_ in tables
    }
    indexes = _rows(
        engine,
        "SELECT tbl_name, name FROM sqlite_master "
        "WHERE type = 'index' AND tbl_name <> 'alembic_version' ORDER BY name",
    )
    return tables, columns, indexes


def test_tables_strictness_keys_and_column_order_are_those_of_the_models(
    database_file: Path, open_engine: OpenEngine
) -> None:
    engine, database = open_engine(database_file), _database(database_file)
    runner.upgrade(engine, database)
    made = open_engine(database_file.with_stem("made"))
    (MetadataBase if database == "metadata" else TimeSeriesBase).metadata.create_all(made)
    assert _structure(engine) == _structure(made)


def test_no_ddl_is_left_in_duckdbs_log(tmp_path: Path, open_engine: OpenEngine) -> None:
    path = tmp_path / "timeseries.duckdb"
    runner.upgrade(open_engine(path), "timeseries")
    assert duckdb.log_bytes(path) == 0


def test_a_database_of_a_newer_program_is_refused_and_unchanged(
    database_file: Path, open_engine: OpenEngine
) -> None:
    engine, database = open_engine(database_file), _database(database_file)
    runner.upgrade(engine, database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for refused in (
        lambda: runner.upgrade(engine, database, path=database_file),
        lambda: runner.downgrade(engine, database, "0001", path=database_file),
        lambda: runner.check(engine, database, path=database_file),
    ):
        with pytest.raises(SchemaTooNew, match=r"9999.*update the package") as caught:
            refused()
        assert caught.value.path == database_file
    assert runner.current(engine) == "9999"


def test_versions_are_compared_with_the_head(database_file: Path, open_engine: OpenEngine) -> None:
    engine, database = open_engine(database_file), _database(database_file)
    assert [compare(found) for found in (None, "0001", HEAD, "9999")] == [
        VersionStatus.UNVERSIONED, VersionStatus.OUTDATED, VersionStatus.HEAD, VersionStatus.TOO_NEW,
    ]  # fmt: skip
    runner.upgrade(engine, database, "0001")
    with pytest.raises(SchemaOutdated):
        runner.check(engine, database)
    runner.upgrade(engine, database)
    with engine.connect() as connection:
        assert version_of(connection) == HEAD
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO alembic_version VALUES ('0001')"))
    with engine.connect() as connection, pytest.raises(StoreCorrupt, match="has 2 revisions"):
        version_of(connection)


def test_a_table_of_the_same_name_and_another_shape_is_refused(
    database_file: Path, open_engine: OpenEngine
) -> None:
    engine, database = open_engine(database_file), _database(database_file)
    table = "buffered_records" if database == "metadata" else "time_series_data"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {table} (id INTEGER, mine TEXT)"))
    with pytest.raises(HoldfastError, match=r"id, mine.*not a store's database"):
        runner.upgrade(engine, database, path=database_file)
    assert inspect(engine).get_table_names() == [table]


@pytest.fixture
def failing_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The migrations, and one more that changes much and then fails."""
    scripts = tmp_path / "scripts"
    shutil.copytree(runner._scripts(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "0005_fails.py").write_text(
        "from alembic import op\n"
        "revision, down_revision = '0005', '0004'\n"
        "def upgrade(database):\n"
        "    op.execute('CREATE TABLE half (i INTEGER)')\n"
        "    op.execute('INSERT INTO half VALUES (1)')\n"
        "    op.execute('ALTER TABLE loss_ledger ADD COLUMN half INTEGER')\n"
        "    op.execute('UPDATE half SET i = 2')\n"
        "    op.execute('DROP TABLE series')\n"
        "    op.execute('SELECT * FROM nowhere')\n"
    )
    monkeypatch.setattr(runner, "_scripts", lambda: scripts)


@pytest.mark.usefixtures("failing_scripts")
@pytest.mark.parametrize("start", [None, "0001", "0004"])
def test_a_failed_migration_leaves_nothing_behind(
    start: str | None, database_file: Path, open_engine: OpenEngine
) -> None:
    engine, database = open_engine(database_file), _database(database_file)
    if start:
        runner.upgrade(engine, database, start)
    with pytest.raises(HoldfastError, match="nowhere") as caught:
        runner.upgrade(engine, database, "0005", path=database_file)
    assert caught.value.path == database_file
    assert caught.value.__cause__ is not None
    # Complete revisions before the failure are kept; nothing of the failed one is.
    assert runner.current(engine) == "0004"
    assert "half" not in inspect(engine).get_table_names()
    assert "half" not in [column["name"] for column in inspect(engine).get_columns("loss_ledger")]
    assert "series" in inspect(engine).get_table_names()


def test_migrations_run_from_a_folder_with_spaces_and_percent_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b %s 100%"
    shutil.copytree(runner._scripts(), folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runner, "_scripts", lambda: folder / "scripts")
    monkeypatch.chdir(tmp_path)
    engine = sqlite.open_engine(folder / "offline_buffer.db")
    assert runner.upgrade(engine, "metadata") == (None, HEAD)
    assert runner.check(engine, "metadata") == []


def test_several_threads_may_migrate_at_once(tmp_path: Path) -> None:
    engines = [sqlite.open_engine(tmp_path / f"{n}.db") for n in range(4)]
    results: list[Any] = []

    def _upgrade(engine: Engine) -> None:
        results.append(runner.upgrade(engine, "metadata"))

    threads = [threading.Thread(target=_upgrade, args=(engine,)) for engine in [*engines, *engines]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=str) == [(HEAD, HEAD)] * 4 + [(None, HEAD)] * 4


def test_migrations_write_nothing_to_standard_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = sqlite.open_engine(tmp_path / "offline_buffer.db")
    runner.upgrade(engine, "metadata")
    runner.check(engine, "metadata")
    assert capfd.readouterr() == ("", "")
