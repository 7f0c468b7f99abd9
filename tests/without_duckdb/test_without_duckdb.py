"""Where DuckDB is really not installed: a store lives on SQLite, and one on DuckDB is still written to.

Each test's other process runs in an environment that lacks DuckDB; this one has it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from tests.starter import PipedProcess, Starter

pytestmark = pytest.mark.duckdb  # it takes both environments

ROOT = Path(__file__).resolve().parents[2]

PART = [f"tests/contract/test_{name}.py" for name in ("identity_and_deletes", "status_and_series")]
"""The part of the contract suite that `make test` runs without DuckDB; `make test-sqlite` runs all."""

TELL = "import logging, sys; logging.basicConfig(stream=sys.stderr, format='%(levelname)s %(name)s %(message)s')\n"
OPEN = (
    TELL
    + "from repo import EngineMissing, Settings, Store\nstore = Store(sys.argv[1], Settings(BACKGROUND))\n"
)
QUIET, BUSY = (
    OPEN.replace("BACKGROUND", "background=False"),
    OPEN.replace("BACKGROUND", "flush_interval_s=0.05, lease_timeout_s=300"),
)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(starter_without_duckdb: Starter) -> Run:
    """Run something in an environment without DuckDB, to its end."""

    def run_(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = starter_without_duckdb.run(arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run_


@pytest.fixture
def beside(starter_without_duckdb: Starter) -> Iterator[Callable[..., PipedProcess]]:
    """Start scripts in such an environment that live beside the test."""
    started: list[PipedProcess] = []

    def start(script: str, *arguments: object) -> PipedProcess:
        started.append(starter_without_duckdb.open(["-c", script, *arguments]))
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_neither_duckdb_nor_its_dialect_is_there(run: Run) -> None:
    names = "('duckdb', '_duckdb', 'duckdb_engine', 'sqlalchemy')"
    done = run("-c", f"import importlib.util as u; print(*[u.find_spec(n) is None for n in {names}])")
    assert done.stdout.split() == ["True", "True", "True", "False"]


def test_a_store_made_there_is_on_sqlite_and_says_so_once(run: Run, tmp_path: Path) -> None:
    use = QUIET + (
        "store.points.insert_many([('a', 'm', at, 1.5) for at in range(10)])\n"
        "store.points.delete('a', 'm', 0, 5)\n"
        "store.records.add('r', 'gateway', {'pressure': 1.0})\n"
        "print(len(store.points.range('a', 'm').all()), store.status().engine, len(store.records.pending()))\n"
        "store.close()\n"
    )
    first, second = (run("-c", use, tmp_path / "store") for _ in range(2))
    assert first.stdout.split() == ["5", "sqlite", "1"]
    assert second.stdout.split() == ["5", "sqlite", "1"]
    [reported] = first.stderr.splitlines()
    assert re.match(
        "WARNING holdfast.store Failed to initialize DuckDB, falling back to SQLite: duckdb is not installed",
        reported,
    )
    assert second.stderr == ""


def test_the_documented_buffer_falls_back_there_and_keeps_its_points(run: Run, tmp_path: Path) -> None:
    done = run(
        "-c",
        TELL + "from repo import OfflineBufferManager\n"
        "buffer = OfflineBufferManager(sys.argv[1])\n"
        "assert buffer.add_record('REC-1', 'gw', {'sensor_id': 'S', 'metric_name': 'm', 'value': 2.5})\n"
        "print(buffer.use_duckdb, buffer.duckdb_storage, [r['data']['value'] for r in buffer.get_pending_records()])\n"
        "buffer.shutdown()\n",
        tmp_path / "buffer",
    )
    assert done.stdout.strip() == "False None [2.5]"
    assert (
        done.stderr.count("WARNING")
        == done.stderr.count("Failed to initialize DuckDB, falling back to SQLite:")
        == 1
    )
    with Store(tmp_path / "buffer", Settings(background=False)) as store:
        assert [row["value"] for row in store.points.range("S", "m")] == [2.5]


def test_a_store_on_duckdb_can_be_written_to_and_its_metadata_can_be_read(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Store(folder, Settings(background=False)) as store:
        store.points.insert_many([("a", "m", at, float(at)) for at in range(10)])
        store.flush()
    done = run(
        "-c",
        QUIET + "store.points.insert('a', 'm', 77.0, timestamp=100)\n"
        "table = {'sensor_id': ['b'] * 3, 'metric_name': 'm', 'timestamp': [1, 2, 3], 'value': [1.0] * 3}\n"
        "store.points.insert_table(table)\n"
        "print(store.points.latest('a', 'm')[0]['value'], store.points.latest('b', 'm')[0]['timestamp_us'])\n"
        "with store.transaction() as tx:\n"
        "    tx.records.add('r1', 'gw', {'x': 1}); tx.records.add('r2', 'gw', {'x': 2})\n"
        "store.records.mark_sent(['r1'])\n"
        "store.points.delete('a', 'm', 0, 5)\n"
        "print(store.status().engine, store.status().unflushed, [s.points for s in store.series.list()])\n"
        "for ask in (lambda: store.points.range('a', 'm').all(), store.flush, store.checkpoint, store.promote,\n"
        "            store.demote, lambda: store.sql('SELECT 1'), lambda: store.points.latest('a', 'm'),\n"
        "            lambda: store.points.aggregate('a', 'm'), lambda: store.points.after(0)):\n"
        "    try:\n"
        "        ask()\n"
        "    except EngineMissing as error:\n"
        "        print('missing', 'duckdb>=2.0.1,<2.1' in str(error), 'holdfast demote' in str(error))\n"
        "store.close()\n",
        folder,
    )
    newest, reported, *answers = done.stdout.splitlines()
    assert newest == "77.0 3000000"
    assert reported == "duckdb 5 [10, 0]"
    assert answers == ["missing True True"] * 9
    assert done.stderr.count("\n") == 1, "a warning at the opening, and nothing more"
    with Store(folder, Settings(background=False)) as store:
        found = [(row["sensor_id"], row["value"]) for row in store.points.range(None, None)]
        assert found == [*[("b", 1.0)] * 3, *(("a", float(at)) for at in range(5, 10)), ("a", 77.0)]
        assert [record["record_id"] for record in store.records.pending()] == ["r2"]
        assert store.status().ledger_dropped == 5


def test_processes_with_and_without_duckdb_write_to_one_store(beside: Any, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Store(folder, Settings(flush_interval_s=0.05, lease_timeout_s=300)) as store:
        other = beside(
            BUSY + "for line in sys.stdin:\n"
            "    at = int(line)\n"
            "    store.points.insert('without', 'm', float(at), timestamp=at)\n"
            "    store.points.delete('both', 'm', at, at + 1)\n"
            "    store.points.insert_many([('both', 'm', at, 2.0), ('gone', 'm', at, 1.0)])\n"
            "    store.records.add(f'r{at}', 'gw', {'at': at})\n"
            "    print(at, flush=True)\n"
            "store.close()\n",
            folder,
        )
        for at in range(30):
            other.stdin.write(f"{at}\n")
            other.stdin.flush()
            store.points.insert("with", "m", float(at), timestamp=at)
            store.points.insert("both", "m", 1.0, timestamp=1000 + at)
            assert int(other.stdout.readline()) == at
            if at % 10 == 0:
                assert len(store.points.range("without", None).all()) == at + 1
        store.points.delete("gone")
        _, reported = other.communicate(timeout=300)
        assert (other.returncode, reported.count("\n")) == (0, 1), reported
        for sensor, values in (
            ("with", [float(at) for at in range(30)]),
            ("without", [float(at) for at in range(30)]),
            ("both", [2.0] * 30 + [1.0] * 30),
            ("gone", []),
        ):
            assert [row["value"] for row in store.points.range(sensor, "m")] == values
        assert len(store.records.pending()) == 30
        assert store.status().unflushed == 0


def test_a_process_without_duckdb_continues_while_the_columns_move_to_it_and_away(
    beside: Any, tmp_path: Path
) -> None:
    settings = Settings(background=False, engine="sqlite", lease_timeout_s=300)
    with Store(tmp_path / "store", settings) as store:
        other = beside(
            BUSY + "for line in sys.stdin:\n"
            "    at = int(line)\n"
            "    store.points.insert('without', 'm', 1.0, timestamp=at)\n"
            "    try:\n"
            "        print(len(store.points.range(None, None).all()), flush=True)\n"
            "    except EngineMissing:\n"
            "        print('missing', flush=True)\n"
            "store.close()\n",
            store.path,
        )
        answers = []
        for at in range(4):
            store.points.insert("with", "m", 1.0, timestamp=at)
            other.stdin.write(f"{at}\n")
            other.stdin.flush()
            answers.append(other.stdout.readline().strip())
            assert len(store.points.range(None, None).all()) == 2 * at + 2
            store.demote() if store.status().engine == "duckdb" else store.promote()
        assert answers == ["2", "missing", "6", "missing"]
        _, reported = other.communicate(timeout=300)
        assert (other.returncode, reported) == (0, "")


def test_settings_that_ask_for_duckdb_do_not_keep_a_store_from_opening_there(
    run: Run, tmp_path: Path
) -> None:
    with Store(tmp_path / "store", Settings(background=False, engine="sqlite")) as store:
        store.points.insert("a", "m", 1.0, timestamp=1)
    done = run(
        "-c",
        QUIET.replace("background=False", "background=False, engine='duckdb', convert_at_open=True")
        + "print(store.status().engine, len(store.points.range('a', 'm').all()))\nstore.close()\n",
        tmp_path / "store",
    )
    assert done.stdout.split() == ["sqlite", "1"]
    assert "the columns were not converted" in done.stderr


def test_the_command_works_there(run: Run, tmp_path: Path) -> None:
    holdfast = ["cli.py", "--store", tmp_path / "store"]
    assert "Failed to initialize DuckDB, falling back to SQLite" in run(*holdfast, "init").stderr
    file = tmp_path / "readings.csv"
    file.write_text("timestamp,pressure\n2026-01-01T00:00:00Z,2500.5\n2026-01-01T00:01:00Z,2501\n")
    run(*holdfast, "-q", "ingest", file, "--sensor", "WELL-3")
    assert "2501" in run(*holdfast, "-q", "query", "WELL-3", "pressure", "--format", "csv").stdout
    assert "cannot be used here" in run(*holdfast, "promote", code=1).stderr
    assert "sqlite, schema" in run(*holdfast, "status").stdout


@pytest.mark.slow
def test_a_part_of_the_contract_suite_passes_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test-sqlite` runs all of it."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)  # they are for these tests
    done = run("-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not bench", "-x", *PART)
    assert re.search(r"^\d\d passed in ", done.stdout, re.MULTILINE), done.stdout[-500:]


def test_the_requirements_for_sqlite_alone_are_those_of_the_project_but_for_duckdb() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [line for line in project["dependencies"] if not line.startswith("duckdb")]
    lines = (ROOT / "requirements-sqlite.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == wanted


@pytest.mark.slow
def test_pip_installs_the_requirements_for_sqlite_alone_and_the_wheel_without_its_own(tmp_path: Path) -> None:
    """The route for platforms without a wheel of DuckDB, in an environment that has nothing."""
    venv.EnvBuilder(with_pip=True, symlinks=True).create(tmp_path / "bare")
    bare = tmp_path / "bare" / "bin" / "python"

    def do(*arguments: object) -> str:
        done = subprocess.run(
            [bare, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True)
    [wheel] = tmp_path.glob("*.whl")
    do("-m", "pip", "install", "--quiet", "-r", ROOT / "requirements-sqlite.txt")
    do("-m", "pip", "install", "--quiet", "--no-deps", wheel)
    assert "duckdb" not in do("-m", "pip", "list").lower()
    script = (
        "from repo import Store\n"
        "with Store('s') as store:\n"
        "    store.points.insert('a', 'm', 2.5)\n"
        "    print(store.points.latest('a', 'm')[0]['value'], len(store.points.range('a', 'm').all()))\n"
    )
    assert do("-c", script).split() == ["2.5", "1"]
