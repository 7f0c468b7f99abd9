"""The record of a batch on its way is damaged: nothing counts as delivered that was not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Forwarder, Progress
from repo.errors import SinkHalted
from tests.conftest import Templates
from tests.delivery.memory_sink import Destination, Interrupted, MemorySink
from tests.delivery.test_forwarder import write

DAMAGE = {
    "first_seq": "first_seq + 1",
    "points": "-points",
    "checksum": "replace(checksum, '.', '')",
    "token": "'x' || substr(token, 2)",
    "lane": "'l}ve'",
    "tries": "tries + 64",
    "begun_us": "0",
    "last_seq": "last_seq + 1099511627776",
}


def test_a_damaged_attempt_halts_the_sink_until_it_is_rekeyed(tmp_path: Path, templates: Templates) -> None:
    templates.copy("sqlite", 1, tmp_path / "store")
    destination = Destination()
    with Store(tmp_path / "store", Settings(background=False)) as store:
        write(store, 40)
        forwarder = Forwarder(store, MemorySink(destination, faults=["interrupt"]), batch_points=10)
        with pytest.raises(Interrupted):
            forwarder.step()
        forwarder.stop()
        whole = store.sinks.show("memory").attempt
        assert whole is not None
        for column, damage in DAMAGE.items():
            with closing(sqlite3.connect(store.files.metadata)) as raw, raw:
                [kept] = raw.execute("SELECT * FROM attempts").fetchall()
                raw.execute(f"UPDATE attempts SET {column} = {damage}")
            sink = MemorySink(destination)
            forwarder = Forwarder(store, sink)
            [step] = forwarder.step().values()
            forwarder.stop()
            assert step.progress is Progress.HALTED, column
            assert isinstance(step.error, SinkHalted)
            assert f"holdfast --store {store.path} sinks rekey --restored" in str(step.error)
            info = store.sinks.show("memory")
            assert (info.state, info.confirmed_seq, sink.sent) == ("halted", 0, []), column
            if column != "last_seq":
                with closing(sqlite3.connect(store.files.metadata)) as raw, raw:
                    raw.execute(f"REPLACE INTO attempts VALUES ({', '.join('?' * len(kept))})", kept)
                assert store.sinks.show("memory").attempt == whole
    with Store(tmp_path / "store", Settings(background=False)) as store:
        assert store.points.insert("W", "flow", 1.0).first_seq == 41, "no damaged number raises the seqs"
        store.sinks.rekey(restored=True)
        assert Forwarder(store, MemorySink(destination)).drain()["memory"].is_empty
        assert len(destination.points) == 41
