"""Lines of a text stream, as text or as JSON objects: owns their numbers and the maximum length.

JSON follows RFC 8259: NaN and Infinity are not numbers. An object with a repeated key is refused, because it is unclear
which value counts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Decimal
from typing import Any, NoReturn, TextIO

from repo.errors import InvalidFile
from repo.inputs.fields import described
from repo.inputs.times import Unfit

__all__ = ["MAX_LINE_CHARS", "Lines", "LongLine", "Objects", "undecodable"]

_UNDECODABLE = re.compile("[\udc80-\udcff]")

MAX_LINE_CHARS = 1_048_576
"""A longer line is refused, and is never completely in memory."""


def undecodable(text: str) -> str | None:
    """Return what is wrong with a text that has bytes which its encoding cannot represent; None if it has none.

    Such bytes are lone surrogates, as of `errors="surrogateescape"`.
    """
    if text.isascii() or not (wrong := _UNDECODABLE.search(text)):
        return None
    return f"has the byte 0x{ord(wrong[0]) - 0xDC00:02X}, which is invalid in this encoding"


class LongLine(ValueError):
    """A line is too long; reading can continue after it."""


class Lines:
    """The lines of a stream, one at a time; `line` is the number, from 1, of the last line read.

    `chars` counts all characters read, except those of lines that were too long.
    """

    def __init__(self, stream: TextIO) -> None:
        name = getattr(stream, "name", None)
        self.line = 0
        self.chars = 0
        self.path = name if isinstance(name, str) else None
        self._readline = stream.readline

    def next_line(self) -> str:
        """Return the next line with its line end, or an empty string at the end of the stream.

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


_SPACE = " \t\r\n"
_NO_NUMBERS = {
    "NaN": "write null for no reading",
    "Infinity": 'write "Infinity", in quotes',
    "-Infinity": 'write "-Infinity", in quotes',
}


class Objects(Lines):
    """The objects of a text stream, one at a time; `line` is the number, from 1, of the last line read."""

    text = ""
    """The last line read, exactly as in the file."""

    def next_object(self) -> dict[str, Any] | None:
        """Return the next non-blank line as an object, or None at the end.

        Raises `Unfit` for a line that is not an object (reading can continue), `InvalidFile` for an undecodable byte
        and for a file that is one JSON array.
        """
        self.text = ""
        try:
            while line := self.next_line():
                self.text = line.strip(_SPACE) if self.line > 1 else line.removeprefix("\ufeff").strip(_SPACE)
                if self.text:
                    return self._object_of(self.text)
        except LongLine as fault:
            raise Unfit(str(fault)) from fault
        return None

    def exact(self) -> dict[str, Any]:
        """Return the last object again, its numbers with a point or an exponent as `Decimal`, digit by digit."""
        found: dict[str, Any] = json.loads(self.text, parse_float=Decimal)
        return found

    def _object_of(self, text: str) -> dict[str, Any]:
        if wrong := undecodable(text):
            raise Unfit(wrong)
        if self.line == 1 and (text.startswith("[") or text == "{"):
            what, filter_ = ("array", ".[]") if text.startswith("[") else ("object over several lines", ".")
            raise InvalidFile(
                f"the file is a JSON {what}, not one object per line; `jq -c '{filter_}'` converts it",
                path=self.path,
            )
        try:
            found, end = _decode(text)
        except Unfit:
            raise
        except json.JSONDecodeError as fault:
            raise Unfit(f"is not JSON: {fault.msg} at column {fault.colno}") from fault
        except RecursionError:
            raise Unfit("is nested too deeply") from None
        except ValueError as fault:
            raise Unfit("holds an integer that is too long") from fault
        if end != len(text):
            raise Unfit(f"has more text after its JSON, at column {end + 1}")
        if type(found) is not dict:
            raise Unfit(f"is {described(found)}, not an object")
        return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise Unfit(f"has the key {twice[:40]!r} twice")
    return found


def _no_number(literal: str) -> NoReturn:
    raise Unfit(f"has {literal}, which is not JSON; {_NO_NUMBERS[literal]}")


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number).raw_decode
