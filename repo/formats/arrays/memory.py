"""Columns in memory as an Arrow stream, without a copy and without pyarrow. DuckDB scans it as often as needed.

The layout of the structs is fixed by https://arrow.apache.org/docs/format/CDataInterface.html. The structs and the
arrays belong to the table here, so it has to exist for as long as anybody reads a stream of it.

A reader calls back into Python. So read it outside of the main thread: in the main thread, a signal handler such as
that of Ctrl-C may run inside such a call, and its exception would be lost.
"""

from __future__ import annotations

import ctypes
import errno
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from repo.formats.arrays.streams import (
    STREAM,
    CapsuleStream,
    CArray,
    CStream,
    Fill,
    HasStream,
    LastError,
    Release,
    new_capsule,
    released,
)

__all__ = ["KeptStream", "MemoryColumn", "MemoryTable"]

BATCH_ROWS = 61_440
"""Rows that a reader gets at a time; its threads share the work by batches."""

_FORMATS = {"i": b"i", "I": b"I", "q": b"l", "d": b"g"}
_TEXT = b"u"
_STRUCT = b"+s"
_NULLABLE = 2
_Thing = TypeVar("_Thing")


class MemoryColumn(NamedTuple):
    """Numbers, or the places of each row's text in `texts`, which may repeat a text and may have None."""

    name: str
    numbers: array[Any]
    """Typecode i, I, q or d; as places in `texts`, I."""
    texts: Sequence[str | None] | None = None


