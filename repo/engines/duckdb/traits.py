"""The traits of DuckDB: its own way of what the repositories and queries need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, func

from repo.engines import base
from repo.engines.base import Query, Row, Shape, Traits, columns_in, rows_of_query
from repo.engines.duckdb import driver
from repo.engines.duckdb.backend import checkpoint_file
from repo.engines.statements import Statement
from repo.extras import numpy_for

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


def _replace_series(connection: Connection, table: FromClause, rows: Sequence[Row]) -> None:
    _delete_series(connection, table, [(row[0], row[1]) for row in rows])
    _load(connection, table, rows)


def _arrow(connection: Connection, query: Statement) -> Any:
    # As a relation, because a cursor copies its rows first.
    driver: Any = connection.connection.driver_connection
    return driver.sql(query.sql, params=list(query.parameters))


def _arrays(connection: Connection, query: Statement) -> dict[str, Any]:
    arrays: dict[str, Any] = base.fetched(connection, query, methodcaller("fetchnumpy"))
    return arrays


def _lists(connection: Connection, query: Query, shape: Shape) -> list[Sequence[Any]] | None:
    """Return columns through NumPy, which takes half the time; see `Traits.lists`."""
    numpy = numpy_for(shape.expected)
    if numpy is None:
        return base.lists_of_query(connection, query, shape)
    arrays = base.fetched(connection, query, partial(_arrays_or_rows, shape.most))
    if isinstance(arrays, list):
        return base.lists_of_rows(arrays, query, shape)
    columns = [arrays[name] for name in columns_in(query)]
    if 0 <= shape.most < len(columns[0]):
        return None
    order = None
    if shape.sorted_by is not None:
        key = arrays[shape.sorted_by]
        if (key[1:] < key[:-1]).any():
            order = numpy.argsort(key, kind="stable")
    return [_values(numpy, column, order) for column in columns]


def _arrays_or_rows(most: int, cursor: Any) -> dict[str, Any] | list[Row]:
    """Return the columns as arrays or, if values are lists, which would come as arrays, at most `most` + 1 rows."""
    found: dict[str, Any] | list[Row]
    if any(str(kind).endswith("[]") for _, kind, *_ in cursor.description):
        found = cursor.fetchall() if most < 0 else cursor.fetchmany(most + 1)
    else:
        found = cursor.fetchnumpy()
    return found


def _values(numpy: Any, column: Any, order: Any) -> Any:
    """Return the values of an array, in this order of its rows; masked ones become None."""
    if isinstance(column, numpy.ma.MaskedArray):
        missing = numpy.ma.getmaskarray(column)
        if missing.all():
            return [None] * len(column)
        column = column.data.astype(object)
        column[missing] = None
    return (column if order is None else column[order]).tolist()


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
    replace_series=_replace_series,
    rows=rows_of_query,
    lists=_lists,
    arrow=_arrow,
    arrays=_arrays,
    numbers_names=True,
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
