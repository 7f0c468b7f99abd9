"""Lines of a CSV text as records: owns the parser's state between lines, knows nothing of what the cells mean.

One record is one line, because no name and no reading may hold a line break: so a stray quote costs its own
line and not the rest of the file. A line whose quotes do not pair is refused, also where it would parse: it may
be the end of a cell that another line began.
"""

from __future__ import annotations

import csv
from typing import TextIO

from repo.errors import InvalidFile

__all__ = ["MAX_LINE_CHARS", "Records"]

MAX_LINE_CHARS = 1_048_576
"""A longer line is refused, and is never in memory as a whole."""

_UNPAIRED = "the line has a quote that is not closed on it"


class Records:
    """The records of a text stream, one at a time; `line` is the number, from 1, of the line just read."""

    def __init__(self, stream: TextIO, delimiter: str) -> None:
        name = getattr(stream, "name", None)
        self.line = 0
        self.path = name if isinstance(name, str) else None
        self._stream = stream
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
        self.line += 1
        line = self._read()
        if len(line) == MAX_LINE_CHARS and not line.endswith("\n"):
            while line and not line.endswith("\n"):
                line = self._read()
            raise csv.Error(f"the line is longer than {MAX_LINE_CHARS} characters")
        if not line:
            raise StopIteration
        if line.count('"') % 2:
            raise csv.Error(_UNPAIRED)
        self._line_was_fed = True
        return line

    def _read(self) -> str:
        try:
            return self._stream.readline(MAX_LINE_CHARS)
        except UnicodeDecodeError as fault:
            byte = fault.object[fault.start]
            raise InvalidFile(
                f"after line {self.line - 1} there is the byte 0x{byte:02X}, which is not {fault.encoding}; "
                "give the encoding of the file",
                path=self.path,
            ) from fault
