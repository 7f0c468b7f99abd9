"""Records of a legacy store that were kept with a point only: they get their data back, whole, once."""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Connection

from repo import Settings, Store
from repo.commands import holdfast
from repo.errors import HoldfastError
from repo.repositories.pointers import PointerRepository
from repo.repositories.records import data_text
from repo.schema import legacy_records, upgrade
from repo.schema.upgrade import migrate_store
from tests.conftest import RunPython
from tests.migrations.legacy_store import (
    add_each_pointer,
    add_pointer,
    add_pointers,
    contents,
    make_legacy_store,
    original_of,
)
from tests.starter import Process, Starter

pytestmark = pytest.mark.duckdb

MARKER = "SELECT value FROM buffer_metadata WHERE key = 'holdfast.pointers'"
POINTERS = 'SELECT record_id, data FROM buffered_records WHERE data LIKE \'{"storage": "duckdb"%\''
QUIET = Settings(background=False)
MOMENT_US = 1_700_000_001_250_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_legacy_store(tmp_path_factory.mktemp("legacy") / "store", 2_100, records=5)


@pytest.fixture
def legacy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def asked(folder: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(folder / "offline_buffer.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def pending(folder: Path) -> dict[str, Any]:
    with Store(folder, QUIET) as store:
        return {record["record_id"]: record for record in store.records.pending()}


DATA: dict[str, Any] = {
    "plain": {"sensor_id": "S", "metric_name": "pressure", "value": 1.5, "quality": 7},
    "nested": {"value": 1, "a": [1, [2, {"b": None, "c": [True, False, ""]}], {}], "": {"": []}},
    "unicode": {"well_name": "скважина Ä 李 🛢", "note": 'a "quote" \\ and \n a line', "temperature": 80.25},
    "numbers": {"value": -0.0, "tiny": 5e-324, "big": 2**70, "exact": 0.1 + 0.2, "int64": -(2**63)},
    "like a pointer": {"storage": "duckdb", "sensor_id": "S", "metric": "m", "value": 3},
    "empty": {},
}


SHAPES = {
    "own": '{"storage":"duckdb","sensor_id":"S","metric":"m"}',
    "more": '{"storage": "duckdb", "sensor_id": "S", "metric": "m", "value": 2}',
    "less": '{"storage": "duckdb"}',
    "other": '{"storage": "duckdb2", "sensor_id": "S", "metric": "m"}',
}
"""Records that look like pointers, but are not what the legacy program wrote."""

ORDERS = {"up": (1, 2, 3, 4, 5), "down": (5, 4, 3, 2, 1), "mixed": (3, 5, 1, 4, 2)}

ODD = '{"record_id": "odd", "source": "gw", "original_data": {"value": NaN, "x": -Infinity, "s": "\\ud800"}}'

ODD_METADATA = (
    "",
    "no JSON, though it names \"record_id\" and \"original_data\"",
    '{"record_id": "lost", "original_data": ',
    '{"record_id": "lost", "source": "gw"} "original_data"',
    '["record_id", "lost", "original_data", {}]',
    '{"record_id": "lost", "source": "gw", "original_data": [1, 2]}',
    '{"record_id": ["lost"], "source": "gw", "original_data": {"a": 1}}',
    '{"record_id": "LOST", "source": "gw", "original_data": {"a": 1}}',
    '{"record_id": "\\ud800", "source": "gw", "original_data": {"a": 1}}',
    '{"record_id": null, "original_data": null}',
    '{"record_id": "lost", "original_data": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    '{"record_id": "lost", "original_data": {"a": ' + "9" * 5_000 + "}}",
    "\u0000\u202e 李",
)  # fmt: skip

COLUMNS = "id, record_id, source, timestamp, retry_count, last_retry, created_at, typeof(data)"


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A store with pointers of every kind, and what it was before its upgrade."""

    folder: Path
    done: upgrade.Migration
    log: str
    before: list[Any]
    pointers: list[Any]
    points: tuple[Any, ...]
    texts: dict[str, str]
    """The data of each record, as stored after the upgrade."""
    found: dict[str, Any]
    """The pending records after the upgrade."""


@pytest.fixture(scope="module")
def upgraded(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Upgraded:
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("upgraded") / "store"))
    connection = sqlite3.connect(folder / "offline_buffer.db")
    for name, text in SHAPES.items():
        connection.execute(
            "INSERT INTO buffered_records (record_id, source, data, timestamp, created_at) "
            "VALUES (?, 'gw', ?, 1, 1)",
            (name, text),
        )
    connection.commit()
    connection.close()
    pointers: dict[str, Sequence[tuple[int, str]]] = {
        **{f"point {name}": [(1, original_of(name, "gw", {"value": "wrong"}))] for name in SHAPES},
        **{
            name: [(at, original_of(name, "gw", {"at": at})) for at in order]
            for name, order in ORDERS.items()
        },
        **{
            name: [(at, original_of(name, "gw", data))]
            for at, (name, data) in enumerate(DATA.items(), MOMENT_US)
        },
        "odd": [(1, ODD)],
        "lost": [*enumerate(ODD_METADATA, 1)],
        "4711": [(1, original_of(4711, "gw", {"value": 1}))],
    }
    add_each_pointer(folder, pointers, retry_count=3)
    before, left = asked(folder, f"SELECT {COLUMNS} FROM buffered_records"), asked(folder, POINTERS)
    stored = contents(folder)["points"]
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger("holdfast.migrating").addHandler(handler)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(legacy_records, "PAGE_POINTS", 3)  # the points of a record are on several pages
        done = migrate_store(folder)
    logging.getLogger("holdfast.migrating").removeHandler(handler)
    texts = dict(asked(folder, "SELECT record_id, data FROM buffered_records"))
    return Upgraded(folder, done, log.getvalue(), before, left, stored, texts, pending(folder))


def test_records_have_the_data_back_that_they_were_given_and_nothing_else_of_them_changes(
    upgraded: Upgraded,
) -> None:
    done = upgraded.done
    restored = len(DATA) + len(ORDERS) + len(("odd", "4711"))
    assert (done.records_restored, done.records_waiting) == (restored, 0)
    assert asked(upgraded.folder, f"SELECT {COLUMNS} FROM buffered_records") == upgraded.before
    for name, data in DATA.items():
        assert upgraded.texts[name] == data_text(data)
        assert json.dumps(upgraded.found[name]["data"]) == json.dumps(data)
    assert asked(upgraded.folder, MARKER) == []


def test_what_this_program_would_refuse_comes_back_as_the_legacy_program_took_it(upgraded: Upgraded) -> None:
    data = upgraded.found["odd"]["data"]
    assert data["value"] != data["value"]
    assert (data["x"], data["s"]) == (float("-inf"), "\ud800")


def test_a_record_without_its_data_is_unchanged_even_if_points_have_other_metadata(
    upgraded: Upgraded,
) -> None:
    lost = {"lost", *(f"point {name}" for name in SHAPES)}
    assert upgraded.done.records_without_original == len(lost)
    assert f"{len(lost)} records " in upgraded.log
    assert asked(upgraded.folder, POINTERS) == [
        row for row in upgraded.pointers if row[0] in {*lost, *SHAPES}
    ]
    assert contents(upgraded.folder)["points"] == upgraded.points
    assert upgraded.found["lost"]["data"] == json.loads(dict(upgraded.pointers)["lost"])


def test_records_of_another_shape_are_never_treated_as_pointers(upgraded: Upgraded) -> None:
    assert {name: upgraded.texts[name] for name in SHAPES} == SHAPES


def test_of_several_points_for_one_record_the_latest_has_its_data_in_any_stored_order(
    upgraded: Upgraded,
) -> None:
    assert [upgraded.found[name]["data"] for name in ORDERS] == [{"at": 5}] * 3


def test_an_id_that_was_a_number_is_found_as_the_text_that_it_became(upgraded: Upgraded) -> None:
    assert upgraded.found["4711"]["data"] == {"value": 1}


def test_restored_records_are_not_restored_again_and_are_known_when_they_are_added_again(
    upgraded: Upgraded,
) -> None:
    again = migrate_store(upgraded.folder)
    assert (again.records_restored, again.records_without_original, again.steps) == (0, 0, ())
    with Store(upgraded.folder, QUIET) as store:
        for name, data in DATA.items():
            store.records.add(name, "gw", data)  # the same data changes nothing: the text is the very same
        retries = {record["record_id"]: record["retry_count"] for record in store.records.pending()}
    assert [retries[name] for name in DATA] == [3] * len(DATA)


def test_the_command_reports_counts_and_a_dry_run_restores_nothing(legacy: Path) -> None:
    add_pointer(legacy, "a", (1, original_of("a", "gw", {"value": 1})))
    add_pointer(legacy, "lost")
    looked = as_json(legacy, "migrate", "--dry-run")
    assert [looked[name] for name in NAMES] == [0, 0, 0, 2]
    assert looked["outdated"]
    assert len(asked(legacy, POINTERS)) == 2
    done = as_json(legacy, "migrate")
    assert [done[name] for name in NAMES] == [3, 1, 1, 0]
    again = as_json(legacy, "migrate", "--check")
    assert [again[name] for name in NAMES] == [0, 0, 0, 0]
    assert not again["outdated"]


NAMES = ("nan_points", "records_restored", "records_without_original", "records_waiting")


def as_json(folder: Path, *arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(holdfast, ["--json", "--store", str(folder), *arguments])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


# --- what is not done at once is done later --------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the restoring of records stop in the middle, as by a kill; returns what mends it."""

    def _text(_data: object) -> str:
        raise KeyboardInterrupt

    whole = legacy_records._text
    monkeypatch.setattr(legacy_records, "_text", _text)
    return lambda: monkeypatch.setattr(legacy_records, "_text", whole)


def test_a_kill_before_the_records_are_restored_leaves_a_note_and_the_next_run_completes_it(
    legacy: Path, broken: Callable[[], None], tmp_path: Path
) -> None:
    add_each_pointer(legacy, {name: [(1, original_of(name, "gw", {"name": name}))] for name in "ab"})
    with pytest.raises(KeyboardInterrupt):
        migrate_store(legacy)
    assert asked(legacy, MARKER) == [("2",)]
    assert len(asked(legacy, POINTERS)) == 2
    waiting = migrate_store(legacy, check=True)
    assert [one.after for one in waiting.databases] == ["0004", "0004"]
    assert waiting.records_waiting == 2
    with pytest.raises(KeyboardInterrupt):
        Store(legacy, QUIET)
    broken()
    opened = Path(shutil.copytree(legacy, tmp_path / "opened"))
    as_json(legacy, "migrate", "--check", code=5)
    assert asked(legacy, MARKER) == [("2",)]
    assert migrate_store(legacy).records_restored == 2
    Store(opened, QUIET).close()
    for folder in (legacy, opened):
        assert asked(folder, MARKER) == []
        assert {name: pending(folder)[name]["data"] for name in "ab"} == {
            "a": {"name": "a"},
            "b": {"name": "b"},
        }


def test_an_error_while_records_are_restored_is_one_of_the_migration_but_does_not_keep_a_store_closed(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pointer(legacy, "a", (1, original_of("a", "gw", {"value": 1})))

    def full(*_: object) -> Any:
        raise HoldfastError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(upgrade, "restore_records", full)
        with pytest.raises(HoldfastError, match="no space left"):
            migrate_store(legacy)
        with Store(legacy, QUIET) as store:
            assert len(store.records.pending()) == 5
            store.records.add("a", "gw", {"value": 2})
            assert len(store.records.pending()) == 6
    assert migrate_store(legacy).records_restored == 0
    assert pending(legacy)["a"]["data"] == {"value": 2}


@pytest.mark.parametrize(
    ("engine", "query"), [("DuckDB", "SELECT * FROM nowhere"), ("SQLite", "DROP TABLE nowhere")]
)
def test_an_error_of_either_engine_names_its_own_file_and_changes_nothing(
    legacy: Path, monkeypatch: pytest.MonkeyPatch, engine: str, query: str
) -> None:
    add_pointer(legacy, "a", (1, original_of("a", "gw", {"value": 1})))

    def fails(metadata: Connection, columns: Connection, _progress: object) -> Any:
        PointerRepository(metadata).resolve({"a": "{}"})
        (columns if engine == "DuckDB" else metadata).exec_driver_sql(query)

    with monkeypatch.context() as patched:
        patched.setattr(upgrade, "restore_records", fails)
        with pytest.raises(HoldfastError) as caught:
            migrate_store(legacy)
    assert caught.value.path == legacy / ("timeseries.duckdb" if engine == "DuckDB" else "offline_buffer.db")
    assert len(asked(legacy, POINTERS)) == 1
    assert migrate_store(legacy).records_restored == 1


def test_alembic_alone_leaves_the_note_and_taking_the_revision_back_removes_it(
    legacy: Path, alembic: Callable[..., Any]
) -> None:
    add_pointer(legacy, "a", (1, original_of("a", "gw", {"value": 1})))
    before = asked(legacy, "SELECT * FROM buffered_records"), asked(legacy, "SELECT * FROM buffer_metadata")
    alembic("-x", f"path={legacy}", "upgrade", "head")
    assert asked(legacy, MARKER) == [("1",)]
    alembic("-x", f"path={legacy}", "-x", "store=metadata", "downgrade", "0001")
    assert (
        asked(legacy, "SELECT * FROM buffered_records"),
        asked(legacy, "SELECT * FROM buffer_metadata"),
    ) == before
    alembic("-x", f"path={legacy}", "upgrade", "head")
    assert pending(legacy)["a"]["data"] == {"value": 1}
    assert asked(legacy, MARKER) == []


def test_without_duckdb_the_records_wait_and_are_restored_where_it_is(
    legacy: Path, run_without_duckdb: RunPython
) -> None:
    add_pointer(legacy, "a", (1, original_of("a", "gw", {"value": 1})))
    script = """
import sys
from repo import OfflineBufferManager
buffer = OfflineBufferManager(sys.argv[1])
print(*[record["record_id"] for record in buffer.get_pending_records()], buffer.get_buffer_stats()["total_records"])
print(*buffer._reference.store.status().warnings, file=sys.stderr)
buffer.add_record("new", "gw", {"note": 1})
buffer.shutdown()
"""
    for found in ("REC-0 REC-1 REC-2 REC-3 REC-4 6", "REC-0 REC-1 REC-2 REC-3 REC-4 new 7"):
        done = run_without_duckdb(script, legacy)
        assert done.stdout.strip() == found
        assert "1 pending record of the legacy program held back" in done.stderr
    assert asked(legacy, MARKER) == [("1",)]
    assert [*pending(legacy)] == [*(f"REC-{i}" for i in range(5)), "a", "new"]
    assert pending(legacy)["a"]["data"] == {"value": 1}


def test_a_store_without_its_columns_keeps_the_note_until_they_are_back(legacy: Path, tmp_path: Path) -> None:
    add_pointer(legacy, "a", (1, original_of("a", "gw", {"value": 1})))
    (legacy / "timeseries.duckdb").rename(tmp_path / "elsewhere.duckdb")
    done = migrate_store(legacy)
    assert (done.records_waiting, done.restores, done.records_without_original) == (1, False, 0)
    as_json(legacy, "migrate", "--check")
    assert asked(legacy, MARKER) == [("1",)]
    (tmp_path / "elsewhere.duckdb").rename(legacy / "timeseries.duckdb")
    assert migrate_store(legacy).records_restored == 1


def test_no_point_is_read_if_there_is_no_pointer(legacy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_records, "_pages", lambda _connection: pytest.fail("the points were read"))
    assert migrate_store(legacy).records_restored == 0


# --- kills -----------------------------------------------------------------------------------------------


def kill_at_random(
    starter: Starter, made: Path, folder: Path, rng: random.Random, kills: int
) -> dict[str, int]:
    """Kill upgrades of a store with many pointers, and complete each; says in what state they were found."""
    wanted = {f"R-{number}": json.dumps({"value": number}) for number in range(4_000)}
    old = folder / "old"
    shutil.copytree(made, old)
    add_pointers(old, 4_000)
    points = contents(old)["points"]
    whole = folder / "whole"
    shutil.copytree(old, whole)
    process = begun_process(starter, whole)
    begun = time.monotonic()
    assert process.wait() == 0
    whole_s = time.monotonic() - begun
    states: Counter[str] = Counter()
    for number in range(kills):
        store = folder / str(number)
        shutil.copytree(old, store)
        process = begun_process(starter, store)
        time.sleep(rng.uniform(0.0, 1.0) * whole_s)
        process.kill()
        process.wait()
        found = contents(store)
        left = len(asked(store, POINTERS))
        assert left in (0, 4_000)
        noted = found["metadata"] in ("0002", "0003", "0004") and bool(asked(store, MARKER))
        states[f"columns {found['columns']}, records {found['metadata']}{', noted' if noted else ''}"] += 1
        assert noted or (left == 0) is (found["metadata"] == "0004")
        if rng.random() < 0.5:
            migrate_store(store)
        pending = Store(store, QUIET)
        try:
            data = {r["record_id"]: json.dumps(r["data"]) for r in pending.records.pending(limit=10_000)}
        finally:
            pending.close()
        assert {name: text for name, text in data.items() if name in wanted} == wanted
        assert len(data) == 4_005
        assert contents(store)["points"] == points
        shutil.rmtree(store)
    return dict(states)


def begun_process(starter: Starter, folder: Path) -> Process:
    """Start an upgrade and return when it has taken the lease, or soon after."""
    process = starter.start(["-m", "cli", "-q", "--store", folder, "migrate"])
    while not (folder / "lease.lock").exists() and not process.has_ended:
        time.sleep(0.001)
    return process


@pytest.mark.slow  # the kills of upgrades in tests/faults have pointers, too
def test_a_kill_in_the_middle_of_an_upgrade_costs_no_record_its_data(
    starter: Starter, made: Path, tmp_path: Path, seed: int
) -> None:
    kill_at_random(starter, made, tmp_path, random.Random(seed), 1)


@pytest.mark.slow
def test_many_kills_in_the_middle_of_upgrades_cost_no_record_its_data(
    starter: Starter, made: Path, tmp_path: Path, seed: int
) -> None:
    print(kill_at_random(starter, made, tmp_path, random.Random(seed), 40))
