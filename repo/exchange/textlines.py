"""Lines of a text stream: owns their numbers and the longest that may be, knows nothing of what they hold."""

from __future__ import annotations

from typing import TextIO

from repo.errors import InvalidFile

__all__ = ["MAX_LINE_CHARS", "Lines", "LongLine"]

MAX_LINE_CHARS = 1_048_576
"""A longer line is refused, and is never in memory as a whole."""


class LongLine(ValueError):
    """A line that is too long; reading may go on after it."""


class Lines:
    """The lines of a stream, one at a time; `line` is the number, from 1, of the one just read.

    `chars` counts all that was read, but for lines that were too long.
    """

    def __init__(self, stream: TextIO) -> None:
        name = getattr(stream, "name", None)
        self.line = 0
        self.chars = 0
        self.path = name if isinstance(name, str) else None
        self._readline = stream.readline

    def next_line(self) -> str:
        """Return the next line with its end, an empty text at the end of the stream.

        Raises `LongLine`, or `InvalidFile` for an undecodable byte.
        """
        self.line += 1
        try:
            line = self._readline(MAX_LINE_CHARS)
            if len(line) == MAX_LINE_CHARS and not line.endswith("\n"):
                while line and not line.endswith("\n"):
                    line = self._readline(MAX_LINE_CHARS)
                raise LongLine(f"the line is longer than {MAX_LINE_CHARS} characters")
        except UnicodeDecodeError as fault:
            byte = fault.object[fault.start]
            raise InvalidFile(
                f"after line {self.line - 1} there is the byte 0x{byte:02X}, which is not {fault.encoding}; "
                "give the encoding of the file",
                path=self.path,
            ) from fault
        self.chars += len(line)
        return line
