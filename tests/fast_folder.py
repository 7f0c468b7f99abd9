"""Prints the folder for the files of the tests: one in memory, if there is one that can take them.

Stores commit durably, so tests on a disk spend a third of their time waiting for it. A folder that TMPDIR names stays.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

IN_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 4_000_000_000
"""Several times what the tests of four processes have on disk at a time: large files in memory must not fill it."""


def fast_folder() -> str:
    """Return the folder."""
    if "TMPDIR" in os.environ or not _is_roomy() or not _runs_programs():
        return tempfile.gettempdir()
    return str(IN_MEMORY)


def _is_roomy() -> bool:
    try:
        found = os.statvfs(IN_MEMORY)
        [free_kb] = re.findall(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())
    except (OSError, ValueError):
        return False
    return min(found.f_bavail * found.f_frsize, int(free_kb) * 1024) >= NEEDED_BYTES


def _runs_programs() -> bool:
    try:
        with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
            program = Path(folder, "program")
            program.write_text("#!/bin/sh\n")
            program.chmod(0o700)
            return subprocess.run([program], check=False).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    print(fast_folder())
