"""A column file is created completely or not at all: the remains after a kill or on a full disk do not count."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repo import Settings, Store, StoreCorrupt
from tests.conftest import Templates

pytestmark = pytest.mark.duckdb

SETTINGS = Settings(background=False, engine="duckdb")


@pytest.fixture(scope="module")
def unflushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with a point in its journal, and no column file."""
    folder = tmp_path_factory.mktemp("unflushed")
    with Store(folder, SETTINGS) as store:
        store.points.insert("a", "m", 1.0, timestamp=1)
    assert not (folder / "timeseries.duckdb").exists()
    return folder


@pytest.mark.parametrize(
    ("zeros", "size"),
    [
        *((True, 0), (False, 4096), (False, 8192), (False, 12_287), (True, 12_287)),
        *(
            pytest.param(zeros, size, marks=pytest.mark.slow)
            for zeros, size in ((True, 1), (True, 4096), (True, 8192), (False, 1))
        ),
    ],
)
def test_a_column_file_that_never_became_a_database_is_created_again(
    tmp_path: Path,
    unflushed: Path,
    templates: Templates,
    size: int,
    zeros: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    templates.copy("duckdb", 1, tmp_path / "other")
    start = (tmp_path / "other" / "timeseries.duckdb").read_bytes()[:size]
    shutil.copytree(unflushed, tmp_path / "store")
    (tmp_path / "store" / "timeseries.duckdb").write_bytes(bytes(size) if zeros else start)
    with Store(tmp_path / "store", SETTINGS) as store:
        assert [row["value"] for row in store.points.range("a", "m")] == [1.0]
        store.checkpoint()
    with Store(tmp_path / "store", SETTINGS) as store:
        assert [row["value"] for row in store.points.range("a", "m")] == [1.0]
    assert "a new one replaces it" in caplog.text


def test_a_column_file_truncated_after_a_prune_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "timeseries.duckdb"
    with Store(tmp_path, SETTINGS) as store:
        store.points.insert("a", "m", 1.0)
        store.checkpoint()
    os.truncate(file, 8192)
    before = file.read_bytes()
    with Store(tmp_path, SETTINGS) as store, pytest.raises(StoreCorrupt):
        store.points.range("a", "m").all()
    assert file.read_bytes() == before


SCRIPT = """
import sys
from repo import Settings, Store
with Store(sys.argv[1], Settings(engine=sys.argv[2], background=False)) as store:
    store.points.insert("a", "m", 1.0, timestamp=1)
    print("acknowledged", flush=True)
    store.flush()
    store.checkpoint()
"""


def traced(path: Path, engine: str, *options: str) -> subprocess.CompletedProcess[str]:
    columns = path / ("timeseries.duckdb" if engine == "duckdb" else "timeseries.sqlite")
    watched = [f"--trace-path={columns}{suffix}" for suffix in ("", ".building", ".wal", "-wal", "-journal")]
    return subprocess.run(
        ["strace", "-f", "-qq", *watched, *options, sys.executable, "-c", SCRIPT, str(path), engine],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
def test_a_kill_at_any_write_of_a_new_column_file_loses_nothing(tmp_path: Path, engine: str) -> None:
    killed = 0
    for nth in range(1, 41):
        folder = tmp_path / str(nth)
        done = traced(
            folder, engine, "--trace=pwrite64,write", f"--inject=pwrite64,write:signal=SIGKILL:when={nth}"
        )
        assert "acknowledged" in done.stdout, done.stderr
        with Store(folder, Settings(background=False)) as store:
            assert [row["value"] for row in store.points.range("a", "m")] == [1.0]
            store.checkpoint()
        if done.returncode == 0:
            break
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        killed += 1
    assert killed > 5
