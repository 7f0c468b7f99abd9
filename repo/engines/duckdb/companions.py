"""The files beside a DuckDB database file, as suffixes of its name. Imports no driver."""

from __future__ import annotations

__all__ = ["COMPANIONS", "LOG", "NOTE"]

LOG = ".wal"

NOTE = ".checkpoint"
"""Exists while a checkpoint is running; see `repo.engines.duckdb.checkpoint`."""

COMPANIONS = (LOG, NOTE)
