"""The body of holdfast-2: points as packed blocks of columns, as in the journal (`repo.core.codec`); records as JSON.

Reading checks the structure only. The values come from another store, perhaps of a newer version, and are checked as
those of any caller.
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from math import isfinite, nan
from typing import Any, Final

from repo.core.codec import BLOCK_POINTS, pack, unpack
from repo.delivery.protocol import Columns, RecordItem
from repo.errors import StoreCorrupt
from repo.inputs.batch import KIND_NUMBER, KIND_TEXT, Batch
from repo.inputs.fields import DEFAULT_QUALITY

__all__ = ["FORMAT", "pack_points", "pack_records", "unpack_points", "unpack_records"]

FORMAT: Final = "holdfast-2"
"""The name of the protocol, in every request and answer."""


def pack_points(columns: Columns) -> bytes:
    """Return the packed form of points; their seqs are not in it."""
    rows = len(columns[0])
    steps = range(0, rows, BLOCK_POINTS)
    return b"".join(pack(_block([column[at : at + BLOCK_POINTS] for column in columns])) for at in steps)


def unpack_points(body: bytes) -> dict[str, list[Any]]:
    """Return the points as columns for `check_columns`, unchecked; raises `ValueError` if the body has another form."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("sensor_id", "metric_name", "timestamp_us", "value", "quality", "metadata")
    }
    try:
        for block in unpack(body):
            _add_block(block, columns)
    except (StoreCorrupt, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"the body is not packed points: {error}") from error
    if columns["metadata"].count(None) == len(columns["metadata"]):
        del columns["metadata"]  # or each missing one would be checked
    return columns


def pack_records(records: Sequence[RecordItem]) -> bytes:
    """Return records as a JSON list of [record_id, source, data, timestamp_us]; `data` is JSON text."""
    return json.dumps(records, ensure_ascii=False, separators=(",", ":")).encode()


def unpack_records(body: bytes) -> list[list[Any]]:
    """Return the records, unchecked; raises `ValueError` if the body is not such a list."""
    try:
        records = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(records, list) or not all(
        isinstance(item, list) and len(item) == 4 for item in records
    ):
        raise ValueError("the body is not a list of records")
    return records


def _block(columns: Columns) -> Batch:
    sensors, metrics, times, values, texts, qualities, metadata, _ = columns
    code_of: defaultdict[tuple[str, str], int] = defaultdict(count().__next__)
    codes = array("I", map(code_of.__getitem__, zip(sensors, metrics, strict=True)))
    text_rows = _present(texts)
    textual = {codes[row] for row in text_rows}
    return Batch(
        series=list(code_of),
        # For information only: the receiver decides the kinds by the values.
        kinds=[KIND_TEXT if code in textual else KIND_NUMBER for code in range(len(code_of))],
        codes=codes,
        timestamps_us=array("q", times),
        values=array("d", _filled(values, nan)),
        texts=text_rows,
        qualities=_qualities(qualities),
        metadata=_present(metadata),
    )


def _present(column: Sequence[str | None]) -> dict[int, str]:
    """Return the texts of a column that are not missing, by row."""
    if column.count(None) == len(column):
        return {}
    return {row: text for row, text in enumerate(column) if text is not None}


def _filled(column: Sequence[Any], missing: Any) -> Sequence[Any]:
    if isinstance(column, array):  # it has no None
        return column
    return [missing if value is None else value for value in column]


def _qualities(column: Sequence[int | None]) -> int | array[int]:
    known = array("i", _filled(column, DEFAULT_QUALITY))
    first = known[0]
    return first if known.count(first) == len(known) else known


def _add_block(block: Batch, columns: dict[str, list[Any]]) -> None:
    rows = len(block)
    if len(block.timestamps_us) != rows or len(block.values) != rows:
        raise ValueError("its columns differ in length")
    values: list[Any] = block.values.tolist()
    if not isfinite(sum(values)):
        values = [None if value != value else value for value in values]
    for row, text in block.texts.items():
        values[_row(row, rows)] = text
    metadata: list[Any] = [None] * rows
    for row, text in block.metadata.items():
        metadata[_row(row, rows)] = _parsed(text)
    sensors, metrics = zip(*block.series, strict=True) if block.series else ((), ())
    columns["sensor_id"].extend(map(sensors.__getitem__, block.codes))
    columns["metric_name"].extend(map(metrics.__getitem__, block.codes))
    columns["timestamp_us"].extend(block.timestamps_us)
    columns["value"].extend(values)
    qualities = block.qualities
    columns["quality"].extend([qualities] * rows if isinstance(qualities, int) else qualities)
    columns["metadata"].extend(metadata)


def _row(row: int, rows: int) -> int:
    if not 0 <= row < rows:
        raise ValueError(f"there is no row {row}")
    return row


def _parsed(text: Any) -> Any:
    """Return metadata as a dict; text that is not JSON stays as it is, so its point is refused."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text
