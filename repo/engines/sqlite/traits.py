"""The traits of SQLite: its own way of what the repositories and queries need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, FromClause, func

from repo.engines.base import Row, Traits, lists_of_query, rows_of_query
from repo.engines.sqlite import driver
from repo.engines.sqlite.functions import add_statistics

__all__ = ["TRAITS"]


def _load(connection: Connection, table: FromClause, rows: Iterable[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    driver.executemany(f"INSERT INTO {_with_values(table)}", rows)


def _with_values(table: FromClause) -> str:
    names = table.c.keys()
    columns, values = ", ".join(f'"{name}"' for name in names), ", ".join("?" * len(names))
    return f"{table} ({columns}) VALUES ({values})"


def _delete_series(connection: Connection, table: FromClause, series: Sequence[tuple[str, str]]) -> None:
    connection.exec_driver_sql(f"DELETE FROM {table} WHERE sensor_id = ? AND metric_name = ?", list(series))


def _replace_series(connection: Connection, table: FromClause, rows: Sequence[Row]) -> None:
    connection.exec_driver_sql(f"INSERT OR REPLACE INTO {_with_values(table)}", list(rows))


def _percentiles(value: Any, fractions: Sequence[float]) -> ColumnElement[Any]:
    return func.quantile_cont(value, *fractions)


def _checkpoint_log(engine: Engine) -> None:
    driver.checkpoint_wal(engine)


def _damage(connection: Connection) -> str | None:
    found = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one())
    return None if found == "ok" else found


_CATALOG = """
SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite@_%' ESCAPE '@'
UNION ALL SELECT 'column', t.name || '.' || c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c
    WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite@_%' ESCAPE '@'
"""

TRAITS = Traits(
    name="sqlite",
    load=_load,
    delete_series=_delete_series,
    replace_series=_replace_series,
    rows=rows_of_query,
    lists=lists_of_query,
    arrow=None,
    arrays=None,
    numbers_names=False,
    catalog=_CATALOG,
    main_database="main",
    has_rowid=False,
    keyed_by_series=True,
    has_arg_extremes=False,
    add_statistics=add_statistics,
    percentiles=_percentiles,
    most_in_memory=None,
    checkpoint_ddl=lambda _: None,
    checkpoint_log=_checkpoint_log,
    damage=_damage,
    joins_objects=False,
    errors=(driver.DriverError,),
    typed_error=driver.typed_error,
    url="sqlite://",
    one_write_per_transaction=False,
)
