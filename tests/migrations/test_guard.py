"""No way into the library opens a file that DuckDB 2 would destroy: each refuses it, or answers without it."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest
from alembic import command as alembic_command
from alembic.util import CommandError
from click.testing import CliRunner
from sqlalchemy import create_engine

from repo import DuckDBTimeSeriesStorage, OfflineBufferManager, Settings, Store
from repo.commands import holdfast
from repo.errors import HoldfastError
from repo.schema import runner
from repo.schema.upgrade import migrate_store
from tests.assets.unpack import LEGACY, unpack
from tests.migrations.legacy_store import RECORDS

OLD_LOG = bytes.fromhex("64000165000164000165001d") + b"time_series_data" + bytes(200)
RECIPE = (
    "duckdb==0.9.2",
    "DROP INDEX IF EXISTS idx_time_sensor",
    "DROP INDEX IF EXISTS idx_metric",
    "CHECKPOINT",
)
OUTDATED = ("has the schema of the legacy program", "/store migrate`")
"""The message of read-only commands on a legacy store; the migration that it names prints the recipe."""
MANY: dict[str, list[Any]] = {
    "sensor_id": ["s"] * 200_000,
    "metric_name": ["m"] * 200_000,
    "timestamp_us": list(range(200_000)),
    "value": [1.0] * 200_000,
}
FILES = ("a log of 0.9", "never checkpointed", "empty and indexed")
"""The first is made here, the others were written by DuckDB 0.9.2."""


class Place(NamedTuple):
    """A store's folder with such a file in it, and such a file alone."""

    shape: str
    folder: Path
    alone: Path
    top: Path
    before: dict[Path, dict[str, str]]


def _digests(folder: Path) -> dict[str, str]:
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.glob("timeseries.duckdb*")
        if f.suffix in (".duckdb", ".wal")
    }


def _put(kind: str, columns: Path) -> None:
    name = {
        "never checkpointed": "timeseries_never_checkpointed.duckdb",
        "empty and indexed": "timeseries_empty.duckdb",
    }
    if kind == "a log of 0.9":
        with duckdb.connect(columns):
            pass
        columns.with_name("timeseries.duckdb.wal").write_bytes(OLD_LOG)
        return
    unpack(LEGACY / name[kind], columns)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(f"{shape}, {kind}", marks=[] if kind == FILES[0] else [pytest.mark.slow])
        for shape in ("legacy", "present")
        for kind in FILES
    ],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A legacy store or one of this program with such a file; one for all entries: none of them may change it.

    All entries ask one guard, so that with one kind of file they are fast, and some entries with each other kind.
    """
    shape, kind = request.param.split(", ")
    return _made(shape, kind, tmp_path_factory.mktemp("guard"))


@pytest.fixture(scope="module", params=FILES[1:])
def other_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store of this program with another kind of such a file."""
    return _made("present", request.param, tmp_path_factory.mktemp("guard"))


