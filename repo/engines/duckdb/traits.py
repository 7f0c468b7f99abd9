"""The traits of DuckDB: its own way of what the repositories and queries need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, func

from repo.engines.base import Row, Traits, columns_of_rows, rows_of_query
from repo.engines.duckdb import driver
from repo.engines.duckdb.backend import checkpoint_file

__all__ = ["TRAITS"]


def _load(connection: Connection, table: FromClause, rows: Iterable[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    appender = driver.appender(str(table), columns=table.c.keys())
    appender.append_rows(rows)
    appender.flush()


def _delete_series(connection: Connection, table: FromClause, series: Sequence[tuple[str, str]]) -> None:
    # As two lists, because a table without an index is scanned for each statement, and a long IN takes long to parse.
    named = f"DELETE FROM {table} WHERE (sensor_id, metric_name) IN (SELECT unnest(?), unnest(?))"
    connection.exec_driver_sql(named, ([sensor for sensor, _ in series], [metric for _, metric in series]))


def _arrow(connection: Connection, query: Select[Any]) -> Any:
    # As a relation, because a cursor copies its rows first.
    compiled = query.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    driver: Any = connection.connection.driver_connection
    return driver.sql(str(compiled), params=[compiled.params[name] for name in compiled.positiontup or ()])


def _arrays(connection: Connection, query: Select[Any]) -> dict[str, Any]:
    result = connection.execute(query)
    cursor: Any = result.cursor
    arrays: dict[str, Any] = cursor.fetchnumpy()
    result.close()
    return arrays


def _columns(cursor: Any, count: int, many: bool) -> list[Sequence[Any]]:
    """Return columns through NumPy if it is installed, which takes half the time; masked values become None."""
    lists = any(str(column[1]).endswith("[]") for column in cursor.description)  # they would come as arrays
    if not many or lists or not find_spec("numpy"):
        return columns_of_rows(cursor, count, many)
    return [column.tolist() for column in cursor.fetchnumpy().values()]


def _percentiles(value: Any, fractions: Sequence[float]) -> ColumnElement[Any]:
    return func.quantile_cont(value, func.list_value(*fractions))


def _checkpoint_ddl(connection: Connection) -> None:
    connection.rollback()
    file = connection.exec_driver_sql(
        "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    ).scalar_one()
    connection.rollback()
    checkpoint_file(connection.engine, Path(file))


_CATALOG = """
SELECT 'table', table_name FROM duckdb_tables() WHERE NOT internal AND NOT temporary
UNION ALL SELECT 'column', table_name || '.' || column_name FROM duckdb_columns() WHERE NOT internal
    AND table_name IN (SELECT table_name FROM duckdb_tables() WHERE NOT internal AND NOT temporary)
UNION ALL SELECT 'view', view_name FROM duckdb_views() WHERE NOT internal AND NOT temporary
UNION ALL SELECT 'index', index_name FROM duckdb_indexes()
UNION ALL SELECT 'sequence', sequence_name FROM duckdb_sequences() WHERE NOT temporary
UNION ALL SELECT 'type', type_name FROM duckdb_types() WHERE NOT internal
UNION ALL SELECT 'macro', function_name FROM duckdb_functions() WHERE NOT internal
UNION ALL SELECT 'schema', schema_name FROM duckdb_schemas() WHERE NOT internal AND schema_name <> 'main'
"""

TRAITS = Traits(
    name="duckdb",
    load=_load,
    delete_series=_delete_series,
    rows=rows_of_query,
    arrow=_arrow,
    arrays=_arrays,
    numbers_names=True,
    columns=_columns,
    catalog=_CATALOG,
    main_database="memory",
    has_rowid=True,
    keyed_by_series=False,
    has_arg_extremes=True,
    add_statistics=lambda _: None,
    percentiles=_percentiles,
    most_in_memory=1_000_000,
    checkpoint_ddl=_checkpoint_ddl,
    checkpoint_log=lambda _: None,
    damage=lambda _: None,
    joins_objects=True,
    errors=(driver.DriverError,),
    typed_error=driver.typed_error,
    url="duckdb+holdfast://",
    one_write_per_transaction=True,
)
