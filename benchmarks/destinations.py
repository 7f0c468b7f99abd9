"""The destinations of deliveries: how a sink is added for an empty one, and how its own loader fills it from a file.

Servers run on loopback, as installed from the distribution; Kafka is the mock cluster of librdkafka. What holds little
or takes long gets a part of the readings: the loader `most_points`, a delivery what it manages in the time of the plan.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from benchmarks.cached import CachedReadings
from benchmarks.discarding import Discarding
from benchmarks.peers.postgresql import PostgreSQL
from benchmarks.peers.victoria_metrics import VictoriaMetrics
from benchmarks.servers import Server, binary, free_port
from repo import Store
from repo.delivery.receiver import Receiver
from repo.delivery.sinks.postgresql import PostgresqlSink

__all__ = ["DESTINATIONS", "Destination"]

_STORE_ID = "0" * 32
_COLUMNS = "store_id, sensor_id, metric_name, timestamp_us, value, quality, epoch, seq"
_LINES = 10_000
_DAY_US = 86_400_000_000
_PIECE = 1_048_576
_number = count()

Line = Callable[[str, str, int, float, int, int], str]
"""Makes the line of a file from sensor, metric, µs, value, quality and seq."""


class Destination(ABC):
    """One destination. `until_done` closes what it has started; `folder` is its own."""

    key: str
    """In targets.toml."""
    loader: str
    """Its own bulk loader, in words."""
    most_points = 1_000_000
    """The loader gets at most so many."""

    def __init__(self, held: CachedReadings, folder: Path, servers: Path, until_done: ExitStack) -> None:
        self._held = held
        self._folder = folder
        self._until_done = until_done
        folder.mkdir(exist_ok=True)
        self.loaded = min(self.most_points, held.points)
        self._start(servers)

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot run here."""
        return None

    @abstractmethod
    def _start(self, servers: Path) -> None:
        """Start what it consists of; `servers` is a folder that the servers' user may enter."""

    @abstractmethod
    def add(self, store: Store, name: str) -> None:
        """Add a sink with this name for an empty place of it."""

    @abstractmethod
    def load(self) -> None:
        """Load `loaded` points into another empty place, from a file."""

    def file(self, name: str, line: Line) -> Path:
        """Return a file with a line per reading, made once."""

        def build(folder: Path) -> None:
            seq = 0
            with (folder / name).open("w") as lines:
                for piece in self._held.readings():
                    for number, us, value, quality, _ in piece.keyed_tuples():
                        seq += 1
                        if seq > self.loaded:
                            return
                        lines.write(line(*self._held.series[number], us, value, quality, seq) + "\n")

        return self._held.built(f"lines-{self.key}", build) / name


class _Postgresql(Destination):
    key = "deliver-postgresql"
    loader = "COPY of a file into the same table"
    most_points = 3_000_000
    missing = PostgreSQL.missing

    def _start(self, servers: Path) -> None:
        self._server = PostgreSQL(servers, self._held.series)
        self._until_done.callback(self._server.close)
        self._lines = self.file("points.copy", _copy_line)

    def add(self, store: Store, name: str) -> None:
        store.sinks.add(name, self._server.url, start="beginning", user="bench", schema=name)

    def load(self) -> None:
        import psycopg

        schema, held = f"peer{next(_number)}", self._held
        sink = PostgresqlSink(self._server.url, name=schema, user="bench", schema=schema)
        sink.open(_STORE_ID, 1)  # the same tables
        sink.close()
        with psycopg.connect(self._server.url, user="bench", autocommit=True) as connection:
            connection.execute(f"SET search_path TO {schema}")
            for us in range(held.first_us, held.last_us + _DAY_US, _DAY_US):
                connection.execute("SELECT make_partition(%s)", (us,))
            with (
                self._lines.open("rb") as lines,
                connection.cursor() as cursor,
                cursor.copy(f"COPY points ({_COLUMNS}) FROM STDIN") as copy,
            ):
                while piece := lines.read(_PIECE):
                    copy.write(piece)


class _Holdfast(Destination):
    key = "deliver-holdfast"
    loader = "import of a bundle of Parquet files"

    def _start(self, servers: Path) -> None:  # noqa: ARG002  it is in this process
        def build(folder: Path) -> None:
            with Store(self._held.store(compacted=True)) as store:
                store.export(folder / "bundle", partition="day")

        self._bundle = self._held.built("bundle", build) / "bundle"
        self.loaded = self._held.points

    def add(self, store: Store, name: str) -> None:
        receiving = self._until_done.enter_context(Store(self._folder / name))
        receiver = self._until_done.enter_context(Receiver(receiving, "127.0.0.1", 0))
        store.sinks.add(name, f"http+holdfast://127.0.0.1:{receiver.port}", start="beginning")

    def load(self) -> None:
        with Store(self._folder / f"peer{next(_number)}") as store:
            store.import_parquet(self._bundle)


class _Folder(Destination):
    key = "deliver-folder"
    loader = "export as NDJSON"
    format: Literal["ndjson", "parquet"] = "ndjson"

    def add(self, store: Store, name: str) -> None:
        stick = self._folder / name
        stick.mkdir()
        (stick / "holdfast-folder.json").touch()
        store.sinks.add(name, stick.as_uri(), start="beginning", format=self.format)

    def _start(self, servers: Path) -> None:  # noqa: ARG002  it is a folder
        self.loaded = self._held.points

    def load(self) -> None:
        with Store(self._held.store(compacted=True)) as store:
            store.export(self._folder / f"peer{next(_number)}", partition="day", format=self.format)


class _ParquetFolder(_Folder):
    key = "deliver-folder-parquet"
    loader = "export of a bundle of Parquet files"
    format = "parquet"


