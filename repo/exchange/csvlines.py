"""Lines of a CSV text as records: owns the parser's state between lines, knows nothing of what the cells mean.

One record is one line, because no name and no reading may hold a line break: so a stray quote costs its own
line and not the rest of the file. A line whose quotes do not pair is refused, also where it would parse: it may
be the end of a cell that another line began.
"""

from __future__ import annotations

import csv
from typing import TextIO

from repo.exchange.textlines import Lines, LongLine

__all__ = ["Records"]

_UNPAIRED = "the line has a quote that is not closed on it"


class Records(Lines):
    """The records of a text stream, one at a time; `line` is the number, from 1, of the line just read."""

    def __init__(self, stream: TextIO, delimiter: str) -> None:
        super().__init__(stream)
        self.delimiter = delimiter
        self._line_was_fed = False
        self._reader = csv.reader(self, delimiter=delimiter, strict=True)

    def next_cells(self) -> list[str] | None:
        """Return the cells of the next line, None at the end.

        Raises csv.Error for a line that is no record (reading may go on), InvalidFile for an undecodable byte.
        """
        try:
            return next(self._reader, None)
        finally:
            self._line_was_fed = False

    def __iter__(self) -> Records:
        return self

    def __next__(self) -> str:
        """Return the next line to the parser, which asks for a second one only if a quote is open."""
        if self._line_was_fed:
            raise csv.Error(_UNPAIRED)
        try:
            line = self.next_line()
        except LongLine as fault:
            raise csv.Error(str(fault)) from fault
        if not line:
            raise StopIteration
        if line.count('"') % 2:
            raise csv.Error(_UNPAIRED)
        self._line_was_fed = True
        return line
