"""SQL: runs one SELECT on the columns, which may also read tables of the metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Float, Integer, Table, select

from repo.core.handle import Handle
from repo.engines.base import BesideTable
from repo.errors import InvalidQuery
from repo.inputs.arguments import check_text
from repo.models import BufferedRecord, LedgerEntry, Series, SinkCursor
from repo.queries.parameters import check_parameters

__all__ = ["TABLES", "run_sql"]

_METADATA: dict[str, Any] = {
    "records": BufferedRecord.__table__,
    "series_info": Series.__table__,
    "sinks": SinkCursor.__table__,
    "losses": LedgerEntry.__table__,
}

TABLES = {
    "time_series_data": "the points",
    "series": "how many points each series has, the first and last time, and the newest point",
    "series_info": "the kind, unit, description and labels of each series",
    "records": "the pending records",
    "sinks": "the sinks and their cursors",
    "losses": "the loss ledger",
}
"""The tables that a query can read, and what they hold."""


def run_sql(handle: Handle, query: str, params: Sequence[Any] | Mapping[str, Any]) -> list[dict[str, Any]]:
    """See `Store.sql`."""
    query, params = check_text(query, "query"), check_parameters(params)
    words = set(re.findall(r"\w+", query.lower()))
    named = [name for name in _METADATA if name in words]
    try:
        with handle.reading("sql query") as (connection, _):
            beside: list[BesideTable] = []
            if named:  # after the flush, which may add losses
                with handle.metadata.read() as metadata:
                    beside = [_copied(metadata, name, _METADATA[name]) for name in named]
            return handle.columns.backend.query(connection, query, params, beside)
    except InvalidQuery as error:
        if re.search(r"no such table|Table with name \S+ does not exist", str(error)):
            error.add_note(f"The tables are {', '.join(TABLES)}")
        raise


def _copied(connection: Connection, name: str, table: Table) -> BesideTable:
    """Copy a table, so that the engine of the columns can read it; only tables that the query names are copied."""
    columns = [(column.name, _type_of(column.type)) for column in table.columns]
    return BesideTable(name, columns, [tuple(row) for row in connection.execute(select(table))])


def _type_of(kind: object) -> str:
    return "BIGINT" if isinstance(kind, Integer) else "DOUBLE" if isinstance(kind, Float) else "VARCHAR"
