"""Metadata that lost acknowledged data is reported in the ledger and in the status, and nothing is numbered twice.

SQLite stops reading a WAL at the first damaged frame, without an error. The test copies the files of a running store,
as a kill would leave them, and damages the copy of the WAL.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.repositories.ledger import LedgerRepository, Loss
from tests.conftest import Templates


def _settings(engine: Any) -> Settings:
    return Settings(engine=engine, background=False, wal_checkpoint_bytes=1 << 40)


@pytest.fixture
def killed(engine: str, tmp_path: Path, templates: Templates) -> Path:
    """The folder of a store that was killed, with its mark moved to the twentieth point and record."""
    templates.copy(engine, 1, tmp_path / "live")
    with Store(tmp_path / "live", _settings(engine)) as store:
        for number in range(10):
            store.points.insert("a", "t", float(number), number)
            store.records.add(f"r{number}", "source", {"n": number})
        store.flush()
        store.flush()
        for number in range(10, 20):
            store.points.insert("a", "t", float(number), number)
            store.records.add(f"r{number}", "source", {"n": number})
        store.points.range("a", "t").all()  # flushes, and moves the mark to the twentieth
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    return tmp_path / "killed"


def _open(folder: Path) -> Store:
    return Store(folder, Settings(background=False))


def _ledger(store: Store) -> list[Loss]:
    with store._handle.metadata.read() as connection:
        return LedgerRepository(connection).list()


def _damage(folder: Path) -> None:
    """Flip a bit in the tenth frame from the end of the metadata's WAL."""
    log = folder / "offline_buffer.db-wal"
    content = bytearray(log.read_bytes())
    content[len(content) - 24 * 4120] ^= 1
    log.write_bytes(content)


def test_a_store_that_was_killed_and_is_intact_raises_no_alarm(killed: Path) -> None:
    with _open(killed) as store:
        assert store.status().warnings == ()
        assert _ledger(store) == []
        assert len(store.points.range("a", "t").all()) == 20


def test_a_damaged_end_of_the_metadata_is_in_the_ledger_and_in_the_status(
    killed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _damage(killed)
    with _open(killed) as store:
        lost = {loss.what: loss for loss in _ledger(store) if loss.reason == "metadata-lost-their-end"}
        assert set(lost) == {"points", "records"}
        assert '"last_seq": 20' in (lost["points"].detail or "")
        assert '"last_id": 20' in (lost["records"].detail or "")
        assert any("lost its last writes" in str(warning) for warning in store.status().warnings)
        assert "lacks acknowledged data" in caplog.text
    with _open(killed) as again:
        assert len(_ledger(again)) == len(lost), "it is said once"


def test_what_was_flushed_before_the_damage_is_still_there_and_new_points_come_after_it(killed: Path) -> None:
    _damage(killed)
    with _open(killed) as store:
        first_new = store.points.insert("a", "t", 99.0, 99).first_seq
        assert first_new == 21, "no seq that was acknowledged is used again"
        assert [row["value"] for row in store.points.range("a", "t")] == [*map(float, range(20)), 99.0]
        store.records.add("new", "source", {})
        assert max(record["id"] for record in store.records.pending()) == 21


def test_an_older_copy_of_the_metadata_does_not_undo_what_was_written_after_it(
    engine: str, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    with Store(folder, _settings(engine)) as store:
        store.points.insert("a", "t", 1.0, 1)
        shutil.copytree(folder, tmp_path / "older")
        store.points.insert("a", "t", 2.0, 1)
        store.points.range("a", "t").all()
    for name in ("offline_buffer.db", "offline_buffer.db-wal"):
        (folder / name).unlink(missing_ok=True)
        shutil.copy(tmp_path / "older" / name, folder / name)
    with _open(folder) as store:
        assert [row["value"] for row in store.points.range("a", "t")] == [2.0]
        assert [loss.reason for loss in _ledger(store)] == ["metadata-lost-their-end"]
        assert store.points.insert("a", "t", 3.0, 3).first_seq == 3


def test_a_mark_that_is_missing_damaged_or_of_another_store_raises_no_alarm(killed: Path) -> None:
    mark = killed / "acknowledged.mark"
    whole = mark.read_bytes()
    for content in (None, b"", whole[:40], whole.replace(b" 20 ", b" 21 ", 1), b"\xff" * 128):
        mark.unlink(missing_ok=True)
        if content is not None:
            mark.write_bytes(content)
        with _open(killed) as store:
            assert _ledger(store) == []
        assert mark.read_bytes() == whole, "closing writes it again"


def test_a_mark_that_cannot_be_written_fails_no_call(
    engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path, _settings(engine)) as store:
        store.points.insert("a", "t", 1.0, 1)
        (tmp_path / "acknowledged.mark").mkdir()
        assert len(store.points.range("a", "t").all()) == 1
    assert "acknowledged.mark could not be written" in caplog.text
