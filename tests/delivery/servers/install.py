"""The servers that tests of deliveries start: which are missing, and their installation with apt-get.

    python -m tests.delivery.servers.install

Imports nothing but the standard library. On Debian, the packages also start the servers as services, which the tests do
not need: each test starts its own, in a folder of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from benchmarks.servers import binary

__all__ = ["PACKAGES", "missing", "why_missing"]

PACKAGES = {
    "mosquitto": "mosquitto",
    "influxd": "influxdb",
    "victoria-metrics": "victoria-metrics",
    "postgres": "postgresql",
}
"""The Debian package of each program."""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in PACKAGES if binary(program) is None]


def why_missing(program: str) -> str:
    """Return why a test is skipped whose server is not installed."""
    return f"{program} is not installed here; `make servers` installs the Debian package {PACKAGES[program]}"


def main() -> int:
    """Install what is missing; returns 1 if that fails."""
    wanted = missing()
    if not wanted:
        print(f"all servers are installed: {', '.join(PACKAGES)}")
        return 0
    packages = [PACKAGES[program] for program in wanted]
    if shutil.which("apt-get") is None:
        print(f"there is no apt-get here; install these servers, then run the tests: {', '.join(wanted)}")
        return 1
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    if as_root and shutil.which("sudo") is None:
        print(f"only root can install them, and there is no sudo: apt-get install {' '.join(packages)}")
        return 1
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run([*as_root, "apt-get", *command], check=False)
        if done.returncode:
            print(f"apt-get {command[0]} failed; not installed: {', '.join(missing())}")
            return 1
    left = missing()
    print(f"still not installed: {', '.join(left)}" if left else f"installed: {', '.join(packages)}")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
