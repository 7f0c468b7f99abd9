"""The packed form of points in a journal row. Defines the byte format; never touches a database.

A payload is a sequence of independent blocks, so that points that threads write at the same moment can be concatenated.
All numbers are little-endian.

    offset  size  field
         0     2  magic b"HF"
         2     1  format version, 1
         3     1  flags: 1 one quality for all rows, 2 one series for all rows
         4     4  CRC-32 of the rest of the block
         8     4  rows n
        12     4  length j of the names part
        16     4  quality of all rows (flag 1), else 0
        20     j  names: JSON [[[sensor, metric, kind], ...], {row: text}, {row: metadata}]
                  (the two objects only if the batch has texts or metadata)
           n * 8  timestamps, int64, microseconds since 1970 UTC
           n * 8  values, float64; NaN if the row has no number
           n * 4  index into the series list, uint32 (not with flag 2)
           n * 4  qualities, int32 (not with flag 1)
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Iterator
from functools import lru_cache
from zlib import crc32

from repo.errors import StoreCorrupt
from repo.inputs.batch import Batch, CheckedPoint

__all__ = ["BLOCK_BYTES", "BLOCK_POINTS", "pack", "pack_point", "unpack"]

BLOCK_POINTS = 61_440
"""The largest number of points in a block, and in a journal row: half a row group of DuckDB, so that a flush can fill
whole ones. Older versions wrote up to 65,536."""

BLOCK_BYTES = 4_194_304
"""The largest size of a journal row that has more than one block."""

_MAGIC = b"HF\x01"
_ONE_QUALITY = 1
_ONE_SERIES = 2
_HEAD = struct.Struct("<3sBIIIi")
_UNSUMMED = struct.Struct("<3sBI")
_SUMMED = struct.Struct("<IIi")
_ONE_ROW = struct.Struct("<qd")
_SUMMED_FROM = 8
_BODY_FROM = _HEAD.size
_WITHOUT_TEXTS = b"]]]"
"""The end of a names part without texts and metadata."""
_encode_names = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def pack(batch: Batch) -> bytes:
    """Pack a batch of at most `BLOCK_POINTS` points into one block."""
    flags = 0
    head = _names_of(batch)
    parts = [head, _to_bytes(batch.timestamps_us), _to_bytes(batch.values)]
    if len(batch.series) == 1:
        flags |= _ONE_SERIES
    else:
        parts.append(_to_bytes(batch.codes))
    quality = 0
    if isinstance(batch.qualities, int):
        flags |= _ONE_QUALITY
        quality = batch.qualities
    else:
        parts.append(_to_bytes(batch.qualities))
    return _block(flags, _SUMMED.pack(len(batch.codes), len(head), quality), *parts)


def pack_point(point: CheckedPoint) -> bytes:
    """Pack one point, as `pack` packs a batch of one row."""
    sensor_id, metric_name, kind, timestamp_us, value, text, quality, metadata = point
    if text is None and metadata is None:
        names = _one_series_names(sensor_id, metric_name, kind)
    else:
        names = _names_of(point.batch())
    # Like `_block`, without a list of parts: this is a part of the cost of each single insert.
    summed = _SUMMED.pack(1, len(names), quality) + names + _ONE_ROW.pack(timestamp_us, value)
    return _UNSUMMED.pack(_MAGIC, _ONE_QUALITY | _ONE_SERIES, crc32(summed)) + summed


def _block(flags: int, *parts: bytes) -> bytes:
    summed = b"".join(parts)
    return _UNSUMMED.pack(_MAGIC, flags, crc32(summed)) + summed


def _names_of(batch: Batch) -> bytes:
    series = [(*pair, kind) for pair, kind in zip(batch.series, batch.kinds, strict=True)]
    if batch.texts or batch.metadata:
        return _encode_names([series, batch.texts, batch.metadata]).encode()
    return _one_series_names(*series[0]) if len(series) == 1 else _encode_names([series]).encode()


@lru_cache(maxsize=1024)
def _one_series_names(sensor_id: str, metric_name: str, kind: str | None) -> bytes:
    """Encode the names part for one series. Cached, because it is most of the work of writing a single point."""
    return _encode_names([[(sensor_id, metric_name, kind)]]).encode()


def unpack(payload: bytes) -> Iterator[Batch]:
    """Yield the batches of a payload in order; raises `StoreCorrupt` if a checksum does not match."""
    view = memoryview(payload)
    while view:
        size, batch = _unpack_block(view)
        yield batch
        view = view[size:]


def _unpack_block(view: memoryview) -> tuple[int, Batch]:
    if len(view) < _BODY_FROM:
        raise StoreCorrupt("a journal row ends in the middle of a block header")
    magic, flags, checksum, rows, names_bytes, quality = _HEAD.unpack_from(view)
    if magic != _MAGIC:
        raise StoreCorrupt(f"a journal row has the unknown block format {bytes(magic)!r}")
    one_series, one_quality = bool(flags & _ONE_SERIES), bool(flags & _ONE_QUALITY)
    size = _BODY_FROM + names_bytes + rows * (16 + (0 if one_series else 4) + (0 if one_quality else 4))
    if len(view) < size or crc32(view[_SUMMED_FROM:size]) != checksum:
        raise StoreCorrupt("the checksum of a block of journal points does not match its bytes")
    position = _BODY_FROM + names_bytes
    names = bytes(view[_BODY_FROM:position])
    if one_series and one_quality and rows == 1 and names.endswith(_WITHOUT_TEXTS):
        # A single insert wrote it, so there may be thousands of them.
        pair, kind = _one_series(names)
        us, value = _ONE_ROW.unpack_from(view, position)
        one = array("I", (0,)), array("q", (us,)), array("d", (value,))
        return size, Batch([pair], [kind], *one, {}, quality, {})
    series, *by_row = json.loads(names)
    texts, metadata = by_row or ({}, {})

    def take(typecode: str) -> array[int]:
        nonlocal position
        column = array(typecode)
        end = position + rows * column.itemsize
        column.frombytes(view[position:end])
        if sys.byteorder == "big":
            column.byteswap()
        position = end
        return column

    timestamps_us = take("q")
    values: array[float] = take("d")  # type: ignore[assignment]
    codes = array("I", bytes(4 * rows)) if one_series else take("I")
    qualities = quality if one_quality else take("i")
    return size, Batch(
        series=[(sensor, metric) for sensor, metric, _ in series],
        kinds=[kind for _, _, kind in series],
        codes=codes,
        timestamps_us=timestamps_us,
        values=values,
        texts={int(row): text for row, text in texts.items()},
        qualities=qualities,
        metadata={int(row): text for row, text in metadata.items()},
    )


@lru_cache(maxsize=1024)
def _one_series(names: bytes) -> tuple[tuple[str, str], str | None]:
    """Read a names part for one series. Cached, because it is most of the work of reading a single point."""
    [[(sensor, metric, kind)]] = json.loads(names)
    return (sensor, metric), kind


def _to_bytes(column: array[int] | array[float]) -> bytes:
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()
