"""Opening a store with damage, foreign files, or databases of different age: nothing is lost silently."""

from __future__ import annotations

import os
import shutil
import sqlite3
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ClauseElement, Engine, event
from sqlalchemy.schema import DDLElement
from sqlalchemy.sql.compiler import Compiled

from repo import Settings, Store, StoreCorrupt, StoreForked, StoreMissing
from tests.conftest import RunPython


def metadata_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("offline_buffer.db*"))


def back_up_metadata(folder: Path, backup: Path) -> None:
    backup.mkdir()
    for file in metadata_files(folder):
        shutil.copy(file, backup)


def restore_metadata(folder: Path, backup: Path) -> None:
    for file in metadata_files(folder):
        file.unlink()
    for file in backup.iterdir():
        shutil.copy(file, folder)


def values(store: Store, sensor: str = "a") -> list[Any]:
    return [row["value"] for row in store.points.range(sensor, "m")]


def test_opening_a_store_looks_once_for_the_table_of_its_schema(tmp_path: Path) -> None:
    Store(tmp_path / "store").close()
    looks: list[str] = []

    def heard(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "table_info" in statement and "alembic_version" in statement:
            looks.append(statement)

    event.listen(Engine, "before_cursor_execute", heard)
    try:
        Store(tmp_path / "store").close()
    finally:
        event.remove(Engine, "before_cursor_execute", heard)
    assert len(looks) == 1


def test_a_store_keeps_everything_over_close_and_open(open_store: Any) -> None:
    for at in range(5):
        store = open_store()
        store.points.insert("a", "m", float(at), timestamp=at)
        if at == 2:
            store.flush()
        if at == 3:
            store.checkpoint()
        store.close()
    assert values(open_store()) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_statements_are_compiled_once_for_all_openings(
    open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use() -> None:
        store = open_store()
        store.points.insert("a", "m", 1.0, timestamp=1)
        assert values(store) == [1.0]
        assert [series.sensor_id for series in store.series.list()] == ["a"]
        store.close()

    use()
    use()  # the first time that it finds a point
    compile_ = Compiled.__init__
    compiled: list[ClauseElement] = []

    def noted(self: Compiled, dialect: Any, statement: Any, *arguments: Any, **options: Any) -> None:
        if isinstance(statement, ClauseElement) and not isinstance(statement, DDLElement):
            compiled.append(statement)
        compile_(self, dialect, statement, *arguments, **options)

    monkeypatch.setattr(Compiled, "__init__", noted)
    use()
    monkeypatch.undo()
    assert [str(statement) for statement in compiled] == []


def test_a_folder_without_a_store_does_not_become_one_unless_requested(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        Store(tmp_path / "nothing", Settings(background=False), create=False)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("left", ["nothing", "an empty file", "an empty database"])
def test_a_column_store_without_its_metadata_is_damage_never_a_new_store(
    open_store: Any, columns_file: str, left: str
) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.checkpoint()
    store.close()
    folder = store.path
    for file in metadata_files(folder):
        file.unlink()
    if left == "an empty file":
        (folder / "offline_buffer.db").touch()
    elif left == "an empty database":
        with closing(sqlite3.connect(folder / "offline_buffer.db")) as empty, empty:
            empty.execute("PRAGMA journal_mode = WAL")
            empty.execute("CREATE TABLE gone (x)")
            empty.execute("DROP TABLE gone")
        empty.close()
    before = (folder / columns_file).read_bytes()
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="damaged store, not a new one"):
            open_store()
    assert (folder / columns_file).read_bytes() == before


def test_the_columns_of_another_store_are_refused_and_left_alone(open_store: Any, columns_file: str) -> None:
    ours, theirs = open_store("ours"), open_store("theirs")
    for store in (ours, theirs):
        store.points.insert("a", "m", 1.0, timestamp=1)
        store.checkpoint()
        store.close()
    shutil.copy(theirs.path / columns_file, ours.path / columns_file)
    ours = open_store("ours")
    ours.points.insert("a", "m", 2.0, timestamp=2)
    with pytest.raises(StoreForked, match="belongs to the store"):
        ours.points.range("a", "m").all()
    theirs = open_store("theirs")
    assert values(theirs) == [1.0]


def test_missing_columns_are_recorded_in_the_ledger_and_writes_continue(
    open_store: Any, columns_file: str
) -> None:
    store = open_store()
    store.points.insert_many([("a", "m", at, 1.0) for at in range(10)])
    store.checkpoint()
    store.close()
    assert store is not None
    for file in store.path.glob("timeseries.*"):
        file.unlink()
    for _ in range(2):
        store = open_store()
        store.points.insert("b", "m", 5.0, timestamp=1)
        assert values(store, "b") == [5.0]
        assert values(store, "a") == []
        assert store.points.latest("a", "m") == []
        assert store.points.latest("b", "m")[0]["value"] == 5.0
        store.close()
    store = open_store()
    status = store.status()
    assert status.ledger_entries == 1
    assert any("replaced by an older one" in str(warning) for warning in status.warnings)
    assert store.points.after(0)[0]["seq"] > 10, "seqs are never used twice"


def test_an_older_column_file_is_reported_and_the_remaining_journal_is_applied(
    open_store: Any, columns_file: str, tmp_path: Path
) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.checkpoint()
    store.close()
    shutil.copy(store.path / columns_file, tmp_path / "older")
    store = open_store()
    store.points.insert("a", "m", 2.0, timestamp=2)
    store.checkpoint()
    store.points.insert("a", "m", 3.0, timestamp=3)
    store.close()
    for file in store.path.glob("timeseries.*"):
        file.unlink()
    shutil.copy(tmp_path / "older", store.path / columns_file)
    store = open_store()
    assert values(store) == [1.0, 3.0]
    assert [series.points for series in store.series.list()] == [2]
    assert store.status().ledger_entries == 1


@pytest.mark.slow_on("duckdb")
@pytest.mark.parametrize("new_points", [1, 3, 5])
@pytest.mark.parametrize("pruned", [False, True])
def test_points_written_on_a_restored_older_metadata_database_are_not_lost(
    open_store: Any, tmp_path: Path, new_points: int, pruned: bool
) -> None:
    store = open_store()
    store.points.insert_many([("a", "m", at, 1.0) for at in range(3)])
    store.points.delete("a", "m", 2, None)
    store.checkpoint() if pruned else store.flush()
    store.close()
    back_up_metadata(store.path, tmp_path / "backup")
    store = open_store()
    store.points.insert_many([("a", "m", at, 2.0) for at in range(12)])
    store.flush()
    store.close()
    restore_metadata(store.path, tmp_path / "backup")

    store = open_store()
    for at in range(new_points):
        store.points.insert("new", "m", float(at), timestamp=at)
    assert values(store, "new") == [float(at) for at in range(new_points)], "the first read sees them"
    assert values(store) == [2.0] * 12, "old journal rows are not applied over newer points"
    seqs = [row["seq"] for row in store.points.after(0)]
    assert len(set(seqs)) == len(seqs)
    assert [row["sensor_id"] for row in store.points.after(seqs[-new_points] - 1)] == ["new"] * new_points


def test_many_points_written_on_a_restored_older_metadata_database_are_not_lost(
    open_store: Any, tmp_path: Path
) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    store.close()
    back_up_metadata(store.path, tmp_path / "backup")
    store = open_store()
    store.points.insert_many([("a", "m", at, 2.0) for at in range(10)])
    store.flush()
    store.close()
    restore_metadata(store.path, tmp_path / "backup")
    store = open_store()
    for at in range(30):
        store.points.insert("new", "m", float(at), timestamp=at)
    assert len(values(store, "new")) == 30


def test_a_sink_that_is_ahead_of_a_restored_journal_still_gets_every_new_point(
    open_store: Any, tmp_path: Path
) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    store.close()
    back_up_metadata(store.path, tmp_path / "backup")
    store = open_store()
    store.points.insert_many([("a", "m", at, 2.0) for at in range(20)])
    store.checkpoint()
    [*_, last] = store.points.after(0)
    store.close()
    restore_metadata(store.path, tmp_path / "backup")
    store = open_store()
    store.points.insert("new", "m", 1.0, timestamp=1)
    assert [row["sensor_id"] for row in store.points.after(last["seq"])] == ["new"]


@pytest.mark.closes_columns
def test_a_symlink_to_the_store_is_the_same_store(open_store: Any, tmp_path: Path, engine: str) -> None:
    store = open_store("real")
    os.symlink(tmp_path / "real", tmp_path / "link")
    linked = open_store("link")
    assert linked.path == store.path
    for at in range(2):
        (store, linked)[at % 2].points.insert("a", "m", float(at), timestamp=at)
        assert values(store) == values(linked) == [float(n) for n in range(at + 1)]


@pytest.mark.parametrize("damage", ["removed", "emptied", "cut", "flipped", "zeroed"])
def test_a_damaged_log_of_duckdb_loses_nothing(open_store: Any, damage: str, engine: str) -> None:
    if engine != "duckdb":
        pytest.skip("SQLite's log is SQLite's own")
    store = open_store()
    store.points.insert_many([("a", "m", at, 1.0) for at in range(100)])
    store.checkpoint()
    store.points.insert_many([("a", "m", at, 2.0) for at in range(50, 150)])
    store.points.delete("a", "m", 0, 10)
    store.flush()
    store.close()
    log = store.path / "timeseries.duckdb.wal"
    content = log.read_bytes()
    assert len(content) > 500
    middle = len(content) // 2
    if damage == "removed":
        log.unlink()
    else:
        log.write_bytes(
            {
                "emptied": b"",
                "cut": content[:middle],
                "flipped": content[:middle] + bytes([content[middle] ^ 0x40]) + content[middle + 1 :],
                "zeroed": content[:middle] + bytes(len(content) - middle),
            }[damage]
        )
    store = open_store()
    assert values(store) == [1.0] * 40 + [2.0] * 100
    assert store.status().ledger_dropped == 10
    assert store.points.latest("a", "m")[0]["timestamp_us"] == 149_000_000


@pytest.mark.slow_on("sqlite")
def test_a_store_that_was_dropped_and_never_closed_leaves_no_thread_at_the_end_of_the_program(
    engine: str, tmp_path: Path, run_python: RunPython
) -> None:
    script = """
        import atexit, sys, threading
        atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
        from repo import Settings, Store

        def work():
            store = Store(sys.argv[1], Settings(engine=sys.argv[2]))
            store.points.insert("a", "m", 1.0)

        work()
    """
    done = run_python(textwrap.dedent(script), tmp_path / "store", engine, fresh=True)
    assert done.stdout == "['MainThread']\n"
