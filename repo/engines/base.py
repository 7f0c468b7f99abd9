"""What every engine provides: the protocol of its backend, and the record of its traits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Engine, FromClause, Select
from sqlalchemy.exc import DBAPIError

from repo.errors import HoldfastError

__all__ = [
    "ONE_SELECT",
    "Backend",
    "Params",
    "Row",
    "Traits",
    "columns_of_rows",
    "dicts_of",
    "rows_of_query",
    "typed_errors",
]

Params = Sequence[Any] | Mapping[str, Any]

ONE_SELECT = "sql: exactly one SELECT is allowed"

Row = Sequence[Any]


class Backend(Protocol):
    """One engine under the columns."""

    name: str
    path: Path
    durable_at_commit: bool
    """Whether a committed flush is durable without a checkpoint."""
    takes_tables: bool
    """Whether a table can be merged as it is; otherwise it goes through the journal, as packed rows."""
    log_is_spare: bool
    """Whether the journal has everything that the log holds, so that a damaged log may be set aside. Set it before
    `open`. An engine that is durable at commit ignores it."""
    may_begin: bool
    """Whether the store never had a column file, so that a file that is not a database yet may be replaced. Set it
    before `open`. An engine whose new file is whole at once ignores it."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What its driver raises, bare."""

    def open(self) -> Engine:
        """Open the file, making it if need be; the caller holds the lease. Raises typed errors."""

    def open_new(self) -> Engine:
        """Create a file for one connection to fill quickly; the caller removes it if anything fails.

        It is whole after a checkpoint and a close, and durable when it was synced then. Raises typed errors.
        """

    def close(self, engine: Engine) -> None:
        """Close the file."""

    def checkpoint(self, engine: Engine) -> None:
        """Make everything committed durable in the file itself; the caller keeps all others out."""

    def log_bytes(self) -> int:
        """Return the size of the log that a checkpoint would fold in."""

    def free_bytes(self, connection: Connection) -> int:
        """Return how many bytes of the file are free blocks."""

    def typed_error(self, error: BaseException) -> HoldfastError:
        """Translate an error of the engine."""

    def is_fatal(self, error: BaseException) -> bool:
        """Say whether the file has to be closed and opened again after this error; see the engines' `is_fatal`."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Say whether the engine's memory limit was too small for a statement: a smaller one may fit."""

    def query(self, connection: Connection, query: str, params: Params) -> list[dict[str, Any]]:
        """Run one SELECT that can neither write nor leave the store; `InvalidQuery` for anything else."""


def dicts_of(description: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the rows of a cursor as dicts, by its description."""
    names = [column[0] for column in description]
    return [dict(zip(names, row, strict=True)) for row in rows]


@contextmanager
def typed_errors(*backends: Backend) -> Iterator[None]:
    """Translate what either engine raises; what the caller's own function raises passes as it is."""
    kinds: tuple[type[Exception], ...] = (DBAPIError, *chain(*(backend.errors for backend in backends)))
    try:
        yield
    except kinds as error:
        original = error.orig if isinstance(error, DBAPIError) else error
        for backend in backends:
            if isinstance(original, backend.errors):
                raise backend.typed_error(error) from error
        raise


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

    fold_ddl: Callable[[Connection], None]
    """Make a change of the schema durable in the file itself, where none may stay in the log: DuckDB cannot replay
    each of them. Ends the connection's transaction, and must not be called while another one writes."""

    fold_log: Callable[[Engine], None]
    """Fold the log into the file after a revision, as far as readers allow. Does nothing if `fold_ddl` did it."""

    damage: Callable[[Connection], str | None]
    """Check for damage that opening the file does not reveal; return its description, or None."""

    joins_objects: bool
    """Whether the driver joins tables with Python objects (`register`) and returns relations (`sql`), as DuckDB's
    does. Otherwise stored points are looked up by their key."""

    errors: tuple[type[Exception], ...]
    """What its driver raises, bare."""

    typed_error: Callable[[BaseException, Path], HoldfastError]
    """Translate an error of the driver, bare or wrapped by SQLAlchemy, for a file."""

    url: str
    """A URL without a file, for which Alembic compiles statements."""

    one_write_per_transaction: bool
    """DuckDB 2.0.0 doubles rows or crashes when a transaction that has appended to a table goes on to read
    or delete in it; so a transaction may write points once."""


def rows_of_query(connection: Connection, query: Select[Any], most: int) -> list[Row]:
    """Run a query and return at most so many of its rows; see `Traits.rows`."""
    # No LIMIT: DuckDB would scan by one thread then. Past SQLAlchemy's rows, which double the time.
    result = connection.execute(query)
    cursor: Any = result.cursor
    rows: list[Row] = cursor.fetchall() if most < 0 else cursor.fetchmany(most)
    result.close()
    return rows


def columns_of_rows(cursor: Any, count: int, _many: bool) -> list[Sequence[Any]]:
    """Return the rows of a cursor column by column; see `Traits.columns`."""
    rows = cursor.fetchall()
    # Four times as fast as zip(*rows), which makes an iterator for every row.
    return [list(map(itemgetter(at), rows)) for at in range(count)]
