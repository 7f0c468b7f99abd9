"""The DuckDB dialect: correct reflection for SQLAlchemy, and the guard before every opening of a file.

Corrects what duckdb-engine gets wrong on the current SQLAlchemy, under its own name (`duckdb+holdfast://`), so that a
host application's `duckdb://` is not affected. Does not decide how a store's file is configured. Importing this module
registers the dialect.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from sqlalchemy import Connection, text, types
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGCompiler, PGIdentifierPreparer
from sqlalchemy.engine import reflection
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import NoSuchTableError

from repo.engines.duckdb.companions import LOG
from repo.engines.duckdb.duckdb_engine_import import ConnectionWrapper
from repo.engines.duckdb.duckdb_engine_import import Dialect as _EngineDialect
from repo.engines.duckdb.duckdb_engine_import import DuckDBIdentifierPreparer as _EnginePreparer
from repo.errors import StoreCorrupt
from repo.processes.inuse import is_open_here

__all__ = ["ConnectionWrapper", "Dialect", "guarded"]

_BRIDGE = (
    "Copy the file and its log. In a separate environment with duckdb==0.9.2, open the copy, run "
    "DROP INDEX IF EXISTS idx_time_sensor; DROP INDEX IF EXISTS idx_metric; CHECKPOINT; and close it. "
    "Then replace the file with the copy, and remove the old log"
)
_LOG_HEAD = bytes.fromhex("64006265")  # the first bytes of every log of DuckDB 0.10 and newer
_opening = threading.Lock()


@contextmanager
def guarded(database: str) -> Iterator[None]:
    """Refuse files that opening with DuckDB would destroy. Open the file inside the `with` block.

    DuckDB 2 replays nothing of a log of DuckDB 0.9 or older, and deletes it: `StoreCorrupt`, with both files unchanged.
    A log of less than four bytes, or one that begins with zeros, is the torn start of a newer log; it has no commit,
    and DuckDB overwrites it. A file whose indexes DuckDB 2 cannot read also raises `StoreCorrupt`. Thread-safe; one
    file is opened at a time.
    """
    path = os.path.realpath(database)
    with _opening:
        if _is_file(database) and not is_open_here(path):
            _refuse_old_log(path)
        try:
            yield
        except duckdb.InternalException as error:
            if "ExtractIndexStorageInfo" not in str(error):
                raise
            raise StoreCorrupt(
                f"{path} was written by DuckDB 0.9 or older and has indexes on an empty table, which DuckDB "
                f"{duckdb.__version__} cannot open. It was not changed. {_BRIDGE}",
                path=path,
            ) from error


def _is_file(database: str) -> bool:
    return bool(database) and not database.startswith(":memory:")


def _refuse_old_log(path: str) -> None:
    try:
        with Path(path + LOG).open("rb") as log:
            head = log.read(len(_LOG_HEAD))
    except FileNotFoundError:
        return
    if len(head) == len(_LOG_HEAD) and head not in (_LOG_HEAD, bytes(len(_LOG_HEAD))):
        raise StoreCorrupt(
            f"{path}{LOG} is a log of DuckDB 0.9 or older; DuckDB {duckdb.__version__} would lose the rows in it. "
            f"Nothing was opened or changed. {_BRIDGE}",
            path=path,
        )


class _Preparer(_EnginePreparer):
    """Knows DuckDB's reserved words without opening an in-memory DuckDB to query them."""

    def __init__(self, dialect: Any, **options: Any) -> None:
        PGIdentifierPreparer.__init__(self, dialect, **options)
        self.reserved_words = self.reserved_words | _RESERVED


class _Compiler(PGCompiler):
    """Divides integers as integers. duckdb-engine rounds a quotient of floats, which is wrong for large integers."""

    def visit_floordiv_binary(self, binary: Any, operator: Any, **kw: Any) -> str:  # noqa: ARG002
        """Return the SQL of `a // b`."""
        return f"{self.process(binary.left, **kw)} // {self.process(binary.right, **kw)}"


# Reserved in DuckDB 2.0 as unquoted column names, but not in PostgreSQL.
_RESERVED = {
    *(
        "anti",
        "asof",
        "at",
        "by",
        "collation",
        "concurrently",
        "glob",
        "positional",
        "semi",
        "tablesample",
        "unpack",
    ),
    *("describe", "lambda", "lateral", "pivot", "pivot_longer", "pivot_wider"),
    *("qualify", "show", "summarize", "unpivot"),
}

_TYPES: dict[str, type[types.TypeEngine[Any]]] = {
    "BIGINT": types.BIGINT,
    "BLOB": types.BLOB,
    "BOOLEAN": types.BOOLEAN,
    "DATE": types.DATE,
    "DOUBLE": types.DOUBLE,
    "FLOAT": types.FLOAT,
    "INTEGER": types.INTEGER,
    "JSON": types.JSON,
    "SMALLINT": types.SMALLINT,
    "TIME": types.TIME,
    "TIMESTAMP": types.TIMESTAMP,
    "UUID": types.UUID,
    "VARCHAR": types.VARCHAR,
}


def _type_of(name: str) -> types.TypeEngine[Any]:
    if name == "TIMESTAMP WITH TIME ZONE":
        return types.TIMESTAMP(timezone=True)
    if decimal := re.fullmatch(r"DECIMAL\((\d+),(\d+)\)", name):
        return types.NUMERIC(int(decimal[1]), int(decimal[2]))
    return _TYPES.get(name, types.NullType)()


