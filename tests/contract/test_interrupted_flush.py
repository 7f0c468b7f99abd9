"""After a Ctrl-C in a flush that the program catches, counts, the newest point and later deletes are right."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from repo import Store
from repo.core import flush, reconcile, work
from repo.queries.rows import Row
from repo.repositories import apply
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository
from repo.repositories.series import LatestRepository, SummaryRepository
from repo.repositories.state import ColumnsStateRepository, StateRepository
from tests.conftest import ENGINES, OpenStore

pytestmark = pytest.mark.closes_columns

PLACES: dict[str, tuple[Any, str]] = {
    "before anything is applied": (work, "apply"),
    "before the summaries are written": (SummaryRepository, "replace"),
    "before the watermark is moved": (ColumnsStateRepository, "set_watermark"),
    "after the commit, before it is read back": (flush, "read_state"),
    "in the copy": (LatestRepository, "replace"),
    "at the end of the copy": (StateRepository, "set"),
    "in the prune": (JournalRepository, "prune"),
    "in the reopening after an interrupt": (reconcile, "read_state"),
}


def interrupt_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> None:
    """Raise KeyboardInterrupt at the next call of this function, before or after its work."""
    original: Callable[..., Any] = getattr(owner, name)

    def interrupted(*args: Any, **options: Any) -> Any:
        setattr(owner, name, original)
        if after:
            original(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


def reported(store: Store) -> dict[str, tuple[int, int | None]]:
    return {series.sensor_id: (series.points, series.last_us) for series in store.series.list()}


@pytest.mark.parametrize(
    ("engine", "place", "after"),
    [
        pytest.param(
            engine,
            place,
            after,
            id=f"{engine}-{place}-{'after' if after else 'before'} it",
            # Each place is fast on both engines, before its work on one of them and after it on the other.
            marks=pytest.mark.slow if (at + after + ENGINES.index(engine)) % 2 and len(ENGINES) > 1 else (),
        )
        for engine in ENGINES
        for at, place in enumerate(PLACES)
        for after in (False, True)
    ],
)
def test_an_interrupt_in_a_flush_leaves_counts_and_the_newest_point_right(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, place: str, *, after: bool
) -> None:
    store = open_store(lease_idle_s=60)
    store.points.insert_many([("a", "m", 1, 1.0), ("b", "m", 1, 1.0)])
    store.flush()
    store.points.insert_many([("a", "m", 2, 2.0), ("a", "m", 3, 2.0), ("b", "m", 1, 5.0)])
    interrupt_once(monkeypatch, *PLACES[place], after=after)
    with contextlib.suppress(KeyboardInterrupt):
        store.checkpoint()
    monkeypatch.undo()
    store._handle.columns.stays_open = True
    store.points.insert("c", "m", 1.0, timestamp=1)
    assert len(store.points.range("a", "m").all()) == 3
    expected = {"a": (3, 3_000_000), "b": (1, 1_000_000), "c": (1, 1_000_000)}
    assert reported(store) == expected
    assert [point["timestamp_us"] for point in store.points.latest("a", "m")] == [3_000_000]
    store.close()
    store = open_store()
    store._handle.columns.stays_open = True
    assert [point["value"] for point in store.points.range("b", "m").all()] == [5.0]
    assert reported(store) == expected
    store.points.delete("a", "m")
    assert [point["sensor_id"] for point in store.points.range(None, "m").all()] == ["b", "c"]
    assert {name: points for name, (points, _) in reported(store).items()} == {"a": 0, "b": 1, "c": 1}


def test_counts_that_are_wrong_in_the_file_are_corrected_when_it_is_opened(
    open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    store.points.insert_many([(name, "m", at, float(at)) for name in "abc" for at in range(5)])
    store.checkpoint()
    with store._handle.columns.alone("spoiling the counts") as opened, opened.engine.begin() as connection:
        spoilt = SummaryRepository(connection).all()
        wrong = {("a", "m"): spoilt["a", "m"]._replace(points=9, last_us=1), ("z", "m"): spoilt["b", "m"]}
        SummaryRepository(connection).replace(wrong, [("b", "m")])
        connection.execute(text("DELETE FROM storage_metadata"))
    store.close()
    store = open_store()
    with caplog.at_level(logging.WARNING):
        assert len(store.points.range(None, "m").all()) == 15
    said = [
        record.getMessage()
        for record in caplog.records
        if "did not match their points" in record.getMessage()
    ]
    assert len(said) == 1
    assert said[0].startswith("the counts of 3 series")
    assert reported(store) == dict.fromkeys("abc", (5, 4_000_000))
    store.points.delete("a", "m", start=2)
    assert [point["timestamp_us"] for point in store.points.latest("a", "m")] == [1_000_000]
    store.close()
    caplog.clear()
    store = open_store()
    store.flush()
    assert not caplog.records


def test_a_delete_in_restored_older_metadata_removes_no_newer_points(
    open_store: OpenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    store.points.insert_many([("a", "m", at, 1.0) for at in range(10)])
    store.checkpoint()
    store.points.delete("a", "m")
    store.points.insert("b", "m", 1.0, timestamp=1)
    store.close()
    older = (tmp_path / "store" / "offline_buffer.db").read_bytes()
    store = open_store()
    store.points.insert_many([("a", "m", at, 2.0) for at in range(10, 100)])
    store.checkpoint()
    store.close()
    for gone in ("offline_buffer.db-wal", "offline_buffer.db-shm", "acknowledged.mark"):
        (tmp_path / "store" / gone).unlink(missing_ok=True)
    (tmp_path / "store" / "offline_buffer.db").write_bytes(older)
    store = open_store()
    assert len(store.points.range("a", "m").all()) == 90
    assert len(store.points.range("b", "m").all()) == 1
    with store._handle.metadata.read() as connection:
        entries = LedgerRepository(connection).list()
    assert [(loss.detail, loss.dropped) for loss in entries if loss.reason == "delete-not-applied"] == [
        ('["a", "m", null, null]', 0)
    ]
    assert any("was not applied" in record.getMessage() for record in caplog.records)
    store.points.delete("a", "m")
    assert store.points.range("a", "m").all() == []


@pytest.mark.parametrize("engine", ["duckdb"])
def test_a_batch_that_does_not_fit_into_memory_is_applied_in_parts(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb

    store = open_store()
    rng = random.Random(3)
    store.points.insert_many([("a", "m", at, 1.0) for at in range(40)])
    store.points.delete("a", "m", start=30)
    applied = apply.apply

    def with_little_memory(connection: Any, rows: list[Row], *args: Any, **options: Any) -> Any:
        if len(rows) > 7:
            raise duckdb.OutOfMemoryException("Out of Memory Error: for the test")
        return applied(connection, rows, *args, **options)

    monkeypatch.setattr(work, "apply", with_little_memory)
    store.points.insert_many([("a", "m", at, rng.random()) for at in range(20, 50)])
    store.points.insert_many([("b", "m", at, 1.0) for at in range(10)])
    assert len(store.points.range("a", "m").all()) == 50
    assert reported(store) == {"a": (50, 49_000_000), "b": (10, 9_000_000)}
    monkeypatch.undo()
    store.close()
    store = open_store()
    assert reported(store) == {"a": (50, 49_000_000), "b": (10, 9_000_000)}
    assert len(store.points.range("a", "m").all()) == 50


@pytest.mark.parametrize("place", ["commit", "checkpoint"])
def test_an_interrupt_that_duckdb_raises_as_its_own_error_is_not_swallowed(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    store = open_store(checkpoint_log_bytes=0, checkpoint_interval_s=0.0)
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    store.points.insert("a", "m", 2.0, timestamp=2)
    backend = store._handle.columns.backend
    owner, name = (work, "apply") if place == "commit" else (type(backend), "checkpoint")
    original = getattr(owner, name)

    def interrupted(*_arguments: Any, **_options: Any) -> Any:
        setattr(owner, name, original)
        raise RuntimeError("Query interrupted")  # raised by DuckDB's driver on Ctrl-C

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.flush()
    monkeypatch.undo()

    assert [row["value"] for row in store.points.range("a", "m")] == [1.0, 2.0]
    assert store.series.list()[0].points == 2
