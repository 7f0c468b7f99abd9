"""The record of DuckDB: its names, its files, their space, and whether it can be used here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from repo.engines.duckdb.companions import COMPANIONS
from repo.engines.record import EngineRecord

if TYPE_CHECKING:
    from repo.clock import Clock
    from repo.engines.base import Backend, Traits
    from repo.settings import Settings

__all__ = ["DUCKDB"]

_WANTED = "pip install 'duckdb>=2.0.1,<2.1' duckdb-engine==0.17.0"


def _why_missing() -> str | None:
    if importlib.util.find_spec("duckdb") is None:
        return f"duckdb is not installed ({_WANTED})"
    try:
        import duckdb
    except ImportError as error:
        return f"duckdb cannot be imported ({error})"
    version = getattr(duckdb, "__version__", "of an unknown version")
    if not version.startswith("2.0."):
        return f"duckdb {version} is installed, but Holdfast needs 2.0.1 or a later 2.0 ({_WANTED})"
    if version == "2.0.0":
        return f"duckdb 2.0.0 is installed, which can duplicate rows; 2.0.1 does not ({_WANTED})"
    if importlib.util.find_spec("duckdb_engine") is None:
        return f"duckdb_engine is not installed ({_WANTED})"
    return None


def _backend(path: Path, scratch: Path, settings: Settings, clock: Clock) -> Backend:
    from repo.engines.duckdb.backend import DuckDBBackend

    return DuckDBBackend(path, scratch, settings, clock)


def _traits() -> Traits:
    from repo.engines.duckdb.traits import TRAITS

    return TRAITS


DUCKDB = EngineRecord(
    name="duckdb",
    title="DuckDB",
    file_name="timeseries.duckdb",
    companions=COMPANIONS,
    signature=(8, b"DUCK"),
    bytes_a_point=40,  # 5 were measured
    names_a_point=0,
    rewrite_factor=1.0,
    deleted_row_bytes=10,  # 8 were measured
    why_missing=_why_missing,
    remedy="Install these versions; or `holdfast demote`, where DuckDB is installed, moves the "
    "columns to SQLite",
    make_backend=_backend,
    traits=_traits,
)