class Dialect(_EngineDialect):
    """duckdb-engine's dialect, with reflection through DuckDB's own catalogue, and with statement caching."""

    driver = "holdfast"
    supports_statement_cache = True
    inspector = reflection.Inspector  # type: ignore[assignment]  # not PostgreSQL's
    preparer = _Preparer
    statement_compiler = _Compiler

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """Open the file inside the guard; raises `StoreCorrupt` or the driver's errors."""
        with guarded(str(cargs[0] if cargs else cparams.get("database", ""))):
            if cparams.keys() <= {"database", "config"}:
                return ConnectionWrapper(duckdb.connect(*cargs, **cparams))
            # duckdb-engine first opens an in-memory database to find out which settings are DuckDB's own.
            return super().connect(*cargs, **cparams)

    def _get_default_schema_name(self, _connection: Connection) -> str:
        return "main"  # saves a query at each opening

    def get_table_names(self, connection: Connection, schema: str | None = None, **_: Any) -> list[str]:
        """List the tables of the current database, without those of attached databases."""
        return [row.table_name for row in _rows(connection, "tables", schema, order="table_name")]

    def has_table(self, connection: Connection, table_name: str, schema: str | None = None, **_: Any) -> bool:
        """Return whether the current database has this table or view."""
        return any(_rows(connection, kind, schema, "1", **{name: table_name}) for kind, name in _RELATIONS)

    def get_columns(
        self, connection: Connection, table_name: str, schema: str | None = None, **_: Any
    ) -> Any:
        """Describe the columns; raises `NoSuchTableError` for an unknown table."""
        rows = _rows(connection, "columns", schema, order="column_index", table_name=table_name)
        if not rows:
            raise NoSuchTableError(table_name)
        return [
            {
                "name": row.column_name,
                "type": _type_of(row.data_type),
                "nullable": row.is_nullable,
                "default": row.column_default,
                "autoincrement": False,  # DuckDB has no SERIAL
                "comment": row.comment,
            }
            for row in rows
        ]

    def get_pk_constraint(
        self, connection: Connection, table_name: str, schema: str | None = None, **_: Any
    ) -> Any:
        """Describe the primary key; its name is None, because DuckDB does not keep it."""
        for row in _constraints(connection, table_name, schema, "PRIMARY KEY"):
            return {"constrained_columns": list(row.constraint_column_names), "name": None}
        return reflection.ReflectionDefaults.pk_constraint()

    def get_unique_constraints(
        self, connection: Connection, table_name: str, schema: str | None = None, **_: Any
    ) -> Any:
        """Describe the unique constraints."""
        found = _constraints(connection, table_name, schema, "UNIQUE")
        return [{"name": None, "column_names": list(row.constraint_column_names)} for row in found]

    def get_check_constraints(
        self, connection: Connection, table_name: str, schema: str | None = None, **_: Any
    ) -> Any:
        """Describe the check constraints."""
        found = _constraints(connection, table_name, schema, "CHECK")
        return [{"name": None, "sqltext": row.expression} for row in found]

    def get_foreign_keys(
        self, connection: Connection, table_name: str, schema: str | None = None, **_: Any
    ) -> Any:
        """Describe the foreign keys."""
        return [
            {
                "name": None,
                "constrained_columns": list(row.constraint_column_names),
                "referred_schema": schema,
                "referred_table": row.referenced_table,
                "referred_columns": list(row.referenced_column_names),
                "options": {},
            }
            for row in _constraints(connection, table_name, schema, "FOREIGN KEY")
        ]

    def get_indexes(
        self, connection: Connection, table_name: str, schema: str | None = None, **_: Any
    ) -> Any:
        """Describe the indexes on plain columns."""
        columns = "*, expressions::VARCHAR[] AS names"
        return [
            {
                "name": row.index_name,
                "column_names": [_plain(name) for name in row.names],
                "unique": row.is_unique,
            }
            for row in _rows(
                connection, "indexes", schema, columns, order="index_name", table_name=table_name
            )
        ]

    def get_table_comment(self, *_args: Any, **_: Any) -> Any:
        """Raise `NotImplementedError`: comments are not reflected."""
        raise NotImplementedError

    def get_table_options(self, *_args: Any, **_: Any) -> Any:
        """Return nothing: DuckDB's tables have no options."""
        return {}


_RELATIONS = (("tables", "table_name"), ("views", "view_name"))


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _rows(
    connection: Connection, kind: str, schema: str | None, columns: str = "*", order: str = "1", **equal: str
) -> list[Any]:
    """Read a catalogue function of DuckDB for the current database. `kind` and the names never come from users."""
    terms = "".join(f" AND {name} = :{name}" for name in equal)
    query = (
        f"SELECT {columns} FROM duckdb_{kind}() "
        f"WHERE database_name = current_database() AND schema_name = :schema{terms} ORDER BY {order}"
    )
    return list(connection.execute(text(query), {"schema": schema or "main", **equal}))


def _constraints(connection: Connection, table: str, schema: str | None, kind: str) -> list[Any]:
    return _rows(
        connection, "constraints", schema, order="constraint_index", table_name=table, constraint_type=kind
    )


# Use the generic loops over the single-table methods, because PostgreSQL's catalogue queries do not run in DuckDB.
for _what in (
    *("columns", "pk_constraint", "foreign_keys", "indexes"),
    *("unique_constraints", "check_constraints", "table_comment", "table_options"),
):
    setattr(Dialect, f"get_multi_{_what}", getattr(DefaultDialect, f"get_multi_{_what}"))
Dialect.has_multi_table = DefaultDialect.has_multi_table  # type: ignore[method-assign]  # it asks `has_table`

registry.register("duckdb.holdfast", __name__, "Dialect")
