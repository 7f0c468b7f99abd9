"""Copying: copies every table of the columns from one engine to a new file of another, with checksums of both.

Memory is bounded: one page at a time. Knows nothing about leases, file names, or which engine is active.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from repo.engines.registry import traits_of
from repo.models import Point, Slice, TimeSeriesBase, TimeSeriesState

__all__ = ["Sums", "copy_tables", "sums_of"]

PAGE_ROWS = 65_536

PAGES_A_TRANSACTION = 16
"""A million rows: DuckDB writes this many directly into its file, not into its log first."""

Sums = dict[str, tuple[int, int]]
"""By table: the number of rows, and a checksum that does not depend on their order."""

Page = Sequence[Sequence[Any]]

_HASHES = 2**64
_points: Any = Point.__table__
_TABLES: tuple[Table, ...] = tuple(
    table
    for name, table in TimeSeriesBase.metadata.tables.items()
    if name != TimeSeriesState.__tablename__  # each file has its own
)


def copy_tables(
    source: Connection,
    target: Connection,
    progress: Callable[[int], object],
    committed: Callable[[], object],
) -> Sums:
    """Copy all tables except the file's own state into empty ones, a million rows per transaction.

    The same engine keeps the order of the points. Another one does not, so it gets no slices.

    `progress` is called with the number of points copied. `committed` is called after each commit, when the target has
    no open transaction or result.
    """
    sums: Sums = {}
    keeps_order = traits_of(source).name == traits_of(target).name
    for table in _TABLES:
        if table is Slice.__table__ and not keeps_order:
            sums[table.name] = (0, 0)
        else:
            report = progress if table is _points else lambda _rows: None
            sums[table.name] = _copy(source, target, table, report, committed)
    return sums


def _copy(
    source: Connection,
    target: Connection,
    table: Table,
    progress: Callable[[int], object],
    committed: Callable[[], object],
) -> tuple[int, int]:
    """Copy one table, and return its sums."""
    rows = total = 0
    with source.begin():
        pages = _pages(source, table, ordered=True)
        for first in pages:
            with target.begin():
                for page in chain([first], islice(pages, PAGES_A_TRANSACTION - 1)):
                    _load(target, table, page)
                    rows, total = _added(rows, total, page)
                    progress(rows)
            committed()
    return rows, total


def sums_of(connection: Connection) -> Sums:
    """Read all tables except the file's own state; equal sums mean equal rows."""
    sums: Sums = {}
    for table in _TABLES:
        rows = total = 0
        with connection.begin():
            for page in _pages(connection, table, ordered=False):
                rows, total = _added(rows, total, page)
        sums[table.name] = (rows, total)
    return sums


def _pages(connection: Connection, table: Table, *, ordered: bool) -> Iterator[Page]:
    query = select(table)
    if table is not _points:
        for part in connection.execute(query.execution_options(yield_per=PAGE_ROWS)).partitions():
            yield [tuple(row) for row in part]
        return
    if ordered and traits_of(connection).keyed_by_series:
        # In order of arrival, so that each part of the file covers a short time.
        query = query.order_by(_points.c.seq)
    result = connection.execute(query)
    cursor: Any = result.cursor  # bypasses SQLAlchemy's rows, which double the time
    while page := cursor.fetchmany(PAGE_ROWS):
        yield page
    result.close()


def _load(target: Connection, table: Table, page: Page) -> None:
    if table is _points:
        traits_of(target).load(target, table, page)
    else:
        names = table.c.keys()
        target.execute(insert(table), [dict(zip(names, row, strict=True)) for row in page])


def _added(rows: int, total: int, page: Page) -> tuple[int, int]:
    hashes: Iterable[int] = map(hash, page)
    return rows + len(page), (total + sum(hashes)) % _HASHES
