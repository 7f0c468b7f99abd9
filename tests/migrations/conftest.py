"""Engines on fresh files, legacy samples, and the command line, for the tests of the migrations."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from alembic.config import CommandLine, Config
from alembic.util import messaging
from sqlalchemy import Engine

from repo.engines.duckdb import driver as duckdb
from repo.engines.registry import companions_of
from repo.engines.sqlite import driver as sqlite
from repo.schema import runner
from repo.schema.upgrade import migrate_store
from tests.assets.unpack import LEGACY, unpack
from tests.conftest import close_engine
from tests.migrations.legacy_store import make_legacy_store
from tests.migrations.stores import POINTS, without_settings
from tests.starter import Starter

ROOT = Path(__file__).resolve().parents[2]

OpenEngine = Callable[[Path], Engine]
Alembic = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def open_engine() -> Iterator[OpenEngine]:
    """Open files by their suffix; everything is closed at the end of the test, or by `engine.dispose`."""
    opened: list[Engine] = []

    def _open(path: Path) -> Engine:
        engine = _engine_on(path)
        if path.suffix == ".duckdb":
            opened.append(engine)
        return engine

    yield _open
    for engine in opened:
        duckdb.close_engine(engine)


def _engine_on(path: Path) -> Engine:
    if path.suffix != ".duckdb":
        return sqlite.open_engine(path)
    scratch = path.with_suffix(".tmp")
    return duckdb.open_engine(path, memory_limit_bytes=64_000_000, threads=2, temp_folder=scratch)


@pytest.fixture(scope="session")
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a file at the head by its name, made by all revisions the first time."""
    home = tmp_path_factory.mktemp("at-head")

    def made(name: str) -> Path:
        file = home / name
        if not file.exists():
            engine = _engine_on(file)
            runner.upgrade(engine, "metadata" if file.suffix == ".db" else "timeseries")
            close_engine(engine)
        return file

    return made


@pytest.fixture
def open_at_head(_migrated: Callable[[str], Path], open_engine: OpenEngine) -> OpenEngine:
    """Open new files that are at the head: copies, because to run all revisions takes longer than most tests."""

    def _open(path: Path) -> Engine:
        made = _migrated(path.name)
        for file in (made, *companions_of(made)):
            if file.exists():
                shutil.copyfile(file, path.with_name(file.name))
        return open_engine(path)

    return _open


@pytest.fixture(params=["metadata", "timeseries.duckdb", "timeseries.sqlite"])
def database_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One of the three databases there are; not there yet."""
    return tmp_path / ("offline_buffer.db" if request.param == "metadata" else request.param)


@pytest.fixture(params=["timeseries.duckdb", "timeseries.sqlite"])
def timeseries_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A time-series database of either engine; not there yet."""
    return tmp_path / str(request.param)


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a database that the legacy program left, with its log."""
    return lambda name: unpack(LEGACY / name, tmp_path / name)


@pytest.fixture
def alembic(monkeypatch: pytest.MonkeyPatch) -> Alembic:
    """Run `alembic` from the project's root as a developer does, but in this process: a start takes long.

    `alembic_process` starts the command itself: where what counts is the folder, or that it is another process.
    """

    def _run(*arguments: str, ok: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            monkeypatch.context() as patched,
            _logging_put_back(),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
                patched.delenv(name)
            for name, value in environment.items():
                patched.setenv(name, value)
            patched.setattr(messaging, "TERMWIDTH", None)
            patched.chdir(ROOT)
            try:
                _CommandLine("alembic").main([*arguments])
            except SystemExit as end:
                code = 1 if end.code else 0
        done = subprocess.CompletedProcess(["alembic", *arguments], code, out.getvalue(), err.getvalue())
        assert (code == 0) is ok, done.stdout + done.stderr
        return done

    return _run


class _CommandLine(CommandLine):
    """Alembic's own, that prints to what is `sys.stdout` now: else it is what that was when Alembic was imported."""

    def run_cmd(self, config: Config, options: argparse.Namespace) -> None:
        config.stdout = config.output_buffer = sys.stdout
        super().run_cmd(config, options)


@contextmanager
def _logging_put_back() -> Iterator[None]:
    """Undo what the command sets in logging for its process."""
    loggers = [
        logging.getLogger(name) for name in (None, "alembic.runtime.migration", "alembic.util.messaging")
    ]
    before = [(logger, logger.level, logger.propagate, [*logger.handlers]) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate, logger.handlers[:] = propagate, handlers


@pytest.fixture
def alembic_process(starter: Starter) -> Alembic:
    """Run `python -m alembic` from the project's root in a process of its own."""

    def _run(*arguments: str, ok: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = starter.run(["-m", "alembic", *arguments], env=without_settings() | environment)
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return done

    return _run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the legacy program, for tests that copy it."""
    return make_legacy_store(tmp_path_factory.mktemp("legacy") / "store", POINTS)


@pytest.fixture
def legacy(made: Path, tmp_path: Path) -> Path:
    """A store of the legacy program, in a folder whose name is no plain word."""
    return Path(shutil.copytree(made, tmp_path / "it's a 100% store"))


@pytest.fixture(scope="session")
def migrated_once(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was migrated, with the backup from before, for tests that copy it."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("migrated") / "store"))
    migrate_store(folder)
    return folder


@pytest.fixture
def migrated(migrated_once: Path, tmp_path: Path) -> Path:
    """A store that was migrated, with the backup from before."""
    return Path(shutil.copytree(migrated_once, tmp_path / "it's a migrated 100% store"))