def _made(shape: str, kind: str, top: Path) -> Place:
    folder, alone = top / "store", top / "alone"
    alone.mkdir()
    if shape == "present":
        with Store(folder, Settings(engine="duckdb", background=False)) as store:
            store.points.insert("s", "m", 1.0)
            store.flush()
        for file in folder.glob("timeseries.duckdb*"):
            file.unlink()
    else:
        folder.mkdir()
        legacy = sqlite3.connect(folder / "offline_buffer.db")
        legacy.executescript(RECORDS)
        legacy.close()
    for home in (folder, alone):
        _put(kind, home / "timeseries.duckdb")
    shutil.copytree(runner._scripts(), top / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (top / "rows.csv").write_text("timestamp,pressure\n2026-01-01T00:00:00Z,2500.5\n")
    return Place(
        shape, folder, alone / "timeseries.duckdb", top, {home: _digests(home) for home in (folder, alone)}
    )


class Ran(NamedTuple):
    """How a command ended, and all that it said."""

    code: int
    said: str


def _holdfast(place: Place, line: str) -> Ran:
    words = [str(place.top / word[1:]) if word.startswith("@") else word for word in line.split()]
    done = CliRunner().invoke(holdfast, ["--store", str(place.folder), *words])
    return Ran(done.exit_code, done.output + done.stderr)


def _alembic(place: Place, line: str) -> Ran:
    command, *arguments = line.split()
    config = runner.config(command=command)
    config.set_main_option("script_location", str(place.top / "scripts").replace("%", "%%"))
    config.cmd_opts = argparse.Namespace(x=[f"path={place.folder}", "store=timeseries"])
    options: dict[str, Any] = {"autogenerate": True} if command == "revision" else {}
    options |= {"indicate_current": True} if command == "history" else {}
    try:
        getattr(alembic_command, command)(config, *arguments, **options)
    except CommandError as error:
        return Ran(255, str(error))
    return Ran(0, "")


def _python(use: Callable[[Place], object]) -> Callable[[Place, str], Ran]:
    def run(place: Place, _: str) -> Ran:
        try:
            return Ran(0, str(use(place)))
        except HoldfastError as error:
            return Ran(1, str(error))

    return run


def _store(use: Callable[[Store, Path], object]) -> Callable[[Place, str], Ran]:
    def run(place: Place) -> object:
        with Store(place.folder, Settings(background=False)) as store:
            return use(store, place.top)

    return _python(run)


def _buffer(place: Place) -> object:
    buffer = OfflineBufferManager(str(place.folder))
    try:
        assert buffer.duckdb_storage is not None
        return buffer.duckdb_storage.query_time_range("s", "m", 0, 4e9)
    finally:
        buffer.shutdown()


def _storage(path: str) -> Callable[[Place], object]:
    def use(place: Place) -> object:
        storage = DuckDBTimeSeriesStorage(str(place.top / path))
        return storage.query_time_range("s", "m", 0, 4e9)

    return use


def _engine(**config: Any) -> Callable[[Place], object]:
    def use(place: Place) -> object:
        engine = create_engine(f"duckdb+holdfast:///{place.alone}", connect_args=config)
        with engine.connect() as connection:
            return connection.exec_driver_sql("SELECT 1").scalar_one()

    return use


REFUSED: dict[str, Callable[[Place, str], Ran]] = {
    **dict.fromkeys(
        [
            "migrate",
            "migrate --check",
            "migrate --dry-run",
            "migrate --force --no-backup",
            "query s m",
            "query s m --agg avg --every 1h",
            "export @out.parquet",
            "export @out.ndjson.gz",
            "cleanup --older-than 1d -y",
            "cleanup --shrink -y",
            "promote",
            "demote",
            "ingest @rows.csv --sensor W",
            "adopt @store @new",
        ],
        _holdfast,
    ),
    **dict.fromkeys(
        ["upgrade head", "upgrade +1", "downgrade -1", "current", "check", "stamp head", "ensure_version"],
        _alembic,
    ),
    **dict.fromkeys(["history", "revision notes"], _alembic),
    "a range": _store(lambda store, _: store.points.range("s", "m").all()),
    "points in order": _store(lambda store, _: store.points.after(0)),
    "an aggregate": _store(lambda store, _: store.points.aggregate("s", "m", agg="avg")),
    "sql": _store(lambda store, _: store.sql("SELECT 1 AS n")),
    "a flush": _store(lambda store, _: (store.points.insert("s", "m", 2.0), store.flush())),
    "a table": _store(lambda store, _: store.points.insert_table(MANY)),
    "a checkpoint": _store(lambda store, _: store.checkpoint()),
    "promote": _store(lambda store, _: store.promote()),
    "demote": _store(lambda store, _: store.demote()),
    "shrink": _store(lambda store, _: store.shrink()),
    "export_parquet": _store(lambda store, top: store.export_parquet(top / "out.parquet")),
    "export_ndjson": _store(lambda store, top: store.export_ndjson(top / "out.ndjson.gz")),
    "the size inside": _store(lambda store, _: store.size(inside=True)),
    "OfflineBufferManager": _python(_buffer),
    "DuckDBTimeSeriesStorage in a store": _python(_storage("store/timeseries.duckdb")),
    "DuckDBTimeSeriesStorage elsewhere": _python(_storage("alone/timeseries.duckdb")),
    "migrate_store": _python(lambda place: migrate_store(place.folder)),
    "migrate_store to look": _python(lambda place: migrate_store(place.folder, check=True)),
    "an engine": _python(_engine()),
    "an engine that only reads": _python(_engine(read_only=True)),
}
LOOKS = (
    "init",
    "status",
    "latest",
    "series",
    "import @alone/timeseries.duckdb",
)
"""What may answer without the columns, from a store that is at the head."""


@pytest.mark.parametrize("entry", REFUSED)
def test_what_needs_the_columns_is_refused_with_the_recipe_and_touches_nothing(
    place: Place, entry: str
) -> None:
    ran = REFUSED[entry](place, entry)
    assert ran.code != 0
    only_looks = place.shape == "legacy" and entry.split()[0] in ("query", "export")
    for words in OUTDATED if only_looks else RECIPE:
        assert words in ran.said
    assert {home: _digests(home) for home in place.before} == place.before


@pytest.mark.parametrize("entry", ["query s m", "upgrade head", "a flush", "an engine"])
def test_each_kind_of_file_is_refused(other_file: Place, entry: str) -> None:
    test_what_needs_the_columns_is_refused_with_the_recipe_and_touches_nothing(other_file, entry)


@pytest.mark.parametrize("line", LOOKS)
def test_what_does_not_need_the_columns_answers_without_touching_them(place: Place, line: str) -> None:
    ran = _holdfast(place, line)
    if place.shape == "legacy" and line in ("init", "latest", "series"):
        assert ran.code == 5
        assert all(words in ran.said for words in OUTDATED)
    elif place.shape == "legacy":
        assert ran.code == 1
        assert all(words in ran.said for words in RECIPE)
    elif line.startswith("import"):
        # The entries above have tried to open it in this process, which may be reason enough.
        assert "cannot be read as Parquet" in ran.said or "a store that this process has open" in ran.said
    else:
        assert ran.code == 0, ran.said
    assert {home: _digests(home) for home in place.before} == place.before


@pytest.mark.parametrize("line", ["init", "status", "migrate", "query s m"])
def test_a_file_without_a_store_is_not_changed_either(place: Place, line: str) -> None:
    ran = _holdfast(place._replace(folder=place.alone.parent), line)
    assert ran.code != 0
    assert {home: _digests(home) for home in place.before} == place.before


def test_no_query_of_another_store_reaches_it(place: Place, tmp_path: Path) -> None:
    with Store(tmp_path / "healthy", Settings(engine="duckdb", background=False)) as store:
        for query in ("ATTACH '{}' AS other", "SELECT * FROM '{}'", "SELECT * FROM read_blob('{}')"):
            with pytest.raises(HoldfastError):
                store.sql(query.format(place.alone))
        with pytest.raises(HoldfastError):
            store.import_parquet(place.alone)
    assert {home: _digests(home) for home in place.before} == place.before
