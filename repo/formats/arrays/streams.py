"""Arrow C streams without pyarrow: takes pages out of streams, and chains pages into one stream that a reader pulls.

The layout of the structs is fixed by https://arrow.apache.org/docs/format/CDataInterface.html and
https://arrow.apache.org/docs/format/CStreamInterface.html. A struct is moved by copying its bytes; its last owner calls
`release`, once.
"""

from __future__ import annotations

import ctypes
import errno
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

__all__ = [
    "STREAM",
    "CArray",
    "CStream",
    "CapsuleStream",
    "Chain",
    "Fill",
    "HasStream",
    "LastError",
    "Page",
    "Release",
    "new_capsule",
    "released",
    "take_page",
]

STREAM = b"arrow_array_stream"


class HasStream(Protocol):
    """An object that provides its rows through the Arrow PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        """Return a capsule that holds an ArrowArrayStream."""


class CArray(ctypes.Structure):
    """ArrowArray."""

    _fields_ = (
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.c_void_p),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    )


class CStream(ctypes.Structure):
    """ArrowArrayStream."""

    _fields_ = (
        ("get_schema", ctypes.c_void_p),
        ("get_next", ctypes.c_void_p),
        ("get_last_error", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    )


Fill = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
LastError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
Release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class CapsuleStream:
    """A stream of another library, valid as long as its capsule lives."""

    def __init__(self, source: HasStream) -> None:
        self._capsule = source.__arrow_c_stream__()
        self._address = _capsule_pointer(self._capsule, STREAM)
        self._stream = CStream.from_address(self._address)

    def fill_schema(self, out: int) -> int:
        """Write the schema to the address of a struct; returns 0, or the number of an error."""
        return int(Fill(self._stream.get_schema)(self._address, out))

    def next(self) -> CArray | None:
        """Return the next batch, which the caller has to release; None at the end."""
        array = CArray()
        if Fill(self._stream.get_next)(self._address, ctypes.addressof(array)):
            message = LastError(self._stream.get_last_error)(self._address)
            raise OSError(
                ctypes.string_at(message).decode(errors="replace") if message else "an Arrow stream failed"
            )
        return array if array.release else None

    def close(self) -> None:
        """End the stream before the capsule does, which an exception may keep. Safe to call again."""
        if self._stream.release:
            Release(self._stream.release)(self._address)


class Page:
    """The batches of one page in memory, owned until they are moved on or freed. `rows` is their total."""

    def __init__(self) -> None:
        self._arrays: deque[CArray] = deque()
        self.rows = 0

    def add(self, array: CArray) -> None:
        """Take ownership of a batch."""
        self._arrays.append(array)
        self.rows += array.length

    def hand_on(self, out: int) -> bool:
        """Move the next batch to the address of a struct; False when none is left."""
        if not self._arrays:
            return False
        array = self._arrays.popleft()
        ctypes.memmove(out, ctypes.addressof(array), ctypes.sizeof(array))
        array.release = None
        return True

    def drop(self) -> None:
        """Free the batches that were not moved on."""
        while self._arrays:
            array = self._arrays.popleft()
            Release(array.release)(ctypes.addressof(array))

    def __del__(self) -> None:
        self.drop()


def take_page(source: HasStream) -> Page:
    """Pull all batches of a stream into memory, so that its connection is free again.

    Raises OSError with the error message of the stream.
    """
    page = Page()
    stream = CapsuleStream(source)
    while (array := stream.next()) is not None:
        page.add(array)
    return page


class Chain:
    """Consecutive pages as one stream, to be read once by DuckDB or any other reader of Arrow.

    `pages` is advanced on demand, in the reader's thread. An exception from it ends the stream and is kept in `error`;
    the caller that started the reader raises it. `shape` gives the schema, without rows. Close it after the reader has
    ended, not before.
    """

    def __init__(self, shape: HasStream, pages: Iterator[Page]) -> None:
        self._shape = CapsuleStream(shape)
        self._pages = pages
        self._page: Page | None = None
        self.error: BaseException | None = None
        self._message = ctypes.create_string_buffer(b"the pages could not be read")
        self._functions: tuple[Any, ...] = (
            Fill(lambda _stream, out: self._shape.fill_schema(out)),
            Fill(lambda _stream, out: self._fill(out)),
            LastError(lambda _stream: ctypes.addressof(self._message)),
            Release(released),
        )
        self._streams: list[CStream] = []

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        """Return a stream. A reader may request one for the schema and another for the rows."""
        stream = CStream(*(ctypes.cast(function, ctypes.c_void_p) for function in self._functions), None)
        self._streams.append(stream)
        return new_capsule(ctypes.addressof(stream), STREAM, None)

    def close(self) -> None:
        """Free what was not read; no reader may be active any more."""
        if self._page is not None:
            self._page.drop()
        self._functions = ()  # they reference this object, and so everything that it owns

    def _fill(self, out: int) -> int:
        try:
            while self._page is None or not self._page.hand_on(out):
                self._page = next(self._pages, None)
                if self._page is None:
                    ctypes.memset(out, 0, ctypes.sizeof(CArray))
                    break
        except BaseException as error:  # noqa: BLE001  nothing may pass through the reader's C code; kept in `error`
            self.error = error
            return errno.EIO
        return 0


def released(address: int) -> None:
    """Release a stream that owns nothing."""
    CStream.from_address(address).release = None
