"""Recognition: identifies the format of a file by its first bytes and its name. Never opens a file."""

from __future__ import annotations

import codecs
from typing import Literal

from repo.formats.compression import plain_name

__all__ = [
    "BEFORE_TEXT",
    "HEAD_BYTES",
    "NAMES",
    "Form",
    "foreign_format",
    "form_of",
    "is_parquet",
    "is_wide_encoding",
    "utf_16_or_32",
]

Form = Literal["csv", "ndjson", "parquet"]
"""The formats that are read."""

HEAD_BYTES = 64
"""The bytes at the start of a file that suffice to identify its format."""

BEFORE_TEXT = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"
"""What may precede the first character of a text: byte order marks, the zero bytes of UTF-16, and white space."""

NAMES: dict[Form, tuple[str, ...]] = {
    "csv": (".csv", ".tsv"),
    "ndjson": (".ndjson", ".jsonl"),
    "parquet": (".parquet", ".parq", ".pq"),
}
"""The suffixes of file names by format."""

_PARQUET_MAGIC = b"PAR1"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of Microsoft Office (xls); save the sheet as CSV"),
    (b"BZh", "compressed with bzip2; decompress it first: bunzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz; decompress it first: unxz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x1f\x9d", "compressed with compress; decompress it first: uncompress"),
    (b"SQLite format 3\x00", "a SQLite database; export its tables as CSV first"),
    (b"\x89HDF\r\n\x1a\n", "HDF5; convert it to Parquet or CSV first"),
    (b"CDF\x01", "NetCDF; convert it to Parquet or CSV first"),
    (b"CDF\x02", "NetCDF; convert it to Parquet or CSV first"),
    (b"ARROW1\x00\x00", "an Arrow (Feather) file; convert it to Parquet first"),
    (b"Obj\x01", "Avro; convert it to Parquet first"),
    (b"%PDF-", "a PDF document"),
    (b"{\\rtf", "an RTF document; save it as plain text"),
)
_DUCKDB = b"DUCK"  # at byte 8
_OFFICE = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"xl/")
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def is_parquet(head: bytes) -> bool:
    """Return whether a file with this beginning is Parquet."""
    return head.startswith(_PARQUET_MAGIC)


def form_of(head: bytes, name: str) -> Form:
    """Return the format of a file with this name and beginning (decompressed); CSV if neither determines it."""
    if is_parquet(head):
        return "parquet"
    plain = plain_name(name)
    for form, endings in NAMES.items():
        if plain.endswith(endings):
            return form
    return "ndjson" if head.lstrip(BEFORE_TEXT)[:1] in (b"{", b"[") else "csv"


def foreign_format(head: bytes) -> str | None:
    """Return what a file with this beginning is, and what to do, as the end of a sentence; None if it may be text.

    `HEAD_BYTES` suffice. Compressions and formats that this library reads are not foreign.
    """
    if head.startswith(b"PK\x03\x04"):
        inside = head[30:]
        if inside.startswith(_OFFICE):
            return "an Excel workbook (xlsx); save the sheet as CSV"
        if inside.startswith(b"mimetypeapplication/vnd.oasis"):
            return "an OpenDocument file (ods); save the sheet as CSV"
        return "a zip archive; unpack it first: unzip"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if head[8:12] == _DUCKDB:
        return "a DuckDB database; export its tables as Parquet first"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps an error or a login page of the server that it came from"
    if text.startswith(b"<?xml"):
        return "XML; convert it to CSV or NDJSON first"
    return None


def utf_16_or_32(head: bytes) -> str | None:
    """Return the encoding of a text whose beginning shows that its characters have two or four bytes; else None."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    start = head[: len(head) // 4 * 4]
    for first, encoding in ((0, "utf-16-le"), (1, "utf-16-be")):
        if len(start) >= 8 and all(start[first::2]) and not any(start[1 - first :: 2]):
            return encoding
    return None


def is_wide_encoding(encoding: str) -> bool:
    """Return whether an encoding has characters of two or four bytes."""
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
