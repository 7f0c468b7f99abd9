"""Engines: the registry is the only list of engines, and no code outside of `repo.engines` compares their names."""

from __future__ import annotations

import ast
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from repo import EngineMissing, Settings, Store
from repo.engines import base
from repo.engines.record import EngineRecord
from repo.engines.registry import ENGINES, METADATA
from repo.engines.sqlite.backend import SQLiteBackend
from repo.files import StoreFiles
from repo.schema.upgrade import migrate_store
from tests.conftest import ROOT

OUTSIDE = [
    path
    for path in sorted([*(ROOT / "repo").rglob("*.py"), ROOT / "alembic" / "env.py"])
    if not path.is_relative_to(ROOT / "repo" / "engines")
]
GUIDE = ROOT / "docs" / "adding-an-engine.md"

ALLOWED = {
    "repo/offline_buffer.py": "the documented parameter `use_duckdb` asks for this engine by its name",
    "repo/schema/legacy_records.py": "the legacy program wrote this word into its records",
}


def comparisons(source: str) -> Iterator[int]:
    """Lines that tell engines apart: compare or look up a name, or ask for the class of a backend."""
    names = set(ENGINES)
    if not re.search(rf"""['"]({"|".join(names)})['"]|(DuckDB|SQLite)Backend""", source):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            parts: list[ast.expr] = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            parts = [node.slice]
            if isinstance(node.value, ast.Name) and node.value.id == "Literal":
                continue
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            if re.search(r"(DuckDB|SQLite)Backend", ast.unparse(node.args[1])):
                yield node.lineno
            continue
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            (".get", ".startswith", ".endswith")
        ):
            parts = node.args[:1]
        else:
            continue
        for part in parts:
            if any(isinstance(leaf, ast.Constant) and leaf.value in names for leaf in ast.walk(part)):
                yield node.lineno


def test_no_engine_name_is_compared_outside_of_the_engines() -> None:
    found = {
        str(path.relative_to(ROOT)): lines for path in OUTSIDE if (lines := [*comparisons(path.read_text())])
    }
    assert {name: lines for name, lines in found.items() if name not in ALLOWED} == {}
    assert found.keys() == ALLOWED.keys(), "an exception that is not needed any more"


@pytest.mark.parametrize(
    "line",
    [
        'engine == "duckdb"',
        'x = 1 if "sqlite" != engine else 2',
        'engine in ("duckdb", "other")',
        'FACTOR = {"duckdb": 1.0, "sqlite": 3.5}',
        'FACTOR["sqlite"]',
        'FACTOR["duckdb" if on else "sqlite"]',
        'found.get("duckdb")',
        "isinstance(backend, DuckDBBackend)",
        'match engine:\n    case "duckdb":\n        pass',
    ],
)
def test_each_way_to_compare_is_seen(line: str) -> None:
    assert [*comparisons(line)]


def test_only_the_models_choose_ddl_by_the_name_of_an_engine() -> None:
    chosen = [
        str(path.relative_to(ROOT))
        for path in OUTSIDE
        if re.search(r"\b(ddl_if|with_variant)\(", path.read_text())
    ]
    assert chosen == ["repo/models.py"]


def test_the_setting_names_the_engines_of_the_registry() -> None:
    assert get_args(get_type_hints(Settings)["engine"]) == ("auto", *ENGINES)


class LakeBackend(SQLiteBackend):
    """SQLite under another name."""

    name = "lake"


LAKE = replace(
    METADATA,
    name="lake",
    title="Lake",
    file_name="timeseries.lake",
    companions=(".redo", ".idx", "-wal", "-shm"),
    disposable=frozenset({"-shm"}),
    make_backend=lambda path, _scratch, settings, _clock: LakeBackend(path, settings),
)


def test_a_store_works_on_a_third_engine_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, record in ENGINES.items():
        monkeypatch.setitem(ENGINES, name, replace(record, why_missing=lambda: "it is not meant here"))
    monkeypatch.setitem(ENGINES, "lake", LAKE)
    folder = tmp_path / "store"
    with Store(folder) as store:
        store.points.insert_many([("a", "m", at, float(at)) for at in range(10)])
        store.checkpoint()
        assert store.status().engine == "lake"
    assert (folder / "timeseries.lake").stat().st_size > 0
    with Store(folder) as store:
        assert [row["value"] for row in store.points.range("a", "m")] == [float(at) for at in range(10)]
        store.shrink()
        with pytest.raises(EngineMissing, match=r"timeseries\.sqlite needs SQLite.*it is not meant here"):
            store.demote()
    with closing(sqlite3.connect(folder / "timeseries.lake")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    done = migrate_store(folder, check=True)
    assert {one.database: one.engine for one in done.databases} == {
        "timeseries": "lake",
        "metadata": "sqlite",
    }
    assert {step.database for step in done.steps} == {"timeseries"}


@pytest.mark.parametrize("record", ENGINES.values(), ids=list(ENGINES))
def test_a_record_is_consistent(record: EngineRecord) -> None:
    assert record.disposable < set(record.companions[1:])
    if record.why_missing() is None:
        assert record.traits().name == record.name
        assert record.traits().url.startswith(record.name)


def test_the_files_of_another_engine_in_the_list_are_files_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "lake", LAKE)
    files = StoreFiles.of(tmp_path)
    columns = tmp_path / "timeseries.lake"
    assert files.columns("lake") == columns
    assert {columns, tmp_path / "timeseries.lake.redo"} < set(files.column_files())
    assert files.owns(columns)
    assert files.owns(tmp_path / "timeseries.lake.idx")
    assert StoreFiles.beside(tmp_path / "own.db").columns("lake") == tmp_path / "own.lake"
    aside = tmp_path / "timeseries.lake.inactive-1"
    aside.touch()
    assert files.kept() == [aside]


def test_the_guide_to_a_new_engine_names_what_there_is() -> None:
    text = GUIDE.read_text()
    words = set(re.findall(r"`([^`\n]+)`", text))
    paths = {word for word in words if "/" in word and " " not in word} - {"repo/engines/lake/"}
    assert len(paths) >= 12
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    modules = {word for word in words if re.fullmatch(r"\w+\.py", word)}
    for package in ("duckdb", "sqlite"):
        assert {
            name for name in modules if not (ROOT / "repo" / "engines" / package / name).exists()
        } == set()
    own = text.partition("The fields of the record:")[2].partition("## ")[0]
    named = {word for row in re.findall(r"^\| (`.*?) \|", own, re.M) for word in re.findall(r"`(\w+)`", row)}
    assert named == {field.name for field in fields(EngineRecord)}
    members = {"durable_at_commit", "checkpoint", "is_fatal", "query", "open"}
    assert members <= set(dir(base.Backend)) | set(base.Backend.__annotations__)
