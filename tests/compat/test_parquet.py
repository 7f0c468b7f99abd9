"""Parquet through `DuckDBTimeSeriesStorage`: bounds, any path, duplicates, and columns in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repo import DuckDBTimeSeriesStorage, HoldfastError


def fill(storage: DuckDBTimeSeriesStorage) -> None:
    for sensor in ("S", "T"):
        storage.insert_batch([(sensor, "m", 100.0 + n, float(n)) for n in range(5)])


@pytest.mark.slow_on("duckdb")
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        *(("duckdb", name) for name in ("p.parquet", "it's.parquet", 'say "x" [*].parquet')),
        ("sqlite", 'say "x" [*].parquet'),
    ],
)
def test_exported_points_can_be_imported_from_any_path(make_storage: Any, tmp_path: Path, name: str) -> None:
    storage, other = make_storage("a.duckdb"), make_storage("b.duckdb")
    fill(storage)
    assert storage.export_to_parquet(tmp_path / name, "S", 101, 103) is True
    assert pq.read_table(tmp_path / name).num_rows == 3, "bounds are inclusive"
    assert other.import_from_parquet(tmp_path / name) == 3
    assert [row["value"] for row in other.query_time_range("S", "m", 0, 200)] == [1.0, 2.0, 3.0]
    assert storage.export_to_parquet(tmp_path / name) is True
    assert other.import_from_parquet(tmp_path / name) == 10, "those that were stored count, and do no harm"
    assert other.import_from_parquet(tmp_path / name) == 10
    assert other.get_storage_stats()["total_records"] == 10


def test_columns_are_found_by_name_and_a_duplicate_aborts_nothing(
    storage: DuckDBTimeSeriesStorage, tmp_path: Path
) -> None:
    table = pa.table(
        {
            "value": [1.0, 2.0, 3.0],
            "metric_name": ["m", "m", "m"],
            "timestamp_us": [1_000_000, 2_000_000, 2_000_000],
            "sensor_id": ["S", "S", "S"],
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    assert storage.import_from_parquet(tmp_path / "p.parquet") == 3
    assert [row["value"] for row in storage.query_time_range("S", "m", 0, 10)] == [1.0, 3.0]


def test_a_file_that_cannot_be_read_is_an_error(storage: DuckDBTimeSeriesStorage, tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"no parquet")
    for path in (tmp_path / "p.parquet", tmp_path / "nothing.parquet"):
        with pytest.raises(HoldfastError):
            storage.import_from_parquet(path)
