"""Points and records as lines of JSON: the canonical form of a batch, which is also NDJSON. Pure.

One line of JSON per point, in ascending order of seq, without spaces, with its keys in this order:

    {"seq":7,"sensor_id":"W-1","metric_name":"flow","timestamp_us":0,"value":1.5,"quality":100,"metadata":null}

A number has the shortest form that reads back as the same double. ±infinity is `±1e999`, which is valid JSON and reads
as infinity. A text is a JSON string; a missing reading is `null`. Metadata has sorted keys. Equal points give equal
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from typing import Any

from repo.delivery.encodings.encoded import Encoded, Names, plain
from repo.delivery.protocol import Batch, Columns, Lane, RecordItem
from repo.inputs.fields import metadata_json

__all__ = ["array_of", "encode", "lines_of_points", "lines_of_records"]

_CACHED_METADATA = 4_096
_CACHED_CHARS = 256
_text = json.JSONEncoder(ensure_ascii=False).encode


def encode(batch: Batch) -> Encoded:
    """Return a line of JSON per item; nothing is refused."""
    if batch.lane is Lane.RECORDS:
        return Encoded(lines_of_records(batch.records))
    return Encoded(lines_of_points(batch.columns))


def lines_of_points(columns: Columns) -> list[str]:
    """Return the line of each point, without a line end."""
    sensors, metrics, times_us, numbers, texts, qualities, metadata, seqs = map(plain, columns)
    names = _series.of(sensors, metrics)
    values: Sequence[Any] = numbers if _all_finite(numbers) else list(map(_value, numbers, texts))
    points = zip(seqs, names, times_us, values, strict=True)
    if not seqs or (qualities.count(qualities[0]), metadata.count(None)) == (len(seqs), len(seqs)):
        end = _end(qualities[0], None) if seqs else ""
        return [
            f'{{"seq":{seq},{name},"timestamp_us":{us},"value":{value},{end}'
            for seq, name, us, value in points
        ]
    ends = map(_end, qualities, metadata)
    return [
        f'{{"seq":{seq},{name},"timestamp_us":{us},"value":{value},{end}'
        for (seq, name, us, value), end in zip(points, ends, strict=True)
    ]


def array_of(texts: Sequence[str]) -> str:
    """Return the JSON array of these objects."""
    return f"[{','.join(texts)}]"


def lines_of_records(records: Sequence[RecordItem]) -> list[str]:
    """Return the line of each record, without a line end; `data` is the record's own JSON."""
    return [
        f'{{"record_id":{_text(record.record_id)},"source":{_text(record.source)},'
        f'"timestamp_us":{record.timestamp_us},"data":{record.data}}}'
        for record in records
    ]


_series = Names(lambda sensor, metric: f'"sensor_id":{_text(sensor)},"metric_name":{_text(metric)}')


def _all_finite(numbers: Sequence[Any]) -> bool:
    """Return whether there are only finite floats; False is also possible if their sum overflows."""
    try:
        return isfinite(sum(numbers, 0.0)) and type(numbers[0] if numbers else 0.0) is float
    except TypeError:  # a None
        return False


def _value(number: float | None, text: str | None) -> str:
    if text is not None:
        return _text(text)
    if number is None or number != number:  # a store of the legacy program may contain NaN
        return "null"
    number = float(number)
    return repr(number) if isfinite(number) else "1e999" if number > 0 else "-1e999"


def _end(quality: int | None, metadata: str | None) -> str:
    return f'"quality":{"null" if quality is None else quality},"metadata":{_metadata(metadata)}}}'


def _metadata(metadata: str | None) -> str:
    if metadata is None:
        return "null"
    return _short_metadata(metadata) if len(metadata) <= _CACHED_CHARS else _canonical(metadata)


def _canonical(metadata: str) -> str:
    """Return stored metadata unchanged if it is canonical JSON; that of the legacy program may be any text."""
    try:
        parsed = json.loads(metadata)
        if metadata_json(parsed) == metadata:
            return metadata
        if isinstance(parsed, dict):
            return json.dumps(
                parsed, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
            )
    except (ValueError, RecursionError):
        pass
    return _text(metadata)


_short_metadata = lru_cache(_CACHED_METADATA)(_canonical)
