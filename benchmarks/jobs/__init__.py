"""The jobs by name; each yields the contests and figures for some entries of targets.toml."""

from __future__ import annotations

from benchmarks.jobs import batches, carrying, inserts, process, queries, records, tables, upgrading
from benchmarks.measure import Job

__all__ = ["JOBS", "KEYS", "SHAPED"]

JOBS: dict[str, Job] = {
    "import": process.imports,
    "help": process.command_help,
    "inserts": inserts.one,
    "threads": inserts.threads,
    "tuples": batches.tuples,
    "dicts": batches.dicts,
    "tables": tables.tables,
    "records": records.records,
    "queries": queries.queries,
    "memory": process.memory,
    "carrying": carrying.carrying,
    "upgrading": upgrading.upgrading,
}

KEYS: dict[str, tuple[str, ...]] = {
    "import": ("import",),
    "help": ("help",),
    "inserts": ("insert-one-sqlite", "insert-one-duckdb"),
    "threads": ("threads-8", "threads-8-slow-fsync"),
    "tuples": ("batch-1000-tuples",),
    "dicts": ("batch-10000-dicts",),
    "tables": ("tables-sqlite", "tables-duckdb"),
    "records": ("add-record", "mark-sent"),
    "queries": (
        "range-1h",
        "range-24h",
        "range-24h-arrow",
        "aggregate-24h",
        "buckets-one",
        "buckets-all",
        "latest-one",
        "latest-all",
        "drain",
        "drain-tuples",
        "drain-arrow",
        "load",
    ),
    "memory": ("memory",),
    "carrying": (
        "export-sqlite",
        "export-duckdb",
        "export-bytes",
        "import-sqlite",
        "import-duckdb",
        "carry-memory",
    ),
    "upgrading": ("upgrade", "upgrade-memory", "upgrade-disk"),
}
"""The entries of targets.toml that each job covers."""

SHAPED = ("inserts", "tuples", "dicts", "tables", "queries", "carrying")
"""Those that depend on the shape of the data."""
