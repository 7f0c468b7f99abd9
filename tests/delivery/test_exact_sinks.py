"""The sinks that keep a position pass the contract, with the real destination behind them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from repo import Settings, Store
from repo.delivery.protocol import Sink
from repo.delivery.receiver import Receiver
from repo.delivery.sinks.folder import FolderSink
from repo.delivery.sinks.holdfast import HoldfastSink
from repo.delivery.sinks.postgresql import PostgresqlSink
from repo.testing import Batches, Destination, SinkContract
from tests.conftest import Templates
from tests.delivery.impatience import PATIENT_S
from tests.delivery.servers.postgresql import PASSWORD, PostgresqlServer
from tests.delivery.servers.proxy import Proxy

INFINITE = {"Infinity": inf, "-Infinity": -inf}


class Reached(Destination):
    """A destination behind a proxy."""

    proxy: Proxy

    def cut(self) -> None:
        self.proxy.cut()

    def mend(self) -> None:
        self.proxy.mend()


class Hub(Reached):
    """A schema of its own in a running PostgreSQL."""

    unacceptable = ("W", "state", 5, "a\0b")

    def __init__(self, server: PostgresqlServer, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy
        self.schema = f"hub_{uuid4().hex}"

    def sink(self) -> Sink:
        target = f"postgresql://127.0.0.1:{self.proxy.port}/postgres"
        options: dict[str, Any] = {"user": "admin", "password": PASSWORD, "schema": self.schema}
        return PostgresqlSink(target, name="hub", timeout_s=PATIENT_S, **options)

    def points(self) -> Iterable[Any]:
        value = "coalesce(to_jsonb(value_text), 'null') AS text"
        rows = self.server.ask(
            f'SELECT sensor_id, metric_name, timestamp_us, value, {value} FROM "{self.schema}".points'
        )
        return [(*row[:3], row[4] if row[3] is None else row[3]) for row in rows]

    def records(self) -> Iterable[tuple[str, Any]]:
        return self.server.ask(f'SELECT record_id, data FROM "{self.schema}".records')


class ExactContract(SinkContract):
    """The contract, in which a crash at each line takes seconds."""

    @pytest.mark.slow
    def test_a_crash_leaves_a_batch_stored_with_its_token_or_not_at_all(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        super().test_a_crash_leaves_a_batch_stored_with_its_token_or_not_at_all(destination, sink, batches)


class TestPostgresql(ExactContract):
    @pytest.fixture
    def destination(self, postgresql: PostgresqlServer) -> Iterator[Destination]:
        with Proxy(postgresql.port) as proxy:
            yield Hub(postgresql, proxy)


class ReceivingStore(Reached):
    """A store with a receiver, and a series of texts."""

    unacceptable = ("W", "state", 5, 1.0)

    def __init__(self, store: Store, proxy: Proxy) -> None:
        self.store = store
        self.proxy = proxy
        store.points.insert("W", "state", "text", timestamp=0)
        store.points.delete("W", "state", end=0.1)
        store.points.insert("W", "state", "text", timestamp=1)

    def sink(self) -> Sink:
        return HoldfastSink(f"http+holdfast://127.0.0.1:{self.proxy.port}", name="there", timeout_s=PATIENT_S)

    def points(self) -> Iterable[Any]:
        return [
            (point["sensor_id"], point["metric_name"], point["timestamp_us"], point["value"])
            for point in self.store.points.range(None, None)
            if point["metric_name"] != "state"
        ]

    def records(self) -> Iterable[tuple[str, Any]]:
        return [(record["record_id"], record["data"]) for record in self.store.records.pending()]


class TestHoldfast(ExactContract):
    @pytest.fixture
    def destination(self, tmp_path: Path, templates: Templates) -> Iterator[Destination]:
        templates.copy("sqlite", 1, tmp_path / "store")
        with (
            Store(tmp_path / "store", Settings(engine="sqlite", background=False)) as store,
            Receiver(store) as receiver,
            Proxy(receiver.port) as proxy,
        ):
            yield ReceivingStore(store, proxy)


class Stick(Destination):
    """A folder; cut means that the stick is not there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "stick"
        self.folder.mkdir()
        (self.folder / "holdfast-folder.json").touch()

    def sink(self) -> Sink:
        return FolderSink(self.folder.as_uri(), name="stick")

    def points(self) -> Iterable[Any]:
        arrived = {}
        for path in self.delivered(".ndjson.gz"):
            for line in gzip.decompress(path.read_bytes()).splitlines():
                point = json.loads(line)
                value = INFINITE.get(point["value"], point["value"])
                arrived[point["sensor_id"], point["metric_name"], point["timestamp_us"]] = value
        return [(*identity, value) for identity, value in arrived.items()]

    def delivered(self, ending: str) -> list[Path]:
        """Return the files that a position counts. A crash may leave another one, which the next batch replaces."""
        found = []
        for path in sorted(self.folder.glob("positions/*.json")):
            position = json.loads(path.read_bytes())
            home = f"store={position['store']}/epoch={position['epoch']:06}/sink={position['sink']}"
            files = sorted(self.folder.glob(f"{home}/*{ending}"))
            found += [file for file in files if int(file.name.partition("_")[0]) <= position["files"]]
        return found

    def cut(self) -> None:
        self.folder.rename(self.home / "elsewhere")

    def mend(self) -> None:
        (self.home / "elsewhere").rename(self.folder)


class TestFolder(ExactContract):
    @pytest.fixture
    def destination(self, tmp_path: Path) -> Destination:
        return Stick(tmp_path)


class ParquetStick(Stick):
    """The same with Parquet files."""

    def sink(self) -> Sink:
        return FolderSink(self.folder.as_uri(), name="stick", format="parquet")

    def points(self) -> Iterable[Any]:
        duckdb = pytest.importorskip("duckdb")
        arrived = {}
        for path in self.delivered(".parquet"):
            rows = duckdb.execute(
                "SELECT sensor_id, metric_name, epoch_us(timestamp), value, value_text FROM read_parquet(?)",
                [str(path)],
            ).fetchall()
            for *identity, value, text in rows:
                arrived[tuple(identity)] = text if value is None else value
        return [(*identity, value) for identity, value in arrived.items()]


@pytest.mark.slow
@pytest.mark.duckdb
class TestParquetFolder(ExactContract):
    @pytest.fixture
    def destination(self, tmp_path: Path) -> Destination:
        return ParquetStick(tmp_path)
