"""The identity of a store towards receivers: restores and rekeys make it new to them, whatever is killed and when."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store, StoreForked
from repo.delivery.forwarder import Forwarder
from repo.delivery.reconcile import reconcile
from repo.engines.sqlite import driver as sqlite
from repo.files import StoreFiles
from repo.repositories.attempts import Attempt
from repo.schema import restore, runner
from repo.schema.restore import restore_store
from repo.schema.restore_files import kept_by_restores
from repo.schema.upgrade import migrate_store
from tests.conftest import OpenStore
from tests.migrations.legacy_store import make_legacy_store
from tests.starter import Starter

QUIET = Settings(background=False)
ON_SQLITE = Settings(background=False, engine="sqlite")


def fill(store: Store, points: int = 10) -> None:
    store.points.insert_many([("a", "m", float(at), float(at)) for at in range(points)])


def upgraded(open_store: OpenStore) -> Store:
    """Open a store on SQLite with five points, after an upgrade that made a backup."""
    store = open_store()
    fill(store, 5)
    store.checkpoint()
    path = store.path
    store.close()
    for database, file in (("metadata", "offline_buffer.db"), ("timeseries", "timeseries.sqlite")):
        engine = sqlite.open_engine(path / file)
        runner.downgrade(engine, database, "0003")  # type: ignore[arg-type]
        engine.dispose()
    return open_store()


def forked(store: Store, name: str = "mine") -> None:
    """Let a destination find a fork, with a batch in hand."""
    if not store.sinks.list():
        store.sinks.add(name, "", start="beginning")
    delivery = store.sinks.delivery(name)
    delivery.confirm(Attempt(1, 4, 4, "c", "t1", "live", 1, 5))
    delivery.begin(Attempt(5, 8, 4, "c", "t2", "live", 1, 5))
    delivery.failed("forked", "another token")
    delivery.running()
    assert store.sinks.show(name).state == "forked"


def test_a_rekey_gives_both_databases_another_id_and_begins_the_token_chains_again(
    open_store: OpenStore,
) -> None:
    store = open_store()
    fill(store)
    forked(store)
    before = store.status().store_id
    done = store.sinks.rekey()
    assert (done.former_store_id, done.epoch) == (before, 1)
    assert store.status().store_id == done.store_id != before
    sink = store.sinks.show("mine")
    assert (sink.state, sink.token, sink.attempt, sink.confirmed_seq) == ("running", None, None, 4)
    fill(store, 12)
    assert len(store.points.after(0)) == 12
    store.close()
    store = open_store()
    assert store.sql("SELECT count(*) AS n FROM time_series_data") == [{"n": 12}]
    assert store.sinks.delivery("mine").epoch_and_id() == (1, done.store_id)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_rekey_after_a_restore_keeps_the_id_and_raises_the_epoch(store: Store) -> None:
    fill(store)
    forked(store)
    before = store.status().store_id
    assert store.sinks.rekey(restored=True).as_dict() == {
        "store_id": before,
        "former_store_id": before,
        "epoch": 2,
    }
    assert store.sinks.rekey(restored=True).epoch == 3
    sink = store.sinks.show("mine")
    assert (sink.state, sink.token, sink.attempt, sink.confirmed_seq) == ("running", None, None, 4)


def test_a_copy_of_the_columns_of_a_store_before_its_rekey_is_refused(
    open_store: OpenStore, columns_file: str
) -> None:
    store = open_store()
    fill(store)
    store.checkpoint()
    store.close()
    copy = store.path.with_name("copy")
    shutil.copytree(store.path, copy)
    with Store(copy, QUIET) as copied:
        copied.sinks.rekey()
    for file in copy.glob(f"{columns_file}*"):
        file.unlink()
    shutil.copy(store.path / columns_file, copy / columns_file)
    with Store(copy, QUIET) as copied, pytest.raises(StoreForked):
        copied.points.after(0)


DYING = """
import os, sys
from sqlalchemy import Engine, event
from repo import Settings, Store

left = int(sys.argv[3])

def step(*_):
    global left
    left -= 1
    if left == 0:
        os._exit(9)

with Store(sys.argv[1], Settings(background=False)) as store:
    for moment in ("before_cursor_execute", "commit"):
        event.listen(Engine, moment, step)
    store.sinks.rekey()
    print("done", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow_on("duckdb")
def test_a_rekey_killed_at_any_step_leaves_a_store_that_opens_with_either_id(
    open_store: OpenStore, engine: str, starter: Starter, tmp_path: Path, stride: int
) -> None:
    made = open_store("made")
    fill(made)
    forked(made)
    before = made.status().store_id
    made.close()
    found = set()
    for step in range(1, 300, stride):
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made.path, folder)
        done = starter.run(["-c", DYING, str(folder), engine, str(step)])
        assert done.returncode in (0, 9), done.stderr
        with Store(folder, Settings(engine=engine, background=False)) as store:  # type: ignore[arg-type]
            assert len(store.points.after(0)) == 10
            store_id = store.status().store_id
            sink = store.sinks.show("mine")
            assert (sink.token is None) == (sink.attempt is None) == (store_id != before)
            found.add(store_id == before)
            fill(store, 11)
            store.checkpoint()
            if step % 10 == 0:  # a change after one that was interrupted
                assert store.sinks.rekey().former_store_id == store_id
        if done.returncode == 0:
            break
    assert found == {True, False}
    assert step > 5


