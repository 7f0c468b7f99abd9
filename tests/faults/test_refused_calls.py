"""If the system refuses one call on a store's files, the error is typed, nothing is lost, the process continues."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repo.engines.registry import companions_of
from tests.faults import injected

pytestmark = [
    pytest.mark.usefixtures("strace"),
]

CALLS = {
    "openat": "EMFILE",
    "pread64": "EIO",
    "pwrite64,write": "ENOSPC",
    "fsync,fdatasync": "EIO",
    "ftruncate": "EIO",
    "rename": "EIO",
    "unlink": "EIO",
}
LAST, STRIDE = 24, 3
"""Each run refuses every third of the calls; which third depends on the seed."""

FILES = ("offline_buffer.db", "timeseries.duckdb", "timeseries.sqlite")


def refuse(folder: Path, engine: str, calls: str, error: str, nth: int) -> bool:
    """Make the nth of these calls fail; returns whether there were that many."""
    store = folder / "store"
    store.mkdir(parents=True)
    named = [store / f"{name}{building}" for name, building in itertools.product(FILES, ("", ".building"))]
    paths = [path for file in named for path in (file, *companions_of(file))]
    trace = folder / "trace"
    done = subprocess.run(
        [
            *("strace", "-D", "-I2", "-f", "-qq", "-o", trace, f"--trace={calls}"),
            *(f"--trace-path={path}" for path in (store, *paths)),
            f"--inject={calls}:error={error}:when={nth}",
            *(sys.executable, injected.__file__, store, engine),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    refused = [line for line in trace.read_text().splitlines() if "INJECTED" in line]
    reported = json.loads(done.stdout) if done.stdout else {"died": done.stderr[-2000:]}
    assert not {kind: seen for kind, seen in reported.items() if seen and kind != "typed"}, (
        refused,
        reported,
    )
    shutil.rmtree(folder)
    return bool(refused)


@pytest.mark.parametrize(
    ("engine", "calls", "nth"),
    [
        pytest.param("duckdb", "fsync,fdatasync", 9, marks=pytest.mark.duckdb),
        ("sqlite", "unlink", 3),
        pytest.param("sqlite", "fsync,fdatasync", 9, marks=pytest.mark.slow),
        pytest.param("duckdb", "unlink", 3, marks=[pytest.mark.duckdb, pytest.mark.slow]),
    ],
)
def test_a_refused_call_is_a_typed_error_and_the_process_continues(
    tmp_path: Path, engine: str, calls: str, nth: int
) -> None:
    refuse(tmp_path / "once", engine, calls, CALLS[calls], nth)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param("duckdb", marks=pytest.mark.duckdb), "sqlite"])
@pytest.mark.parametrize("calls", CALLS)
def test_each_call_may_be_refused(tmp_path: Path, seed: int, engine: str, calls: str) -> None:
    wrong = []
    for nth in range(1 + seed % STRIDE, 1 + LAST, STRIDE):
        try:
            if not refuse(tmp_path / str(nth), engine, calls, CALLS[calls], nth):
                break
        except AssertionError as error:
            wrong.append(f"{nth}: {error}")
    assert not wrong, "\n\n".join(wrong)
