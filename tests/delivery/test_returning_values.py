"""A value that was overwritten and is written again arrives again, however the flushes combine the three writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from repo import Settings, Store
from repo.core import work
from repo.delivery.forwarder import Forwarder
from tests.conftest import OpenStore, Templates
from tests.delivery.memory_sink import Destination, MemorySink

SETTINGS = Settings(background=False, checkpoint_log_bytes=1 << 30, checkpoint_interval_s=3600)


def write(store: Store, value: float, sensor: str = "S") -> None:
    store.points.insert(sensor, "flow", value, timestamp=1.0)


def deliver(store: Store, destination: Destination) -> None:
    assert Forwarder(store, MemorySink(destination)).drain()["memory"].is_empty


def arrived(destination: Destination) -> float:
    return float(destination.values()["S", "flow", 1_000_000][0])


@pytest.mark.parametrize("merged", [False, True], ids=["as rows", "as columns"])
def test_a_value_that_returns_after_a_delivery_from_the_journal_arrives(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    if merged:
        monkeypatch.setattr(work, "MERGED_FROM", 1)
    store, destination = open_store(flush_batch_points=2), Destination()
    deliver(store, destination)
    write(store, 1.0)
    write(store, 0.0, "another")
    write(store, 2.0)
    deliver(store, destination)  # from the journal
    assert arrived(destination) == 2.0
    write(store, 1.0)
    deliver(store, destination)  # one flush has stored 1.0, and the next one gets 2.0 and 1.0
    assert arrived(destination) == 1.0


@pytest.mark.duckdb
@pytest.mark.parametrize("attempted", [False, True], ids=["unsent", "on its way"])
def test_a_value_that_returns_arrives_after_a_power_loss(
    tmp_path: Path, templates: Templates, attempted: bool
) -> None:
    pytest.importorskip("duckdb")
    folder, before, destination = tmp_path / "store", tmp_path / "before", Destination()
    templates.copy("duckdb", 1, folder)
    with Store(folder, SETTINGS) as store:
        write(store, 1.0)
        deliver(store, destination)
        store.checkpoint()
        before.mkdir()
        for file in folder.glob("timeseries.duckdb*"):
            shutil.copy(file, before)
        write(store, 2.0)
        deliver(store, destination)
        write(store, 1.0)
        if attempted:
            faults = MemorySink(destination, faults=["unreachable"])
            Forwarder(store, faults).step()
            assert store.sinks.show("memory").attempt is not None
        assert arrived(destination) == 2.0
        shutil.copytree(folder, tmp_path / "after")
    lost = tmp_path / "after"  # what DuckDB had in its log is gone; the journal is whole
    for file in lost.glob("timeseries.duckdb*"):
        file.unlink()
    for file in before.iterdir():
        shutil.copy(file, lost)
    with Store(lost, SETTINGS) as store:
        deliver(store, destination)
        assert [row["value"] for row in store.points.range("S", "flow")] == [1.0]
        assert arrived(destination) == 1.0
