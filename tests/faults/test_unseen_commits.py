"""A commit of a move that is in SQLite's log, but that no process sees, must not come back once its file is gone.

SQLite writes a commit to its log, syncs it, and then enters it in an index that the processes share. After a kill, or
a failed sync, in between, the log has a commit that is not in the index. If all processes die before the next commit,
SQLite recovers it.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from repo import Settings, Store

pytestmark = [
    pytest.mark.duckdb,
    pytest.mark.usefixtures("strace"),
]

POINTS = 20
SYNC_OF_THE_SWITCH = 2
"""Which sync of the log it is, since the process that moves the columns began."""

_OPENED = """
import os, signal, sys
from repo import HoldfastError, Settings, Store
store = Store(sys.argv[1], Settings(engine="duckdb", background=False))
"""
_MOVES = f"""{_OPENED}
store.points.range("a", "m").all()
try:
    store.demote()
except HoldfastError as error:
    print(type(error).__name__, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
_READS = f"""{_OPENED}
print("open", flush=True)
sys.stdin.readline()
print(len(store.points.range("a", "m").all()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store whose journal is pruned."""
    with Store(tmp_path / "store", Settings(engine="duckdb", background=False)) as store:
        store.points.insert_many([("a", "m", float(at), 1.0) for at in range(POINTS)])
        store.checkpoint()
    return store.path


@contextmanager
def reader(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has the store open, reads once when it is asked to, and dies."""
    with subprocess.Popen(
        [sys.executable, "-c", _READS, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str]) -> int:
    """Let the process read and die; returns how many points it found."""
    found, _ = process.communicate("read\n", timeout=300)
    return int(found)


def move(folder: Path, fault: str) -> str:
    """Move the columns, with a fault in the sync of the commit that switches engines; returns what the process said."""
    log = folder / "offline_buffer.db-wal"
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", folder.parent / "trace", "--trace=fsync,fdatasync"),
            *(f"--trace-path={log}", f"--inject=fsync,fdatasync:{fault}:when={SYNC_OF_THE_SWITCH}"),
            *(sys.executable, "-c", _MOVES, folder),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def has_unseen_commit(folder: Path) -> bool:
    """Return whether the log has more pages than its index says; see sqlite.org/walformat.html."""
    header = 32
    with (
        (folder / "offline_buffer.db-wal").open("rb") as log,
        (folder / "offline_buffer.db-shm").open("rb") as index,
    ):
        page_bytes = struct.unpack(">8xI", log.read(12))[0] + 24
        [indexed] = struct.unpack("=16xI", index.read(20))
        return bool((os.fstat(log.fileno()).st_size - header) // page_bytes > indexed)


def points(folder: Path) -> int:
    with Store(folder, Settings(background=False)) as store:
        return len(store.points.range("a", "m").all())


def test_a_killed_move_does_not_come_back_after_another_process_has_read(folder: Path) -> None:
    with reader(folder) as other:
        move(folder, "signal=SIGKILL")
        assert has_unseen_commit(folder)
        assert read(other) == POINTS
    assert points(folder) == POINTS


def test_a_move_whose_sync_failed_does_not_come_back(folder: Path) -> None:
    with reader(folder):
        assert move(folder, "error=EIO") == "HoldfastError"
    assert points(folder) == POINTS
