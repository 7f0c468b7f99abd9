"""The forms of arguments: widths as durations, zones as objects, and paths that can be no store."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from repo import (
    DuckDBTimeSeriesStorage,
    InvalidFile,
    InvalidQuery,
    InvalidSettings,
    OfflineBufferManager,
    Settings,
    Store,
    StoreMissing,
)

pytestmark = pytest.mark.shared_stores

START = datetime(2024, 5, 1, tzinfo=UTC)


def test_a_width_is_a_text_or_seconds_or_a_duration_and_a_zone_a_name_or_an_object(store: Store) -> None:
    store.points.insert_many([("s", "m", START + timedelta(minutes=5 * n), float(n)) for n in range(30)])

    def buckets(**how: Any) -> list[Any]:
        return store.points.aggregate("s", "m", **how) + store.points.states("s", "m", **how)

    wanted = buckets(every="10m")
    for every in (600, 600.0, timedelta(minutes=10)):
        assert buckets(every=every) == wanted
    assert buckets(every="10m", tz=UTC) == wanted
    days = buckets(every="1d", tz="Europe/Oslo")
    assert buckets(every="1d", tz=ZoneInfo("Europe/Oslo")) == days
    [first, *_] = buckets(every="1d", tz=timezone(timedelta(hours=-5)))
    assert first["bucket"].isoformat() == "2024-04-30T00:00:00-05:00"
    for every in (0, -1, 1e-7, 1e300, True, timedelta(0), timedelta.max):
        with pytest.raises(InvalidQuery, match="every"):
            buckets(every=every)
    with pytest.raises(InvalidQuery, match="tz: is of type int; give the name of a time zone"):
        buckets(every="1d", tz=5)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        (":memory:", "TemporaryDirectory"),
        ("sqlite:///some.db", "is a URL"),
        (Path("http://host/store"), "is a URL"),
        ("a\0b", "zero byte"),
        (b"store", "not as bytes|as a text"),
        (None, "a path is expected"),
    ],
)
def test_what_can_be_no_store_is_refused_by_name_and_leaves_nothing(
    path: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for opened in (Store, OfflineBufferManager, DuckDBTimeSeriesStorage):
        with pytest.raises(InvalidSettings, match=reason):
            opened(path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_program_is_refused_and_nothing_is_made_beside_it(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    text = tmp_path / "other" / "notes.txt"
    text.write_text("nothing of ours")
    database = tmp_path / "other" / "app.db"
    database.write_bytes(b"SQLite format 3\0" + bytes(84))
    for create in (True, False):
        with pytest.raises(InvalidFile, match=r"notes\.txt is a file of another program"):
            Store(text, create=create)
        with pytest.raises(
            InvalidFile, match=rf"app\.db is an SQLite database.*folder: {re.escape(str(database.parent))}"
        ):
            Store(database, create=create)
    with pytest.raises(InvalidFile, match="a file of another program"):
        DuckDBTimeSeriesStorage(text)
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"notes.txt", "app.db"}
    with pytest.raises(InvalidFile, match="a file of a store that this process has open"):
        Store(store.files.metadata)


@pytest.mark.duckdb
def test_looking_for_a_store_where_only_columns_are_makes_no_lock_file(tmp_path: Path) -> None:
    import duckdb

    for name in ("timeseries.duckdb", "other.duckdb"):
        duckdb.connect(tmp_path / name).close()
    for path in (tmp_path, tmp_path / "other.duckdb"):
        with pytest.raises(StoreMissing):
            Store(path, Settings(background=False), create=False)
    assert {path.name for path in tmp_path.iterdir()} == {"timeseries.duckdb", "other.duckdb"}


def test_a_switch_given_as_a_text_deletes_nothing(store: Store) -> None:
    store.points.insert("s", "m", 1.0)
    wrongs: list[Any] = ["no", "false", 2, None, []]
    for wrong in wrongs:
        with pytest.raises(InvalidQuery, match=r"everything = .*: True or False"):
            store.points.delete(everything=wrong)
        with pytest.raises(InvalidQuery, match=r"dry_run = .*: True or False"):
            store.cleanup(everything=True, dry_run=wrong)
    assert len(store.points.range("s", "m").all()) == 1


def test_parameters_of_sql_that_crash_the_driver_are_refused(store: Store) -> None:
    endless: list[Any] = []
    endless.append(endless)
    for wrong in (endless, object(), 2**200, "\ud800"):
        with pytest.raises(InvalidQuery, match=r"params\[0\]"):
            store.sql("SELECT ? AS it", [wrong])
    assert store.sql("SELECT ? AS it", [7]) == [{"it": 7}]
