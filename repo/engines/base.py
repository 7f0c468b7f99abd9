"""The interface of an engine: the protocol of its backend, and its traits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, FromClause, Select
from sqlalchemy.exc import DBAPIError

from repo.engines.statements import Statement
from repo.errors import HoldfastError

__all__ = [
    "ONE_SELECT",
    "READ",
    "STORED",
    "Backend",
    "BesideTable",
    "Params",
    "Query",
    "Row",
    "Shape",
    "Traits",
    "causes_of",
    "columns_in",
    "columns_of",
    "dicts_of",
    "fetched",
    "lists_of_query",
    "lists_of_rows",
    "rows_of_query",
    "typed_errors",
]

Params = Sequence[Any] | Mapping[str, Any]

ONE_SELECT = "sql: exactly one SELECT is allowed"

READ: dict[str, Any] = {"only_reads": True}
"""Execution options of a connection that only reads. On SQLite its transactions take no lock that would block others;
on DuckDB it has no transactions, so use it only while nothing else writes to the file."""


STORED = "stored"
"""The name of the attached file in `Backend.open_overlay`."""

Row = Sequence[Any]

Query = Statement | Select[Any]
"""A query, compiled or not."""

Fetched = TypeVar("Fetched")
_ALL = methodcaller("fetchall")


class Backend(Protocol):
    """An engine that stores the columns."""

    name: str
    path: Path
    durable_at_commit: bool
    """Whether a committed flush is durable without a checkpoint."""
    takes_tables: bool
    """Whether a table can be merged directly; otherwise it goes through the journal, as packed rows."""
    is_log_disposable: bool
    """Whether the journal has everything that is in the log, so that a damaged log may be set aside. Set it before
    `open`. An engine that is durable at commit ignores it."""
    may_create: bool
    """Whether the store never had a column file, so that a file that is not a database yet may be replaced. Set it
    before `open`. An engine that creates a file atomically ignores it."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """The exceptions of its driver, not wrapped by SQLAlchemy."""

    def open(self) -> Engine:
        """Open the file, or create it. The caller holds the lease. Raises typed errors."""

    def open_new(self) -> Engine:
        """Create a file for a bulk load by one connection; the caller removes it if anything fails.

        The file is complete after a checkpoint and a close, and durable once it is synced. Raises typed errors.
        """

    def open_overlay(self, scratch: Path, *, attach: bool) -> Engine:
        """Open a new, empty database in the folder `scratch`; with `attach`, the file is attached to it as `STORED`.

        It is attached for reading only: neither the file nor its log is changed. Raises typed errors.
        """

    def close(self, engine: Engine) -> None:
        """Close the file."""

    def checkpoint(self, engine: Engine) -> None:
        """Make everything committed durable in the file itself. The caller has exclusive use."""

    def log_bytes(self) -> int:
        """Return the size of the log that a checkpoint would move into the file."""

    def free_bytes(self, connection: Connection) -> int:
        """Return the bytes of free blocks in the file."""

    def typed_error(self, error: BaseException) -> HoldfastError:
        """Translate an error of the engine."""

    def is_fatal(self, error: BaseException) -> bool:
        """Return whether the file must be closed and reopened after this error; see `is_fatal` of the engines."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether a statement exceeded the engine's memory limit; a smaller one may fit."""

    def query(
        self, connection: Connection, query: str, params: Params, beside: Sequence[BesideTable] = ()
    ) -> list[dict[str, Any]]:
        """Run one SELECT that can neither write nor access anything outside the store; otherwise `InvalidQuery`.

        It can also read the tables `beside`, which exist for this connection and this query only.
        """


class BesideTable(NamedTuple):
    """A table that a query can read beside the columns: its name, its columns (name, SQL type), and its rows."""

    name: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Row]

    def create(self) -> str:
        """Return the statement that creates it for one connection."""
        columns = ", ".join(f'"{name}" {kind}' for name, kind in self.columns)
        return f'CREATE TEMPORARY TABLE "{self.name}" ({columns})'

    def drop(self) -> str:
        """Return the statement that removes it."""
        return f'DROP TABLE IF EXISTS temp."{self.name}"'


