"""Where a CSV text comes from: owns opening, unpacking and reading again, never looks at a line."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from repo.errors import InvalidFile, InvalidSettings

__all__ = ["CsvSource"]

_GZIP_MAGIC = b"\x1f\x8b"


class CsvSource:
    """A file or a stream of bytes, gzipped or not, as text. Not thread-safe.

    What is gzip is told by its first bytes, so it may have any name. Bytes that the encoding does not know
    come as lone surrogates, for the reader to reject their line.
    """

    def __init__(
        self, file: str | os.PathLike[str] | BinaryIO, *, name: str | None = None, encoding: str = "utf-8"
    ) -> None:
        self._file = Path(file) if isinstance(file, str | os.PathLike) else file
        self.name = name or str(file)
        self._encoding = encoding
        self._spool: BinaryIO | None = None
        self._raw: BinaryIO | None = None
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        except LookupError as error:
            raise InvalidSettings(
                f"there is no text encoding {encoding!r}; names are like utf-8, cp1252"
            ) from error

    @property
    def share_read(self) -> float | None:
        """How much of the bytes was read, from 0 to 1, while it is open; None where that cannot be known."""
        if self._raw is None or not self._raw.seekable():
            return None
        size = os.fstat(self._raw.fileno()).st_size if isinstance(self._file, Path) else 0
        return min(1.0, self._raw.tell() / size) if size else None

    @contextmanager
    def opened(self, *, again: bool = False) -> Iterator[TextIO]:
        """Give the text from its beginning, for `read_csv`. `again`: it will be opened once more.

        A stream can be read again because it is copied to a temporary file first. Raises `InvalidFile` for
        what cannot be read, also out of the block that reads.
        """
        with ExitStack() as stack:
            raw = self._raw = self._opened_raw(stack, again)
            try:
                unpacked: BinaryIO = raw
                if raw.peek(2)[:2] == _GZIP_MAGIC:
                    unpacked = stack.enter_context(gzip.GzipFile(fileobj=raw))  # type: ignore[assignment]
                elif self.name.endswith(".gz") and raw.peek(1):
                    raise InvalidFile(f"{self.name} is named .gz and is not gzip", path=self.name)
                text = io.TextIOWrapper(
                    unpacked, encoding=self._encoding, errors="surrogateescape", newline=""
                )
                stack.callback(text.detach)
                yield text
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InvalidFile(
                    f"{self.name} is cut short or damaged gzip: {error}", path=self.name
                ) from error
            finally:
                self._raw = None

    def close(self) -> None:
        """Remove the temporary copy of a stream."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _opened_raw(self, stack: ExitStack, again: bool) -> io.BufferedReader:
        if isinstance(self._file, Path):
            try:
                return stack.enter_context(self._file.open("rb"))
            except OSError as error:
                raise InvalidFile(
                    f"{self._file} cannot be read: {error.strerror}", path=self._file
                ) from error
        if again and self._spool is None:
            self._spool = tempfile.TemporaryFile(prefix="holdfast-")  # noqa: SIM115  closed by close()
            shutil.copyfileobj(self._file, self._spool)
        source = self._file if self._spool is None else self._spool
        if self._spool is not None:
            self._spool.seek(0)
        raw = io.BufferedReader(source)  # type: ignore[type-var]
        stack.callback(raw.detach)
        return raw  # type: ignore[return-value]
