"""A forwarder reads pages while compaction rewrites the slices that they are in."""

from __future__ import annotations

import threading
from pathlib import Path
from random import Random

import pytest

from repo import Settings, Store
from repo.core import compaction
from repo.delivery.forwarder import Forwarder
from repo.queries import seq_page
from tests.conftest import Templates
from tests.delivery.memory_sink import Destination, MemorySink

pytestmark = [pytest.mark.duckdb, pytest.mark.slow]


def test_each_point_arrives_once_and_in_order(
    tmp_path: Path, templates: Templates, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SLICE_ROWS", 100)
    monkeypatch.setattr(seq_page, "PAGE_SEQS", 130)
    templates.copy("duckdb", 1, tmp_path / "store")
    chance, destination = Random(seed), Destination()
    begun, done = threading.Event(), threading.Event()
    failures: list[BaseException] = []
    with Store(tmp_path / "store", Settings(background=False)) as store:

        def compact() -> None:
            try:
                while not done.is_set():
                    begun.set()
                    compacted.append(store.compact().sorted_slices)
            except BaseException as error:  # noqa: BLE001  raised again below
                failures.append(error)

        def write(_batch: object) -> None:
            if chance.random() < 0.2:
                rows = [
                    (f"S-{chance.randrange(9)}", "flow", float(chance.randrange(1_000)), -1.0)
                    for _ in range(40)
                ]
                store.points.insert_many(rows)

        compacted: list[int] = []
        rows = [(f"S-{at % 9}", "flow", float(chance.randrange(1_000)), float(at)) for at in range(1_000)]
        store.points.insert_many(rows)
        thread = threading.Thread(target=compact)
        thread.start()
        assert begun.wait(300)
        try:
            sink = MemorySink(destination, on_send=write)
            assert Forwarder(store, sink, batch_points=50).drain()["memory"].is_empty
        finally:
            done.set()
            thread.join()
        assert failures == []
        assert sum(compacted) > 3
        stored = {row[:3]: row[3:7] for page in store.points.since(0).tuples() for row in page}
        assert destination.values() == stored
        assert destination.repeated() == 0
        newest: dict[object, int] = {}
        for identity, seq in destination.arrivals:
            assert newest.get(identity, 0) < seq
            newest[identity] = seq
