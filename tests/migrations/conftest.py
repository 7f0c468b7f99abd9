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
from repo.engines.sqlite import driver as sqlite
from tests.assets.unpack import LEGACY, unpack
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
        if path.suffix == ".duckdb":
            engine = duckdb.open_engine(
                path, memory_limit_bytes=64_000_000, threads=2, temp_folder=path.with_suffix(".tmp")
            )
            opened.append(engine)
            return engine
        return sqlite.open_engine(path)

    yield _open
    for engine in opened:
        duckdb.close_engine(engine)


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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the legacy program, for tests that copy it."""
    return make_legacy_store(tmp_path_factory.mktemp("legacy") / "store", POINTS)


@pytest.fixture
def legacy(made: Path, tmp_path: Path) -> Path:
    """A store of the legacy program, in a folder whose name is no plain word."""
    return Path(shutil.copytree(made, tmp_path / "it's a 100% store"))
