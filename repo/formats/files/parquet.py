"""Parquet files of points: their content.

The format, version 1: one row per point, in slices of time. A slice is ordered by sensor, metric and time, so that
readers can skip by time and by series. Compressed with zstd, Parquet 2 encodings.

| column | type | |
|---|---|---|
| sensor_id, metric_name | string | |
| timestamp | timestamp[us, UTC] | exact; as an integer, the microseconds since 1970 |
| value | double | null: no reading, or a text |
| value_text | string | null: no reading, or a number |
| quality | int32 | |
| metadata | string | a JSON object, or null |
| seq | int64 | the store's number for the write |

The file's key-value metadata has `holdfast`, a JSON object with `format` (1) and `store` (the store's id). The checksum
of `NAME.parquet` is in `NAME.parquet.sha256`, as `sha256sum` writes it; in a bundle it is in the manifest.
"""

from __future__ import annotations

import json

__all__ = ["COMPRESSIONS", "FORMAT", "ROW_GROUP_ROWS", "note_of"]

FORMAT = 1

COMPRESSIONS = ("zstd", "none")

ROW_GROUP_ROWS = 122_880
"""Rows per row group, fewer if their texts are long: about 400 KB in the file, 10 MB in memory."""


def note_of(store_id: str) -> str:
    """Return the note that a file has on its origin."""
    return json.dumps({"format": FORMAT, "store": store_id})
