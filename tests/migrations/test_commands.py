"""Every command of Alembic, on each engine, for both databases and for one: run in this process, as in the checkout."""

from __future__ import annotations

import argparse
import io
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from alembic import command
from alembic.util import CommandError

from repo.schema import runner
from repo.schema.version import HEAD, REVISIONS

BELOW = REVISIONS[-2]
Run = Callable[..., str]


@pytest.fixture
def columns(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The time-series database, of either engine; not there yet."""
    return tmp_path / f"timeseries.{request.param}"


@pytest.fixture
def only(request: pytest.FixtureRequest) -> str:
    """Which database is chosen with `-x store=`."""
    return str(request.param)


@pytest.fixture
def run(columns: Path, only: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with scripts of the test's own; returns what it printed."""
    scripts = tmp_path / "scripts"
    shutil.copytree(runner._scripts(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runner, "_scripts", lambda: scripts)
    address = f"timeseries.url={columns.suffix[1:]}:///{columns}"
    chosen = [] if only == "both" else [f"store={only}"]

    def run_one(name: str, *arguments: str, **options: Any) -> str:
        config = runner.config(command=name)
        config.stdout = config.output_buffer = io.StringIO()
        config.cmd_opts = argparse.Namespace(x=[f"path={tmp_path}", address, *chosen])
        getattr(command, name)(config, *arguments, **options)
        return config.stdout.getvalue()

    return run_one


def _revisions(columns: Path, only: str) -> list[str | None]:
    """Read the versions past everything; None for a database that is not there."""
    found: list[str | None] = []
    for database, file in (("timeseries", columns), ("metadata", columns.with_name("offline_buffer.db"))):
        if only not in ("both", database):
            assert not file.exists()
            continue
        connection: Any = duckdb.connect(file) if file.suffix == ".duckdb" else sqlite3.connect(file)
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        connection.close()
        found.append(rows[0][0] if rows else None)
    return found


@pytest.mark.parametrize(
    ("columns", "only"),
    [
        ("duckdb", "both"),
        ("duckdb", "metadata"),
        ("sqlite", "timeseries"),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in (("duckdb", "timeseries"), ("sqlite", "both"), ("sqlite", "metadata"))
        ),
    ],
    indirect=True,
)
def test_every_command_does_what_it_says_for_the_databases_that_are_chosen(
    run: Run, columns: Path, only: str
) -> None:
    count = 2 if only == "both" else 1

    def are_at(revision: str | None) -> bool:
        return _revisions(columns, only) == [revision] * count

    script = run("upgrade", "head", sql=True)
    assert script.count(f"SET version_num='{HEAD}'") + script.count(f"VALUES ('{HEAD}')") == count
    run("upgrade", BELOW)
    assert are_at(BELOW)
    with pytest.raises(CommandError, match=f"is at schema version {BELOW}, not {HEAD}"):
        run("check")
    run("upgrade", "+1")
    assert are_at(HEAD)
    assert run("current").count(f"{HEAD} (head)") == count
    assert run("history", indicate_current=True).count("(current)") == count
    assert run("heads") == f"{HEAD} (head)\n"
    assert f"Rev: {HEAD} (head)" in run("show", "head")
    assert "No new upgrade operations" in run("check")
    run("downgrade", "-1")
    assert are_at(BELOW)
    run("upgrade", "head")
    for stamped in (BELOW, "head", "base"):
        run("stamp", stamped)
        assert are_at({"head": HEAD, "base": None}.get(stamped, stamped))
    run("stamp", "head", purge=True)
    assert are_at(HEAD)
    assert f"'{HEAD}'" in run("stamp", "head", sql=True)
    run("ensure_version")
    run("revision", "Nothing new", autogenerate=True)
    written = next((columns.parent / "scripts" / "versions").glob("*_nothing_new.py")).read_text()
    assert written.count("    pass\n") == 4
    assert f"down_revision = '{HEAD}'" in written
    assert not columns.with_name(columns.name + ".wal").exists()
