"""The record of DuckDB: its names, its files, their space, and whether it can be used here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from repo.engines.record import EngineRecord

if TYPE_CHECKING:
    from repo.clock import Clock
    from repo.engines.base import Backend, Traits
    from repo.settings import Settings

__all__ = ["DUCKDB", "LOG", "NOTE"]

LOG = ".wal"
NOTE = ".checkpoint"
"""Exists while a checkpoint is running; see `repo.engines.duckdb.checkpoint`."""


def _why_missing() -> str | None:
    for name in ("duckdb", "duckdb_engine"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    try:
        import duckdb
    except ImportError as error:
        return f"duckdb cannot be imported ({error})"
    if not duckdb.__version__.startswith("2.0."):
        return f"duckdb {duckdb.__version__} is not supported by this version of Holdfast"
    if duckdb.__version__ == "2.0.0":
        return "duckdb 2.0.0 can duplicate rows, which 2.0.1 does not"
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
    companions=(LOG, NOTE),
    signature=(8, b"DUCK"),
    bytes_a_point=40,  # 5 were measured
    names_a_point=0,
    rewrite_factor=1.0,
    deleted_row_bytes=10,  # 8 were measured
    why_missing=_why_missing,
    remedy="Install duckdb 2.0.1 and duckdb-engine 0.17.0; or `holdfast demote`, where DuckDB is installed, moves the "
    "columns to SQLite",
    make_backend=_backend,
    traits=_traits,
)
