"""Moving the columns to the other engine and back loses nothing, even with concurrent writers and readers."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from repo import FlushFailed, HoldfastError, Settings, Store, StoreCorrupt, StoreFull
from repo.engines.registry import ENGINES
from repo.models import StorageMetadata
from repo.upkeep import copying

pytestmark = pytest.mark.duckdb

OTHER = {"duckdb": "sqlite", "sqlite": "duckdb"}
FILES = {"duckdb": "timeseries.duckdb", "sqlite": "timeseries.sqlite"}


def move(store: Store) -> str:
    """Move to the other engine, and return its name."""
    engine = OTHER[store.status().engine]
    done = store.promote() if engine == "duckdb" else store.demote()
    assert (done.before, done.after) == (OTHER[engine], engine)
    return engine


def everything(store: Store) -> list[tuple[Any, ...]]:
    columns = "sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, seq"
    return [
        tuple(row.values()) for row in store.sql(f"SELECT {columns} FROM time_series_data ORDER BY 1, 2, 3")
    ]


def odd_points(store: Store) -> None:
    inf = float("inf")
    values = [0.1, -0.0, inf, -inf, None, 5e-324, 1.7976931348623157e308, 2.0**53]
    store.points.insert_many([("ü'--", "m", -(10**9) + at, value) for at, value in enumerate(values)])
    store.points.insert("v", "state", "läuft", timestamp=1, quality=-(2**31), metadata={"a": [1, None, "☃"]})
    store.points.insert("v", "state", "", timestamp=2)
    store.points.insert("empty", "m", None, timestamp=1)


def test_every_value_survives_both_ways_bit_for_bit(store: Store) -> None:
    odd_points(store)
    store.points.insert_many([(f"s{at % 5}", "m", at, at / 3) for at in range(500)])
    store.points.delete("s1", "m", 10, 90)
    before, ledger = everything(store), store.status().ledger_dropped
    series = store.series.list()
    for generation in (2, 3, 4):
        move(store)
        assert everything(store) == before
        assert store.series.list() == series
        status = store.status()
        assert (status.generation, status.ledger_dropped) == (generation, ledger)
    assert len(status.bytes_by_kept_file) >= 3


def test_moving_to_the_active_engine_does_nothing(store: Store, engine: str) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1)
    done = store.promote() if engine == "duckdb" else store.demote()
    assert (done.before, done.after, done.points, done.generation) == (engine, engine, 1, 1)
    assert store.status().bytes_by_kept_file == {}


@pytest.mark.closes_columns
@pytest.mark.slow_on("sqlite")
def test_toggled_twice_with_overwrites_and_deletes_in_each_phase(open_store: Any, seed: int) -> None:
    rng = random.Random(seed)
    store: Store = open_store(bulk_rows=50, flush_batch_points=80)
    other: Store = open_store(bulk_rows=50)  # stays open throughout
    model: dict[tuple[str, int], float] = {}
    sent = 0
    for phase in range(5):
        if phase:
            move(rng.choice([store, other]))
        for _ in range(2):
            writer = rng.choice([store, other])
            rows = [(f"s{rng.randrange(3)}", rng.randrange(150), float(rng.randrange(4))) for _ in range(70)]
            if rng.random() < 0.5:
                writer.points.insert_many([(s, "m", at, value) for s, at, value in rows])
            else:
                writer.points.insert_table(
                    {
                        "sensor_id": [s for s, _, _ in rows],
                        "metric_name": "m",
                        "timestamp": [at for _, at, _ in rows],
                        "value": [value for _, _, value in rows],
                    }
                )
            model |= {(s, at): value for s, at, value in rows}
            if rng.random() < 0.5:
                start = rng.randrange(150)
                writer.points.delete("s1", "m", start, start + 20)
                model = {k: v for k, v in model.items() if k[0] != "s1" or not start <= k[1] < start + 20}
            if rng.random() < 0.3:
                rng.choice([store, other]).checkpoint()
        for reader in (store, other):
            with reader._handle.reading("several reads in one opening"):
                found = {
                    (r["sensor_id"], r["timestamp_us"] // 10**6): r["value"]
                    for r in reader.points.range(None, None)
                }
                assert found == model, f"phase {phase}"
                assert len(reader.points.after(0)) == len(model)
                assert sum(series.points for series in reader.series.list()) == len(model)
                newest = {r["sensor_id"]: r["timestamp_us"] // 10**6 for r in reader.points.latest(None)}
                assert newest == {s: max(at for t, at in model if t == s) for s, _ in model}
        newly = store.points.after(sent, limit=10**6)
        assert all(row["seq"] > sent for row in newly)
        sent = max([sent, *(row["seq"] for row in newly)])


def test_the_old_file_is_kept_under_another_name_and_a_later_opening_finds_the_new_one(
    open_store: Any, engine: str
) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    now = move(store)
    assert not (store.path / FILES[engine]).exists()
    assert (store.path / f"{FILES[engine]}.inactive-2").exists()
    assert f"{FILES[engine]}.inactive-2" in store.status().bytes_by_kept_file
    store.close()
    store = open_store()  # requests the engine of the beginning
    assert store.status().engine == now
    assert len(everything(store)) == 1


@pytest.mark.slow_on("sqlite")
def test_an_old_file_that_was_put_back_is_refused(open_store: Any, engine: str) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.checkpoint()
    move(store)
    store.points.insert("a", "m", 2.0, timestamp=2)
    move(store)
    store.close()
    for file in store.path.glob(f"{FILES[engine]}*"):
        if "inactive" not in file.name:
            file.unlink()
    (store.path / f"{FILES[engine]}.inactive-2").rename(store.path / FILES[engine])
    store = open_store()
    with pytest.raises(StoreCorrupt, match="generation 1"):
        everything(store)


@pytest.mark.slow_on("sqlite")
def test_a_copy_that_does_not_read_back_as_written_is_never_made_active(
    store: Store, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.points.insert_many([("a", "m", at, float(at)) for at in range(100)])
    load = copying._load

    def forgetful(target: Any, table: Any, page: Any) -> None:
        load(target, table, page[:-1] if table.name == "time_series_data" else page)

    with monkeypatch.context() as faulty:
        faulty.setattr(copying, "_load", forgetful)
        with pytest.raises(FlushFailed, match=r"time_series_data.*the old column file stays in use"):
            move(store)
    assert store.status().engine == engine
    assert len(everything(store)) == 100
    move(store)
    assert len(everything(store)) == 100


@pytest.mark.slow_on("sqlite")
def test_a_switch_that_fails_leaves_the_store_as_it_was(store: Store, engine: str) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    with closing(sqlite3.connect(store.path / "offline_buffer.db", isolation_level=None)) as raw, raw:
        raw.execute(
            "CREATE TRIGGER no BEFORE UPDATE OF generation ON store_state BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(HoldfastError, match="no"):
            move(store)
        raw.execute("DROP TRIGGER no")
    raw.close()
    assert list(store.path.glob(f"{FILES[OTHER[engine]]}*")) == []
    store.points.insert("a", "m", 2.0, timestamp=2)
    assert len(everything(store)) == 2
    move(store)
    assert len(everything(store)) == 2


@pytest.mark.slow_on("sqlite")
def test_an_error_of_the_callers_own_function_stops_the_move_and_is_raised_unchanged(
    store: Store, engine: str
) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1)

    def stop(_done: int, _points: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        store._convert(OTHER[engine], stop)
    assert (store.status().engine, len(everything(store))) == (engine, 1)
    assert list(store.path.glob("*.building*")) == []


def test_metadata_of_the_legacy_program_moves_too(store: Store) -> None:
    def notes() -> list[Any]:
        with store._handle.reading("a test") as (connection, _):
            query = select(StorageMetadata.key, StorageMetadata.value, StorageMetadata.updated_at)
            query = query.where(StorageMetadata.key.not_like("holdfast.%")).order_by(StorageMetadata.key)
            return [tuple(row) for row in connection.execute(query)]

    written = [("a", "1", datetime(2024, 5, 1, 12, 0, 0, 123456)), ("ü", "", None)]  # noqa: DTZ001  kept unchanged
    with store._handle.columns.alone("a test") as opened, opened.flush_connection.begin():
        for key, value, at in written:
            opened.flush_connection.execute(
                insert(StorageMetadata).values(key=key, value=value, updated_at=at)
            )
    for _ in range(2):
        move(store)
        assert notes() == written


@pytest.mark.parametrize(
    ("engine", "moves"),
    [
        ("duckdb", 2),
        ("sqlite", 1),
        pytest.param("duckdb", 1, marks=pytest.mark.slow),
        pytest.param("sqlite", 2, marks=pytest.mark.slow),
    ],
)
def test_a_metadata_database_from_before_the_columns_moved_finds_them(
    open_store: Any, engine: str, tmp_path: Path, moves: int
) -> None:
    store = open_store()
    store.points.insert_many([("a", "m", at, 1.0) for at in range(5)])
    store.checkpoint()
    store.close()
    (tmp_path / "backup").mkdir()
    for file in store.path.glob("offline_buffer.db*"):
        shutil.copy(file, tmp_path / "backup")
    store = open_store()
    for _ in range(moves):
        store.points.insert_many([("a", "m", at, 2.0) for at in range(10)])
        now = move(store)
    store.close()
    for file in store.path.glob("offline_buffer.db*"):
        file.unlink()
    for file in (tmp_path / "backup").iterdir():
        shutil.copy(file, store.path)
    for again in range(2):
        store = open_store()
        store.points.insert("new", "m", float(again), timestamp=again)
        assert [row["value"] for row in store.points.range("a", "m")] == [2.0] * 10
        assert len(store.points.range("new", "m").all()) == again + 1
        status = store.status()
        assert (status.engine, status.generation) == (now, 1 + moves)
        assert [warning.code for warning in status.warnings] == ["metadata-lost-end"]
        seqs = [row["seq"] for row in store.points.after(0)]
        assert len(set(seqs)) == len(seqs) == 11 + again
        store.close()


@pytest.mark.slow_on("sqlite")
def test_writes_to_a_restored_metadata_database_before_it_found_the_columns_are_kept(
    open_store: Any, tmp_path: Path
) -> None:
    store = open_store()
    store.points.insert_many([("a", "m", at, 1.0) for at in range(5)])
    store.checkpoint()
    store.close()
    backup = tmp_path / "backup"
    shutil.copytree(store.path, backup, ignore=lambda _, names: [n for n in names if "offline" not in n])
    store = open_store()
    store.points.insert_many([("b", "m", at, 2.0) for at in range(10)])
    move(store)
    store.close()
    for file in store.path.glob("offline_buffer.db*"):
        file.unlink()
    for file in backup.iterdir():
        shutil.copy(file, store.path)
    store = open_store()
    for at in range(30):  # past the seqs in the columns, before they are opened again
        store.points.insert("c", "m", 3.0, timestamp=at)
    assert len(store.points.range("b", "m").all()) == 10
    assert len(store.points.range("c", "m").all()) == 30


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("moment", ["while it was built", "before the switch", "after the switch"])
def test_leftovers_of_a_kill_are_removed_and_change_nothing(
    open_store: Any, engine: str, moment: str, spawn: Any
) -> None:
    store = open_store()
    store.points.insert_many([("a", "m", at, float(at)) for at in range(100)])
    path = store.path
    store.close()
    die = {
        "while it was built": "rewrite.sums_of = lambda *_: os._exit(9)",
        "before the switch": "convert.StateRepository.set = lambda self, **facts: os._exit(9)"
        " if 'generation' in facts and len(facts) == 3 else set_facts(self, **facts)",
        "after the switch": "Columns.reopen = lambda _: os._exit(9)",
    }[moment]
    died = spawn(
        "import os, sys; from repo import Settings, Store\n"
        "from repo.upkeep import convert, rewrite\n"
        "from repo.core.columns import Columns\n"
        "set_facts = convert.StateRepository.set\n"
        f"{die}\n"
        "with Store(sys.argv[1], Settings(background=False)) as store:\n"
        f"    store.{'demote' if engine == 'duckdb' else 'promote'}()\n",
        path,
    )
    died.communicate()
    assert died.returncode == 9
    for again in range(2):
        store = open_store()
        store.points.insert("a", "m", -1.0, timestamp=1000 + again)
        assert len(everything(store)) == 101 + again
        assert store.status().engine == (OTHER[engine] if moment == "after the switch" else engine)
        store.close()
    assert list(path.glob("*.building*")) == []
    inactive = [file.name for file in path.glob("*.inactive-*")]
    assert bool(inactive) == (moment != "while it was built")
    store = open_store()
    move(store)
    assert len(everything(store)) == 102


@pytest.mark.slow_on("sqlite")
def test_at_open_only_settings_that_say_so_move_the_columns(open_store: Any, engine: str) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.close()
    store = open_store(engine=OTHER[engine])
    assert store.status().engine == engine
    store.close()
    store = open_store(engine=OTHER[engine], convert_at_open=True)
    assert store.status().engine == OTHER[engine]
    assert len(everything(store)) == 1


def test_a_disk_without_room_is_reported_before_the_move_with_the_bytes_needed(
    open_store: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    for name, record in ENGINES.items():
        monkeypatch.setitem(ENGINES, name, replace(record, bytes_a_point=10**15))
    with pytest.raises(StoreFull, match=r"1,000,000,0[01]\d,\d\d\d,\d\d\d bytes"):
        move(store)
    assert store.status().engine == engine
    assert len(everything(store)) == 1


@pytest.mark.closes_columns
@pytest.mark.slow_on("sqlite")
def test_another_process_continues_on_the_other_engine(open_store: Any, spawn: Any, engine: str) -> None:
    store = open_store(lease_timeout_s=300)
    other = spawn(
        "import sys; from repo import Settings, Store\n"
        "with Store(sys.argv[1], Settings(lease_timeout_s=300)) as store:\n"
        "    for line in sys.stdin:\n"
        "        at = int(line)\n"
        "        store.points.insert('b', 'm', 1.0, timestamp=at)\n"
        "        print(len(store.points.range(None, None).all()), flush=True)\n",
        store.path,
    )
    for at in range(3):
        store.points.insert("a", "m", 1.0, timestamp=at)
        other.stdin.write(f"{at}\n")
        other.stdin.flush()
        assert int(other.stdout.readline()) == 2 * at + 2
        move(store)
        assert len(everything(store)) == 2 * at + 2
    _, complaints = other.communicate()
    assert other.returncode == 0, complaints


def test_migrations_leave_out_files_of_an_engine_that_is_not_active(open_store: Any, engine: str) -> None:
    from repo.schema.databases import find_targets

    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    (store.path / FILES[OTHER[engine]]).write_bytes(b"")
    found = [
        target for target in find_targets({"path": str(store.path)}, {}) if target.database == "timeseries"
    ]
    assert [target.path.name for target in found] == [FILES[engine]]
    with closing(sqlite3.connect(Path(store.path) / "offline_buffer.db")) as raw, raw:
        assert raw.execute("SELECT engine FROM store_state").fetchone() == (engine,)
    raw.close()
    assert Settings().convert_at_open is False
