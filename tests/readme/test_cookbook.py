"""The recipes of the cookbook run, with stand-ins for what they talk to."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from repo import Forwarder, Settings, Store
from tests.starter import Starter

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
FASTAPI, COLLECT, MODBUS, MQTT, RECEIVER = (body for language, body in BLOCKS if language == "python")
((_, UNIT),) = (block for block in BLOCKS if block[0] == "ini")
((_, DOCKERFILE),) = (block for block in BLOCKS if block[0] == "dockerfile")

Run = Callable[..., subprocess.CompletedProcess[str]]

FASTAPI_STAND_IN = """
import asyncio, sys, types

class FastAPI:
    def __init__(self, lifespan):
        self.lifespan, self.state, self.routes = lifespan, types.SimpleNamespace(), {}
    def post(self, path):
        return lambda function: self.routes.setdefault(path, function)
    get = post

class HTTPException(Exception):
    def __init__(self, status_code, detail):
        self.status_code, self.detail = status_code, detail

Request = types.SimpleNamespace
sys.modules["fastapi"] = types.ModuleType("fastapi")
sys.modules["fastapi"].__dict__.update(FastAPI=FastAPI, HTTPException=HTTPException, Request=Request)
"""

FASTAPI_USE = """
async def requests():
    async with app.lifespan(app):
        request = Request(app=app)
        row = {"sensor_id": "s", "metric_name": "m", "timestamp": 5, "value": 1.5}
        assert await app.routes["/readings"]([row], request) == {"accepted": 1}
        print(json.dumps(await app.routes["/latest/{sensor}"]("s", request)))
        try:
            await app.routes["/readings"]([row, {**row, "value": []}], request)
        except HTTPException as refused:
            print(refused.status_code, refused.detail)

import json
asyncio.run(requests())
"""

MODBUS_STAND_IN = """
import struct, sys, time, types

class Client:
    asked = 0
    def __init__(self, host, **options): pass
    def connect(self): return True
    def read_holding_registers(self, address, count):
        Client.asked += 1
        if Client.asked > 6:
            raise KeyboardInterrupt
        if Client.asked == 3:
            raise ConnectionResetError("gone")
        if Client.asked == 4:
            return types.SimpleNamespace(isError=lambda: True)
        return types.SimpleNamespace(isError=lambda: False, registers=struct.unpack(">HH", struct.pack(">f", 1.5)))

names = ("pymodbus", "pymodbus.client", "pymodbus.exceptions")
sys.modules.update((name, types.ModuleType(name)) for name in names)
sys.modules["pymodbus.client"].ModbusTcpClient = Client
sys.modules["pymodbus.exceptions"].ModbusException = type("ModbusException", (Exception,), {})
time.sleep = lambda _: None
"""

MQTT_STAND_IN = """
import sys, threading, types

class Client:
    def __init__(self, version, **options):
        assert options["manual_ack"] and not options["clean_session"]
        self.acked, self.all_acked, self.disconnected = [], threading.Event(), threading.Event()
    def connect(self, host): pass
    def subscribe(self, topic, qos): assert qos == 1
    def ack(self, mid, qos):
        self.acked.append(mid)
        if len(self.acked) == len(PAYLOADS): self.all_acked.set()
    def disconnect(self): self.disconnected.set()
    def loop_forever(self):
        self.on_connect(self, None, None, 0, None)
        for mid, payload in enumerate(PAYLOADS):
            self.on_message(self, None, types.SimpleNamespace(topic="site/s/m", payload=payload, mid=mid, qos=1))
        assert self.all_acked.wait(300)
        print(sorted(self.acked))

for name in ("paho", "paho.mqtt", "paho.mqtt.client"):
    sys.modules[name] = types.ModuleType(name)
module = sys.modules["paho.mqtt.client"]
sys.modules["paho.mqtt"].client = module
module.Client, module.CallbackAPIVersion = Client, types.SimpleNamespace(VERSION2=2)
PAYLOADS = [b'{"t": 1, "v": 1.5}', b'{"t": 2, "v": 2.5}', b"no json", b'{"t": 3, "v": [1]}', b'{"t": 4, "v": "on"}']
"""

A_FILE_THAT_MAY_NOT_GROW = """
import resource

