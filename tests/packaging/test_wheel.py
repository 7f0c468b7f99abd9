"""The distribution, built and installed as a user would, with no developer dependency and no checkout in reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest
from build import ProjectBuilder
from packaging.requirements import Requirement

from repo.schema.version import HEAD
from tests.migrations.legacy_store import make_legacy_store

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HOLDFAST", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(a) for a in arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution as `python -m build` does, but in this environment.

    To make one for the building takes longer than all else; the slow tests without DuckDB do that.
    """
    out = tmp_path_factory.mktemp("dist")
    source = Path(ProjectBuilder(ROOT).build("sdist", out))
    unpacked = tmp_path_factory.mktemp("source")
    with tarfile.open(source) as archive:
        # Python 3.11.3 and older have no filters.
        filters: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(unpacked, **filters)
    return Path(ProjectBuilder(next(unpacked.iterdir())).build("wheel", out))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with nothing but the wheel and what it depends on.

    The dependencies are links to this environment's, because to install them takes ten seconds.
    All modules are compiled.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    paths = sysconfig.get_paths("venv", vars={"base": str(home), "platbase": str(home)})
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        wanted = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    for entry in _needed(wanted):
        (Path(paths["purelib"]) / entry.name).symlink_to(entry)
    install = ("--python", home / "bin" / "python", "install", "--quiet", "--no-compile", "--no-deps", wheel)
    run(sys.executable, "-m", "pip", *install, folder=home)
    _take_compiled(Path(paths["purelib"]))
    return home / "bin"


def _take_compiled(site: Path) -> None:
    """Put the compiled modules of this checkout beside the installed ones, whose text is the same."""
    for source in (ROOT / "repo").rglob("*.py"):
        installed, compiled = site / source.relative_to(ROOT), Path(cache_from_source(source))
        if compiled.exists() and installed.read_bytes() == source.read_bytes():
            shutil.copystat(source, installed)  # its time is in the compiled module
            here = Path(cache_from_source(installed))
            here.parent.mkdir(exist_ok=True)
            shutil.copyfile(compiled, here)


def _needed(wanted: list[str]) -> set[Path]:
    """Return the packages and modules of these requirements here, and of what they need; no extras."""
    entries: set[Path] = set()
    found: set[str] = set()
    left = [Requirement(each) for each in wanted]
    while left:
        requirement = left.pop()
        if requirement.name in found or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        here = distribution(requirement.name)
        assert here.version in requirement.specifier
        found.add(requirement.name)
        tops = {file.parts[0] for file in here.files or ()} - {"..", "__pycache__"}
        entries |= {Path(str(here.locate_file(top))) for top in tops}
        left += map(Requirement, here.requires or ())
    return entries


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "a place with 100% blanks"
    folder.mkdir()
    return folder


def test_the_wheel_holds_the_package_and_the_migrations_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        shipped = {
            Path(name).name: archive.read(name)
            for name in names
            if name.startswith("repo/migrations/versions/")
        }
    assert {name.split("/")[0] for name in names} == {
        "repo",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }
    versions = (ROOT / "alembic" / "versions").glob("*.py")
    assert shipped == {path.name: path.read_bytes() for path in versions}
    assert "repo/py.typed" in names


def test_an_installed_store_keeps_points_far_from_any_checkout(installed: Path, elsewhere: Path) -> None:
    program = (
        "import alembic, sys; assert hasattr(alembic, 'command') or __import__('alembic.command')\n"
        "from repo import Store\n"
        "with Store('data') as store:\n"
        "    store.points.insert('SENSOR-001', 'pressure', 2500.5)\n"
        "    print(store.points.range('SENSOR-001', 'pressure').all()[0]['value'], store.status().engine)\n"
    )
    assert (
        run(installed / "python", "-W", "error", "-c", program, folder=elsewhere).stdout == "2500.5 duckdb\n"
    )


def test_the_installed_command_works_in_any_folder(installed: Path, elsewhere: Path) -> None:
    holdfast = installed / "holdfast"
    run(holdfast, "--store", "site", "init", folder=elsewhere)
    (elsewhere / "r.csv").write_text("timestamp,pressure\n2026-01-01T00:00:00Z,2500.5\n")
    run(holdfast, "--store", "site", "ingest", "r.csv", "--sensor", "W", folder=elsewhere)
    status = json.loads(run(holdfast, "--json", "--store", "site", "status", folder=elsewhere).stdout)
    assert status["last_seq"] == 1


def test_an_old_store_is_migrated_by_the_installed_command(installed: Path, elsewhere: Path) -> None:
    make_legacy_store(elsewhere / "50% site", points=100, records=5)
    done = run(installed / "holdfast", "--store", "50% site", "migrate", "--json", folder=elsewhere)
    assert done.stdout.count(f'"after": "{HEAD}"') == 2
    assert len(list((elsewhere / "50% site" / "backups").iterdir())) == 1


def test_the_installed_library_migrates_and_compares_either_database(
    installed: Path, elsewhere: Path
) -> None:
    program = (
        "from pathlib import Path\n"
        "from repo.engines.duckdb import driver as duckdb; from repo.engines.sqlite import driver as sqlite\n"
        "from repo.schema import runner\n"
        "scratch = Path('100% scratch')\n"
        "columns = Path('t %s.duckdb')\n"
        "opened = duckdb.open_engine(columns, memory_limit_bytes=64_000_000, threads=1, temp_folder=scratch)\n"
        "for name, engine in (('metadata', sqlite.open_engine(Path('m %d.db'))),\n"
        "    ('timeseries', opened), ('timeseries', sqlite.open_engine(Path('t%%.sqlite')))):\n"
        "    print(runner.upgrade(engine, name), runner.check(engine, name))\n"
    )
    done = run(installed / "python", "-W", "error", "-c", program, folder=elsewhere)
    assert done.stdout.splitlines() == [f"Migrated(before=None, after='{HEAD}') []"] * 3


def test_the_source_distribution_holds_the_guide_and_the_environment(wheel: Path) -> None:
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"docs/migrations.md", "alembic.ini", "alembic/env.py", "alembic/script.py.mako"} <= names


@pytest.mark.slow
def test_the_installed_demo_runs_without_extras(installed: Path, elsewhere: Path) -> None:
    assert "arrived" in run(installed / "holdfast", "demo", folder=elsewhere).stdout


def test_another_distribution_called_repo_in_the_same_folder_is_named(
    installed: Path, elsewhere: Path
) -> None:
    home = Path(
        run(installed / "python", "-c", "import repo; print(repo.__file__)", folder=elsewhere).stdout.strip()
    )
    namesake = home.parents[1] / "repo-0.5.0.dist-info"
    namesake.mkdir()
    try:
        refused = run(installed / "python", "-c", "import repo", folder=elsewhere, check=False)
    finally:
        namesake.rmdir()
    assert "another distribution named 'repo'" in refused.stderr
