"""The fork server, the seed, and campaigns of kills, for the fault tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.kills import Campaign
from tests.starter import Starter

SOON = 2
"""Times that a step is reached in the kills that `make test` runs; the long campaigns go further."""


@pytest.fixture(scope="session")
def fork_server(starter: Starter) -> Iterator[ForkServer]:
    """One process that has imported the library and forks the children."""
    with ForkServer(starter) as ready:
        yield ready


@pytest.fixture(scope="session")
def seed() -> int:
    """A new seed for each run; HOLDFAST_TEST_SEED repeats one."""
    return int(os.environ.get("HOLDFAST_TEST_SEED", time.time_ns() % 1_000_000))


@pytest.fixture(scope="module")
def duckdb_campaign(
    fork_server: ForkServer, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Campaign]:
    """Kills of stores on DuckDB, each soon."""
    pytest.importorskip("duckdb")
    campaign = Campaign(fork_server, tmp_path_factory.mktemp("kills"), seed, "duckdb")
    campaign.most_passed = SOON
    yield campaign
    campaign.close()


@pytest.fixture(scope="module")
def sqlite_campaign(
    fork_server: ForkServer, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Campaign]:
    """Kills of stores on the fallback, each soon."""
    campaign = Campaign(fork_server, tmp_path_factory.mktemp("kills"), seed, "sqlite")
    campaign.most_passed = SOON
    yield campaign
    campaign.close()


@pytest.fixture
def own_campaign(fork_server: ForkServer, seed: int, tmp_path: Path) -> Iterator[Campaign]:
    """Kills of stores on DuckDB that no other test continues."""
    pytest.importorskip("duckdb")
    campaign = Campaign(fork_server, tmp_path, seed, "duckdb")
    yield campaign
    campaign.close()


@pytest.fixture(scope="session")
def strace() -> None:
    """Skip tests where strace is missing, or may not trace, as in some containers."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr}")
