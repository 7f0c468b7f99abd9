"""The guide to migrations is true: its example is run, its rules are asked of the engines, its names exist."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import duckdb
import pytest
import sqlalchemy as sa
from alembic.config import CommandLine
from alembic.migration import MigrationContext
from alembic.operations import Operations

from repo.commands import holdfast
from repo.engines.sqlite import driver as sqlite
from repo.errors import StoreCorrupt
from repo.schema import runner
from repo.schema.upgrade import migrate_store
from tests.migrations.legacy_store import contents, make_legacy_store
from tests.starter import Starter

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "migrations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
NOTE, COMPACTED, REVISION, BATCH, BRIDGE = (body for language, body in BLOCKS if language == "python")
DRAFTED, TRIED, OPERATED = (body for language, body in BLOCKS if language == "sh")
[RULES] = (body for language, body in BLOCKS if language == "sql")


def _operations(script: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Expr)]
    return [said for node in calls if (said := ast.unparse(node)).startswith("op.")]


def _add_last(models: str, cls: str, column: str) -> str:
    """Add a column behind the last one of a class."""
    start = models.index(f"class {cls}(")
    end = models.index("\n\n\n", start) + 1
    return models[:end] + column + models[end:]


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_the_example_runs_exactly_as_printed(engine: str, tmp_path: Path, starter: Starter) -> None:
    for folder in ("repo", "alembic"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    columns = {"HOLDFAST_TIMESERIES_URL": "sqlite:///scratch/timeseries.sqlite"} if engine == "sqlite" else {}

    def run(starter: Starter, line: str) -> str:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        assert words.pop(0) == "alembic"
        if columns:  # a folder given by hand would win over the address
            words = [word for word in words if word not in ("-x", "path=scratch")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        environment |= {"HOLDFAST_STORE": "scratch", **columns}
        done = starter.run(["-m", "alembic", *words], cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    upgrade, draft = DRAFTED.splitlines()
    run(starter, upgrade)  # with the models of the project, which are still those of the copy
    models = tmp_path / "repo" / "models.py"
    changed = _add_last(models.read_text(), "SinkCursor", NOTE)
    models.write_text(_add_last(changed, "TimeSeriesState", COMPACTED))
    with Starter(root=tmp_path) as changed_starter:
        run(changed_starter, draft)
        written = tmp_path / "alembic" / "versions" / "0005_notes_of_sinks.py"
        drafted, finished = _operations(written.read_text()), _operations(REVISION)
        assert len(drafted) == 4
        assert drafted == finished
        written.write_text(REVISION)
        said = [run(changed_starter, line) for line in TRIED.splitlines()]
    assert "No new upgrade operations" in said[1]
    assert "ALTER TABLE sinks ADD COLUMN note TEXT" in said[-1]
    assert (
        "ADD COLUMN compacted_us BIGINT" if engine == "duckdb" else "ADD COLUMN compacted_us INTEGER"
    ) in said[-1]


def test_duckdb_does_what_the_rules_say() -> None:
    with duckdb.connect() as connection:
        for line in RULES.splitlines():
            statement, _, error = line.partition("-- ")
            if error:
                with pytest.raises(duckdb.Error, match=error):
                    connection.execute(statement)
            else:
                connection.execute(statement)


def test_the_batch_of_the_guide_keeps_rows_sequence_and_autoincrement(tmp_path: Path) -> None:
    engine = sqlite.open_engine(tmp_path / "offline_buffer.db")
    runner.upgrade(engine, "metadata")
    insert = (
        "INSERT INTO buffered_records (id, record_id, source, data, timestamp, retry_count, created_at) "
        "VALUES ({0}, 'r-{0}', 's', '', 1, {1}, 2)"
    )
    with engine.begin() as connection:
        for values in ((1, 3), (2, "NULL"), (5000, 0)):
            connection.exec_driver_sql(insert.format(*values))
        connection.exec_driver_sql("DELETE FROM buffered_records WHERE id = 5000")
    with engine.begin() as connection:
        names: dict[str, Any] = {"sa": sa, "op": Operations(MigrationContext.configure(connection))}
        exec(BATCH + "upgrade_metadata()", names)
    with engine.connect() as connection:
        table = "SELECT sql FROM sqlite_master WHERE name = 'buffered_records'"
        sql = connection.exec_driver_sql(table).scalar_one()
        assert "AUTOINCREMENT" in sql
        assert "retry_count INTEGER DEFAULT 0 NOT NULL" in sql
        assert "UNIQUE (record_id)" in sql
        rows = connection.exec_driver_sql("SELECT id, retry_count FROM buffered_records ORDER BY id").all()
        assert [tuple(row) for row in rows] == [(1, 3), (2, 0)]
        assert connection.exec_driver_sql("SELECT * FROM sqlite_sequence").all() == [
            ("buffered_records", 5000)
        ]
        indexes = {index["name"] for index in sa.inspect(connection).get_indexes("buffered_records")}
        assert indexes == {"idx_timestamp", "idx_source", "idx_retry_count"}


def test_every_file_that_it_names_exists() -> None:
    named = re.findall(r"`((?:alembic|repo|tests|docs)/[\w/.]+|alembic\.ini)`", GUIDE)
    assert len(named) > 7
    assert [name for name in named if not (ROOT / name).exists()] == [
        "alembic/versions/0005_notes_of_sinks.py"
    ]


def test_every_option_of_the_commands_that_it_names_exists() -> None:
    migrating = holdfast.get_command(click.Context(holdfast), "migrate")
    assert migrating is not None
    known = {option for parameter in migrating.params for option in parameter.opts}
    for line in OPERATED.splitlines():
        program, _, _, command, *options = line.split()
        assert (program, command) == ("holdfast", "migrate")
        assert set(options) <= known
    prose = GUIDE.partition("## What the operator sees")[2].partition("## Files")[0]
    assert set(re.findall(r"`(--[\w-]+)`", prose)) <= known
    usage = CommandLine().parser.format_help()
    commands = set(re.findall(r"^alembic (?:-x \S+ )*(\w+)", GUIDE, re.MULTILINE))
    assert commands == {"upgrade", "revision", "check", "downgrade"}
    assert all(command in usage for command in commands)


def test_the_bridge_is_the_one_that_the_guard_prints() -> None:
    from repo.engines.duckdb import dialect

    [statements] = re.findall(r'execute\("(.*)"\)', BRIDGE)
    assert statements in dialect._BRIDGE
    assert "duckdb==0.9.2" in GUIDE
    assert "duckdb==0.9.2" in dialect._BRIDGE


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with DuckDB 0.9.2, where that can be had."""
    home = tmp_path_factory.mktemp("old")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "duckdb==0.9.2"], check=False)
    if done.returncode:
        pytest.skip("DuckDB 0.9.2 cannot be installed here")
    return python


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rows"), [("never_checkpointed", 500), ("wal", 2000), ("empty", 0)])
def test_the_bridge_makes_a_refused_file_one_that_is_upgraded(
    kind: str, rows: int, old_python: Path, sample: Callable[[str], Path], tmp_path: Path
) -> None:
    refused, folder = sample(f"timeseries_{kind}.duckdb"), tmp_path / "site"
    make_legacy_store(folder, points=0, records=3)
    for tail in ("", ".wal"):
        if (file := refused.with_name(refused.name + tail)).exists():
            file.rename(folder / f"timeseries.duckdb{tail}")
    with pytest.raises(StoreCorrupt):
        migrate_store(folder)
    subprocess.run([old_python, "-c", BRIDGE], cwd=folder, check=True)
    migrate_store(folder)
    assert contents(folder)["points"][0] == rows
