"""Rows of points: the named row, the dicts that callers get, and the conversion between them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from repo.times import to_datetimes
from repo.values import Batch

__all__ = [
    "PointDict",
    "Row",
    "parsed_metadata",
    "point_dicts",
    "range_dicts",
    "rows_of",
    "seq_dicts",
]

PointDict = dict[str, Any]
"""Keys: sensor_id, metric_name, timestamp (aware UTC datetime), timestamp_us, value (number, text or None),
quality, metadata (dict or None)."""


def rows_of(batch: Batch, seqs: Iterable[int]) -> Iterator[Row]:
    """Yield the rows of a batch as they are stored, with these seqs.

    They are plain tuples in the order of `Row`: creating named tuples would cost more than everything else.
    """
    sensors = [sensor for sensor, _ in batch.series]
    metrics = [metric for _, metric in batch.series]
    texts, metadata = batch.texts, batch.metadata
    rows = range(len(batch))
    columns = zip(
        map(sensors.__getitem__, batch.codes),
        map(metrics.__getitem__, batch.codes),
        batch.timestamps_us,
        [None if value != value else value for value in batch.values],
        map(texts.get, rows) if texts else [None] * len(batch),
        [batch.qualities] * len(batch) if isinstance(batch.qualities, int) else batch.qualities,
        map(metadata.get, rows) if metadata else [None] * len(batch),
        seqs,
        strict=True,
    )
    return cast("Iterator[Row]", columns)


def point_dicts(rows: Sequence[Sequence[Any]]) -> list[PointDict]:
    """Convert stored rows, with all columns of the table, to the dicts that an application receives."""
    moments = to_datetimes([row[2] for row in rows])
    return [
        {
            "sensor_id": sensor_id,
            "metric_name": metric_name,
            "timestamp": moment,
            "timestamp_us": timestamp_us,
            "value": value if text is None else text,
            "quality": quality,
            "metadata": None if metadata is None else parsed_metadata(metadata),
        }
        for (sensor_id, metric_name, timestamp_us, value, text, quality, metadata, _), moment in zip(
            rows, moments, strict=True
        )
    ]


def range_dicts(rows: Sequence[Sequence[Any]], series: tuple[str, str] | None) -> list[PointDict]:
    """Return the rows of a range as dicts for applications; the rows of one `series` lack names and seq."""
    if series is None:
        return point_dicts(rows)
    sensor_id, metric_name = series
    moments = to_datetimes([row[0] for row in rows])
    return [
        {
            "sensor_id": sensor_id,
            "metric_name": metric_name,
            "timestamp": moment,
            "timestamp_us": timestamp_us,
            "value": value if text is None else text,
            "quality": quality,
            "metadata": None if metadata is None else parsed_metadata(metadata),
        }
        for (timestamp_us, value, text, quality, metadata), moment in zip(rows, moments, strict=True)
    ]


def seq_dicts(rows: Sequence[Sequence[Any]]) -> list[PointDict]:
    """Return rows as dicts for applications, each with its seq."""
    points = point_dicts(rows)
    for point, row in zip(points, rows, strict=True):
        point["seq"] = row[7]
    return points


def parsed_metadata(metadata: str) -> Any:
    """Return the metadata of a stored row as it was written."""
    try:
        return json.loads(metadata)
    except ValueError:
        return metadata  # legacy rows may hold any text


class Row(NamedTuple):
    """One stored point, in the order of the table's columns."""

    sensor_id: str
    metric_name: str
    timestamp_us: int
    value: float | None
    value_text: str | None
    quality: int | None
    metadata: str | None
    seq: int | None
