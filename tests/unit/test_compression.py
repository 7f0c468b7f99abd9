"""Compressed data is read in bounded memory; damaged or truncated data is reported."""

from __future__ import annotations

import gzip
import io
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from repo.errors import InvalidFile, MissingExtra
from repo.formats.compression import MOST_WINDOW_BYTES, plain_name, unpacked
from repo.formats.recognition import form_of

zstandard = pytest.importorskip("zstandard")

TEXT = b"".join(b"line %d\n" % number for number in range(50_000))


def zstd(content: bytes) -> bytes:
    packed: bytes = zstandard.ZstdCompressor().compress(content)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd}


def plain(packed: bytes, name: str = "a") -> bytes:
    with unpacked(io.BufferedReader(io.BytesIO(packed)), name) as stream:  # type: ignore[arg-type,unused-ignore]
        return stream.read()


@pytest.fixture(params=PACKERS)
def pack(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    return PACKERS[request.param]


def test_plain_bytes_stay_as_they_are() -> None:
    assert plain(TEXT) == TEXT
    assert plain(b"") == b""


def test_compressed_bytes_are_decompressed_whatever_the_name(pack: Any) -> None:
    assert plain(pack(TEXT)) == TEXT
    assert plain(pack(TEXT), "a.csv") == TEXT
    assert plain(pack(b"")) == b""


def test_concatenated_streams_in_one_file_are_one_stream(pack: Any) -> None:
    assert plain(pack(b"one,") + pack(b"") + pack(TEXT)) == b"one," + TEXT


def test_a_skippable_frame_is_skipped() -> None:
    skipped = b"\x50\x2a\x4d\x18" + (600).to_bytes(4, "little") + bytes(600)
    assert plain(zstd(b"a") + skipped + zstd(b"b")) == b"ab"


def test_truncated_data_is_reported_wherever_it_was_cut(pack: Any) -> None:
    packed = pack(TEXT)
    for length in range(4, len(packed), max(1, len(packed) // 50)):
        with pytest.raises(InvalidFile, match=r"a is truncated or damaged (gzip|zstd)"):
            plain(packed[:length])


def test_a_flipped_bit_is_reported_or_changes_nothing(pack: Any) -> None:
    packed = pack(TEXT)
    for at in range(4, len(packed), max(1, len(packed) // 100)):
        broken = bytearray(packed)
        broken[at] ^= 0x10
        try:
            found = plain(bytes(broken))
        except InvalidFile:
            continue
        assert found == TEXT or pack is zstd, "zstd has a sum only where it was asked for"


def test_garbage_after_the_end_is_reported(pack: Any) -> None:
    with pytest.raises(InvalidFile, match="damaged"):
        plain(pack(TEXT) + b"rubbish")


@pytest.mark.parametrize("name", ["a.gz", "a.csv.GZ", "a.zst"])
def test_a_misleading_file_name_is_reported(name: str) -> None:
    for content in (TEXT, b""):
        with pytest.raises(InvalidFile, match=r"ends in .* but is not (gzip|zstd)"):
            plain(content, name)
    with pytest.raises(InvalidFile, match="ends in"):
        plain(gzip.compress(TEXT) if name.endswith(".zst") else zstd(TEXT), name)


def test_a_decompression_bomb_is_expanded_a_piece_at_a_time(pack: Any) -> None:
    bomb = pack(bytes(100_000_000))
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        with unpacked(io.BufferedReader(io.BytesIO(bomb)), "a") as stream:  # type: ignore[arg-type,unused-ignore]
            swollen = 0
            while piece := stream.read(65_536):
                swollen += len(piece)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert swollen == 100_000_000
    assert peak_bytes < 50_000_000


def test_a_window_larger_than_any_ordinary_one_is_refused() -> None:
    window = MOST_WINDOW_BYTES.bit_length()
    parameters = zstandard.ZstdCompressionParameters(window_log=window)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(InvalidFile, match="too much memory"):
        plain(packer.compress(b"x") + packer.flush())


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has zstd here")
def test_without_a_package_for_zstd_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[zstd\]"):
        plain(zstd(TEXT))
    assert plain(gzip.compress(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("head", "name", "form"),
    [
        (b"PAR1\x15", "a.csv", "parquet"),
        (b"x", "a.parquet", "parquet"),
        (b"{}", "a.csv", "csv"),
        (b"a,b", "a.NDJSON.gz", "ndjson"),
        (b"a,b", "a.jsonl.zst", "ndjson"),
        (b'{"a"', "standard input", "ndjson"),
        (b'\xef\xbb\xbf \r\n{"a"', "a.txt", "ndjson"),
        (b"\xff\xfe{\0", "a.log", "ndjson"),
        (b"[{", "a.json", "ndjson"),
        (b"a,b", "a.json", "csv"),
        (b"", "a", "csv"),
    ],
)
def test_the_format_is_recognized_by_content_then_by_name(head: bytes, name: str, form: str) -> None:
    assert form_of(head, name) == form


def test_the_inner_name_is_the_name_without_the_compression_suffix() -> None:
    assert [plain_name(name) for name in ("A.CSV.gz", "b.tsv.zst", "c.gz.csv")] == [
        "a.csv",
        "b.tsv",
        "c.gz.csv",
    ]