def loop_forever(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    self.on_message(self, None, types.SimpleNamespace(topic="site/s/m", payload=PAYLOADS[0], mid=0, qos=1))
    assert self.disconnected.wait(300)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(self.acked)

Client.loop_forever = loop_forever
"""


@pytest.fixture
def python(starter: Starter, tmp_path: Path) -> Run:
    """Run a script in a process of its own, in the test's folder."""
    return lambda script: starter.run(["-c", script], cwd=tmp_path)


def stored(path: Path) -> list[tuple[object, ...]]:
    with Store(path, Settings(background=False)) as store:
        return [
            (point["metric_name"], point["value"], point["quality"])
            for point in store.points.range(None, None)
        ]


def test_the_service_of_fastapi_writes_reads_and_refuses(python: Run) -> None:
    done = python(FASTAPI_STAND_IN + FASTAPI + FASTAPI_USE)
    assert done.returncode == 0, done.stderr
    assert '"timestamp": "1970-01-01T00:00:05+00:00", "timestamp_us": 5000000, "value": 1.5' in done.stdout
    assert "422 ['row 1: value: is a list" in done.stdout


def test_the_collector_stops_cleanly_on_sigterm(starter: Starter, tmp_path: Path) -> None:
    script = COLLECT.replace("time.sleep(10)", 'print("written", flush=True); time.sleep(600)')
    process = starter.open(["-c", script], cwd=tmp_path)
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    process.close()
    assert process.returncode == 0, err
    assert len(stored(tmp_path / "data" / "edge")) == 1


def test_the_modbus_loop_stores_what_answers_and_marks_what_does_not(python: Run, tmp_path: Path) -> None:
    done = python(MODBUS_STAND_IN + MODBUS)
    assert "KeyboardInterrupt" in done.stderr, done.stderr
    assert sorted(stored(tmp_path / "data" / "modbus"), key=str) == sorted(
        [(metric, 1.5, 100) for metric in ("pressure", "temperature") for _ in range(2)]
        + [("pressure", None, 0), ("temperature", None, 0)],
        key=str,
    )


def test_messages_of_mqtt_are_acknowledged_when_they_are_durable(python: Run, tmp_path: Path) -> None:
    done = python(MQTT_STAND_IN + MQTT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 1, 2, 3, 4]\n"
    assert done.stderr.count("site/s/m was refused, and is not sent again") == 3
    assert stored(tmp_path / "data" / "mqtt") == [("m", 1.5, 100), ("m", 2.5, 100)]


def test_a_message_of_mqtt_that_cannot_be_stored_stays_at_the_broker_and_ends_the_connection(
    python: Run, tmp_path: Path
) -> None:
    done = python(MQTT_STAND_IN + A_FILE_THAT_MAY_NOT_GROW + MQTT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert "site/s/m stays at the broker: " in done.stderr
    assert stored(tmp_path / "data" / "mqtt") == []


def test_the_http_receiver_stores_each_point_once_with_its_last_value(
    starter: Starter, tmp_path: Path
) -> None:
    serve = 'HTTPServer(("127.0.0.1", 8080), Receiver).serve_forever()'
    announced = (
        'server = HTTPServer(("127.0.0.1", 0), Receiver); print(server.server_port, flush=True); '
        "server.serve_forever()"
    )
    assert serve in RECEIVER
    process = starter.open(["-c", RECEIVER.replace(serve, announced)], cwd=tmp_path)
    port = int(process.stdout.readline())
    with Store(tmp_path / "store", Settings(background=False)) as store:
        store.sinks.add("collector", f"http://127.0.0.1:{port}/points", start="beginning")
        store.points.insert_many([("s", "m", at, 1.5) for at in range(3)])
        assert Forwarder(store).drain()["collector"].delivered == 3
        store.sinks.replay("collector", start="beginning")
        assert Forwarder(store).drain()["collector"].delivered == 3  # the same batch: a repeat
        store.points.insert_many([("s", "m", 2, 2.5), ("s", "m", 3, None)])
        assert Forwarder(store).drain()["collector"].delivered == 2
        late = {
            "seq": 3,
            "sensor_id": "s",
            "metric_name": "m",
            "timestamp_us": 2_000_000,
            "value": 1.5,
            "quality": 0,
        }
        key = f"holdfast-2.{store.status().store_id}.1.3.3.1.0"
    request = Request(f"http://127.0.0.1:{port}/points", json.dumps(late).encode(), {"Idempotency-Key": key})
    with urlopen(request, timeout=60) as answer:
        assert json.load(answer) == {"key": key, "repeat": False}
    process.close()
    received = sqlite3.connect(tmp_path / "received.db")
    with closing(received):
        found = received.execute("SELECT timestamp_us, value, epoch FROM points ORDER BY 1").fetchall()
        assert received.execute("SELECT count(*) FROM batches").fetchone() == (3,)
    assert found == [(0, 1.5, 1), (1_000_000, 1.5, 1), (2_000_000, 2.5, 1), (3_000_000, None, 1)]


def test_the_unit_and_the_image_name_what_exists(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT)
    assert unit["Service"]["Environment"] == f"HOLDFAST_STORE=/var/lib/{unit['Service']['StateDirectory']}"
    if shutil.which("systemd-analyze"):
        (tmp_path / "collect.service").write_text(
            UNIT.replace("/opt/holdfast/bin/python", "/bin/true").replace("User=holdfast", "User=root")
        )
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / "collect.service")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "collect.service" not in checked.stderr, checked.stderr
    assert "HOLDFAST_STORE=/data" in DOCKERFILE
    assert "VOLUME /data" in DOCKERFILE
    assert (ROOT / "requirements-sqlite.txt").exists()
