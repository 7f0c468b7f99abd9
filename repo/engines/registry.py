"""The list of engines. No other code compares engine names: all differences are in a record, a backend or traits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repo.engines.duckdb.record import DUCKDB
from repo.engines.record import EngineRecord
from repo.engines.sqlite.record import SQLITE
from repo.errors import StoreUnsupported

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from repo.engines.base import Traits

__all__ = [
    "ENGINES",
    "LEGACY",
    "METADATA",
    "companions_of",
    "duckdb_is_installed",
    "engine_named",
    "first_usable",
    "traits_of",
]

ENGINES: dict[str, EngineRecord] = {record.name: record for record in (DUCKDB, SQLITE)}
"""By name, in order of preference."""

METADATA = SQLITE
"""The engine of every metadata database."""

LEGACY = DUCKDB
"""The engine of the legacy program. Its column file may be in another folder, and a store may be next to it."""

_traits: dict[str, Traits] = {}


def engine_named(name: str) -> EngineRecord:
    """Return the record of an engine; raises `StoreUnsupported` for an unknown one."""
    try:
        return ENGINES[name]
    except KeyError:
        raise StoreUnsupported(f"points can be stored in {' or '.join(ENGINES)}, not in {name}") from None


def first_usable() -> EngineRecord:
    """Return the engine of new stores: the first one that can be used here."""
    return next(record for record in ENGINES.values() if record.why_missing() is None)


def traits_of(connection: Connection) -> Traits:
    """Return the traits of the engine of this connection; raises `StoreUnsupported` for an unknown one."""
    name = connection.dialect.name
    if name not in _traits:
        _traits[name] = engine_named(name).traits()
    return _traits[name]


def companions_of(path: Path) -> list[Path]:
    """Return all files that may belong to a database file of any engine, except itself; most do not exist."""
    return list(dict.fromkeys(file for record in ENGINES.values() for file in record.beside(path)))


def duckdb_is_installed() -> bool:
    """Return whether DuckDB, in a supported version, and its dialect can be imported."""
    return DUCKDB.why_missing() is None