class MemoryTable:
    """Columns of equal length. Must not change while it is read."""

    def __init__(self, columns: Sequence[MemoryColumn]) -> None:
        self._columns = columns
        self._rows = len(columns[0].numbers)
        self._owned: list[object] = []
        """Everything that a struct points to."""
        self._dictionaries = [None if c.texts is None else self._text_array(c.texts) for c in columns]

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        """Return a new stream of all rows."""
        return _stream_of(self, self._owned)

    def fill_schema(self, out: int) -> None:
        """Write the schema to the address of a struct."""
        children = [
            self._schema(b"I", column.name.encode(), (), self._schema(_TEXT, b""))
            if column.texts is not None
            else self._schema(_FORMATS[column.numbers.typecode], column.name.encode())
            for column in self._columns
        ]
        schema = self._schema(_STRUCT, b"", children)
        ctypes.memmove(out, ctypes.addressof(schema), ctypes.sizeof(_CSchema))

    def fill_batch(self, start: int, out: int) -> int:
        """Write the batch from row `start` on to the address of a struct; returns its rows, 0 at the end."""
        rows = max(0, min(BATCH_ROWS, self._rows - start))
        if rows:
            children = [
                self._array(rows, [None, _place(column.numbers, start)], (), dictionary)
                for column, dictionary in zip(self._columns, self._dictionaries, strict=True)
            ]
            ctypes.memmove(out, ctypes.addressof(self._array(rows, [None], children)), ctypes.sizeof(CArray))
        else:
            ctypes.memset(out, 0, ctypes.sizeof(CArray))
        return rows

    def _text_array(self, texts: Sequence[str | None]) -> CArray:
        encoded = [b"" if text is None else text.encode() for text in texts]
        offsets = self._own(array("i", [0, *accumulate(map(len, encoded))]))
        content = self._own(ctypes.create_string_buffer(b"".join(encoded)))
        valid = None
        if None in texts:
            bits = bytearray(-(-len(texts) // 8))
            for at, text in enumerate(texts):
                bits[at // 8] |= (text is not None) << at % 8
            valid = ctypes.addressof(self._own(ctypes.create_string_buffer(bytes(bits))))
        buffers = [valid, _place(offsets, 0), ctypes.addressof(content)]
        return self._array(len(texts), buffers, nulls=len(texts) - sum(text is not None for text in texts))

    def _array(
        self,
        rows: int,
        buffers: Sequence[int | None],
        children: Sequence[CArray] = (),
        dictionary: CArray | None = None,
        nulls: int = 0,
    ) -> CArray:
        return self._own(
            CArray(
                rows,
                nulls,
                0,
                len(buffers),
                len(children),
                self._pointers(buffers),
                self._pointers([ctypes.addressof(child) for child in children]),
                None if dictionary is None else ctypes.addressof(dictionary),
                _address(_ARRAY_RELEASE),
                None,
            )
        )

    def _schema(
        self, form: bytes, name: bytes, children: Sequence[_CSchema] = (), dictionary: _CSchema | None = None
    ) -> _CSchema:
        return self._own(
            _CSchema(
                form,
                name,
                None,
                _NULLABLE,
                len(children),
                self._pointers([ctypes.addressof(child) for child in children]),
                None if dictionary is None else ctypes.addressof(dictionary),
                _address(_SCHEMA_RELEASE),
                None,
            )
        )

    def _pointers(self, addresses: Sequence[int | None]) -> int | None:
        if not addresses:
            return None
        return ctypes.addressof(self._own((ctypes.c_void_p * len(addresses))(*addresses)))

    def _own(self, thing: _Thing) -> _Thing:
        self._owned.append(thing)
        return thing


class KeptStream:
    """The batches of a stream, taken into memory, so that its connection is free. Its readers get them as they are."""

    def __init__(self, source: HasStream) -> None:
        self._owned: list[object] = []
        self.batches: list[CArray] = []
        """Owned by this object."""
        self._schema = _CSchema()
        stream = CapsuleStream(source)
        if stream.fill_schema(ctypes.addressof(self._schema)):
            raise OSError("the columns of an Arrow stream could not be read")
        while (array := stream.next()) is not None:
            self.batches.append(array)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        """Return a new stream of all rows."""
        return _stream_of(self, self._owned)

    def fill_schema(self, out: int) -> None:
        """See `MemoryTable`."""
        ctypes.memmove(out, ctypes.addressof(self._schema), ctypes.sizeof(_CSchema))
        _CSchema.from_address(out).release = _address(_SCHEMA_RELEASE).value

    def fill_batch(self, start: int, out: int) -> int:
        """See `MemoryTable`; the batches are counted instead of the rows."""
        if start >= len(self.batches):
            ctypes.memset(out, 0, ctypes.sizeof(CArray))
            return 0
        ctypes.memmove(out, ctypes.addressof(self.batches[start]), ctypes.sizeof(CArray))
        CArray.from_address(out).release = _address(_ARRAY_RELEASE).value
        return 1

    def drop(self) -> None:
        """Free the batches; nobody may read them any more."""
        while self.batches:
            array = self.batches.pop()
            Release(array.release)(ctypes.addressof(array))
        if self._schema.release:
            Release(self._schema.release)(ctypes.addressof(self._schema))
            self._schema.release = None

    def __del__(self) -> None:
        self.drop()


def _stream_of(table: MemoryTable | KeptStream, owned: list[object]) -> Any:
    _tables[id(table)] = table
    progress = _Progress(id(table), 0)
    stream = CStream(*map(_address, _FUNCTIONS), ctypes.addressof(progress))
    owned += (progress, stream)
    return new_capsule(ctypes.addressof(stream), STREAM, None)


class _CSchema(ctypes.Structure):
    _fields_ = (
        ("format", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("metadata", ctypes.c_char_p),
        ("flags", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    )


class _Progress(ctypes.Structure):
    """The private data of a stream; a reader moves the stream itself to memory of its own."""

    _fields_ = (("table", ctypes.c_size_t), ("place", ctypes.c_int64))


def _progress(stream: int) -> _Progress:
    return _Progress.from_address(CStream.from_address(stream).private_data)


def _next_schema(stream: int, out: int) -> int:
    try:
        _tables[_progress(stream).table].fill_schema(out)
    except (MemoryError, KeyError) as error:
        return _errno(error)
    return 0


def _next_batch(stream: int, out: int) -> int:
    try:
        progress = _progress(stream)
        progress.place += _tables[progress.table].fill_batch(progress.place, out)
    except (MemoryError, KeyError) as error:
        return _errno(error)
    return 0


def _errno(error: Exception) -> int:
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO


def _array_released(address: int) -> None:
    CArray.from_address(address).release = None


def _schema_released(address: int) -> None:
    _CSchema.from_address(address).release = None


_tables: WeakValueDictionary[int, MemoryTable | KeptStream] = WeakValueDictionary()
_MESSAGE = ctypes.create_string_buffer(b"a batch could not be read from memory")

# These functions exist as long as the process: a reader may release what it has moved at any time.
_ARRAY_RELEASE = Release(_array_released)
_SCHEMA_RELEASE = Release(_schema_released)
_FUNCTIONS = (
    Fill(_next_schema),
    Fill(_next_batch),
    LastError(lambda _stream: ctypes.addressof(_MESSAGE)),
    Release(released),
)


def _address(function: Any) -> Any:
    return ctypes.cast(function, ctypes.c_void_p)


def _place(numbers: array[Any], row: int) -> int:
    return numbers.buffer_info()[0] + row * numbers.itemsize
