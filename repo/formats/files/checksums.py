"""Checksums of Parquet pages, which some writers add to each page. Checks them by the headers of the pages.

A page begins with a header, a struct in Thrift's compact protocol (parquet.thrift, `PageHeader`). Its field 3 is the
size of the page that follows, its field 4 the CRC-32 of these bytes, if the writer has set it. Headers have none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

__all__ = ["BadPage", "ColumnChunk", "check_pages"]

_HEAD_BYTES = 4_096
_MOST_HEAD_BYTES = 16_777_216
_PIECE_BYTES = 1_048_576
_SIZE, _CRC = 3, 4
_INTEGERS = (3, 4, 5, 6)
_BOOLEANS = (1, 2)
_DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(7, 13)
_MOST_NESTED = 32


class BadPage(ValueError):
    """A page or its header is damaged; the text says where."""


class ColumnChunk(NamedTuple):
    """The pages of one column in one row group."""

    column: str
    start: int
    """The offset of the first page in the file."""
    size: int
    """The bytes of all pages with their headers."""


def check_pages(descriptor: int, chunks: Iterator[ColumnChunk]) -> int:
    """Check every page that has a checksum, and return their number; raises `BadPage` for one that does not match."""
    checked = 0
    for chunk in chunks:
        at = chunk.start
        while at < chunk.start + chunk.size:
            length, size, wanted = _header(descriptor, at, chunk)
            if wanted is not None:
                if _sum_of(descriptor, at + length, size) != wanted & 0xFFFFFFFF:
                    raise BadPage(
                        f"the page of the column {chunk.column!r} at byte {at:,} does not match its checksum"
                    )
                checked += 1
            at += length + size
    return checked


def _sum_of(descriptor: int, at: int, size: int) -> int:
    found = 0
    while size > 0 and (piece := os.pread(descriptor, min(size, _PIECE_BYTES), at)):
        found = crc32(piece, found)
        at += len(piece)
        size -= len(piece)
    return found


def _header(descriptor: int, at: int, chunk: ColumnChunk) -> tuple[int, int, int | None]:
    """Return the length of the header at an offset, the size of its page, and the page's checksum, if it has one."""
    room = _HEAD_BYTES
    while True:
        content = os.pread(descriptor, room, at)
        try:
            reader = _Compact(content)
            fields = reader.struct()
        except IndexError:
            if len(content) < room or room >= _MOST_HEAD_BYTES:
                break
            room *= 16
            continue
        except BadPage:
            break
        size, wanted = fields.get(_SIZE), fields.get(_CRC)
        if size is None or size < 0:
            break
        return reader.at, size, wanted
    raise BadPage(f"the header of the page of the column {chunk.column!r} at byte {at:,} is damaged")


class _Compact:
    """Reads one struct; raises `IndexError` if the content ends before it, and `BadPage` if it cannot be one."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Read a struct and return its integer fields by number."""
        if depth > _MOST_NESTED:
            raise BadPage
        fields: dict[int, int] = {}
        number = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 15
            number = number + step if step else self._zigzag()
            value = self._value(kind, depth, is_field=True)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int, *, is_field: bool = False) -> int | None:
        if kind in _BOOLEANS:
            if not is_field:
                self.at += 1
        elif kind in _INTEGERS:
            return self._byte() if kind == _INTEGERS[0] else self._zigzag()
        elif kind == _DOUBLE:
            self._skip(8)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            for _ in range(count):
                self._value(head & 15, depth + 1)
        elif kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._value(kinds >> 4, depth + 1)
                self._value(kinds & 15, depth + 1)
        elif kind == _STRUCT:
            self.struct(depth + 1)
        else:
            raise BadPage
        return None

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._content):
            raise IndexError

    def _byte(self) -> int:
        found = self._content[self.at]
        self.at += 1
        return found

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self._byte()
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise BadPage

    def _zigzag(self) -> int:
        found = self._varint()
        return found >> 1 ^ -(found & 1)
