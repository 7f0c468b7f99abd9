"""A file or a stream to ingest: opens, decompresses and rereads it, and finds out its format. Parses no line."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, get_args

from repo.errors import InvalidFile, InvalidSettings
from repo.formats.compression import packing_of, unpacked
from repo.formats.recognition import (
    BEFORE_TEXT,
    HEAD_BYTES,
    Form,
    foreign_format,
    form_of,
    is_parquet,
    is_wide_encoding,
    utf_16_or_32,
)
from repo.inputs.arguments import check_path, check_text, shown
from repo.processes.inuse import refuse_own

__all__ = ["Input"]


class Input:
    """A file or a byte stream, compressed or not. Anything but a regular file is a stream. Not thread-safe.

    `form` is the format; None detects it by content and name. Bytes that are invalid in the encoding become lone
    surrogates, so that the reader rejects their line.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | BinaryIO,
        *,
        name: str | None = None,
        encoding: str = "utf-8",
        form: Form | None = None,
    ) -> None:
        encoding = check_text(encoding, "encoding", error=InvalidSettings)
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="surrogateescape").read()
        except (LookupError, ValueError) as error:
            raise InvalidSettings(
                f"there is no text encoding {shown(encoding)}; names are like utf-8, cp1252"
            ) from error
        if form is not None and (not isinstance(form, str) or form not in get_args(Form)):
            raise InvalidSettings(f"format is {shown(form)}; it may be auto, csv, ndjson or parquet")
        if name is not None:
            name = check_text(name, "name", error=InvalidSettings)
        if not callable(getattr(file, "readable", None)):
            file = check_path(file, "file")
        self.path: Path | None = None
        self.name = name or str(file)
        self._encoding = encoding
        self._form = form
        self._stream: io.BufferedReader | None = None
        self._spool: BinaryIO | None = None
        self._raw: io.BufferedReader | None = None
        self._is_ours = False
        if not isinstance(file, str | os.PathLike):
            self._stream = _buffered(file)
        elif _is_regular_or_missing(Path(file)):
            self.path = Path(file)
        else:
            # Such as a pipe, which can be read only once.
            self._stream, self._is_ours = _opened(Path(file)), True

    def detect(self) -> Form | None:
        """Return the format and check that it can be opened; None for a stream of text, which `opened` detects.

        Raises `InvalidFile` for unreadable input, Parquet in a stream, and compressed Parquet.
        """
        if self.path is None:
            assert self._stream is not None
            if self._form == "parquet" or is_parquet(self._stream.peek(HEAD_BYTES)):
                raise InvalidFile(
                    f"{self.name} cannot be Parquet, which is read from its end; write it to a file first"
                )
            return None
        with ExitStack() as stack:
            raw = self._opened_raw(stack, again=False)
            if self._form == "parquet" or (self._form is None and is_parquet(raw.peek(HEAD_BYTES))):
                return "parquet"
            return self._look_inside(stack.enter_context(unpacked(raw, self.name)))

    @property
    def share_read(self) -> float | None:
        """The fraction of the bytes that was read, from 0 to 1, while it is open; None if unknown."""
        if self._raw is None or self.path is None:
            return None
        size = os.fstat(self._raw.fileno()).st_size
        return min(1.0, self._raw.tell() / size) if size else None

    @contextmanager
    def opened(self, *, again: bool = False) -> Iterator[tuple[Form, TextIO]]:
        """Give the format, CSV or NDJSON, and the text from its beginning. Set `again` if it will be opened again.

        A stream is then copied to a temporary file first. Raises `InvalidFile` for unreadable input, also from the
        block that reads it.
        """
        with ExitStack() as stack:
            self._raw = self._opened_raw(stack, again=again)
            try:
                plain = stack.enter_context(unpacked(self._raw, self.name))
                form = self._look_inside(plain)
                text = io.TextIOWrapper(plain, encoding=self._encoding, errors="surrogateescape", newline="")
                stack.callback(text.detach)
                yield form, text
            finally:
                self._raw = None

    def close(self) -> None:
        """Release the stream, and remove its temporary copy."""
        if self._stream is not None:
            if self._is_ours:
                self._stream.close()
            else:
                self._stream.detach()
            self._stream = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _look_inside(self, plain: io.BufferedReader) -> Form:
        head = plain.peek(HEAD_BYTES)
        if is_parquet(head):
            wrong = (
                "compressed Parquet; decompress it first"
                if self._form is None
                else f"Parquet, not {self._form}"
            )
            raise InvalidFile(f"{self.name} is {wrong}", path=self.path)
        if (packing := packing_of(head)) is not None:
            raise InvalidFile(
                f"{self.name} is compressed twice; decompress it once ({packing})", path=self.path
            )
        if (what := foreign_format(head)) is not None:
            raise InvalidFile(f"{self.name} is {what}", path=self.path)
        encoding = None if is_wide_encoding(self._encoding) else utf_16_or_32(head)
        if encoding is not None:
            raise InvalidFile(
                f"{self.name} is text in {encoding.upper()}, not in {self._encoding}; set its encoding (--encoding "
                f"{encoding})",
                path=self.path,
            )
        form = self._form or form_of(head, self.name)
        if form == "csv" and self._form is None and head.lstrip(BEFORE_TEXT).startswith(b'{"'):
            raise InvalidFile(
                f"{self.name} has JSON objects despite its name; set its format (--format ndjson)",
                path=self.path,
            )
        return form

    def _opened_raw(self, stack: ExitStack, *, again: bool) -> io.BufferedReader:
        if self.path is not None:
            return stack.enter_context(_opened(self.path))
        assert self._stream is not None
        if again and self._spool is None:
            self._spool = tempfile.TemporaryFile(prefix="holdfast-")  # noqa: SIM115  closed by close()
            shutil.copyfileobj(self._stream, self._spool)
        if self._spool is None:
            return self._stream
        self._spool.seek(0)
        raw = _buffered(self._spool)
        stack.callback(raw.detach)
        return raw


def _is_regular_or_missing(path: Path) -> bool:
    try:
        return path.is_file() or not path.exists()
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}", path=path) from error


def _opened(path: Path) -> io.BufferedReader:
    try:
        refuse_own(path)
        return path.open("rb")
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}", path=path) from error
    except ValueError as error:  # a path with a NUL
        raise InvalidFile(f"{str(path)!r} cannot be read: {error}") from error


def _buffered(stream: BinaryIO) -> io.BufferedReader:
    reader: io.BufferedReader = io.BufferedReader(stream)  # type: ignore[type-var,arg-type,assignment,unused-ignore]
    return reader
