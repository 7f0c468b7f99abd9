"""What several modules of the contract tests are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import OpenStore
from tests.contract.test_parquet_export import fill


@pytest.fixture
def bundle(open_store: OpenStore, tmp_path: Path) -> Path:
    """A bundle of three days, and its store closed."""
    source = open_store("source")
    fill(source)
    source.export_parquet(tmp_path / "bundle", partition="day")
    source.close()
    return tmp_path / "bundle"
