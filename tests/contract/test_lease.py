"""The lease: a waiting call can be interrupted, forked or refused by the system without blocking others."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from repo.errors import StoreBusy
from repo.processes import lease as lease_module
from repo.processes.lease import Lease
from tests.interrupts import interrupted


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


FORK = """
import os, sys, threading, time
from pathlib import Path
from repo.processes.lease import Lease
holder, waiter, third = (Lease(Path(sys.argv[1]), lambda: 0) for _ in range(3))
holder.acquire(1.0, "a test")
thread = threading.Thread(target=waiter.acquire, args=(20.0, "a test"))
thread.start()
while not holder.wanted():
    time.sleep(0.01)
ours, childs = os.pipe()
child = os.fork()
if child == 0:
    os.close(childs)
    os.read(ours, 1)
    os._exit(0)
holder.release()
thread.join()
waiter.release()
third.acquire(2.0, "a test")
print("had")
os.close(childs)
os.waitpid(child, 0)
"""


def test_the_child_of_a_fork_does_not_keep_the_lease_that_a_thread_waited_for(tmp_path: Path) -> None:
    assert run(FORK, tmp_path) == "had\n"


NO_DESCRIPTORS = """
import os, resource, sys
from pathlib import Path
from repo.processes.lease import Lease
from repo.errors import HoldfastError
lease = Lease(Path(sys.argv[1]), lambda: 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
hog = []
for left in (0, 1):
    try:
        while True:
            hog.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for _ in range(left):
        os.close(hog.pop())
    try:
        lease.acquire(1.0, "a test")
    except HoldfastError as error:
        print("Too many open files" in str(error), lease.held)
for descriptor in hog:
    os.close(descriptor)
lease.acquire(1.0, "a test")
print(lease.held)
"""


def test_a_process_without_descriptors_gets_an_error_and_can_take_the_lease_later(tmp_path: Path) -> None:
    assert run(NO_DESCRIPTORS, tmp_path) == "True False\nTrue False\nTrue\n"


NO_THREADS = """
import resource, sys, threading
from pathlib import Path
from repo.processes.lease import Lease
from repo.errors import HoldfastError
holder, waiter, third = (Lease(Path(sys.argv[1]), lambda: 0) for _ in range(3))
holder.acquire(1.0, "a test")
pages = int(Path("/proc/self/statm").read_text().split()[0])
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64_000_000, hard))
threading.stack_size(512_000_000)
try:
    waiter.acquire(1.0, "a test")
except HoldfastError as error:
    print("could not be started" in str(error), waiter.held)
threading.stack_size(0)
holder.release()
waiter.acquire(1.0, "a test")
print(waiter.held)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_a_process_without_threads_gets_an_error_and_can_take_the_lease_later(tmp_path: Path) -> None:
    assert run(NO_THREADS, tmp_path) == "True False\nTrue\n"


@pytest.mark.parametrize("taken", ["free", "taken", "released during the wait"])
def test_an_interrupt_anywhere_leaves_no_lease_without_an_owner(taken: str, tmp_path: Path) -> None:
    lease, other = Lease(tmp_path, lambda: 0), Lease(tmp_path, lambda: 0)
    files = (lease_module.__file__,)

    def take_and_release() -> None:
        try:
            lease.acquire(0.02 if taken == "taken" else 5.0, "a test")
        except StoreBusy:
            return
        lease.release()

    for nth in range(1, 1_000):
        if taken != "free":
            other.acquire(5.0, "another")
        if taken == "released during the wait":
            threading.Timer(0.01, other.release).start()
        was_interrupted = interrupted(files, nth, take_and_release)
        while taken == "released during the wait" and other.held:
            time.sleep(0.001)
        lease.release()
        other.release()
        other.acquire(5.0, "another")
        other.release()
        lease.acquire(5.0, "once more")
        lease.release()
        if not was_interrupted:
            break
    assert nth > 10
    lease.close()
    other.close()
