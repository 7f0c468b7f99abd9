"""The jobs by name; each yields the contests and figures for some entries of targets.toml."""

from __future__ import annotations

from benchmarks.jobs import (
    batches,
    beside,
    carrying,
    claims,
    compaction,
    deliveries,
    growth,
    inserts,
    memory,
    others,
    process,
    queries,
    records,
    sustained,
    tables,
    upgrading,
)
from benchmarks.measure import Job

__all__ = ["CORE", "JOBS", "KEYS", "SHAPED"]

JOBS: dict[str, Job] = {
    "claims": claims.claims,
    "queries": queries.queries,
    "inserts": inserts.one,
    "threads": inserts.threads,
    "tuples": batches.tuples,
    "dicts": batches.dicts,
    "sustained": sustained.sustained,
    "tables": tables.tables,
    "records": records.records,
    "carrying": carrying.carrying,
    "compaction": compaction.compaction,
    "job-memory": memory.memory,
    "memory": process.memory,
    "import": process.imports,
    "help": process.command_help,
    "upgrading": upgrading.upgrading,
    "others": others.others,
    "queues": others.queues,
    "growth": growth.growth,
    "beside": beside.beside,
    "deliveries": deliveries.deliveries,  # last, as it takes longest
}

KEYS: dict[str, tuple[str, ...]] = {
    "claims": claims.KEYS,
    "queries": queries.KEYS,
    "inserts": ("insert-one-sqlite", "insert-one-duckdb"),
    "threads": ("threads-8", "threads-8-slow-fsync"),
    "tuples": ("batch-1000-tuples",),
    "dicts": ("batch-10000-dicts",),
    "sustained": sustained.KEYS,
    "tables": tables.KEYS,
    "records": ("add-record", "mark-sent"),
    "carrying": carrying.KEYS,
    "deliveries": deliveries.KEYS,
    "beside": beside.KEYS,
    "compaction": compaction.KEYS,
    "job-memory": memory.KEYS,
    "memory": ("memory",),
    "import": ("import",),
    "help": ("help",),
    "upgrading": ("upgrade", "upgrade-memory", "upgrade-disk"),
    "others": others.KEYS,
    "queues": others.QUEUE_KEYS,
    "growth": growth.KEYS,
}
"""The entries of targets.toml that each job covers."""

CORE = (
    "claims",
    "queries",
    "inserts",
    "tuples",
    "dicts",
    "sustained",
    "tables",
    "carrying",
    "compaction",
    "import",
    "help",
)
"""The jobs of a short run."""

SHAPED = ("inserts", "tuples", "dicts", "tables", "queries", "carrying")
"""Those that depend on the shape of the data, and run again with another."""
