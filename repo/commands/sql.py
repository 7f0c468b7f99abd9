"""`sql`: runs one SELECT on the store and prints its rows."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import click

from repo.commands.global_options import global_options
from repo.commands.options import format_option, iso
from repo.commands.output import write_rows
from repo.commands.session import Session

__all__ = ["sql"]


@click.command()
@click.argument("query")
@click.option(
    "-p",
    "--param",
    "params",
    metavar="NAME VALUE",
    type=(str, str),
    multiple=True,
    help="Bind VALUE, a text, to $NAME in the query (:NAME on SQLite). Repeatable.",
)
@format_option
@click.option("--csv", "form", flag_value="csv", help="The same as --format csv.")
@global_options
@click.pass_obj
def sql(session: Session, query: str, params: tuple[tuple[str, str], ...], form: str | None) -> None:
    """Run one SELECT on the store and print its rows.

    The query is in the SQL of the engine that holds the columns, DuckDB or SQLite. `-` reads it from standard input. It
    can only read: whatever would write, or read other files, is refused. Points that wait in the journal are applied
    first, so the query sees every acknowledged point; it waits for a process that holds the columns, and exits 4 if
    that takes too long. All rows are loaded into memory; use LIMIT.

    \b
    Tables: time_series_data (sensor_id, metric_name, timestamp_us, value,
    value_text, quality, metadata, seq), series (count, first_us, last_us, last_*
    of each series), series_info (kind, unit, description, labels of each series),
    records (pending records), sinks, losses (the loss ledger). Times named _us
    are µs since 1970 UTC: make_timestamp(timestamp_us) on DuckDB,
    datetime(timestamp_us / 1e6, 'unixepoch') on SQLite.

    \b
    JSON: an array of objects with the columns of the query; times as ISO 8601,
    decimals as numbers, bytes as hexadecimal text.
    """
    if query == "-":
        query = sys.stdin.read()
    with session.opened(read_only=True) as store:
        rows = store.sql(query, dict(params))
    form = form or ("json" if session.as_json else "table")
    columns = list(rows[0]) if rows else []
    texts = [name for name in columns if any(isinstance(row[name], str) for row in rows)]
    if not write_rows(form, columns, map(_plain_row, rows), cuttable=texts, hides_empty=False):
        session.note("no rows")


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Return a value of an engine as JSON has it; texts for what JSON has no type for."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)
