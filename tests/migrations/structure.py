"""The structure and the content of a database, listed in full, so that two can be compared."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Engine, inspect, text

__all__ = ["Rows", "rows_of", "structure_of"]

Rows = dict[str, list[dict[str, Any]]]

_DUCKDB = (
    "SELECT table_name, column_name, data_type, is_nullable, column_default, numeric_precision, numeric_scale "
    "FROM duckdb_columns() WHERE NOT internal ORDER BY table_name, column_index",
    "SELECT table_name, constraint_type, constraint_text, expression, constraint_column_names "
    "FROM duckdb_constraints() ORDER BY ALL",
    "SELECT table_name, index_name, is_unique, expressions, sql FROM duckdb_indexes() ORDER BY ALL",
    "SELECT table_name FROM duckdb_tables() ORDER BY ALL",
    "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL",
    "SELECT sequence_name FROM duckdb_sequences() ORDER BY ALL",
)

_UNLISTED = re.compile(r"AUTOINCREMENT|CHECK\b.*|COLLATE \w+|CONFLICT \w+|GENERATED\b.*", re.IGNORECASE)
"""What the definition of a table in SQLite has that no pragma lists."""


def structure_of(engine: Engine) -> dict[str, list[Any]]:
    """Return tables, columns, types, nullability, defaults, keys, constraints and indexes, by what was asked."""
    with engine.connect() as connection:

        def ask(query: str) -> list[Any]:
            return [tuple(map(str, row)) for row in connection.execute(text(query))]

        if engine.dialect.name == "duckdb":
            return {query: ask(query) for query in _DUCKDB}
        kinds = ask(
            "SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main' ORDER BY name"
        )
        found = {"tables": kinds}
        for name, *_ in kinds:
            found[f"columns of {name}"] = ask(f"SELECT * FROM pragma_table_xinfo('{name}')")
            found[f"keys to others of {name}"] = ask(f"SELECT * FROM pragma_foreign_key_list('{name}')")
            indexes = ask(
                f"SELECT name, \"unique\", origin, partial FROM pragma_index_list('{name}') ORDER BY name"
            )
            found[f"indexes of {name}"] = indexes
            for index, *_ in indexes:
                found[f"columns of {index}"] = ask(f"SELECT * FROM pragma_index_xinfo('{index}')")
        found["sql"] = [
            (name, _plain(sql) if kind != "table" else sorted(_UNLISTED.findall(sql)))
            for name, kind, sql in ask("SELECT name, type, sql FROM sqlite_master ORDER BY type, name")
        ]
        return found


def rows_of(engine: Engine) -> Rows:
    """Return the rows of each table, Alembic's own left out, in an order of their own."""
    found: Rows = {}
    with engine.connect() as connection:
        for name in inspect(connection).get_table_names():
            if name != "alembic_version":
                rows = connection.execute(text(f'SELECT * FROM "{name}"')).mappings()
                found[name] = sorted((dict(row) for row in rows), key=lambda row: str(sorted(row.items())))
        if engine.dialect.name == "sqlite" and inspect(connection).has_table("sqlite_sequence"):
            rows = connection.execute(text("SELECT * FROM sqlite_sequence ORDER BY name")).mappings()
            found["sqlite_sequence"] = [dict(row) for row in rows]
    return found


def _plain(sql: str) -> str:
    """Take out what of a definition means nothing: blanks, and quotes around plain names."""
    return re.sub(r"\s*([(),])\s*", r"\1", re.sub(r"\s+", " ", re.sub(r'"(\w+)"', r"\1", sql)))