def dicts_of(description: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the rows of a cursor as dicts; `description` has the names."""
    names = [column[0] for column in description]
    return [dict(zip(names, row, strict=True)) for row in rows]


@contextmanager
def typed_errors(*backends: Backend) -> Iterator[None]:
    """Translate the errors of these engines. Other exceptions pass unchanged."""
    kinds: tuple[type[Exception], ...] = (DBAPIError, *chain(*(backend.errors for backend in backends)))
    try:
        yield
    except kinds as error:
        original = error.orig if isinstance(error, DBAPIError) else error
        for backend in backends:
            if isinstance(original, backend.errors):
                raise backend.typed_error(error) from error
        raise


_MOST_CAUSES = 20


def causes_of(error: BaseException) -> Iterator[BaseException | None]:
    """Yield the error and its causes, at most 20: those that SQLAlchemy wraps as the driver raised them."""
    seen: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if seen is None:
            return
        yield seen.orig if isinstance(seen, DBAPIError) else seen
        seen = seen.__cause__


class Shape(NamedTuple):
    """How a result is read."""

    expected: int = 0
    """About how many rows it has."""

    most: int = -1
    """How many rows it may have; -1 for no limit."""

    sorted_by: str | None = None
    """The column to sort the rows by, which are mostly in this order already."""


@dataclass(frozen=True, slots=True)
class Traits:
    """The capabilities of one engine, as the repositories need them."""

    name: str

    load: Callable[[Connection, FromClause, Iterable[Row]], None]
    """Append rows to a table, each a sequence in the order of the table's columns.
    Goes through the driver: SQLAlchemy's own executemany is 40 times slower into DuckDB."""

    delete_series: Callable[[Connection, FromClause, Sequence[tuple[str, str]]], None]
    """Delete the rows of a table that belong to these series."""

    replace_series: Callable[[Connection, FromClause, Sequence[Row]], None]
    """Insert rows into a table that has one row per series; each replaces the row of its series."""

    rows: Callable[[Connection, Query, int], list[Row]]
    """Run a query and return at most the given number of rows, as the driver's plain tuples; -1 for all."""

    lists: Callable[[Connection, Query, Shape], list[Sequence[Any]] | None]
    """Run a query and return its columns as Python values; None if it has too many rows."""

    arrow: Callable[[Connection, Statement], Any] | None
    """Begin a query and return an object with `__arrow_c_stream__`, created without pyarrow and readable until the
    transaction ends. None if the engine only returns rows."""

    arrays: Callable[[Connection, Statement], dict[str, Any]] | None
    """Run a query and return its columns as NumPy arrays, masked if they have NULLs. None if the engine only returns
    rows."""

    numbers_names: bool
    """Whether `list_position` looks up each text of a dictionary once instead of each row. Reading names as numbers is
    then several times as fast."""

    main_database: str
    """The name, in SQL, of the database that a connection was opened with; others may be attached."""

    catalog: str
    """A query for (kind, name) of what can be created in a file: tables, their columns, views, indexes ..."""

    has_rowid: bool
    """Whether stored points have a rowid (a WITHOUT ROWID table has none)."""

    keyed_by_series: bool
    """Whether the table is clustered by series and time, and points are found by these."""

    has_arg_extremes: bool
    """Whether `arg_min` and `arg_max` exist."""

    add_statistics: Callable[[Connection], None]
    """Add `stddev_samp`, and the functions that `percentiles` needs, to the connection."""

    percentiles: Callable[[Any, Sequence[float]], ColumnElement[Any]]
    """The SQL for the readings at the given fractions of a group: a list, or a list as JSON text."""

    most_in_memory: int | None
    """How many readings one query may keep in memory for percentiles. DuckDB keeps those of all groups at once, and
    twice this number exceeds the default memory limit of 64 MB. None: one group is kept at a time."""

    checkpoint_ddl: Callable[[Connection], None]
    """Make a schema change durable in the file itself, if it may not stay in the log: DuckDB cannot replay every schema
    change. Ends the connection's transaction, and must not be called while another connection writes."""

    checkpoint_log: Callable[[Engine], None]
    """Checkpoint the log after a revision, as far as readers allow. Does nothing if `checkpoint_ddl` did it."""

    damage: Callable[[Connection], str | None]
    """Check for damage that opening the file does not reveal; return its description, or None."""

    joins_objects: bool
    """Whether the driver can join tables with Python objects (`register`) and return relations (`sql`), like DuckDB's.
    Otherwise stored points are looked up by their key."""

    errors: tuple[type[Exception], ...]
    """The exceptions of its driver, not wrapped by SQLAlchemy."""

    typed_error: Callable[[BaseException, Path], HoldfastError]
    """Translate an error of the driver on a file, wrapped by SQLAlchemy or not."""

    url: str
    """A URL without a file, with which Alembic compiles statements."""

    one_write_per_transaction: bool
    """Whether a transaction may write points only once. DuckDB 2.0.0 doubles rows or crashes if a transaction reads or
    deletes rows of a table after it appended to it."""


def fetched(connection: Connection, query: Query, fetch: Callable[[Any], Fetched]) -> Fetched:
    """Run a query, and return what `fetch` takes from the driver's cursor. SQLAlchemy's own rows double the time.

    A connection that only reads (`READ`) is asked through the driver, without SQLAlchemy, which would begin a
    transaction. Its user closes it after an error, and translates errors of the driver.
    """
    if isinstance(query, Statement) and connection.get_execution_options().get("only_reads"):
        driver: Any = connection.connection.driver_connection
        # The cursor is in no variable: in the traceback of an interrupt, it would keep its statement open on SQLite.
        return fetch(driver.execute(query.sql, query.parameters))
    if isinstance(query, Statement):
        result = connection.exec_driver_sql(query.sql, query.parameters)
    else:
        result = connection.execute(query)
    found = fetch(result.cursor)
    result.close()
    return found


def columns_in(query: Query) -> Sequence[str]:
    """Return the names of a query's columns."""
    return query.columns if isinstance(query, Statement) else query.selected_columns.keys()


def rows_of_query(connection: Connection, query: Query, most: int) -> list[Row]:
    """Run a query and return at most `most` rows; see `Traits.rows`."""
    # Without LIMIT, which makes DuckDB scan with one thread.
    rows: list[Row] = fetched(connection, query, _ALL if most < 0 else methodcaller("fetchmany", most))
    return rows


def lists_of_query(connection: Connection, query: Query, shape: Shape) -> list[Sequence[Any]] | None:
    """Run a query and return its columns, from the driver's rows; see `Traits.lists`."""
    return lists_of_rows(rows_of_query(connection, query, shape.most + (shape.most >= 0)), query, shape)


def lists_of_rows(rows: list[Row], query: Query, shape: Shape) -> list[Sequence[Any]] | None:
    """Return the rows of a query column by column; see `Traits.lists`."""
    if 0 <= shape.most < len(rows):
        return None
    names = columns_in(query)
    if shape.sorted_by is not None:
        rows.sort(key=itemgetter(names.index(shape.sorted_by)))
    return columns_of(rows, len(names))


def columns_of(rows: Sequence[Row], count: int) -> list[Sequence[Any]]:
    """Return rows column by column."""
    # Four times as fast as zip(*rows), which makes an iterator for every row.
    return [list(map(itemgetter(at), rows)) for at in range(count)]
