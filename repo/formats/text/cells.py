"""Cells of CSV: converts the text of one cell to a number, a state or a quality. Knows nothing of columns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isinf, isnan

from repo.formats.text.layout import Layout
from repo.inputs.fields import EXACT_INT
from repo.inputs.times import Unfit

__all__ = ["ON_OFF", "Cells", "numbers_among"]

ON_OFF = {"on": 1.0, "true": 1.0, "yes": 1.0, "off": 0.0, "false": 0.0, "no": 0.0}
"""Switches as numbers, in lower case."""

_NO_NUMBER = (
    "if it means no reading, name it (--missing); if the metric holds states, declare it as text (--text)"
)
_MISSING = ("", "NA", "NaN", "null")
_DIGITS = re.compile(r"[+-]?[0-9]+")
_WITH_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:([,.' ])[0-9]{3})(?:\1[0-9]{3})*(?:[.,][0-9]*)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")


class _NoNumber(Unfit):
    """The cell is not a number in any notation."""


class Cells:
    """Return the value of one cell, None if it is marked as missing; raises `Unfit` if it cannot be parsed."""

    def __init__(self, layout: Layout) -> None:
        self._decimal_comma = layout.decimal == ","
        self._thousands = layout.thousands
        self._on_off = layout.on_off
        self._missing = frozenset((*_MISSING, *layout.missing))
        self._missing_numbers = numbers_among(map(self._plain_mark, layout.missing))
        self._is_plain = not (self._decimal_comma or self._thousands or self._missing_numbers)
        group, decimal = re.escape(layout.thousands or " "), re.escape(layout.decimal)
        self._grouped = re.compile(rf"[+-]?[0-9]{{1,3}}(?:{group}[0-9]{{3}})+(?:{decimal}[0-9]*)?")

    def number(self, cell: str) -> float | None:
        """Return a number."""
        if self._is_plain:  # nine out of ten cells end here
            try:
                number = float(cell)
                if -EXACT_INT < number < EXACT_INT and cell.isascii() and "_" not in cell:
                    return number
            except ValueError:
                pass
        return self._careful_number(cell.strip())

    def number_or_text(self, cell: str) -> float | str | None:
        """Return a number, or a state if the cell is not a number."""
        try:
            return self.number(cell)
        except _NoNumber:
            return cell.strip()

    def text(self, cell: str) -> str | None:
        """Return a state."""
        cell = cell.strip()
        return None if cell in self._missing else cell

    def quality(self, cell: str) -> int | None:
        """Return a quality."""
        cell = cell.strip()
        if cell in self._missing:
            return None
        if not _INTEGER.fullmatch(cell):
            raise Unfit("is not an integer of 32 bits")
        return int(cell)

    def _careful_number(self, cell: str) -> float | None:
        if cell in self._missing:
            return None
        if self._on_off and (switch := ON_OFF.get(cell.lower())) is not None:
            return switch
        text = self._plain_text(cell)
        try:
            number = float(text)
        except ValueError:
            raise _NoNumber(f"is not a number; {self._advice(cell)}") from None
        if number in self._missing_numbers:
            return None
        if -EXACT_INT < number < EXACT_INT and text.isascii() and "_" not in text:
            return number
        return _unusual(number, text)

    def _advice(self, cell: str) -> str:
        """Return what a cell that is not a number may need."""
        if not self._decimal_comma and _WITH_COMMA.fullmatch(cell):
            return "if it has a decimal comma, set the decimal sign (--decimal ,)"
        grouped = _GROUPED.fullmatch(cell) if self._thousands is None else None
        if grouped:
            separator = {".": ". --decimal ,", ",": ","}.get(grouped[1], f'"{grouped[1]}"')
            return f"if it has separators of thousands, set them (--thousands {separator})"
        return _NO_NUMBER

    def _plain_text(self, cell: str) -> str:
        """Return a number with a decimal point and without thousands separators."""
        if self._thousands is not None:
            if self._thousands == " ":
                cell = cell.replace("\xa0", " ").replace("\u202f", " ")
            if self._thousands in cell:
                if not self._grouped.fullmatch(cell):
                    raise _NoNumber(
                        f"is not a number whose thousands are separated by {self._thousands!r}; {_NO_NUMBER}"
                    )
                cell = cell.replace(self._thousands, "")
        if not self._decimal_comma:
            return cell
        if "." in cell:
            raise _NoNumber("has a point, but the file's numbers have decimal commas")
        return cell.replace(",", ".")

    def _plain_mark(self, mark: str) -> str:
        return mark.replace(",", ".") if self._decimal_comma else mark


def numbers_among(marks: Iterable[str]) -> frozenset[float]:
    """Return the marks that are numbers, so that -9999 also matches -9999.0."""
    found = set()
    for mark in marks:
        try:
            found.add(float(mark))
        except ValueError:
            continue
    return frozenset(number for number in found if not isnan(number))


def _unusual(number: float, text: str) -> float | None:
    if not text.isascii() or "_" in text:
        raise Unfit("is a number only to Python; write it with the digits 0 to 9")
    if isnan(number):
        return None
    if isinf(number) and not text.lstrip("+-").isalpha():
        raise Unfit("is too large for a 64-bit float")
    if _DIGITS.fullmatch(text) and int(text) != number:
        raise Unfit("is an integer that a 64-bit float would round")
    return number
