"""`alembic` as a developer runs it, from the project's root."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from sqlalchemy import Engine, inspect, text

from repo.errors import HoldfastError
from repo.processes.lease import Lease
from repo.schema import runner
from repo.schema.databases import find_targets
from repo.schema.version import HEAD
from tests.migrations.stores import alembic_elsewhere

OpenEngine = Callable[[Path], Engine]
Alembic = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def addresses(tmp_path: Path) -> list[str]:
    """Both databases of a store by their URLs."""
    return [
        *("-x", f"metadata.url=sqlite:///{tmp_path / 'offline_buffer.db'}"),
        *("-x", f"timeseries.url=duckdb:///{tmp_path / 'timeseries.duckdb'}"),
    ]


def test_upgrade_current_check_and_downgrade_reach_both_databases(
    addresses: list[str], alembic: Alembic
) -> None:
    alembic(*addresses, "upgrade", "head")
    assert alembic(*addresses, "current").stdout.count("0004 (head)") == 2
    assert "No new upgrade operations" in alembic(*addresses, "check").stdout
    alembic(*addresses, "downgrade", "-1")
    shown = alembic(*addresses, "current").stdout
    assert shown.count("0003") == 2
    for address in addresses[1::2]:
        assert f"({address.partition(':///')[2]}):" in shown
    outdated = alembic(*addresses, "check", ok=False).stdout
    assert "is at schema version 0003, not 0004; run `alembic upgrade head` first" in outdated


def test_a_downgrade_to_nothing_is_refused_and_changes_nothing(tmp_path: Path, alembic: Alembic) -> None:
    alembic("upgrade", "head", HOLDFAST_STORE=str(tmp_path))
    refused = alembic("downgrade", "base", HOLDFAST_STORE=str(tmp_path), ok=False)
    assert "cannot go below revision 0001" in refused.stdout
    assert alembic("current", HOLDFAST_STORE=str(tmp_path)).stdout.count("0004 (head)") == 2


def test_one_database_can_be_chosen(tmp_path: Path, alembic: Alembic) -> None:
    alembic("-x", f"path={tmp_path}", "-x", "store=metadata", "upgrade", "head")
    assert (tmp_path / "offline_buffer.db").exists()
    assert not (tmp_path / "timeseries.duckdb").exists()
    shown = alembic("-x", "store=metadata", "current", HOLDFAST_STORE=str(tmp_path)).stdout
    assert shown.count("0004 (head)") == 1


def test_a_new_store_gets_sqlite_where_duckdb_is_of_an_unsuitable_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb, "__version__", "1.4.0")
    assert [target.engine for target in find_targets({"path": str(tmp_path)}, {})] == ["sqlite", "sqlite"]


def test_a_downgrade_that_one_database_refuses_leaves_the_other_unchanged(
    tmp_path: Path, alembic: Alembic, open_engine: OpenEngine
) -> None:
    alembic("upgrade", "head", HOLDFAST_STORE=str(tmp_path))
    engine = open_engine(tmp_path / "offline_buffer.db")
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO sinks (name, confirmed_seq, created_us, updated_us) VALUES ('s', 1, 1, 1)")
        )
    engine.dispose()
    refused = alembic("downgrade", "0001", HOLDFAST_STORE=str(tmp_path), ok=False)
    assert "no place for sinks with their cursors (1 in sinks)" in refused.stdout
    assert alembic("current", HOLDFAST_STORE=str(tmp_path)).stdout.count("0004 (head)") == 2


def test_sql_is_printed_for_both_databases_and_nothing_is_created(tmp_path: Path, alembic: Alembic) -> None:
    script = alembic("upgrade", "head", "--sql", HOLDFAST_STORE=str(tmp_path / "none")).stdout
    columns, metadata = script.split(f"-- metadata: sqlite, {tmp_path / 'none' / 'offline_buffer.db'}\n")
    assert columns.startswith(f"-- timeseries: duckdb, {tmp_path / 'none' / 'timeseries.duckdb'}\n")
    assert "ALTER TABLE time_series_data_0002 RENAME TO time_series_data" in columns
    assert "CREATE TABLE journal" in metadata
    assert columns.count("VALUES ('0001')") == metadata.count("VALUES ('0001')") == 1
    assert not (tmp_path / "none").exists()
    for revisions in ("0004:0003", "0003:0002", "0002:0001"):
        refused = alembic("downgrade", revisions, "--sql", HOLDFAST_STORE=str(tmp_path), ok=False)
        assert "can only be downgraded online" in refused.stdout


def test_the_printed_sql_creates_the_same_schema(
    database_file: Path, alembic: Alembic, open_engine: OpenEngine
) -> None:
    database: Any = "metadata" if database_file.suffix == ".db" else "timeseries"
    address = f"{'duckdb' if database_file.suffix == '.duckdb' else 'sqlite'}:///{database_file}"
    script = alembic(
        *("-x", f"store={database}", "-x", f"{database}.url={address}"), "upgrade", "head", "--sql"
    ).stdout
    if database_file.suffix == ".duckdb":
        with duckdb.connect(database_file) as by_hand:
            by_hand.execute(script)
    else:
        rows = sqlite3.connect(database_file)
        rows.executescript(script)
        rows.close()
    engine = open_engine(database_file)
    assert runner.current(engine) == "0004"
    assert runner.check(engine, database) == []


def test_stamp_records_a_revision_in_both_databases_or_in_one_and_changes_nothing_else(
    tmp_path: Path, alembic: Alembic, open_engine: OpenEngine
) -> None:
    def at() -> list[str]:
        query = "SELECT version_num FROM alembic_version"
        with duckdb.connect(tmp_path / "timeseries.duckdb", read_only=True) as columns:
            found = columns.execute(query).fetchall()
        rows = sqlite3.connect(tmp_path / "offline_buffer.db")
        found += rows.execute(query).fetchall()
        rows.close()
        return [version for (version,) in found]

    here = {"HOLDFAST_STORE": str(tmp_path)}
    alembic("upgrade", "0001", **here)
    alembic("stamp", "head", **here)
    assert at() == ["0004", "0004"]
    assert "journal" not in inspect(open_engine(tmp_path / "offline_buffer.db")).get_table_names()
    assert "New upgrade operations detected" in alembic("check", ok=False, **here).stdout
    alembic("-x", "store=timeseries", "stamp", "0001", **here)
    assert at() == ["0001", "0004"]
    refused = alembic("stamp", "0815", ok=False, **here)
    assert "Can't locate revision" in refused.stdout
    assert at() == ["0001", "0004"]
    assert (tmp_path / "timeseries.duckdb.wal").exists() is False


def test_a_checkout_works_in_any_folder_and_alembic_ini_can_name_the_databases(
    tmp_path: Path, alembic: Alembic
) -> None:
    root = tmp_path / "a b 100%"
    for folder in ("repo", "alembic"):
        shutil.copytree(ROOT / folder, root / folder)
    settings = (ROOT / "alembic.ini").read_text()
    named = f"[alembic]\npath = site\ntimeseries.url = sqlite:///{root}/t.sqlite\n"
    (root / "alembic.ini").write_text(settings.replace("[alembic]\n", named))
    shown = alembic_elsewhere(root, "upgrade head", "current", "check").stdout
    assert shown.count("exit 0\n") == 3
    assert {"site", "t.sqlite"} <= set(os.listdir(root))
    assert "metadata (site/offline_buffer.db):\n0004 (head)" in shown
    assert "No new upgrade operations" in shown
    elsewhere = ("-x", f"path={root / 'x y%'}", "-x", f"timeseries.url=duckdb:///{root / 'c%20d.duckdb'}")
    alembic(*elsewhere, "upgrade", "head")
    assert (root / "x y%" / "offline_buffer.db").exists()
    assert (root / "c d.duckdb").exists()


@pytest.mark.parametrize("command", [("upgrade", "head"), ("check",)])
def test_a_database_of_a_newer_program_is_refused_by_every_command(
    command: tuple[str, ...], tmp_path: Path, alembic: Alembic
) -> None:
    file = tmp_path / "offline_buffer.db"
    newer = sqlite3.connect(file)
    newer.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    newer.execute("INSERT INTO alembic_version VALUES ('9999')")
    newer.commit()
    newer.close()
    refused = alembic("-x", "store=metadata", *command, HOLDFAST_STORE=str(tmp_path), ok=False)
    assert f"FAILED: {file} is at schema version 9999" in refused.stdout
    assert "update the package" in refused.stdout
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("a file that is no database", "is damaged (file is not a database)"),
        ("a folder in its place", "unable to open database file"),
        ("a file where its folder would be", "cannot be created (Not a directory)"),
    ],
)
def test_a_file_that_is_not_a_database_is_reported_in_one_line_with_an_error_code(
    made: str, message: str, tmp_path: Path, alembic: Alembic
) -> None:
    file = tmp_path / "t.sqlite"
    if "a folder" in made:
        file.mkdir()
    else:
        file.write_text("no database, but a text that is long enough to be one\n" * 10)
    if "would be" in made:
        file = file / "site" / "t.sqlite"
    address = ("-x", "store=timeseries", "-x", f"timeseries.url=sqlite:///{file}")
    refused = alembic(*address, "upgrade", "head", ok=False)
    [line] = [line for line in refused.stdout.splitlines() if line]
    assert line.startswith("FAILED: ")
    assert message in line
    assert "Traceback" not in refused.stderr


def test_a_revision_that_fails_keeps_the_ones_before_it_and_leaves_no_log(
    tmp_path: Path,
) -> None:
    for folder in ("repo", "alembic"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    (tmp_path / "alembic" / "versions" / "9998_fails.py").write_text(
        f'"""Fails."""\nfrom alembic import op\nrevision, down_revision = "9998", "{HEAD}"\n'
        "def upgrade(database):\n    op.execute('DROP TABLE series')\n    op.execute('SELECT * FROM nowhere')\n"
    )
    failed = alembic_elsewhere(tmp_path, "upgrade head", "--raiseerr upgrade head")
    first, _, raised = failed.stdout.partition("exit -1\n")
    assert "nowhere" in first
    assert "Traceback" not in failed.stderr
    assert raised.splitlines()[-1] == "exit CommandError"
    store = tmp_path / "data" / "buffer"
    assert not (store / "timeseries.duckdb.wal").exists()
    with duckdb.connect(store / "timeseries.duckdb", read_only=True) as columns:
        assert columns.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]


@pytest.mark.parametrize("command", ["current", "check", "downgrade"])
def test_reading_a_missing_store_says_so_and_creates_nothing(
    command: str, tmp_path: Path, alembic: Alembic
) -> None:
    arguments = [command, "-1"] if command == "downgrade" else [command]
    refused = alembic("-x", f"path={tmp_path / 'none'}", *arguments, ok=False)
    assert f"there is no timeseries database at {tmp_path / 'none'}" in refused.stdout
    assert not (tmp_path / "none").exists()


def test_history_and_heads_need_no_store(alembic_process: Alembic) -> None:
    assert "0003 -> 0004 (head)" in alembic_process("history").stdout
    assert "0004 (head)" in alembic_process("heads").stdout


def test_a_store_whose_columns_another_process_has_open_is_busy(tmp_path: Path, alembic: Alembic) -> None:
    lease = Lease(tmp_path, lambda: 0)
    lease.acquire(1, "a test")
    refused = alembic(
        "upgrade", "head", HOLDFAST_STORE=str(tmp_path), HOLDFAST_LEASE_TIMEOUT_S="0.1", ok=False
    )
    lease.close()
    assert "were not handed over" in refused.stdout
    assert not (tmp_path / "offline_buffer.db").exists()


def test_metadata_that_another_program_has_open_is_not_migrated(
    tmp_path: Path, alembic: Alembic, alembic_process: Alembic
) -> None:
    file, at_once = tmp_path / "offline_buffer.db", {"HOLDFAST_LEASE_TIMEOUT_S": "0.1"}
    alembic("-x", f"path={tmp_path}", "upgrade", "0001")
    running = sqlite3.connect(file)
    running.execute("PRAGMA journal_mode = WAL")
    running.execute("SELECT * FROM buffered_records").fetchall()
    refused = alembic_process("-x", f"path={tmp_path}", "upgrade", "head", ok=False, **at_once)
    assert f"FAILED: {file} is open in another process" in refused.stdout
    assert "0001" in alembic("-x", f"path={tmp_path}", "-x", "store=timeseries", "current").stdout
    running.close()
    alembic("-x", f"path={tmp_path}", "upgrade", "head", **at_once)
    running = sqlite3.connect(file)
    running.execute("SELECT * FROM journal").fetchall()
    alembic_process("-x", f"path={tmp_path}", "upgrade", "head", **at_once)
    running.close()


def test_a_failure_of_the_guard_reaches_the_command_line(
    sample: Callable[[str], Path], alembic: Alembic
) -> None:
    path = sample("timeseries_never_checkpointed.duckdb")
    refused = alembic("-x", f"timeseries.url=duckdb:///{path}", "-x", "store=timeseries", "current", ok=False)
    assert "log of DuckDB 0.9 or older" in refused.stdout
    assert "Traceback" not in refused.stderr


def test_argument_comes_before_environment_before_default() -> None:
    def found(*, environment: dict[str, str] | None = None, **arguments: str) -> list[tuple[str, str, str]]:
        given = {name.replace("_url", ".url"): value for name, value in arguments.items()}
        return [(t.database, t.engine, str(t.path)) for t in find_targets(given, environment or {})]

    assert found() == [
        ("timeseries", "duckdb", "data/buffer/timeseries.duckdb"),
        ("metadata", "sqlite", "data/buffer/offline_buffer.db"),
    ]
    assert found(path="/p", environment={"HOLDFAST_STORE": "/e"})[1][2] == "/p/offline_buffer.db"
    assert found(environment={"HOLDFAST_STORE": "/e"})[1][2] == "/e/offline_buffer.db"
    urls = {"HOLDFAST_TIMESERIES_URL": "sqlite:////e/t.sqlite"}
    assert found(environment=urls)[0] == ("timeseries", "sqlite", "/e/t.sqlite")
    assert found(path="/p", environment=urls)[0][2] == "/p/timeseries.duckdb"
    assert found(timeseries_url="duckdb+holdfast:////a/t.duckdb", environment=urls)[0][2] == "/a/t.duckdb"
    assert [name for name, *_ in found(store="metadata")] == ["metadata"]
    in_file = {"path": "/f", "timeseries.url": "sqlite:////f/t.sqlite"}
    assert [str(target.path) for target in find_targets({}, {}, in_file)] == [
        "/f/t.sqlite",
        "/f/offline_buffer.db",
    ]
    assert str(find_targets({}, {"HOLDFAST_STORE": "/e"}, in_file)[0].path) == "/e/timeseries.duckdb"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stroe": "metadata"}, "there is no -x stroe="),
        ({"path": ""}, "-x path has no value"),
        ({"store": "outbox"}, "must be one of timeseries, metadata"),
        ({"metadata.url": "duckdb:///x"}, "cannot be in duckdb"),
        ({"timeseries.url": "postgresql://h/x"}, "cannot be in postgresql"),
        ({"timeseries.url": "sqlite://"}, "has no file"),
        ({"timeseries.url": "nonsense"}, "not a URL"),
    ],
)
def test_a_wrong_url_is_an_error_that_names_the_alternatives(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(HoldfastError, match=message):
        find_targets(arguments, {})


def test_two_time_series_files_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "timeseries.sqlite").touch()
    assert find_targets({"path": str(tmp_path)}, {})[0].engine == "sqlite"
    (tmp_path / "timeseries.duckdb").touch()
    with pytest.raises(HoldfastError, match="name the right one"):
        find_targets({"path": str(tmp_path)}, {})
