"""Imports: who may import whom, what each module owns, what is public, and what importing costs.

A module has one responsibility. It is split where a second one begins, never to meet a number of lines; one with
a single importer and under 80 lines has to justify itself.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import repo
from tests.conftest import ENGINES, RunPython

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for path in [*(ROOT / "repo").rglob("*.py"), ROOT / "cli.py"] if path.exists())

PUBLIC = """
    AsyncStore Backoff Batch ConnectionMonitor DuckDBTimeSeriesStorage EngineMissing Exported FlushFailed Forwarder
    HoldfastError HttpSink Imported InvalidFile InvalidPoint InvalidQuery InvalidRecord InvalidSettings Item
    MigrationFailed MissingExtra OfflineBufferManager Outcome PointRepository Receiver RecordRepository Refusal Result
    SchemaOutdated SchemaTooNew Settings Sink SinkHalted SinkRefused SinkUnreachable Status Store StoreBusy StoreClosed
    StoreCorrupt StoreDenied StoreForked StoreFull StoreMissing StoreReadOnly StoreUnsupported TransactionRule Written
    jsonable models reconcile
"""


def test_imports_run_downwards_only() -> None:
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert linter, "import-linter is not installed"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_in_its_first_line_what_it_owns(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstring = ast.get_docstring(tree)
    assert docstring, "no docstring"
    assert path.read_text().startswith('"""'), "the docstring is not the first thing in the file"
    assert docstring.splitlines()[0].endswith((".", ";")), "its first line is not a sentence"


def test_only_one_module_syncs_and_renames_files() -> None:
    found = {path for path in MODULES if re.search(r"\bos\.(fsync|rename|replace)\(", path.read_text())}
    assert [str(path.relative_to(ROOT)) for path in found] == ["repo/disk/durable.py"]


def test_the_public_names_are_these() -> None:
    assert repo.__all__ == PUBLIC.split()
    for name in repo.__all__:
        assert getattr(repo, name) is not None


def test_no_folder_of_migrations_shadows_alembic() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()


def imported_by(statement: str) -> set[str]:
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_library_is_light() -> None:
    heavy = {"pyarrow", "numpy", "pandas", "alembic", "duckdb", "click", "plotext"}
    assert not imported_by("import repo") & (heavy | {"sqlalchemy"})
    assert not imported_by("from repo import Store, Settings, PointRepository") & heavy


def test_using_an_open_store_needs_no_optional_package(tmp_path: Path, run_python: RunPython) -> None:
    use = f"""
import sys
for name in ("pyarrow", "numpy", "pandas", "polars", "pytz"):
    sys.modules[name] = None
from repo import Settings, Store
for engine in {ENGINES!r}:
    with Store({str(tmp_path)!r} + "/" + engine, Settings(engine=engine)) as store:
        store.points.insert_many([("a", "m", at, 1.0) for at in range(100)])
        assert len(store.points.range("a", "m").all()) == 100
        assert store.points.aggregate("a", "m", agg="sum", every="1m")
        assert store.sql("SELECT count(*) AS n FROM time_series_data") == [{{"n": 100}}]
        store.checkpoint()
"""
    done = run_python(use)
    assert (done.returncode, done.stderr) == (0, "")