def restored_id_and_epoch(folder: Path) -> tuple[str, int]:
    with sqlite3.connect(folder / "offline_buffer.db") as rows:
        found: tuple[str, int] = rows.execute("SELECT store_id, epoch FROM store_state").fetchone()
    rows.close()
    return found


@pytest.mark.duckdb
def test_each_restore_of_a_backup_raises_the_epoch_also_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_legacy_store(tmp_path / "site", points=20, records=0)
    (folder / "timeseries.duckdb").unlink()  # the records alone are upgraded sooner
    migrate_store(folder)
    with Store(folder, ON_SQLITE) as store:
        forked(store)
        first = store.sinks.delivery("mine").epoch_and_id()
        assert first.epoch == 1
    restore_store(folder)
    with Store(folder, ON_SQLITE) as store:
        store.sinks.add("mine", "", start="beginning")
        again = store.sinks.delivery("mine").epoch_and_id()
        assert again.epoch == 2

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restore, "finish_leased", dying)
        with pytest.raises(KeyboardInterrupt):
            restore_store(folder)
    assert kept_by_restores(StoreFiles.of(folder)).epoch == 3
    with Store(folder, ON_SQLITE) as store:  # completes the restore
        assert store.sinks.list() == []
        store.sinks.add("mine", "", start="beginning")
        assert store.sinks.delivery("mine").epoch_and_id().epoch == 3
    (folder / "offline_buffer.db").write_bytes(b"damaged" * 1000)
    restore_store(folder)
    Store(folder, ON_SQLITE).close()
    assert restored_id_and_epoch(folder)[1] == 4, "what the damaged metadata knew is in a file of its own"
    Store(folder, ON_SQLITE).close()
    assert restored_id_and_epoch(folder)[1] == 4, "only a restore raises it"


@pytest.mark.parametrize("engine", ["sqlite"])
def test_what_is_written_after_a_restore_arrives_though_its_seqs_were_delivered_before(
    open_store: OpenStore, tmp_path: Path
) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "holdfast-folder.json").touch()

    def delivered(store: Store) -> int:
        forwarder = Forwarder(store, "stick")
        try:
            done = forwarder.drain()["stick"]
            assert done.is_empty, done.last
            return done.delivered
        finally:
            forwarder.stop()

    store = upgraded(open_store)
    first_id, path = store.status().store_id, store.path
    store.sinks.add("stick", stick.as_uri(), start="beginning")
    fill(store, 8)
    assert delivered(store) == 8
    store.close()
    restore_store(path)
    store = open_store()
    store.points.insert_many([("b", "m", float(at), 1.0) for at in range(4)])
    store.sinks.add("stick", stick.as_uri(), start="beginning")
    assert store.sinks.identity() == (2, first_id)
    assert delivered(store) == 9, "the seqs 6 to 8 were those of other points"
    assert reconcile(store, "stick").missing == 0


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_restore_keeps_the_id_that_a_rekey_gave_after_the_backup(open_store: OpenStore) -> None:
    """The id in the backup is that of the original, of which this store was a copy."""
    store = upgraded(open_store)
    copied_id, path = store.status().store_id, store.path
    own_id = store.sinks.rekey().store_id
    fill(store, 8)
    store.close()
    for epoch in (2, 3):
        restore_store(path)
        with sqlite3.connect(path / "offline_buffer.db") as rows:
            assert rows.execute("SELECT store_id FROM store_state").fetchone() == (copied_id,)
        rows.close()
        store = open_store()
        assert store.sinks.identity() == (epoch, own_id)
        assert len(store.points.range(None, None).all()) == 5
        fill(store, 9)
        store.close()
        with sqlite3.connect(path / "timeseries.sqlite") as columns:
            assert columns.execute("SELECT store_id FROM timeseries_state").fetchone() == (own_id,)
        columns.close()
        store = open_store()
        assert store.sinks.identity() == (epoch, own_id)
        assert len(store.points.range(None, None).all()) == 9
        store.close()


def test_seqs_of_older_metadata_begin_after_what_any_sink_was_sent(open_store: OpenStore) -> None:
    store = open_store()
    fill(store, 10)
    store.sinks.add("mine", "", start="beginning")
    delivery = store.sinks.delivery("mine")
    delivery.confirm(Attempt(5, 60, 6, "c", "t1", "live", 1, 5))
    delivery.begin(Attempt(61, 70, 6, "c", "t2", "live", 1, 5))
    store.close()
    store = open_store()
    store.flush()
    assert store.points.insert("a", "m", 1.0).first_seq == 71
