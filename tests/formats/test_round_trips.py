"""Round trips of data that was really measured: out, and into an empty store of either engine, every row equal."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repo import Settings, Store
from tests.assets.unpack import LEGACY, unpack
from tests.conftest import ENGINES, OpenStore

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROWS = (
    "SELECT sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata FROM time_series_data "
    "ORDER BY sensor_id, metric_name, timestamp_us"
)
BATCH = 50_000

Row = tuple[str, str, float, float | None]


def need(name: str) -> Path:
    """Return a file of the data that lies beside the checkout, where it does."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the data for tests is not beside the checkout: {path}")
    return path


def lines_of(name: str) -> Iterator[dict[str, str]]:
    with gzip.open(need(name), "rt") as file:
        yield from csv.DictReader(file)


def machine() -> Iterator[Row]:
    for line in lines_of("machine_temperature.csv.gz"):
        at = datetime.fromisoformat(line["timestamp"]).replace(tzinfo=UTC)
        yield "machine", "temperature", at.timestamp(), float(line["value"])


def household(every: int) -> Iterator[Row]:
    """Seven metrics a minute; a missing reading is a point without one."""
    for number, line in enumerate(lines_of("household_power_2007H1.csv.gz")):
        if number % every == 0:
            day, month, year = map(int, line["Date"].split("/"))
            hour, minute, _ = map(int, line["Time"].split(":"))
            at = datetime(2000 + year % 100, month, day, hour, minute, tzinfo=UTC)
            for metric, text in list(line.items())[3:]:
                yield "house", metric, at.timestamp(), None if text in ("?", "") else float(text)


def fill(store: Store, rows: Iterator[Row]) -> None:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            store.points.insert_many(batch)
            batch = []
    store.points.insert_many(batch)


def rows_of(store: Store) -> list[tuple[Any, ...]]:
    """Return all rows; metadata by what it says, for the legacy program wrote its JSON in another form."""
    return [
        (*row[:6], None if row[6] is None else json.loads(row[6]))
        for row in (tuple(found.values()) for found in store.sql(ROWS))
    ]


def comes_back(source: Store, tmp_path: Path, partition: Any) -> int:
    """Export, and import into an empty store of each engine; returns how many rows there were, all of them equal."""
    rows = rows_of(source)
    done = source.export_parquet(tmp_path / "out", partition=partition)
    assert done.points == len(rows)
    for engine in ENGINES:
        settings: dict[str, Any] = {"engine": engine, "background": False}
        with Store(tmp_path / f"target-{engine}", Settings(**settings)) as target:
            back = target.import_parquet(tmp_path / "out")
            assert (back.stored, back.verified) == (len(rows), done.files)
            assert rows_of(target) == rows
            assert target.import_parquet(tmp_path / "out").present == len(rows)
    return len(rows)


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize(("partition", "most"), [(None, 4_000), ("day", 1_000)])
def test_a_machine_comes_back(open_store: OpenStore, tmp_path: Path, partition: Any, most: int) -> None:
    source = open_store()
    fill(source, islice(machine(), most))
    assert (
        comes_back(source, tmp_path, partition) > most * 0.99
    )  # a clock that was set back has given some twice


@pytest.mark.parametrize("every", [480, pytest.param(1, marks=pytest.mark.slow)])
def test_half_a_year_of_a_household_comes_back(open_store: OpenStore, tmp_path: Path, every: int) -> None:
    source = open_store()
    fill(source, household(every))
    assert comes_back(source, tmp_path, None) == -(-260_640 // every) * 7


@pytest.mark.duckdb
@pytest.mark.parametrize("engine", ["duckdb"])
@pytest.mark.parametrize("partition", ["day", pytest.param(None, marks=pytest.mark.slow)])
def test_whatever_the_legacy_program_took_goes_out_and_what_is_a_point_comes_back(
    open_store: OpenStore, tmp_path: Path, partition: Any
) -> None:
    folder = tmp_path / "legacy"
    folder.mkdir()
    for name in ("offline_buffer.db", "timeseries.duckdb"):
        unpack(LEGACY / name, folder / name)
    source, target = open_store("legacy"), open_store("target")
    rows = {tuple(row.values())[:3]: tuple(row.values())[3:] for row in source.sql(ROWS)}
    done = source.export_parquet(tmp_path / "out", partition=partition)
    assert done.points == len(rows) == 2000
    files = [tmp_path / "out"] if partition is None else (tmp_path / "out").rglob("*.parquet")
    out: dict[Any, Any] = {}
    for file in files:
        table = pq.read_table(file, partitioning=None)
        table = table.set_column(2, "timestamp", table["timestamp"].cast(pa.int64()))
        columns = [column.to_pylist() for column in table.columns[:7]]
        out |= {row[:3]: row[3:] for row in zip(*columns, strict=True)}
    # Arrow's earliest time is one later than a 64-bit integer's.
    assert out == {(s, m, max(at, 1 - 2**63)): row for (s, m, at), row in rows.items()}
    back = target.import_parquet(tmp_path / "out")
    assert back.stored + back.refused + back.duplicates == len(rows)
    found = {tuple(row.values())[:3]: tuple(row.values())[3:] for row in target.sql(ROWS)}
    assert len(found) == back.stored > 1800
    assert all(rows[identity][:2] == row[:2] for identity, row in found.items())


@pytest.mark.duckdb
@pytest.mark.parametrize("engine", ["duckdb"])
def test_a_whole_store_of_the_legacy_program_comes_back(open_store: OpenStore, tmp_path: Path) -> None:
    folder = tmp_path / "legacy"
    folder.mkdir()
    for name in ("offline_buffer.db", "timeseries.duckdb"):
        shutil.copy(need(f"legacy_store/{name}"), folder)
    assert comes_back(open_store("legacy"), tmp_path, "day") > 0
