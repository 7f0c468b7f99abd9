"""A store on each engine, and what real servers need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from tests.conftest import Templates
from tests.delivery.servers.certificates import Certificates, make_certificates
from tests.delivery.servers.postgresql import PostgresqlServer, why_no_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A running server, which tests may restart. Skips where it is not installed."""
    if (why := why_no_postgresql()) is not None:
        pytest.skip(why)
    server = PostgresqlServer()
    yield server
    server.close()


@pytest.fixture
def store(tmp_path: Path, engine: Any, templates: Templates) -> Iterator[Store]:
    templates.copy(engine, 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(engine=engine, background=False)) as opened:
        yield opened


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate for 127.0.0.1 with its key."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))
