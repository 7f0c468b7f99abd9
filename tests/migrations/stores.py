"""Helpers for tests of whole stores: the commands, and the contents of a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from repo.commands import holdfast
from repo.files import StoreFiles
from repo.schema import backup as backups
from repo.schema import upgrade
from repo.schema.version import HEAD
from tests.starter import Starter

POINTS = 3_000
DATA = ("points", "records")
DONE = [("timeseries", None, HEAD), ("metadata", None, HEAD)]


def digest(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".checkpoint")
    }


def cli(folder: Path, *arguments: str, code: int = 0, stdin: str = "", **environment: str) -> str:
    """Run the command in this process: to start one takes long."""
    given = ["--store", str(folder), *arguments]
    done = CliRunner().invoke(holdfast, given, input=stdin, env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.stdout + done.stderr
    return done.stdout if "--json" in arguments else done.stdout + done.stderr


def cli_process(starter: Starter, folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run the command in a process of its own."""
    done = starter.run(["-m", "cli", "--store", folder, *arguments], env=os.environ | environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if "--json" in arguments else done.stdout + done.stderr


def alembic_elsewhere(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands of Alembic, one after another, in a process in a folder that has its own modules.

    After the output of each, stdout has a line `exit CODE`.
    """
    script = """
import sys
from alembic.config import main
for command in sys.argv[1:]:
    code = 0
    try:
        main(command.split(), "alembic")
    except SystemExit as end:
        code = end.code
    except Exception as error:
        code = type(error).__name__
    print("exit", code, flush=True)
"""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *commands],
        cwd=folder,
        env=without_settings(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def without_settings() -> dict[str, str]:
    """Return the environment without settings of Holdfast."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}


def versions(found: upgrade.Migration) -> list[tuple[str, str | None, str | None]]:
    return [(one.database, one.before, one.after) for one in found.databases]


def backups_of(folder: Path) -> list[backups.Backup]:
    return backups.list_backups(StoreFiles.of(folder))
