"""A store on each engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from tests.conftest import Templates


@pytest.fixture
def store(tmp_path: Path, engine: Any, templates: Templates) -> Iterator[Store]:
    templates.copy(engine, 1, tmp_path / "store")
    with Store(tmp_path / "store", Settings(engine=engine, background=False)) as opened:
        yield opened
