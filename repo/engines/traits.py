"""What the engines under a time-series database do differently, as one table of capabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from repo.errors import StoreUnsupported

__all__ = ["Traits", "traits_of"]

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Traits:
    """The capabilities of one engine, as the repositories need them."""

    name: str

    load: Callable[[Connection, str, int, Iterable[Row]], None]
    """Put rows into a table that the library made: (connection, table, columns a row, rows).
    Goes through the driver: SQLAlchemy's own executemany is 40 times slower into DuckDB."""

    has_rowid: bool
    """Whether a stored point can be named by its rowid (a WITHOUT ROWID table has none)."""

    has_arg_extremes: bool
    """Whether `arg_min` and `arg_max` exist."""

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


def _load_duckdb(connection: Connection, table: str, _columns: int, rows: Iterable[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    appender = driver.appender(table)
    appender.append_rows(rows)
    appender.flush()


def _load_sqlite(connection: Connection, table: str, columns: int, rows: Iterable[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    driver.executemany(f'INSERT INTO "{table}" VALUES ({", ".join("?" * columns)})', rows)


_TRAITS = {
    "duckdb": Traits(
        name="duckdb",
        load=_load_duckdb,
        has_rowid=True,
        has_arg_extremes=True,
        one_write_per_transaction=True,
    ),
    "sqlite": Traits(
        name="sqlite",
        load=_load_sqlite,
        has_rowid=False,
        has_arg_extremes=False,
        one_write_per_transaction=False,
    ),
}
