"""Helpers for tests of whole stores: the command, and the contents of a folder."""

from __future__ import annotations

import os
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


def versions(found: upgrade.Migration) -> list[tuple[str, str | None, str | None]]:
    return [(one.database, one.before, one.after) for one in found.databases]


def backups_of(folder: Path) -> list[backups.Backup]:
    return backups.list_backups(StoreFiles.of(folder))