class _VictoriaMetrics(Destination):
    key = "deliver-influx"
    loader = "lines of a file, 10,000 in a request"
    missing = VictoriaMetrics.missing

    def _start(self, servers: Path) -> None:
        self._server = VictoriaMetrics(servers, self._held.series)
        self._until_done.callback(self._server.close)
        self._lines = self.file("points.lines", _influx_line)

    def add(self, store: Store, name: str) -> None:
        store.sinks.add(name, f"{self._server.url}/write", start="beginning", format="influx1", database=name)

    def load(self) -> None:
        _post_lines(self._lines, int(self._server.url.rpartition(":")[2]), "/write?precision=u")


class _Http(Destination):
    key = "deliver-http"
    loader = "lines of a file, 10,000 in a request"

    def _start(self, servers: Path) -> None:  # noqa: ARG002  it is in this process
        self._port = self._until_done.enter_context(Discarding.running()).port
        self._lines = self.file("points.ndjson", _json_line)

    def add(self, store: Store, name: str) -> None:
        store.sinks.add(name, f"http://127.0.0.1:{self._port}/{name}", start="beginning", receipts=False)

    def load(self) -> None:
        _post_lines(self._lines, self._port, "/peer")


class _Mosquitto(Destination):
    key = "deliver-mqtt"
    loader = "mosquitto_pub of the lines of a file, QoS 1"
    most_points = 200_000

    @classmethod
    def missing(cls) -> str | None:
        try:
            import paho.mqtt.client
        except ImportError:
            return "paho-mqtt is not installed"
        del paho
        packages = {"mosquitto": "mosquitto", "mosquitto_pub": "mosquitto-clients"}
        return next((f"{name} is not installed" for one, name in packages.items() if not binary(one)), None)

    def _start(self, servers: Path) -> None:
        server, self._port = Server(servers), free_port()
        self._until_done.callback(server.close)
        config = server.folder / "mosquitto.conf"
        lines = (f"listener {self._port} 127.0.0.1", "allow_anonymous true", "max_queued_messages 0")
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o644)
        program = binary("mosquitto")
        assert program is not None
        server.start([program, "-c", str(config)], lambda: _connects(self._port))
        self._lines = self.file("points.ndjson", _json_line)

    def add(self, store: Store, name: str) -> None:
        store.sinks.add(name, f"mqtt://127.0.0.1:{self._port}/{name}", start="beginning", qos="1")

    def load(self) -> None:
        program = binary("mosquitto_pub")
        assert program is not None
        address = ["-h", "127.0.0.1", "-p", str(self._port), "-t", "peer", "-q", "1", "-l"]
        with self._lines.open("rb") as lines:
            subprocess.run([program, *address], stdin=lines, check=True)


class _Kafka(Destination):
    key = "deliver-kafka"
    loader = "one producer, lines of a file"

    @classmethod
    def missing(cls) -> str | None:
        try:
            import confluent_kafka
        except ImportError:
            return "confluent-kafka is not installed"
        del confluent_kafka
        return None

    def _start(self, servers: Path) -> None:  # noqa: ARG002  it writes no files
        holder = subprocess.Popen([sys.executable, "-c", _HOLDER], stdout=subprocess.PIPE, text=True)
        self._until_done.callback(holder.wait)
        self._until_done.callback(holder.kill)
        assert holder.stdout is not None
        self._servers = f"127.0.0.1:{holder.stdout.readline().split()[-1]}"
        self._lines = self.file("points.ndjson", _json_line)

    def add(self, store: Store, name: str) -> None:
        store.sinks.add(name, f"kafka://{self._servers}/{name}", start="beginning")

    def load(self) -> None:
        from confluent_kafka import Producer

        producer: Any = Producer(
            {
                "bootstrap.servers": self._servers,
                "enable.idempotence": True,
                "linger.ms": 5,
                "compression.type": "lz4",
            }
        )
        with self._lines.open("rb") as lines:
            for line in lines:
                while True:
                    try:
                        producer.produce("peer", line, line[20:60])
                    except BufferError:
                        producer.poll(0.01)
                    else:
                        break
        producer.flush()


_HOLDER = """
import time
from confluent_kafka import Producer
holder = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
for broker in holder.list_topics(timeout=30).brokers.values():
    print(broker.host, broker.port, flush=True)
time.sleep(1e6)
"""

DESTINATIONS: tuple[type[Destination], ...] = (
    _Postgresql,
    _Holdfast,
    _Folder,
    _ParquetFolder,
    _VictoriaMetrics,
    _Http,
    _Mosquitto,
    _Kafka,
)


def _copy_line(sensor: str, metric: str, us: int, value: float, quality: int, seq: int) -> str:
    return f"{_STORE_ID}\t{sensor}\t{metric}\t{us}\t{value!r}\t{quality}\t1\t{seq}"


def _influx_line(sensor: str, metric: str, us: int, value: float, quality: int, _seq: int) -> str:
    return f"{metric},sensor_id={sensor} value={value!r},quality={quality}i {us}"


def _json_line(sensor: str, metric: str, us: int, value: float, quality: int, seq: int) -> str:
    names = f'"sensor_id":"{sensor}","metric_name":"{metric}"'
    return (
        f'{{"seq":{seq},{names},"timestamp_us":{us},"value":{value!r},"quality":{quality},"metadata":null}}'
    )


def _post_lines(file: Path, port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with file.open("rb") as lines:
        for body in _bodies(lines):
            connection.request("POST", path, body)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 204:
                raise RuntimeError(f"{path} answered {answer.status}")
    connection.close()


def _bodies(lines: Any) -> Iterator[bytes]:
    while body := b"".join(islice(lines, _LINES)):
        yield body


def _connects(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
