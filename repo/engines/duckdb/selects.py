"""Finds SELECTs in DuckDB that do more than read: a function may checkpoint, log, or run another statement.

A READ ONLY transaction only refuses changes to tables: `SELECT * FROM checkpoint()` does checkpoint. So DuckDB parses
the statement, and every function in it is checked before it runs.
"""

from __future__ import annotations

import re
from typing import Any

import duckdb

__all__ = ["functions_beyond_reading"]

# DuckDB escapes every quote inside a text, so this can only match the key itself.
_FUNCTION = re.compile(r'"function_name":"((?:[^"\\]|\\.)*)"')
_WRITING = re.compile(r'"type":"(DELETE|INSERT|UPDATE|MERGE)[A-Z_]*_NODE"')

_READING = frozenset(
    {
        *("generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"),
        *("duckdb_columns", "duckdb_constraints", "duckdb_databases", "duckdb_dependencies"),
        *("duckdb_functions", "duckdb_indexes", "duckdb_keywords", "duckdb_memory", "duckdb_optimizers"),
        *("duckdb_schemas", "duckdb_sequences", "duckdb_settings", "duckdb_tables", "duckdb_types"),
        *("duckdb_views", "pg_timezone_names"),
        *("pragma_collations", "pragma_database_size", "pragma_metadata_info", "pragma_platform"),
        *("pragma_show", "pragma_storage_info", "pragma_table_info", "pragma_user_agent", "pragma_version"),
        *(
            "collations",
            "functions",
            "platform",
            "show",
            "version",
        ),  # some of these are also scalar functions
        *("current_connection_id", "current_query", "current_query_id", "current_transaction_id"),
        *("error", "gen_random_uuid", "random", "stats", "uuid", "uuidv4", "uuidv7", "vector_type"),
    }
)
"""The table functions, and functions marked as having side effects, that in fact only read."""


def functions_beyond_reading(cursor: Any, query: str) -> list[str]:
    """Return the functions and clauses in one SELECT that may do more than read; raises the driver's errors.

    Table functions count unless they are known to read only; scalar functions and aggregates count only if DuckDB marks
    them as having side effects. Raises `duckdb.InvalidInputException` if DuckDB cannot list the functions.
    """
    [(tree,)] = cursor.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    if tree.startswith('{"error":true'):
        raise duckdb.InvalidInputException(f"the functions in this statement cannot be determined: {tree}")
    named = {name.lower() for name in _FUNCTION.findall(tree)}
    acting = sorted(named & _all_that_may_act(cursor) - _READING) if named else []
    return acting + sorted(set(_WRITING.findall(tree)))


def _all_that_may_act(cursor: Any) -> frozenset[str]:
    if not _acting_of_this_version:
        query = (
            "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
            "WHERE function_type IN ('table', 'pragma', 'table_macro') OR has_side_effects"
        )
        _acting_of_this_version.append(frozenset(name for (name,) in cursor.execute(query).fetchall()))
    return _acting_of_this_version[0]


_acting_of_this_version: list[frozenset[str]] = []
