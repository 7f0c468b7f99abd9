"""What a file is, by its first bytes."""

from __future__ import annotations

import pytest

from repo.formats.recognition import foreign_format, is_wide_encoding, utf_16_or_32


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "xls"),
        (b"PK\x03\x04" + bytes(26) + b"mimetypeapplication/vnd.oasis.opendocument", "ods"),
        (b"SQLite format 3\x00", "SQLite"),
        (bytes(8) + b"DUCK", "DuckDB"),
        (b"BZh91AY", "bunzip2"),
        (b"\xfd7zXZ\x00", "unxz"),
        (b"ARROW1\x00\x00", "Arrow"),
        (b"%PDF-1.7", "PDF"),
        (b"  <html>", "HTML"),
        (b'<?xml version="1.0"?>', "XML"),
    ],
)
def test_a_format_that_is_not_read_is_recognized(head: bytes, what: str) -> None:
    found = foreign_format(head)
    assert found is not None
    assert what in found


@pytest.mark.parametrize("text", ["", "a", "timestamp,p\n", "{}", "PK,value\n", "ORDER,1", "<5,>3\n"])
def test_text_is_not_foreign(text: str) -> None:
    assert foreign_format(text.encode()) is None
    assert utf_16_or_32(text.encode()) is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_recognized(encoding: str) -> None:
    found = utf_16_or_32("timestamp,p\n2026-01-01,1\n".encode(encoding))
    assert found == encoding
    assert is_wide_encoding(encoding)
    assert not is_wide_encoding("cp1252")
