"""Every file that the legacy program left, upgraded in place as a store, against what its own version read in it."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import OfflineBufferManager, Settings, Store
from repo.clock import system_clock
from repo.engines.registry import LEGACY, companions_of
from repo.errors import StoreCorrupt
from repo.files import StoreFiles
from repo.repositories.records import data_text
from repo.schema.upgrade import migrate_store
from repo.schema.version import HEAD
from tests.assets.unpack import expected
from tests.migrations.checksums import checksum
from tests.migrations.legacy_store import make_legacy_store

pytestmark = pytest.mark.duckdb

STORE = Path(__file__).resolve().parents[3] / "shared" / "data" / "legacy_store"
"""A large store that the legacy program itself wrote, where there is one beside the checkout."""

QUIET = Settings(background=False)
POINTS = "SELECT timestamp_us, sensor_id, metric_name, value, quality, metadata FROM time_series_data"
NOTES = "SELECT key, value, updated_at FROM storage_metadata WHERE key NOT LIKE 'holdfast.%'"
RECORDS = (
    "SELECT id, record_id, source, data, timestamp, retry_count, last_retry, created_at FROM buffered_records"
)
METADATA = "SELECT key, value FROM buffer_metadata"


def in_columns(folder: Path, query: str) -> list[Any]:
    files = StoreFiles.of(folder)
    backend = LEGACY.open(files.duckdb, files.scratch, Settings(), system_clock)
    engine = backend.open()
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]
    finally:
        backend.close(engine)


def in_metadata(folder: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(folder / "offline_buffer.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def digest(folder: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.is_file() and file.suffix not in (".lock", ".checkpoint")
    }


@pytest.fixture
def store(tmp_path: Path, sample: Callable[[str], Path]) -> Callable[[str, str | None], Path]:
    """Put samples of both kinds together to a store of the legacy program."""

    def _put(records: str, points: str | None) -> Path:
        folder = tmp_path / "store"
        folder.mkdir()
        for name, own in ((records, "offline_buffer.db"), (points, "timeseries.duckdb")):
            if name is None:
                continue
            file = sample(name)
            for part in (file, *companions_of(file)):
                if part.exists():
                    part.rename(folder / (own + part.name.removeprefix(name)))
        return folder

    return _put


def as_stored(points: list[Any]) -> list[Any]:
    """The one thing that the schema changed: NaN is no reading, and NULL."""
    return [(*row[:3], None if row[3] != row[3] else row[3], *row[4:]) for row in points]


@pytest.mark.parametrize("records", ["offline_buffer.db", "offline_buffer_wal.db", "offline_buffer_odd.db"])
def test_the_clean_points_and_each_kind_of_records_reach_the_head_with_every_bit(
    records: str, store: Callable[[str, str | None], Path]
) -> None:
    folder = store(records, "timeseries.duckdb")
    rows, points = expected(records), expected("timeseries.duckdb")
    legacy = in_columns(folder, POINTS)
    assert checksum(legacy) == points["time_series_data"]
    done = migrate_store(folder)
    assert [(one.before, one.after) for one in done.databases] == [(None, HEAD), (None, HEAD)]
    assert done.nan_points == points["special_values"]["nan"]
    assert (done.records_restored, done.records_without_original, done.records_waiting) == (0, 0, 0)
    upgraded = in_columns(folder, POINTS)
    assert checksum(upgraded) == checksum(as_stored(legacy))
    missing = points["special_values"]["nan"] + points["special_values"]["null"]
    assert sum(row[3] is None for row in upgraded) == missing
    for sign, name in ((math.inf, "pos_inf"), (-math.inf, "neg_inf")):
        assert sum(row[3] == sign for row in upgraded) == points["special_values"][name]
    assert checksum(in_columns(folder, NOTES)) == points["storage_metadata"]
    assert checksum(in_metadata(folder, RECORDS)) == rows["buffered_records"]
    assert checksum(in_metadata(folder, METADATA)) == rows["buffer_metadata"]
    assert in_metadata(folder, "SELECT seq FROM sqlite_sequence") == [(rows["sqlite_sequence"],)]
    with Store(folder, QUIET) as opened:
        assert opened.records.count() == rows["buffered_records"]["rows"]
        opened.records.add("the next one", "gw", {"note": 1})
    [(newest,)] = in_metadata(folder, "SELECT id FROM buffered_records WHERE record_id = 'the next one'")
    assert newest == rows["sqlite_sequence"] + 1


@pytest.mark.parametrize(
    "points",
    ["timeseries_never_checkpointed.duckdb", "timeseries_empty.duckdb", "timeseries_wal.duckdb"],
)
def test_a_file_that_this_duckdb_would_destroy_is_refused_with_a_recipe_and_every_byte_stays(
    points: str, store: Callable[[str, str | None], Path]
) -> None:
    folder = store("offline_buffer.db", points)
    before = digest(folder)
    for call in (
        lambda: migrate_store(folder),
        lambda: migrate_store(folder, check=True),
        lambda: Store(folder),
    ):
        with pytest.raises(StoreCorrupt, match=r"0\.9\.2"):
            call()
        assert digest(folder) == before


@pytest.mark.parametrize("way", ["migrate", "open"])
def test_every_record_of_a_whole_legacy_store_comes_back_as_it_was_given(tmp_path: Path, way: str) -> None:
    if not STORE.exists():
        pytest.skip(f"the legacy store is missing: {STORE}")
    folder = tmp_path / "store"
    folder.mkdir()
    for name in ("offline_buffer.db", "timeseries.duckdb"):
        shutil.copyfile(STORE / name, folder / name)
    given = json.loads((STORE / "expected.json").read_text())
    points = in_columns(folder, POINTS)
    rows = in_metadata(folder, RECORDS)
    is_pointer = {row[1] for row in rows if row[3].startswith('{"storage": "duckdb"')}
    if way == "migrate":
        done = migrate_store(folder)
        assert (done.records_restored, done.records_without_original) == (len(is_pointer), 0) == (1112, 0)
    buffer = OfflineBufferManager(folder, cleanup_interval=1e6)
    try:
        pending = buffer.get_pending_records(limit=10_000)
        stats = buffer.get_buffer_stats()
    finally:
        buffer.shutdown()
    assert [record["record_id"] for record in pending] == given["pending_ids"]
    assert len(pending) == 1384 == stats["total_records"]
    wanted = {record["record_id"]: record for record in given["records"] if not record.get("sent")}
    assert wanted.keys() == {record["record_id"] for record in pending}
    for record in pending:
        want = wanted[record["record_id"]]
        assert json.dumps(record["data"]) == json.dumps(want["data"])
        assert (record["source"], record["timestamp"]) == (want["source"], want["timestamp"])
        assert record["retry_count"] == given["retry"].get(record["record_id"], 0)
    after = in_metadata(folder, RECORDS)
    assert [(*row[:3], *row[4:]) for row in after] == [(*row[:3], *row[4:]) for row in rows]
    for old, new in zip(rows, after, strict=True):
        assert new[3] == (data_text(wanted[old[1]]["data"]) if old[1] in is_pointer else old[3])
    assert in_metadata(folder, METADATA) == []
    assert checksum(in_columns(folder, POINTS)) == checksum(as_stored(points))
    count, total, first_us, last_us, series = given["points"]
    assert in_columns(
        folder,
        "SELECT count(*), min(timestamp_us), max(timestamp_us), count(DISTINCT (sensor_id, metric_name)) "
        "FROM time_series_data",
    ) == [(count, first_us, last_us, series)]
    assert math.isclose(in_columns(folder, "SELECT sum(value) FROM time_series_data")[0][0], total)
    with Store(folder, QUIET) as store:
        store.records.add("the next one", "gw", {"note": 1})
    assert in_metadata(folder, "SELECT max(id) FROM buffered_records") == [(1501,)]


def test_the_schema_of_an_adopted_store_is_that_of_a_new_one(tmp_path: Path) -> None:
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 1, 2"
    columns = "SELECT table_name, column_name, data_type, is_nullable, column_default FROM duckdb_columns() "
    columns += "WHERE database_name = current_database() AND NOT internal ORDER BY 1, 2"
    found = []
    for name in ("new", "adopted"):
        if name == "adopted":
            make_legacy_store(tmp_path / name, 100, records=3)
        with Store(tmp_path / name, QUIET) as store:
            store.points.insert("s", "m", 1.0)
            store.flush()
        texts = [
            (*row[:3], row[3] and " ".join(row[3].split())) for row in in_metadata(tmp_path / name, query)
        ]
        shape = in_metadata(
            tmp_path / name,
            "SELECT m.name, p.name, p.type, p.[notnull], p.dflt_value, p.pk FROM sqlite_master AS m, "
            "pragma_table_info(m.name) AS p WHERE m.type = 'table' AND m.name <> 'sqlite_sequence' ORDER BY 1, p.cid",
        )
        indexes = [row[:3] for row in texts if row[0] == "index"]
        found.append((shape, indexes, in_columns(tmp_path / name, columns)))
        assert in_columns(tmp_path / name, "SELECT index_name FROM duckdb_indexes()") == []
    assert found[0] == found[1]
