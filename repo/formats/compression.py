"""Compression: reads and writes gzip, zstd or uncompressed files as plain bytes. Never interprets the bytes.

The first bytes determine the compression, so a compressed file may have any name. A name that ends in .gz or .zst is an
error if the file is not compressed that way. Memory holds one window and the requested bytes, whatever the ratio.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, BinaryIO, Literal

from repo.errors import InvalidFile
from repo.extras import missing_extra

__all__ = ["MOST_WINDOW_BYTES", "Packing", "packed", "packing_named", "packing_of", "plain_name", "unpacked"]

Packing = Literal["gzip", "zstd"]

MOST_WINDOW_BYTES = 2**27
"""A zstd file that needs a larger window (`zstd --long=28` and more) is refused, as by `zstd -d`."""

_MAGIC: dict[bytes, Packing] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES: dict[str, Packing] = {".gz": "gzip", ".zst": "zstd"}
_GZIP_LEVEL = 6
_PIECE_BYTES = 256
"""The bytes passed to zstd at once. It returns everything that they expand to, up to 32,768 times as much."""


def packing_of(head: bytes) -> Packing | None:
    """Return the compression that the first bytes of a file show; None if uncompressed."""
    return next((packing for magic, packing in _MAGIC.items() if head.startswith(magic)), None)


def plain_name(name: str) -> str:
    """Return a file name in lower case without the suffix of a compression."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


def packing_named(name: str) -> Packing | None:
    """Return the compression that the suffix of a file name announces."""
    return next((packing for suffix, packing in _SUFFIXES.items() if name.lower().endswith(suffix)), None)


@contextmanager
def packed(stream: BinaryIO, packing: str) -> Iterator[Any]:
    """Give a stream for the block whose bytes are compressed into `stream`, which stays open.

    `packing` is gzip, zstd or none. Equal bytes give equal bytes. Raises `MissingExtra` if zstd cannot be written here.
    """
    if packing == "gzip":
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, stream, mtime=0) as plain:
            yield plain
    elif packing == "zstd":
        with _zstd_writer(stream) as plain:
            yield plain
    else:
        yield stream


def _zstd_writer(stream: BinaryIO) -> Any:
    try:
        return import_module("compression.zstd").ZstdFile(stream, "wb")  # Python 3.14 and newer
    except ImportError:
        pass
    try:
        return import_module("zstandard").ZstdCompressor().stream_writer(stream, closefd=False)
    except ImportError as error:
        raise missing_extra("writing zstd needs Python 3.14, or a package", "zstd", "or write .gz") from error


@contextmanager
def unpacked(raw: io.BufferedReader, name: str) -> Iterator[io.BufferedReader]:
    """Give the decompressed stream for the block. `name` is for messages; its suffix may announce a compression.

    Raises `InvalidFile` if the data is damaged, truncated or not compressed as its name says, also from the block that
    reads, and `MissingExtra` if zstd cannot be read here.
    """
    packing = packing_of(raw.peek(4)[:4])
    for suffix, promised in _SUFFIXES.items():
        if name.lower().endswith(suffix) and packing != promised:
            raise InvalidFile(f"{name} ends in {suffix} but is not {promised}", path=name)
    if packing is None:
        yield raw
        return
    faults: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    if packing == "gzip":
        plain: Any = gzip.GzipFile(fileobj=raw)
    else:
        begin, fault = _zstd_of_this_environment()
        faults = (EOFError, fault)
        plain = io.BufferedReader(_Zstd(raw, begin))
    try:
        with plain:
            yield plain
    except faults as error:
        raise InvalidFile(f"{name} is truncated or damaged {packing}: {error}", path=name) from error


class _Zstd(io.RawIOBase):
    """The decompressed bytes of consecutive zstd frames."""

    def __init__(self, raw: io.BufferedReader, begin: Callable[[], Any]) -> None:
        self._raw = raw
        self._begin = begin
        self._frame: Any = None
        self._piece = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._unpack():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self) -> bool:
        """Decompress the next piece; False at the end."""
        piece = self._piece or self._raw.read(_PIECE_BYTES)
        if not piece:
            if self._frame is not None:
                raise EOFError("it ends in the middle of a frame")
            return False
        if self._frame is None:
            self._frame = self._begin()
        self._ready = memoryview(self._frame.decompress(piece))
        self._piece = b""
        if self._frame.eof:
            self._piece, self._frame = self._frame.unused_data, None
        return True


def _zstd_of_this_environment() -> tuple[Callable[[], Any], type[Exception]]:
    """Return the class that decompresses a frame, and the error that it raises for a damaged one."""
    try:
        library: Any = import_module("compression.zstd")  # Python 3.14 and newer
    except ImportError:
        pass
    else:
        options = {library.DecompressionParameter.window_log_max: MOST_WINDOW_BYTES.bit_length() - 1}
        return lambda: library.ZstdDecompressor(options=options), library.ZstdError
    try:
        library = import_module("zstandard")
    except ImportError as error:
        raise missing_extra("reading zstd needs Python 3.14, or a package", "zstd") from error
    return library.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES).decompressobj, library.ZstdError
