"""Rows of points: the named row, the dicts that callers get, and the conversion between them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from repo.engines.base import columns_of
from repo.inputs.batch import Batch
from repo.inputs.times import to_datetimes

__all__ = [
    "PointDict",
    "Row",
    "dicts_of_rows",
    "parsed_metadata",
    "point_dicts",
    "rows_of",
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


def point_dicts(
    columns: Sequence[Sequence[Any]], series: tuple[str, str] | None = None, *, with_seq: bool = False
) -> list[PointDict]:
    """Convert columns of stored points to the dicts that an application receives.

    They are all columns of the table or, if all points are of one `series`, those of a reading.
    """
    size = len(columns[0])
    if series is not None:
        columns = [[name] * size for name in series] + [*columns]
    sensors, metrics, times_us, values, texts, qualities, metadata, *seqs = columns
    if not _all_missing(texts):
        values = [value if text is None else text for value, text in zip(values, texts, strict=True)]
    if not _all_missing(metadata):
        metadata = [None if text is None else parsed_metadata(text) for text in metadata]
    dicts = [
        {
            "sensor_id": sensor_id,
            "metric_name": metric_name,
            "timestamp": moment,
            "timestamp_us": timestamp_us,
            "value": value,
            "quality": quality,
            "metadata": about,
        }
        for sensor_id, metric_name, moment, timestamp_us, value, quality, about in zip(
            sensors, metrics, to_datetimes(times_us), times_us, values, qualities, metadata, strict=True
        )
    ]
    if with_seq:
        for point, seq in zip(dicts, seqs[0], strict=True):
            point["seq"] = seq
    return dicts


def dicts_of_rows(rows: Sequence[Sequence[Any]]) -> list[PointDict]:
    """Convert stored points, given as rows, as `point_dicts` does."""
    return point_dicts(columns_of(rows, len(Row._fields)))


def _all_missing(column: Sequence[Any]) -> bool:
    return column.count(None) == len(column)


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
    seq: int
