"""Records of a CSV text: the cells of one line at a time, without the lines that are not records.

One record is one line, because names and readings cannot contain line breaks. A stray quote therefore costs its own
line only, not the rest of the file. A line with unpaired quotes is refused even if it would parse: it may be the end of
a cell that began on another line. Blanks after a delimiter are not part of a cell.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from contextlib import suppress
from typing import TextIO

from repo.errors import InvalidFile, counted
from repo.formats.lines import Lines, LongLine

__all__ = ["CsvRecords"]

_UNPAIRED = "the line has a quote that is not closed on it"
_SEPARATOR = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
_MOST_TITLES = 100
_BYTE_ORDER_MARK = "\ufeff"


class CsvRecords(Lines):
    """The records of a text stream, one at a time; `line` is the number, from 1, of the last line read.

    `delimiter` None is the one that a first line such as `sep=;` names, or else a comma; that line is not a record.
    Lines that begin with `comment` are left out, and the last `footer` lines of the text.
    """

    def __init__(
        self, stream: TextIO, delimiter: str | None, *, comment: str | None = None, footer: int = 0
    ) -> None:
        super().__init__(stream)
        self.delimiter = delimiter or ","
        self.is_complete = True
        """Whether the last line read has a line end."""
        self.titles: set[str] = set()
        """The first cells of the lines that `skip_to` left out."""
        self._delimiter_is_given = delimiter is not None
        self._comment = comment or None
        self._footer = footer
        self._is_plain = self._comment is None and not footer
        self._ahead: deque[tuple[int, str | LongLine]] = deque()
        self._read_through = 0
        self._first: str | None = None
        self._line_was_fed = False
        self._reader = csv.reader(self, delimiter=self.delimiter, strict=True, skipinitialspace=True)

    def next_cells(self) -> list[str] | None:
        """Return the cells of the next line, or None at the end.

        Raises csv.Error for a line that is not a record (reading can continue), InvalidFile for an undecodable byte.
        """
        if not self.line:
            self._begin()
        try:
            return next(self._reader, None)
        finally:
            self._line_was_fed = False

    def skip_to(self, line: int) -> None:
        """Leave out everything before a line, so that it is read next; raises `InvalidFile` if there is none."""
        if not self.line:
            with suppress(csv.Error):
                self._begin()
        if self.line < line:
            self._keep_start(self._first or "")
            self._first = None
        while self.line < line - 1:
            try:
                skipped = self._next()
                self._keep_start(skipped)
                if not skipped:
                    raise InvalidFile(
                        f"the header should be line {line}, but the file has {counted(self.line - 1, 'line')}",
                        path=self.path,
                    )
            except LongLine:
                pass

    def _keep_start(self, line: str) -> None:
        cell = line.split(self.delimiter, 1)[0].strip(' "\r\n')
        if cell and not cell[0].isdigit() and len(self.titles) < _MOST_TITLES:
            self.titles.add(cell)

    def skip_lines(self, count: int) -> None:
        """Leave out lines that are not comments."""
        for _ in range(count):
            try:
                if not self._next_wanted():
                    return
            except LongLine:
                pass

    def __iter__(self) -> CsvRecords:
        return self

    def __next__(self) -> str:
        """Return the next line to the parser, which requests a second one only if a quote is open."""
        if self._line_was_fed:
            raise csv.Error(_UNPAIRED)
        try:
            line = self.next_line() if self._is_plain and self._first is None else self._next_wanted()
        except LongLine as fault:
            raise csv.Error(str(fault)) from fault
        if not line:
            raise StopIteration
        self.is_complete = line.endswith(("\n", "\r"))
        if line.count('"') % 2:
            raise csv.Error(_UNPAIRED)
        self._line_was_fed = True
        return line

    def _begin(self) -> None:
        """Read the first line, which may name the delimiter."""
        try:
            line = self._next()
        except LongLine as fault:
            raise csv.Error(str(fault)) from fault
        found = _SEPARATOR.fullmatch(line)
        if found is None:
            self._first = line
        elif not self._delimiter_is_given:
            self.delimiter = found[1]
            self._reader = csv.reader(self, delimiter=self.delimiter, strict=True, skipinitialspace=True)

    def _next_wanted(self) -> str:
        """Return the next line that is not a comment; an empty string at the end."""
        while True:
            line, self._first = (self._next() if self._first is None else self._first), None
            if self._comment is None or not line.startswith(self._comment):
                return line

    def _next(self) -> str:
        """Return the next line before the footer; an empty string at the end."""
        line = self._next_before_footer() if self._footer else self.next_line()
        return line.removeprefix(_BYTE_ORDER_MARK) if self.line == 1 else line

    def _next_before_footer(self) -> str:
        number = self.line
        self.line = self._read_through
        while len(self._ahead) <= self._footer:
            try:
                line: str | LongLine = self.next_line()
            except LongLine as fault:
                line = fault
            if line == "":
                break
            self._ahead.append((self.line, line))
        self._read_through = self.line
        if len(self._ahead) <= self._footer:
            self.line = number + 1
            return ""
        self.line, line = self._ahead.popleft()
        if isinstance(line, LongLine):
            raise line
        return line
