"""SELECTs of DuckDB that only read: a function in one may checkpoint, log, or run another statement.

A transaction that is READ ONLY refuses changes of tables, and nothing else: `SELECT * FROM checkpoint()` checkpoints.
So DuckDB parses the statement, and each function that it names is looked up before it runs.
"""

from __future__ import annotations

import re
from typing import Any

import duckdb

__all__ = ["functions_beyond_reading"]

# DuckDB escapes every quote inside of a text, so that this can only be the key itself.
_FUNCTION = re.compile(r'"function_name":"((?:[^"\\]|\\.)*)"')

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
        ),  # of these, some are scalar functions, too
        *("current_connection_id", "current_query", "current_query_id", "current_transaction_id"),
        *("error", "gen_random_uuid", "random", "stats", "uuid", "uuidv4", "uuidv7", "vector_type"),
    }
)
"""Of the table functions, and of the functions that DuckDB marks as having side effects, those that only read."""


def functions_beyond_reading(cursor: Any, query: str) -> list[str]:
    """Return the functions of one SELECT that may do more than read, sorted; raises the driver's own errors.

    Table functions are refused unless they are known to read; scalar functions and aggregates only if DuckDB says
    that they have side effects. `duckdb.InvalidInputException` where DuckDB cannot say what the statement names.
    """
    [(tree,)] = cursor.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    if tree.startswith('{"error":true'):
        raise duckdb.InvalidInputException(f"it cannot be seen which functions this names: {tree}")
    named = {name.lower() for name in _FUNCTION.findall(tree)}
    return sorted(named & _all_that_may_act(cursor) - _READING) if named else []


def _all_that_may_act(cursor: Any) -> frozenset[str]:
    if not _acting_of_this_version:
        query = (
            "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
            "WHERE function_type IN ('table', 'pragma', 'table_macro') OR has_side_effects"
        )
        _acting_of_this_version.append(frozenset(name for (name,) in cursor.execute(query).fetchall()))
    return _acting_of_this_version[0]


_acting_of_this_version: list[frozenset[str]] = []
