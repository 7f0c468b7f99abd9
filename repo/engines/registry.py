"""The list of engines: the backend and the traits of each, and whether DuckDB can be used here."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from sqlalchemy import Connection

from repo.clock import Clock
from repo.engines.base import Backend, Traits
from repo.engines.duckdb.backend import DuckDBBackend
from repo.engines.duckdb.traits import TRAITS as DUCKDB
from repo.engines.sqlite.backend import SQLiteBackend
from repo.engines.sqlite.traits import TRAITS as SQLITE
from repo.errors import EngineMissing, StoreUnsupported
from repo.files import StoreFiles
from repo.settings import Settings

__all__ = ["backend_for", "duckdb_is_installed", "traits_of", "why_no_duckdb"]

_TRAITS = {traits.name: traits for traits in (DUCKDB, SQLITE)}


def traits_of(connection: Connection) -> Traits:
    """Return the capabilities of the engine under this connection; `StoreUnsupported` for an unknown one."""
    name = connection.dialect.name
    try:
        return _TRAITS[name]
    except KeyError:
        known = " or ".join(_TRAITS)
        raise StoreUnsupported(f"points can be kept in {known}, not in {name}") from None


def backend_for(
    engine: str, files: StoreFiles, settings: Settings, clock: Clock, *, path: Path | None = None
) -> Backend:
    """Return the backend of an engine, for its column file or another `path`.

    Raises `EngineMissing` where it cannot be used here.
    """
    own = files.columns(engine)
    if engine == "sqlite":
        return SQLiteBackend(path or own, settings)
    if why := why_no_duckdb():
        raise EngineMissing(
            f"{own} needs DuckDB, which cannot be used here ({platform.machine()}): {why}. Install duckdb 2.0.1 and "
            "duckdb-engine 0.17.0; or `holdfast demote`, where DuckDB is installed, moves the columns to SQLite. "
            "Writing and records go on without it",
            path=own,
        )
    return DuckDBBackend(path or own, files.scratch, settings, clock)


def why_no_duckdb() -> str | None:
    """Say why DuckDB cannot be used here; None where it can."""
    for name in ("duckdb", "duckdb_engine"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    try:
        import duckdb
    except ImportError as error:
        return f"duckdb cannot be imported ({error})"
    if not duckdb.__version__.startswith("2.0."):
        return f"duckdb {duckdb.__version__} is another than this version of Holdfast needs"
    if duckdb.__version__ == "2.0.0":
        return "duckdb 2.0.0 can double rows, which 2.0.1 does not"
    return None


def duckdb_is_installed() -> bool:
    """Say whether DuckDB, in a version that keeps our promises, and its dialect can be imported."""
    return why_no_duckdb() is None
