"""`Store.ingest`: reads text files, by path, into an open store."""

from __future__ import annotations

import inspect
import io
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from repo import HoldfastError, InvalidFile, Store

pytestmark = pytest.mark.shared_stores


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


def test_the_options_of_the_command_are_keyword_arguments(store: Store, tmp_path: Path) -> None:
    text = "Logger 7\nZeit;Druck;Ventil;Pegel\n;bar;;cm\n28.10.2026 24:00;1.234,5;on;-9999,00\n# end\n"
    report = store.ingest(
        io.BytesIO(text.encode("utf-16")),
        encoding="utf-16",
        sensor="S",
        columns={"pressure": "#2"},
        only=["Ventil", "Pegel"],
        on_off=True,
        missing=-9999,
        time_column="Zeit",
        time_format="%d.%m.%Y %H:%M",
        zone="-01:00",
        header=2,
        skip=1,
        comment="#",
        delimiter=";",
        decimal=",",
        thousands=".",
    )
    assert (report.points, report.no_reading, report.rejected) == (2, 1, 0)
    assert [
        (row["metric_name"], row["timestamp"].isoformat(), row["value"])
        for row in store.points.range("S", None)
    ] == [
        ("Ventil", "2026-10-29T01:00:00+00:00", 1.0),
        ("pressure", "2026-10-29T01:00:00+00:00", 1234.5),
    ]


@pytest.mark.parametrize(
    "files",
    [5, [5], "a\0b", "x" * 5000, io.StringIO("timestamp,p\n")],
    ids=["a number", "a list of a number", "a name with NUL", "a long name", "a stream"],
)
def test_anything_but_a_file_is_a_typed_error(unwritten: Store, files: Any) -> None:
    with pytest.raises(InvalidFile):
        unwritten.ingest(files)


WRONG = [
    None,
    5,
    -1,
    2**70,
    1.5,
    True,
    b"x",
    [1],
    [None],
    {},
    {1: 2},
    object(),
    "\ud800",
    "#0",
    "\0",
    "x" * 300,
]


@pytest.mark.slow_on("duckdb")
def test_an_option_of_a_wrong_type_or_value_is_a_typed_error(
    unwritten: Store, tmp_path: Path, seed: int
) -> None:
    """Each value with one form of file, by the seed."""
    (tmp_path / "a.csv").write_text("timestamp,p\nyesterday,1\n")
    (tmp_path / "a.ndjson").write_text('{"timestamp":"yesterday","p":1}\n')
    options = set(inspect.signature(unwritten.ingest).parameters) - {"files"}
    refused = 0
    for name, (number, value) in product(options, enumerate(WRONG)):
        wrong: dict[str, Any] = {"sensor": "S", name: value}
        try:
            unwritten.ingest(tmp_path / ("a.csv", "a.ndjson")[(number + seed) % 2], **wrong)
        except HoldfastError:
            refused += 1
    assert refused > len(options) * len(WRONG) // 2
