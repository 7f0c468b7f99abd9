"""`Store.ingest`: reads text files, by path, into an open store."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo import InvalidFile, Store


def test_a_file_is_ingested_by_its_path(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "readings.csv"
    file.write_text("sensor_id,metric_name,timestamp,value\na,m,2026-01-01T00:00:00Z,1.5\na,m,not a time,2\n")

    report = store.ingest(file)

    assert (report.points, report.rejected, report.no_reading) == (1, 1, 0)
    assert [row["value"] for row in store.points.range("a", "m")] == [1.5]


def test_several_files_give_a_report_each(store: Store, tmp_path: Path) -> None:
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for number, file in enumerate(files):
        file.write_text(f"sensor_id,metric_name,timestamp,value\na,m,2026-01-0{number + 1},{number}\n")

    assert [file.points for file in store.ingest(files).files] == [1, 1]


def test_a_strict_ingest_writes_nothing_if_anything_is_rejected(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "readings.csv"
    file.write_text("sensor_id,metric_name,timestamp,value\na,m,2026-01-01,1\na,m,not a time,2\n")

    report = store.ingest(file, strict=True)

    assert (report.points, report.rejected) == (0, 1)
    assert store.points.range("a", "m").all() == []


def test_a_missing_file_is_a_typed_error_that_names_it(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"nowhere\.csv"):
        store.ingest(tmp_path / "nowhere.csv")
