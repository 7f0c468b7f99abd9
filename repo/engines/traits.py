"""What the engines under a time-series database do differently, as one table of capabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, func

from repo.engines.statistics import add_statistics
from repo.errors import StoreUnsupported

__all__ = ["Traits", "traits_of"]

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Traits:
    """The capabilities of one engine, as the repositories need them."""

    name: str

    load: Callable[[Connection, FromClause, Iterable[Row]], None]
    """Append rows to a table, each a sequence in the order of the table's columns.
    Goes through the driver: SQLAlchemy's own executemany is 40 times slower into DuckDB."""

    rows: Callable[[Connection, Select[Any], int], list[Row]]
    """Run a query and return at most so many of its rows, as the driver's plain tuples; -1 for all."""

    arrow: Callable[[Connection, Select[Any]], Any] | None
    """Begin a query and return an object with `__arrow_c_stream__`, made without pyarrow, to be read while the
    transaction lasts; None where the engine knows rows only."""

    arrays: Callable[[Connection, Select[Any]], dict[str, Any]] | None
    """Run a query and return its columns as NumPy arrays, masked where they hold NULLs; None likewise."""

    numbers_names: bool
    """Whether `list_position` finds a text in a list once for each text of a dictionary, not once a row: then
    names come out several times as fast as numbers."""

    columns: Callable[[Any, int, bool], list[Sequence[Any]]]
    """The rows of a driver's cursor, column by column, as Python's own values; it is told how many columns
    there are, and whether there may be many rows, for which NumPy is worth importing."""

    has_rowid: bool
    """Whether a stored point can be named by its rowid (a WITHOUT ROWID table has none)."""

    keyed_by_series: bool
    """Whether the points of one series lie together, and are found by its names and their time."""

    has_arg_extremes: bool
    """Whether `arg_min` and `arg_max` exist."""

    add_statistics: Callable[[Connection], None]
    """Make `stddev_samp` and what `percentiles` needs known to the connection."""

    percentiles: Callable[[Any, Sequence[float]], ColumnElement[Any]]
    """The SQL for the readings at some fractions of a group: a list, or a JSON text of it."""

    most_in_memory: int | None
    """How many readings one query may keep for percentiles: DuckDB keeps those of all groups at once, and twice
    this number is too much for the 64 MB that a store gives it. None: one group at a time is kept."""

    one_write_per_transaction: bool
    """DuckDB 2.0.0 doubles rows or crashes when a transaction that has appended to a table goes on to read
    or delete in it; so a transaction may write points once."""


def traits_of(connection: Connection) -> Traits:
    """Return the capabilities of the engine under this connection; `StoreUnsupported` for an unknown one."""
    name = connection.dialect.name
    try:
        return _TRAITS[name]
    except KeyError:
        known = " or ".join(_TRAITS)
        raise StoreUnsupported(f"points can be kept in {known}, not in {name}") from None


def _load_duckdb(connection: Connection, table: FromClause, rows: Iterable[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    appender = driver.appender(str(table), columns=table.c.keys())
    appender.append_rows(rows)
    appender.flush()


def _rows(connection: Connection, query: Select[Any], most: int) -> list[Row]:
    # No LIMIT: DuckDB would scan by one thread then. Past SQLAlchemy's rows, which double the time.
    result = connection.execute(query)
    cursor: Any = result.cursor
    rows: list[Row] = cursor.fetchall() if most < 0 else cursor.fetchmany(most)
    result.close()
    return rows


def _arrow_duckdb(connection: Connection, query: Select[Any]) -> Any:
    # As a relation: what a cursor gives is a copy of rows that were fetched before.
    compiled = query.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    driver: Any = connection.connection.driver_connection
    return driver.sql(str(compiled), params=[compiled.params[name] for name in compiled.positiontup or ()])


def _arrays_duckdb(connection: Connection, query: Select[Any]) -> dict[str, Any]:
    result = connection.execute(query)
    cursor: Any = result.cursor
    arrays: dict[str, Any] = cursor.fetchnumpy()
    result.close()
    return arrays


def _load_sqlite(connection: Connection, table: FromClause, rows: Iterable[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    names = table.c.keys()
    columns, values = ", ".join(f'"{name}"' for name in names), ", ".join("?" * len(names))
    driver.executemany(f"INSERT INTO {table} ({columns}) VALUES ({values})", rows)


def _columns_of_rows(cursor: Any, count: int, _many: bool) -> list[Sequence[Any]]:
    rows = cursor.fetchall()
    # Four times as fast as zip(*rows), which makes an iterator for every row.
    return [list(map(itemgetter(at), rows)) for at in range(count)]


def _columns_duckdb(cursor: Any, count: int, many: bool) -> list[Sequence[Any]]:
    """Through NumPy where it is installed, which takes half the time; what it masks becomes None."""
    lists = any(str(column[1]).endswith("[]") for column in cursor.description)  # they would come as arrays
    if not many or lists or not find_spec("numpy"):
        return _columns_of_rows(cursor, count, many)
    return [column.tolist() for column in cursor.fetchnumpy().values()]


def _percentiles_duckdb(value: Any, fractions: Sequence[float]) -> ColumnElement[Any]:
    return func.quantile_cont(value, func.list_value(*fractions))


def _percentiles_sqlite(value: Any, fractions: Sequence[float]) -> ColumnElement[Any]:
    return func.quantile_cont(value, *fractions)


_TRAITS = {
    "duckdb": Traits(
        name="duckdb",
        load=_load_duckdb,
        rows=_rows,
        arrow=_arrow_duckdb,
        arrays=_arrays_duckdb,
        numbers_names=True,
        columns=_columns_duckdb,
        has_rowid=True,
        keyed_by_series=False,
        has_arg_extremes=True,
        add_statistics=lambda _: None,
        percentiles=_percentiles_duckdb,
        most_in_memory=1_000_000,
        one_write_per_transaction=True,
    ),
    "sqlite": Traits(
        name="sqlite",
        load=_load_sqlite,
        rows=_rows,
        arrow=None,
        arrays=None,
        numbers_names=False,
        columns=_columns_of_rows,
        has_rowid=False,
        keyed_by_series=True,
        has_arg_extremes=False,
        add_statistics=add_statistics,
        percentiles=_percentiles_sqlite,
        most_in_memory=None,
        one_write_per_transaction=False,
    ),
}
