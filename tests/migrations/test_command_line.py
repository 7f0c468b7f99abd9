"""`alembic` as a developer runs it, from the project's root."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from repo.engines.lease import Lease
from repo.errors import HoldfastError
from repo.schema.targets import find_targets

OpenEngine = Callable[[Path], Engine]
Alembic = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["duckdb", "sqlite"])
def addresses(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Both databases of a store by their URLs, on either time-series engine."""
    columns = tmp_path / f"timeseries.{request.param}"
    return [
        *("-x", f"metadata.url=sqlite:///{tmp_path / 'offline_buffer.db'}"),
        *("-x", f"timeseries.url={request.param}:///{columns}"),
    ]


def test_upgrade_current_check_and_downgrade_reach_both_databases(
    addresses: list[str], alembic: Alembic
) -> None:
    alembic(*addresses, "upgrade", "head")
    assert alembic(*addresses, "current").stdout.count("0002 (head)") == 2
    assert "No new upgrade operations" in alembic(*addresses, "check").stdout
    alembic(*addresses, "downgrade", "-1")
    assert alembic(*addresses, "current").stdout.count("0001") == 2


def test_a_downgrade_to_nothing_is_refused_and_changes_nothing(tmp_path: Path, alembic: Alembic) -> None:
    alembic("upgrade", "head", HOLDFAST_STORE=str(tmp_path))
    refused = alembic("downgrade", "base", HOLDFAST_STORE=str(tmp_path), ok=False)
    assert "cannot go below revision 0001" in refused.stdout
    assert alembic("current", HOLDFAST_STORE=str(tmp_path)).stdout.count("0002 (head)") == 2


def test_one_database_can_be_chosen(tmp_path: Path, alembic: Alembic) -> None:
    alembic("-x", f"path={tmp_path}", "-x", "store=metadata", "upgrade", "head")
    assert (tmp_path / "offline_buffer.db").exists()
    assert not (tmp_path / "timeseries.duckdb").exists()
    shown = alembic("-x", "store=metadata", "current", HOLDFAST_STORE=str(tmp_path)).stdout
    assert shown.count("0002 (head)") == 1


def test_a_downgrade_that_one_database_refuses_leaves_the_other_as_it_is(
    tmp_path: Path, alembic: Alembic, open_engine: OpenEngine
) -> None:
    alembic("upgrade", "head", HOLDFAST_STORE=str(tmp_path))
    engine = open_engine(tmp_path / "offline_buffer.db")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO sinks VALUES ('s', 1, 1, 1)"))
    refused = alembic("downgrade", "-1", HOLDFAST_STORE=str(tmp_path), ok=False)
    assert "no place for the 1 sinks" in refused.stdout
    assert alembic("current", HOLDFAST_STORE=str(tmp_path)).stdout.count("0002 (head)") == 2


def test_sql_is_written_for_both_databases_and_nothing_is_made(tmp_path: Path, alembic: Alembic) -> None:
    script = alembic("upgrade", "head", "--sql", HOLDFAST_STORE=str(tmp_path / "none")).stdout
    assert script.count("CREATE TABLE IF NOT EXISTS buffered_records") == 1
    assert script.count("CREATE TABLE journal") == 1
    assert script.count("ALTER TABLE time_series_data_0002 RENAME TO time_series_data") == 1
    assert script.count("VALUES ('0001')") == 2
    assert not (tmp_path / "none").exists()
    refused = alembic("downgrade", "0002:0001", "--sql", HOLDFAST_STORE=str(tmp_path), ok=False)
    assert "with the database at hand" in refused.stdout


@pytest.mark.parametrize("command", ["current", "check", "downgrade"])
def test_looking_at_a_store_that_does_not_exist_says_so_and_makes_nothing(
    command: str, tmp_path: Path, alembic: Alembic
) -> None:
    arguments = [command, "-1"] if command == "downgrade" else [command]
    refused = alembic("-x", f"path={tmp_path / 'none'}", *arguments, ok=False)
    assert f"there is no timeseries database at {tmp_path / 'none'}" in refused.stdout
    assert not (tmp_path / "none").exists()


def test_history_and_heads_need_no_store(alembic: Alembic) -> None:
    assert "0001 -> 0002 (head)" in alembic("history").stdout
    assert "0002 (head)" in alembic("heads").stdout


def test_a_store_whose_columns_another_process_has_is_busy(tmp_path: Path, alembic: Alembic) -> None:
    lease = Lease(tmp_path, lambda: 0)
    lease.acquire(1, "a test")
    refused = alembic(
        "upgrade", "head", HOLDFAST_STORE=str(tmp_path), HOLDFAST_LEASE_TIMEOUT_S="0.1", ok=False
    )
    lease.close()
    assert "were not handed over" in refused.stdout
    assert not (tmp_path / "offline_buffer.db").exists()


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"stroe": "metadata"}, "there is no -x stroe="),
        ({"store": "outbox"}, "it is one of timeseries, metadata"),
        ({"metadata.url": "duckdb:///x"}, "never kept in duckdb"),
        ({"timeseries.url": "postgresql://h/x"}, "never kept in postgresql"),
        ({"timeseries.url": "sqlite://"}, "names no file"),
        ({"timeseries.url": "nonsense"}, "not the address"),
    ],
)
def test_a_wrong_address_is_an_error_that_says_what_there_is(arguments: dict[str, str], told: str) -> None:
    with pytest.raises(HoldfastError, match=told):
        find_targets(arguments, {})


def test_two_time_series_files_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    (tmp_path / "timeseries.sqlite").touch()
    assert find_targets({"path": str(tmp_path)}, {})[0].engine == "sqlite"
    (tmp_path / "timeseries.duckdb").touch()
    with pytest.raises(HoldfastError, match="name the right one"):
        find_targets({"path": str(tmp_path)}, {})
