"""The examples of the README and the guides, run as a reader would run them."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import sqlite3
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.migrations.legacy_store import contents, make_legacy_store
from tests.starter import Starter

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def blocks(document: Path, language: str) -> list[str]:
    """Return the code blocks of a document in one language, without those that call `make`."""
    text = document.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [body for body in found if "make " not in body]


README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST, DELIVERY = blocks(ROOT / "README.md", "python")
(INSPECT,) = blocks(ROOT / "README.md", "sh")
COMMANDS, SQL, CARRYING, COMPACTING, UPGRADE = blocks(DOCS / "operations.md", "sh")


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder, with `holdfast` on the path as an installation would put it there."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    starter.program(folder / "bin" / "holdfast", ROOT / "cli.py")
    return folder


@pytest.fixture(scope="module")
def python(starter: Starter) -> Run:
    """Run a script in a process of its own, in a folder."""
    return lambda script, folder: starter.run(["-c", script], cwd=folder)


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run lines of the shell in the reader's folder."""
    return subprocess.run(
        ["sh", "-ec", f"PATH={shlex.quote(str(folder / 'bin'))}:$PATH\n{script}"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """The URL of a receiver that answers every batch with its receipt, and the bodies that it got."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Encoding"] == "gzip"
            bodies.append(gzip.decompress(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = json.dumps({"key": self.headers["Idempotency-Key"], "repeat": False}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/points", bodies
        finally:
            server.shutdown()
            thread.join()


def test_the_examples_of_the_readme_write_deliver_and_inspect(
    folder: Path, python: Run, collector: tuple[str, list[bytes]]
) -> None:
    done = python(FIRST, folder)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert "2500.5" in printed[0]
    assert printed[1].startswith("2026-01-01 01:00:00+01:00")
    assert len([line for line in printed if line.startswith("2026-01-01")]) == 6

    url, bodies = collector
    assert "https://collector.example/points" in DELIVERY
    done = python(DELIVERY.replace("https://collector.example/points", url), folder)
    assert done.returncode == 0, done.stderr
    assert "delivered=3602" in done.stdout
    assert "idle" in done.stdout
    assert len(b"".join(bodies).splitlines()) == 3602

    done = shell(INSPECT, folder)
    assert done.returncode == 0, done.stderr
    assert "2500.5" in done.stdout


@pytest.mark.parametrize(
    ("guide", "examples"), [("python.md", 5), ("delivery.md", 2), ("legacy.md", 1), ("ingest.md", 1)]
)
def test_every_python_example_of_a_guide_runs(
    folder: Path, python: Run, collector: tuple[str, list[bytes]], guide: str, examples: int
) -> None:
    url, bodies = collector
    found = blocks(DOCS / guide, "python")
    assert len(found) == examples
    for example in found:
        done = python(example.replace("https://collector.example/points", url), folder)
        assert done.returncode == 0, done.stderr
    if guide == "python.md":
        assert b'"PUMP-1"' in b"".join(bodies)


def test_the_commands_of_the_guide_to_delivery_run(
    folder: Path, tmp_path: Path, collector: tuple[str, list[bytes]]
) -> None:
    (tmp_path / "bin").symlink_to(folder / "bin")
    url, bodies = collector
    first, _, rate, *_ = blocks(DOCS / "delivery.md", "sh")
    reading = {"sensor_id": "P", "metric_name": "m", "timestamp": 1767225600, "value": 1}
    (tmp_path / "reading.ndjson").write_text(json.dumps(reading))
    write = "holdfast --store ./data/edge init\nholdfast --store ./data/edge ingest reading.ndjson\n"
    script = write + first.replace("https://collector.example/points", url) + rate
    done = shell(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert b'"P"' in b"".join(bodies)


def test_the_commands_of_the_guide_run(folder: Path) -> None:
    done = shell(COMMANDS + SQL, folder)
    assert done.returncode == 0, done.stderr
    assert "2500.5" in done.stdout
    assert "value\n2500.5\n" in done.stdout


def test_the_sink_of_the_guide_stores_each_point_once_and_passes_the_contract(
    python: Run, starter: Starter, tmp_path: Path
) -> None:
    sink, use = blocks(DOCS / "adding-a-sink.md", "python")
    (contract,) = blocks(DOCS / "adding-a-sink.md", "py")
    script = f"""{sink}
from repo import Store
with Store("./data/edge") as store:
    store.points.insert_many([("P", "m", at, 1.0) for at in range(50)])
{use}
with Store("./data/edge") as store:
    store.points.insert_many([("P", "m", at, 2.0) for at in range(40, 70)])
{use}
"""
    done = python(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["50", "30"]
    with closing(sqlite3.connect(tmp_path / "archive.db")) as database:
        stored = database.execute("SELECT timestamp_us / 1000000, value FROM points ORDER BY 1").fetchall()
    assert stored == [(at, 1.0 if at < 40 else 2.0) for at in range(70)]

    (tmp_path / "test_archive.py").write_text(f"{sink}\n{contract}", encoding="utf-8")
    run = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_archive.py']))"
    done = starter.run(["-c", run], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_the_formats_are_as_the_guide_describes_them(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from repo import Settings, Store
    from repo.delivery.encodings.ndjson import lines_of_points

    guide = (DOCS / "formats.md").read_text(encoding="utf-8")
    (line,) = blocks(DOCS / "formats.md", "json")
    point = json.loads(line)
    seq, sensor, metric, time_us, value, quality, metadata = point.values()
    columns = [[column] for column in (sensor, metric, time_us, value, None, quality, metadata, seq)]
    assert lines_of_points(columns) == [line.strip()]

    with Store(tmp_path / "store", Settings(background=False)) as store:
        store.points.insert_many([("W-1", "flow", at, at / 2) for at in (3, 4)])
        with closing(sqlite3.connect(tmp_path / "store" / "offline_buffer.db")) as database:
            (payload,) = database.execute("SELECT payload FROM journal").fetchone()
        store.export_parquet(tmp_path / "one.parquet")
        store.export_ndjson(tmp_path / "bundle", partition="day")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    section = guide[guide.index("## Bundle") : guide.index("## NDJSON lines")]
    for key in [*manifest, *manifest["files"][0], *manifest["selection"]]:
        assert f"`{key}`" in section, key

    magic, version, flags, checksum, rows, names_bytes, quality = struct.unpack_from("<2sBBIIIi", payload)
    assert (magic, version, flags, rows, quality) == (b"HF", 1, 3, 2, 100)
    assert checksum == zlib.crc32(payload[8:])
    assert json.loads(payload[20 : 20 + names_bytes]) == [[["W-1", "flow", "number"]]]
    assert struct.unpack_from("<2q2d", payload, 20 + names_bytes) == (3_000_000, 4_000_000, 1.5, 2.0)
    assert len(payload) == 20 + names_bytes + 2 * 16

    parquet = pq.read_schema(tmp_path / "one.parquet")
    section = guide[guide.index("## Parquet file") : guide.index("## Bundle")]
    for column in parquet:
        assert f"`{column.name}`" in section, column.name
        assert str(column.type).replace(", tz=UTC", ", UTC") in section, column
    assert json.loads(parquet.metadata[b"holdfast"])["format"] == 1


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", document.read_text(encoding="utf-8")):
            file = (document.parent / target) if target else document
            assert file.is_file(), (document.name, target)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
                known = {"#" + re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
                assert anchor in known, (document.name, anchor)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


@pytest.mark.duckdb
def test_a_legacy_store_is_looked_at_adopted_upgraded_and_put_back(folder: Path) -> None:
    for name in ("well-7", "well-7-new"):
        shutil.rmtree(folder / name, ignore_errors=True)
    make_legacy_store(folder / "well-7", 500)
    done = shell(UPGRADE, folder)
    assert done.returncode == 0, done.stderr
    for text in ("0004 is due", "iB needed", "well-7-new was created", "none -> 0004", "restored"):
        assert text in done.stdout
    assert contents(folder / "well-7")["metadata"] is None
    assert contents(folder / "well-7-new")["points"][0] == 500


def test_exported_and_deleted_data_is_in_the_other_store_after_the_import(folder: Path) -> None:
    for name in ("ship", "stick", "office"):
        shutil.rmtree(folder / name, ignore_errors=True)
    done = shell(CARRYING, folder)
    assert done.returncode == 0, done.stderr
    assert "valid: 2 files, 2 points" in done.stdout
    assert "selected 2 points" in done.stdout
    assert "deleted 2 points" in done.stdout
    assert "returned to the disk; the store takes" in done.stdout
    read = "holdfast --store ./%s query ENGINE-1 rpm --format csv"
    carried, left = (shell(read % name, folder).stdout.splitlines()[1:] for name in ("office", "ship"))
    assert [row.split(",")[2:4] for row in carried] == [
        ["2026-01-01T00:00:00Z", "612.5"],
        ["2026-01-02T00:00:00Z", "613.0"],
    ]
    assert [row.split(",")[3] for row in left] == ["640.0"]
    done = shell(COMPACTING, folder)
    assert (done.returncode, done.stderr) == (0, "")
    planned, compacted = done.stdout.splitlines()
    assert re.search("2 points in 1 slice arrived sorted|SQLite keeps the points sorted", planned)
    assert re.search("2 points in 1 slice arrived sorted|SQLite keeps the points sorted", compacted)


def test_the_first_screen_names_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    first_screen = "\n".join(README.splitlines()[:20])
    for command in ("demo", "test"):
        assert f"make {command}" in first_screen
        assert f"\n{command}: " in makefile


def test_every_folder_that_the_readme_lists_exists() -> None:
    for name in re.findall(r"^\| (`[^|]+`) \|", README, flags=re.MULTILINE):
        for folder in re.findall(r"`([^`]+)/`", name):
            assert (ROOT / folder).is_dir(), folder


def test_every_setting_that_the_guides_name_exists() -> None:
    from repo import Settings

    assert Settings(engine="sqlite").durability == "full"
    assert Settings.load(environment={"HOLDFAST_ENGINE": "sqlite"}).engine == "sqlite"
