"""Holdfast: a store-and-forward time-series buffer for the edge.

    from repo import Store

    with Store("./data/edge") as store:
        store.points.insert("SENSOR-001", "pressure", 2500.5)

This module exports the public names and loads each when it is first used, so importing it is cheap.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repo import models
    from repo.delivery.forwarder import Backoff, Forwarder
    from repo.delivery.monitor import ConnectionMonitor
    from repo.delivery.protocol import Batch, Item, Outcome, Sink
    from repo.delivery.receiver import Receiver
    from repo.delivery.reconcile import reconcile
    from repo.delivery.sinks.http import HttpSink
    from repo.duckdb_storage import DuckDBTimeSeriesStorage
    from repo.errors import (
        EngineMissing,
        FlushFailed,
        HoldfastError,
        InvalidFile,
        InvalidPoint,
        InvalidQuery,
        InvalidRecord,
        InvalidSettings,
        MigrationFailed,
        MissingExtra,
        Refusal,
        SchemaOutdated,
        SchemaTooNew,
        SinkHalted,
        SinkRefused,
        SinkUnreachable,
        StoreBusy,
        StoreClosed,
        StoreCorrupt,
        StoreDenied,
        StoreForked,
        StoreFull,
        StoreMissing,
        StoreReadOnly,
        StoreUnsupported,
        TransactionRule,
    )
    from repo.offline_buffer import OfflineBufferManager
    from repo.repositories.points import PointRepository, Written
    from repo.repositories.records import RecordRepository
    from repo.settings import Settings
    from repo.store.async_store import AsyncStore
    from repo.store.jsonable import jsonable
    from repo.store.results import Result
    from repo.store.status import Status
    from repo.store.store import Store
    from repo.transfer.exporter import Exported
    from repo.transfer.importer import Imported

_HOMES = {
    "AsyncStore": "repo.store.async_store",
    "Backoff": "repo.delivery.forwarder",
    "Batch": "repo.delivery.protocol",
    "ConnectionMonitor": "repo.delivery.monitor",
    "DuckDBTimeSeriesStorage": "repo.duckdb_storage",
    "Exported": "repo.transfer.exporter",
    "Forwarder": "repo.delivery.forwarder",
    "HttpSink": "repo.delivery.sinks.http",
    "Imported": "repo.transfer.importer",
    "Item": "repo.delivery.protocol",
    "OfflineBufferManager": "repo.offline_buffer",
    "Outcome": "repo.delivery.protocol",
    "PointRepository": "repo.repositories.points",
    "Receiver": "repo.delivery.receiver",
    "RecordRepository": "repo.repositories.records",
    "Result": "repo.store.results",
    "Settings": "repo.settings",
    "Sink": "repo.delivery.protocol",
    "Status": "repo.store.status",
    "Store": "repo.store.store",
    "Written": "repo.repositories.points",
    "jsonable": "repo.store.jsonable",
    "reconcile": "repo.delivery.reconcile",
}

__all__ = [
    "AsyncStore",
    "Backoff",
    "Batch",
    "ConnectionMonitor",
    "DuckDBTimeSeriesStorage",
    "EngineMissing",
    "Exported",
    "FlushFailed",
    "Forwarder",
    "HoldfastError",
    "HttpSink",
    "Imported",
    "InvalidFile",
    "InvalidPoint",
    "InvalidQuery",
    "InvalidRecord",
    "InvalidSettings",
    "Item",
    "MigrationFailed",
    "MissingExtra",
    "OfflineBufferManager",
    "Outcome",
    "PointRepository",
    "Receiver",
    "RecordRepository",
    "Refusal",
    "Result",
    "SchemaOutdated",
    "SchemaTooNew",
    "Settings",
    "Sink",
    "SinkHalted",
    "SinkRefused",
    "SinkUnreachable",
    "Status",
    "Store",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreDenied",
    "StoreForked",
    "StoreFull",
    "StoreMissing",
    "StoreReadOnly",
    "StoreUnsupported",
    "TransactionRule",
    "Written",
    "jsonable",
    "models",
    "reconcile",
]

logging.getLogger("holdfast").addHandler(logging.NullHandler())


def _refuse_namesake(folder: str) -> None:
    """Raise ImportError if another distribution named `repo` is installed here, because it overwrites our files."""
    for entry in os.scandir(folder):
        if entry.name.startswith("repo-") and entry.name.endswith(".dist-info"):
            raise ImportError(
                f"another distribution named 'repo' is installed in {folder} and overwrites parts of holdfast-edge; "
                "uninstall both, then install holdfast-edge alone: pip uninstall -y repo holdfast-edge"
            )


_refuse_namesake(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("repo.models")
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "repo.errors")), name)


def _version() -> str:
    """Return the version of the installed distribution; of a checkout, the one in its pyproject.toml."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("holdfast-edge")
    except PackageNotFoundError:
        import tomllib
        from pathlib import Path

        project = Path(__file__).parents[1] / "pyproject.toml"
        try:
            return f"{tomllib.loads(project.read_text())['project']['version']}+checkout"
        except (OSError, KeyError, ValueError):
            return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
