"""The command, run in this process on a store of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from repo import Settings, Store
from repo.commands import holdfast

MakeOnce = Callable[[str, Path, Callable[[], object]], None]

HOLDER = """
import sys
from pathlib import Path
from repo.clock import system_clock
from repo.processes.lease import Lease
lease = Lease(Path(sys.argv[1]), system_clock)
lease.acquire(5, "holding on for a test")
print("held", flush=True)
sys.stdin.read()
"""


class Command:
    """Calls `holdfast --store FOLDER ...` and keeps what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Result:
        """Run it, and see that it exits with `code`."""
        given = ["--store", str(self.folder), *map(str, arguments)]
        result = CliRunner().invoke(holdfast, given, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
        return result

    def json(self, *arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Any:
        """Run it with --json and return what it printed."""
        return json.loads(self("--json", *arguments, code=code, stdin=stdin).stdout)

    def write(self, *rows: Any) -> None:
        """Write points into the store."""
        with Store(self.folder, Settings(background=False)) as store:
            store.points.insert_many(rows)

    def create_columns(self) -> None:
        """Flush, so that the columns exist: to create them takes longer than most commands."""
        with Store(self.folder, Settings(background=False)) as store:
            store.checkpoint()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for name in [name for name in os.environ if name.startswith("HOLDFAST_") and "TEST" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    if "on_duckdb" not in request.fixturenames:
        of_the_test = getattr(request.node, "callspec", None)
        engine = of_the_test.params.get("engine", "sqlite") if of_the_test else "sqlite"
        monkeypatch.setenv("HOLDFAST_ENGINE", engine)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The command, on a folder that does not exist yet."""
    return Command(tmp_path / "store")


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Make a store in a folder the first time that its name is given, and copy that one from then on."""
    home = tmp_path_factory.mktemp("made")

    def make_once_(name: str, folder: Path, make: Callable[[], object]) -> None:
        if (home / name).exists():
            shutil.copytree(home / name, folder)
        else:
            make()
            shutil.copytree(folder, home / name, ignore=shutil.ignore_patterns("*.lock"))

    return make_once_


@pytest.fixture
def on_store(command: Command, engine: str, make_once: MakeOnce) -> Command:
    """The command, on an empty store; once for each engine."""
    make_once(f"empty-{engine}", command.folder, lambda: _create(command, engine))
    return command


@pytest.fixture
def on_duckdb(command: Command, make_once: MakeOnce) -> Command:
    """The command, on an empty store with DuckDB."""
    make_once("empty-duckdb", command.folder, lambda: _create(command, "duckdb"))
    return command


def _create(command: Command, engine: str) -> None:
    command("init", "--engine", engine)
    command.create_columns()


@pytest.fixture
def held(
    command: Command, spawn: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """Have another process hold the store's columns; returns its process id."""
    monkeypatch.setenv("HOLDFAST_LEASE_TIMEOUT_S", "0.2")

    def hold() -> int:
        process = spawn(HOLDER, command.folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process.pid

    return hold
