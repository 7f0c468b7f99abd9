"""What the DuckDB engine takes from duckdb-engine, imported without the database that it would open.

While it is imported, duckdb-engine opens a database in memory to see whether DuckDB knows comments on tables. It does,
and the answer takes a seventh of the CPU time that an application needs to start. `pyproject.toml` pins the version of
duckdb-engine, so what is answered here is all that it asks.
"""

from __future__ import annotations

import sys
from types import ModuleType

_PROBE = "duckdb_engine._supports"


def _answered() -> ModuleType:
    probe = ModuleType(_PROBE)
    vars(probe).update(has_comment_support=lambda: True, has_uhugeint_support=True)
    return probe


if "duckdb_engine" not in sys.modules:
    sys.modules[_PROBE] = _answered()

from duckdb_engine import (  # noqa: E402
    ConnectionWrapper,
    CursorWrapper,
    Dialect,
    DuckDBIdentifierPreparer,
)

__all__ = ["ConnectionWrapper", "CursorWrapper", "Dialect", "DuckDBIdentifierPreparer"]
