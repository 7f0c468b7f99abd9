"""Output: prints rows to stdout as a table, CSV, JSON or NDJSON. Knows nothing about their meaning.

JSON is ASCII with plain numbers; an infinite value, for which JSON has no number, is the text "Infinity" or
"-Infinity". Control characters in names and texts never reach a terminal; they are escaped, as in `\\x1b`.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import isfinite, isnan
from typing import Any

import click

__all__ = ["FORMATS", "Row", "json_text", "print_json", "printable", "write_rows"]

Row = Mapping[str, Any]

FORMATS = ("table", "csv", "json", "ndjson")

_BLOCK_ROWS = 1_000
"""The first rows of a table determine the column widths, so that a long table can be printed as it is read."""

_NARROWEST = 8


def printable(text: str) -> str:
    """Return the text with all non-printable characters escaped, except line breaks."""
    if text.isprintable():
        return text
    return "\n".join("".join(map(_escaped, line)) for line in text.split("\n"))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return one value as JSON in ASCII."""
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(_without_infinity(value), allow_nan=False, indent=indent)


def print_json(value: Any) -> None:
    """Print one document."""
    click.echo(json_text(value, indent=2))


def write_rows(form: str, columns: Sequence[str], rows: Iterable[Row]) -> int:
    """Print rows in one of `FORMATS` as they arrive, and return their number.

    `columns` applies to tables and CSV; JSON has every key of a row.
    """
    writer = {"table": _write_table, "csv": _write_csv, "json": _write_json, "ndjson": _write_ndjson}[form]
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
    shown = _on_screen if sys.stdout.isatty() else _as_text
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007  counts what is printed
        writer.writerow([shown(row.get(column)) for column in columns])
    return count


# --- tables ---------------------------------------------------------------------------------------------


def _write_table(columns: Sequence[str], rows: Iterable[Row]) -> int:
    rows = iter(rows)
    block = list(islice(rows, _BLOCK_ROWS))
    if not block:
        return 0
    columns = [name for name in columns if any(row.get(name) not in (None, "", {}) for row in block)]
    right = [not any(isinstance(row.get(name), str | dict | list) for row in block) for name in columns]
    widths = [max(_width(name), *(_width(_on_screen(row.get(name))) for row in block)) for name in columns]
    if sys.stdout.isatty():
        _squeeze(widths, shutil.get_terminal_size().columns)
    _write_line(columns, widths, right)
    count = 0
    while block:
        for row in block:
            _write_line([_on_screen(row.get(name)) for name in columns], widths, right)
        count += len(block)
        block = list(islice(rows, _BLOCK_ROWS))
    return count


def _write_line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> None:
    padded = []
    for cell, width, to_right in zip(cells, widths, right, strict=True):
        shown = _cut(cell, width) if sys.stdout.isatty() else cell
        space = " " * max(0, width - _width(shown))
        padded.append(space + shown if to_right else shown + space)
    sys.stdout.write("  ".join(padded).rstrip() + "\n")


def _squeeze(widths: list[int], screen: int) -> None:
    """Narrow the widest columns until a line fits."""
    while (over := sum(widths) + 2 * (len(widths) - 1) - screen) > 0:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            return
        second = sorted(widths)[-2] if len(widths) > 1 else 0
        widths[widest] = max(_NARROWEST, widths[widest] - over, min(second - 1, widths[widest] - 1))


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


# --- single values --------------------------------------------------------------------------------------


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return json_text(value) if isinstance(value, dict | list) else str(value)


def _on_screen(value: Any) -> str:
    return printable(_as_text(value).replace("\n", "\\n"))


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    if not isinstance(value, float) or isfinite(value):
        return value
    return None if isnan(value) else "Infinity" if value > 0 else "-Infinity"
