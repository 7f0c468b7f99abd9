"""The README's examples, run as a reader would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.migrations.legacy_store import contents, make_legacy_store

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
SHELL = [body for language, body in BLOCKS if language == "sh" and "make " not in body]


def run(arguments: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.run(
        arguments,
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder, with `holdfast` on the path as an installation would put it there."""
    folder = tmp_path_factory.mktemp("reader")
    script = folder / "bin" / "holdfast"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "cli.py"}" "$@"\n')
    script.chmod(0o755)
    return folder


def test_every_python_example_runs_as_it_stands(folder: Path) -> None:
    assert len(PYTHON) == 4
    for example in PYTHON:
        done = run([sys.executable, "-c", example], folder)
        assert done.returncode == 0, done.stderr


def test_the_first_example_prints_the_newest_point_and_the_buckets(folder: Path) -> None:
    shutil.rmtree(folder / "data", ignore_errors=True)
    printed = run([sys.executable, "-c", PYTHON[0]], folder).stdout.splitlines()
    assert "2500.5" in printed[0]
    assert printed[1].startswith("2026-01-01 01:00:00+01:00")
    assert len([line for line in printed if line.startswith("2026-01-01")]) == 6


def test_every_command_example_ends_well(folder: Path) -> None:
    run([sys.executable, "-c", PYTHON[0]], folder)
    path = f"PATH={folder / 'bin'}:$PATH"
    assert len(SHELL) == 4, "the last two have tests of their own"
    for example in SHELL[:2]:
        done = run(["sh", "-ec", f"{path}\n{example}"], folder)
        assert done.returncode == 0, done.stderr
    assert "2500.5" in run(["sh", "-ec", f"{path}\n{SHELL[1]}"], folder).stdout


@pytest.mark.duckdb
def test_a_legacy_store_is_looked_at_adopted_upgraded_and_put_back(folder: Path) -> None:
    for name in ("well-7", "well-7-new"):
        shutil.rmtree(folder / name, ignore_errors=True)
    make_legacy_store(folder / "well-7", 500)
    done = run(["sh", "-ec", f"PATH={folder / 'bin'}:$PATH\n{SHELL[3]}"], folder)
    assert done.returncode == 0, done.stderr
    for told in ("0002 is due", "bytes needed in all", "well-7-new was made", "none -> 0002", "restored"):
        assert told in done.stdout
    assert contents(folder / "well-7")["metadata"] is None
    assert contents(folder / "well-7-new")["points"][0] == 500


def test_what_was_carried_off_and_cleared_stands_in_the_other_store(folder: Path) -> None:
    for name in ("ship", "stick", "office"):
        shutil.rmtree(folder / name, ignore_errors=True)
    done = run(["sh", "-ec", f"PATH={folder / 'bin'}:$PATH\n{SHELL[2]}"], folder)
    assert done.returncode == 0, done.stderr
    assert "valid: 2 files, 2 points" in done.stdout
    assert "this means 2 points" in done.stdout
    assert "dropped 2 points" in done.stdout
    assert "back to the disk; the store takes" in done.stdout
    read = "PATH=%s:$PATH\nholdfast --store ./%s query ENGINE-1 rpm --format csv"
    carried, left = (
        run(["sh", "-ec", read % (folder / "bin", name)], folder).stdout.splitlines()[1:]
        for name in ("office", "ship")
    )
    assert [row.split(",")[2:4] for row in carried] == [
        ["2026-01-01T00:00:00Z", "612.5"],
        ["2026-01-02T00:00:00Z", "613.0"],
    ]
    assert [row.split(",")[3] for row in left] == ["640.0"]


def test_the_first_screen_names_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    first_screen = "\n".join(README.splitlines()[:20])
    for command in ("demo", "test"):
        assert f"make {command}" in first_screen
        assert f"\n{command}: " in makefile


def test_every_folder_that_the_readme_lists_exists() -> None:
    for name in re.findall(r"^\| (`[^|]+`) \|", README, flags=re.MULTILINE):
        for folder in re.findall(r"`([^`]+)/`", name):
            assert (ROOT / folder).is_dir(), folder


def test_every_setting_that_the_readme_names_exists() -> None:
    from repo import Settings

    assert Settings(engine="sqlite").durability == "full"
    assert "HOLDFAST_ENGINE" in README
    assert Settings.load(environment={"HOLDFAST_ENGINE": "sqlite"}).engine == "sqlite"
