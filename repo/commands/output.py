"""Output: prints rows to stdout as a table, CSV, JSON or NDJSON. Knows nothing about their meaning.

JSON is ASCII with plain numbers; an infinite value, for which JSON has no number, is the text "Infinity" or
"-Infinity". Control characters in names and texts never reach a terminal; they are escaped, as in `\\x1b`.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click

from repo.commands.tables import Row, cell, write_table
from repo.commands.terminal import is_terminal
from repo.commands.texts import as_text, json_text

__all__ = ["FORMATS", "Row", "print_json", "write_rows"]

FORMATS = ("table", "csv", "json", "ndjson")


def print_json(value: Any) -> None:
    """Print one document."""
    click.echo(json_text(value, indent=2))


def write_rows(
    form: str,
    columns: Sequence[str],
    rows: Iterable[Row],
    *,
    cuttable: Collection[str] = (),
    optional: Sequence[str] = (),
    narrowest: Mapping[str, int] = MappingProxyType({}),
    hides_empty: bool = True,
    note: Callable[[str], object] = lambda _text: None,
) -> int:
    """Print rows in one of `FORMATS` as they arrive, and return their number.

    `columns` applies to tables and CSV; JSON has every key of a row. A table that does not fit cuts the texts of the
    `cuttable` columns, not below the width that `narrowest` has for one, then leaves `optional` columns out, in their
    order, and calls `note` with a message. With `hides_empty`, it has no columns without a value.
    """
    if form == "table":
        count, left_out = write_table(
            columns,
            rows,
            cuttable=cuttable,
            optional=optional,
            narrowest=narrowest,
            hides_empty=hides_empty,
        )
        if left_out:
            note(f"no room for {', '.join(left_out)}; --json has all columns")
        return count
    writer = {"csv": _write_csv, "json": _write_json, "ndjson": _write_ndjson}[form]
    return writer(columns, rows)


def _write_json(_columns: Sequence[str], rows: Iterable[Row]) -> int:
    count = 0
    for count, row in enumerate(rows, 1):
        click.echo(("[\n" if count == 1 else ",\n") + json_text(row), nl=False)
    click.echo("\n]" if count else "[]")
    return count


def _write_ndjson(_columns: Sequence[str], rows: Iterable[Row]) -> int:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007  counts what is printed
        sys.stdout.write(json_text(row) + "\n")
    return count


def _write_csv(columns: Sequence[str], rows: Iterable[Row]) -> int:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    shown = cell if is_terminal() else as_text
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007  counts what is printed
        writer.writerow([shown(row.get(column)) for column in columns])
    return count
