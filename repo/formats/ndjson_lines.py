"""NDJSON lines of points: their content, and the conversion in both directions. Never opens a file.

The format: one JSON object per line, in UTF-8, each followed by a line end. Keys may be in any order:

| key | JSON | |
|---|---|---|
| sensor_id, metric_name | text | |
| timestamp_us | integer | microseconds since 1970, UTC |
| value | number, text or null | null: no reading; "Infinity" and "-Infinity", which cannot be states, are numbers |
| quality | integer | 100 if absent |
| metadata | object | absent if there is none |
| seq | integer | the store's number for the write; ignored when read |

A number has as many digits as are needed to restore the same 64 bits. Exports write these lines, gzipped, in the order
of Parquet (`repo.formats.files.parquet`), as `NAME.ndjson.gz` with a checksum in `NAME.ndjson.gz.sha256`. Imports
accept only these. `holdfast ingest` also reads other NDJSON (`repo.formats.text.ndjson`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import inf, isfinite
from typing import Any

from repo.inputs.fields import DEFAULT_QUALITY, QUALITY_RANGE, described, metadata_json
from repo.inputs.times import Unfit

__all__ = ["INFINITE", "StoredRow", "lines_of", "stored_row"]

INFINITE = {"Infinity": inf, "-Infinity": -inf}

StoredRow = tuple[str, str, int, float | None, str | None, int, str | None]
"""A stored point without seq: sensor, metric, µs, number, text, quality, metadata as JSON."""

_text = json.JSONEncoder(ensure_ascii=False).encode
_LARGEST_INT = 2**63 - 1
_CACHED = 4_096
_CACHED_CHARS = 256


def lines_of(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the line of each point. The columns are those of the table `time_series_data`, seq last."""
    for sensor, metric, us, number, text, quality, metadata, seq in rows:
        if number is None or number != number:  # a store of the legacy program may contain NaN
            value = "null" if text is None else _text(text)
        else:
            value = repr(number) if isfinite(number) else '"Infinity"' if number > 0 else '"-Infinity"'
        rest = "" if quality is None else f',"quality":{quality}'
        if metadata is not None:
            short = len(metadata) <= _CACHED_CHARS
            rest += f',"metadata":{_cached_json(metadata) if short else _json(metadata)}'
        yield f'{{{_series(sensor, metric)},"timestamp_us":{us},"value":{value}{rest},"seq":{seq}}}\n'


@lru_cache(_CACHED)
def _series(sensor: str, metric: str) -> str:
    return f'"sensor_id":{_text(sensor)},"metric_name":{_text(metric)}'


def _json(metadata: str) -> str:
    """Return stored metadata unchanged if it is JSON; metadata of the legacy program may be any text."""
    try:
        parsed = json.loads(metadata)
        if metadata_json(parsed) == metadata:
            return metadata
        if isinstance(parsed, dict):
            return json.dumps(parsed, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        pass
    return _text(metadata)


_cached_json = lru_cache(_CACHED)(_json)


def stored_row(found: dict[str, Any]) -> StoredRow:
    """Return the point of an object; raises `Unfit`, naming the key, if it is not in this format.

    Only types are checked: a time may be out of range, a text too long.
    """
    sensor, metric = found.get("sensor_id"), found.get("metric_name")
    if type(sensor) is not str or type(metric) is not str:
        raise _unfit(found, "sensor_id" if type(sensor) is not str else "metric_name", "a text")
    us = found.get("timestamp_us")
    if type(us) is not int or not -_LARGEST_INT <= us <= _LARGEST_INT:
        raise _unfit(found, "timestamp_us", "an integer of 64 bits")
    quality = found.get("quality")
    if quality is None:
        quality = DEFAULT_QUALITY
    if type(quality) is not int or not QUALITY_RANGE[0] <= quality <= QUALITY_RANGE[1]:
        raise _unfit(found, "quality", "an integer of 32 bits")
    metadata = found.get("metadata")
    if metadata is not None:
        metadata = _metadata(metadata)
    if not (sensor.isascii() and metric.isascii()):
        _check_letters(sensor, metric)
    value = found.get("value", found)
    if type(value) is float and not isfinite(value):  # JSON has no infinity: the number was too large
        raise Unfit("value is too large for a 64-bit float")
    if type(value) is float or value is None:
        return sensor, metric, us, value, None, quality, metadata
    if type(value) is str:
        if value in INFINITE:
            return sensor, metric, us, INFINITE[value], None, quality, metadata
        _check_letters(value)
        return sensor, metric, us, None, value, quality, metadata
    if type(value) is int:
        try:
            if (number := float(value)) == value:
                return sensor, metric, us, number, None, quality, metadata
        except OverflowError:
            pass
        raise Unfit("value is an integer that a 64-bit float would round")
    raise _unfit(found, "value", "a number, a text or null")


def _metadata(found: Any) -> str:
    """Return metadata as JSON, even if it cannot be stored, so that it is refused with a reason."""
    if isinstance(found, str):
        _check_letters(found)
        return found
    try:
        text = metadata_json(found)
    except Unfit:
        text = None
    return json.dumps(found) if text is None else text


def _check_letters(*texts: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as fault:
            raise Unfit("contains a lone surrogate, which text cannot") from fault


def _unfit(found: dict[str, Any], key: str, wanted: str) -> Unfit:
    if key not in found:
        return Unfit(f"has no {key}")
    return Unfit(f"{key} is {described(found[key])}; expected {wanted}")
