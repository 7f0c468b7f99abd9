"""An upgrade by hand: the file is copied and synced, then plain SQL rewrites the points without their key.

Run as a process of its own: `python duckdb_by_hand.py FILE`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import duckdb

__all__ = ["CONFIG", "upgrade"]

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,  # as in the store; the machine has no more
    "memory_limit": "64MB",  # the store's default
}

_STATEMENTS = """
BEGIN;
CREATE TABLE points AS
    SELECT sensor_id, metric_name, timestamp_us, CASE WHEN isnan(value) THEN NULL ELSE value END AS value,
        NULL::VARCHAR AS value_text, quality, metadata, NULL::BIGINT AS seq
    FROM time_series_data;
DROP TABLE time_series_data;
ALTER TABLE points RENAME TO time_series_data;
COMMIT;
CHECKPOINT;
"""


def upgrade(path: Path) -> None:
    """Make a durable copy of the file beside it, and rebuild its table."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    with copy.open("rb") as written:
        os.fsync(written.fileno())
    connection = duckdb.connect(str(path), config=CONFIG)
    connection.execute(_STATEMENTS)
    connection.close()


if __name__ == "__main__":
    upgrade(Path(sys.argv[1]))
