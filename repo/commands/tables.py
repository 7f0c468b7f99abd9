"""Tables: prints rows in aligned columns that fit the screen. Knows nothing about their meaning."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite, log10
from types import MappingProxyType
from typing import Any

from repo.commands import terminal
from repo.commands.texts import as_text, printable

__all__ = ["Row", "cell", "write_table"]

Row = Mapping[str, Any]

_BLOCK_ROWS = 1_000
"""The first rows of a table determine the column widths, so that a long table can be printed as it is read."""

_NARROWEST = 8
_GAP = "  "
_DIGITS = 6
"""The significant digits of a fraction on a terminal."""

_EXPONENT_FROM = 1e15


@dataclass(slots=True)
class _Column:
    name: str
    is_right: bool
    width: int
    least: int
    """It is never cut to less than this."""


def write_table(
    columns: Sequence[str],
    rows: Iterable[Row],
    *,
    cuttable: Collection[str],
    optional: Sequence[str],
    narrowest: Mapping[str, int] = MappingProxyType({}),
    hides_empty: bool = True,
) -> tuple[int, list[str]]:
    """Print rows as they arrive; returns their number and the names of the columns that were left out.

    With `hides_empty`, columns without any value are not shown. If a line is too long, texts of the `cuttable` columns
    are cut, to a width of 8 or what `narrowest` says. If it is still too long on a terminal, columns are left out: the
    `optional` ones, in this order. Fractions have six significant digits on a terminal, and all their digits elsewhere.
    """
    rows = iter(rows)
    block = list(islice(rows, _BLOCK_ROWS))
    if not block:
        return 0, []
    on_screen = terminal.is_terminal()
    shown_as = _short_cell if on_screen else cell
    named = [name for name in columns if not hides_empty or _has_values(name, block)]
    least = {name: narrowest.get(name, _NARROWEST) for name in cuttable}
    shown = [_measured(name, block, shown_as, least.get(name)) for name in named]
    left_out = _squeeze(shown, terminal.width(), optional if on_screen else ())
    mark = "…" if terminal.has_unicode() else ".."
    _write_line([column.name for column in shown], shown, mark)
    count = 0
    while block:
        for row in block:
            _write_line([shown_as(row.get(column.name)) for column in shown], shown, mark)
        count += len(block)
        block = list(islice(rows, _BLOCK_ROWS))
    return count, left_out


def _has_values(name: str, block: Sequence[Row]) -> bool:
    return any(row.get(name) not in (None, "", {}) for row in block)


def _measured(
    name: str, block: Sequence[Row], shown_as: Callable[[Any], str], narrowest: int | None
) -> _Column:
    values = [row.get(name) for row in block]
    widths = [_width(shown_as(value)) for value in values]
    width = max(_width(name), *widths)
    fixed = [
        size
        for value, size in zip(values, widths, strict=True)
        if narrowest is None or not isinstance(value, str | dict | list)
    ]
    is_right = not any(isinstance(value, str | dict | list) for value in values)
    least = width if narrowest is None else max([min(width, narrowest), *fixed])
    return _Column(name, is_right, width, least)


def _squeeze(shown: list[_Column], screen: int, optional: Sequence[str]) -> list[str]:
    """Narrow the widest columns until a line fits, and leave out optional ones if it cannot; returns their names."""
    left_out = []
    for name in optional:
        if sum(column.least + len(_GAP) for column in shown) - len(_GAP) <= screen:
            break
        if any(column.name == name for column in shown):
            shown[:] = [column for column in shown if column.name != name]
            left_out.append(name)
    while (over := sum(column.width + len(_GAP) for column in shown) - len(_GAP) - screen) > 0:
        wide = sorted((c for c in shown if c.width > c.least), key=lambda column: column.width)
        if not wide:
            break
        widest, second = wide[-1], wide[-2].width if len(wide) > 1 else 0
        widest.width = max(widest.least, widest.width - over, min(second - 1, widest.width - 1))
    return left_out


def _write_line(cells: Sequence[str], shown: Sequence[_Column], mark: str) -> None:
    padded = []
    for text, column in zip(cells, shown, strict=True):
        text = _cut(text, column.width, mark) if column.width > column.least or not column.is_right else text
        space = " " * max(0, column.width - _width(text))
        padded.append(space + text if column.is_right else text + space)
    sys.stdout.write(_GAP.join(padded).rstrip() + "\n")


def _cut(text: str, width: int, mark: str) -> str:
    """Shorten a text to a width: a name in its middle, because similar names differ at the end; others at their end."""
    if _width(text) <= width:
        return text
    room = width - len(mark)
    tail = "" if " " in text else _fitting(text[::-1], room // 2)[::-1]
    return _fitting(text, room - _width(tail)) + mark + tail


def _fitting(text: str, width: int) -> str:
    """Return the longest beginning that fits."""
    if text.isascii():
        return text[:width]
    while _width(text) > width:
        text = text[:-1]
    return text


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def cell(value: Any) -> str:
    """Return a value as one line that is safe to print."""
    return "" if value == {} else printable(as_text(value).replace("\n", "\\n"))


def _short_cell(value: Any) -> str:
    """Return a cell for a terminal; only a fraction differs, and never in its digits before the point."""
    if not isinstance(value, float) or not isfinite(value) or value == 0:
        return cell(value)
    size = abs(value)
    if not 1e-4 <= size < _EXPONENT_FROM:
        return f"{value:.{_DIGITS}g}"
    places = max(0, _DIGITS - 1 - int(log10(size) // 1))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
