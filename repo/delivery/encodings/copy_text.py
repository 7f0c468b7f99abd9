"""The text format of PostgreSQL's COPY: one line per item, cells separated by tabs, `\\N` for NULL.

Items whose texts no PostgreSQL database can hold are left out and named: U+0000 and lone surrogates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

from repo.delivery.protocol import Columns, Item

__all__ = ["encode"]

_NULL = r"\N"
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def encode(columns: Columns) -> tuple[bytes, tuple[Item, ...]]:
    """Return the lines of all items that PostgreSQL can hold, and the others as refused."""
    cells = _Cells()
    lines = _lines(columns, cells)
    if not cells.impossible:
        return lines.encode(), ()
    refused = tuple(
        Item(row, "it has a text with U+0000 or a lone surrogate, which PostgreSQL cannot hold")
        for row, item in enumerate(zip(*columns, strict=True))
        if not cells.impossible.isdisjoint(item)
    )
    gone = {item.row for item in refused}
    kept = [row not in gone for row in range(len(columns[0]))]
    return _lines([list(compress(column, kept)) for column in columns], _Cells()).encode(), refused


class _Cells(dict[str | None, str]):
    """The cell of each text, made once."""

    def __init__(self) -> None:
        super().__init__({None: _NULL})
        self.impossible: set[str] = set()

    def __missing__(self, text: str | None) -> str:
        assert text is not None
        if _IMPOSSIBLE.search(text):
            self.impossible.add(text)
        cell = self[text] = text.translate(_ESCAPES)
        return cell


def _lines(columns: Columns, cells: _Cells) -> str:
    texts = [map(_encoder(column, cells), column) for column in columns]
    joined = "\n".join(map("\t".join, zip(*texts, strict=True)))
    return joined and joined + "\n"


def _encoder(column: Sequence[Any], cells: _Cells) -> Callable[[Any], str]:
    """Return the function that makes the cells of a column, whose values have one type or are None."""
    kind = next((type(value) for value in column if value is not None), None)
    if kind is None or issubclass(kind, str):
        return cells.__getitem__
    plain: Callable[[Any], str] = float.__repr__ if issubclass(kind, float) else int.__repr__
    return (lambda value: _NULL if value is None else plain(value)) if None in column else plain
