"""`init`, `status`, `migrate`, and the exit codes of stores that are busy, missing, outdated or too new."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.commands.store import _second
from repo.disk.space import FLUSH_BYTES
from repo.engines.sqlite import driver as sqlite
from repo.schema import runner

T0 = 1_714_521_600

STATUS_KEYS = {
    "hold",
    "senders",
    "path",
    "store_id",
    "engine",
    "schema",
    "last_seq",
    "flushed_seq",
    "pruned_seq",
    "journal_rows",
    "journal_seqs",
    "unflushed",
    "points_waiting",
    "deletions_waiting",
    "points",
    "series",
    "oldest_us",
    "newest_us",
    "records_pending",
    "ledger_entries",
    "ledger_dropped",
    "lost_points",
    "lost_records",
    "lost_uncounted",
    "given_up_points",
    "given_up_entries",
    "given_up_uncounted",
    "sinks",
    "bytes_by_file",
    "bytes_total",
    "bytes_free_on_disk",
    "holder",
    "generation",
    "bytes_by_kept_file",
    "warnings",
}


def make_old_store(folder: Path, revision: str = "0001") -> None:
    folder.mkdir()
    metadata = sqlite.open_engine(folder / "offline_buffer.db")
    runner.upgrade(metadata, "metadata", revision)
    metadata.dispose()
    duckdb = pytest.importorskip("repo.engines.duckdb.driver", exc_type=ImportError)
    columns = duckdb.open_engine(
        folder / "timeseries.duckdb", memory_limit_bytes=64_000_000, threads=1, temp_folder=folder / "tmp"
    )
    runner.upgrade(columns, "timeseries", revision)
    duckdb.close_engine(columns)


def set_version(folder: Path, version: str) -> None:
    connection = sqlite3.connect(folder / "offline_buffer.db")
    connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.commit()
    connection.close()


def test_init_creates_a_store_with_the_requested_engine(command: Any, engine: str) -> None:
    said = command.json("init", "--engine", engine)
    assert said.keys() == {"path", "created", "engine", "schema", "store_id"}
    assert (said["created"], said["engine"], said["schema"]) == (True, engine, "0004")
    assert (command.folder / "offline_buffer.db").exists()


@pytest.mark.slow_on("duckdb")
def test_init_leaves_an_existing_store_unchanged(on_store: Any) -> None:
    on_store.write(("s", "m", T0, 1.0))
    before = on_store.json("status")["store_id"]
    said = on_store.json("init")
    assert (said["created"], said["store_id"]) == (False, before)
    assert on_store.json("latest")[0]["value"] == 1.0


def test_init_does_not_change_the_engine_of_a_store(on_duckdb: Any) -> None:
    assert "keeps its engine" in on_duckdb("init", "--engine", "sqlite", code=2).stderr
    assert on_duckdb.json("status")["engine"] == "duckdb"


@pytest.mark.parametrize(
    "call",
    ["status", "series", "latest", "migrate", "query s m", "ingest -"],
    ids=lambda call: call.split()[0],
)
def test_without_a_store_commands_say_how_to_create_one_and_create_none(command: Any, call: str) -> None:
    result = command(*call.split(), code=1, stdin="")
    assert f"`holdfast --store {shlex.quote(str(command.folder))} init`" in result.stderr
    assert result.stdout == ""
    assert not command.folder.exists()


def test_status_as_json_keeps_its_contract(on_store: Any) -> None:
    on_store.write(("s", "m", T0, 1.0), ("s", "m", T0 + 1, 2.0))
    on_store("query", "s", "m")
    said = on_store.json("status")
    assert said.keys() == STATUS_KEYS
    assert (said["points"], said["series"], said["unflushed"]) == (2, 1, 0)
    assert (said["oldest_us"], said["newest_us"]) == (T0 * 1_000_000, (T0 + 1) * 1_000_000)
    assert all(isinstance(size, int) for size in said["bytes_by_file"].values())


@pytest.mark.slow_on("duckdb")
def test_status_shows_points_and_backlog(on_store: Any) -> None:
    on_store.write(("s", "m", T0, 1.0))
    said = on_store("status").stdout
    assert "1 waiting to be applied, in 1 series" in said
    on_store("query", "s", "m")
    assert "points      1 in 1 series\n" in on_store("status").stdout
    on_store.write(("s", "m", T0 + 1, 1.0), ("s", "m", T0 + 2, 1.0))
    assert "points      1 in 1 series, and 2 waiting to be applied\n" in on_store("status").stdout
    with Store(on_store.folder, Settings(background=False)) as store:
        store.points.delete("s", "m")
        store.sinks.add("collector-of-the-site", "", start="now")
    said = on_store("status").stdout
    assert "; 1 deletion waiting to be applied\n" in said
    assert "sink collector-of-the-site  confirmed seq 4, " in said


@pytest.mark.slow_on("duckdb")
def test_status_check_exits_3_for_warnings_which_have_codes(on_store: Any) -> None:
    on_store("status", "--check")
    noted = "WAL-reset bug" in on_store("status", "--check").stderr
    assert noted is sqlite.has_wal_reset_bug()
    assert on_store("status").stderr == ""
    connection = sqlite3.connect(on_store.folder / "offline_buffer.db")
    connection.execute(
        "INSERT INTO loss_ledger (entry_id, what, reason, detail, recorded_us) VALUES "
        "('x', 'points', 'columns-older-than-journal', '{\"first_seq\": 3, \"last_seq\": 7}', 0)"
    )
    connection.commit()
    connection.close()
    said = on_store("status", "--check", code=3).stderr
    assert "warning: the column file was replaced by an older one; seqs 3 to 7 may be missing." in said
    assert f"`holdfast --store {shlex.quote(str(on_store.folder))} losses`" in said
    assert "[columns-older]" in said
    assert "lost        an unknown number, in 1 entry\n" in on_store("status").stdout
    [warning] = on_store.json("status", "--check", code=3)["warnings"]
    assert warning["code"] == "columns-older"
    assert on_store.json("status", "--check", "--ignore", "columns-older")["warnings"] == []
    assert (
        "the codes are columns-missing, columns-older" in on_store("status", "--ignore", "x", code=2).stderr
    )


def test_status_check_warns_of_a_disk_that_is_almost_full(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("init")
    usage = shutil.disk_usage(command.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=FLUSH_BYTES))
    command("status", "--check")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=188 * 1024))
    said = command("status", "--check", code=3).stderr
    assert f"the disk of {command.folder} has 192,512 bytes free, and a flush may need 50,000,000" in said
    assert "cleanup --older-than 90d` [disk-almost-full]" in said
    command("status", "--check", "--ignore", "disk-almost-full")
    read_only = os.statvfs_result((*tuple(os.statvfs(command.folder))[:8], os.ST_RDONLY, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: read_only)
    command("status", "--check")  # such a disk is always full


def test_status_warns_if_the_column_file_is_missing(on_duckdb: Any) -> None:
    on_duckdb.write(("s", "m", T0, 1.0))
    with Store(on_duckdb.folder, Settings(background=False)) as store:
        store.checkpoint()
    on_duckdb("status", "--check", "--ignore", "columns-older")
    (on_duckdb.folder / "timeseries.duckdb").unlink()
    said = on_duckdb("status", "--check", code=3).stderr
    assert f"{on_duckdb.folder / 'timeseries.duckdb'} is missing; points through seq 1 are only there" in said
    assert "[columns-missing]" in said


@pytest.mark.slow_on("duckdb")
def test_json_is_accepted_before_and_after_the_command(on_store: Any) -> None:
    assert on_store("--json", "series").stdout == on_store("series", "--json").stdout == "[]\n"


@pytest.mark.slow_on("duckdb")
def test_the_store_may_be_named_by_the_environment(
    on_store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOLDFAST_STORE", str(on_store.folder))
    monkeypatch.setenv("HOLDFAST_JSON", "1")
    from click.testing import CliRunner

    from repo.commands import holdfast

    said = CliRunner().invoke(holdfast, ["status"])
    assert said.exit_code == 0
    assert str(on_store.folder) in said.stdout


@pytest.mark.slow_on("duckdb")
def test_a_setting_out_of_range_is_a_usage_error(on_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_BUSY_TIMEOUT_S", "1")
    assert "busy_timeout_s" in on_store("status", code=2).stderr


# --- while another process holds the columns ------------------------------------------------------------


@pytest.mark.slow_on("duckdb")
def test_commands_that_need_only_sqlite_work_while_another_process_holds_the_columns(
    on_store: Any, held: Callable[[], int]
) -> None:
    on_store.write(("s", "m", T0, 1.5))
    pid = held()
    assert on_store.json("status")["holder"]["pid"] == pid
    assert [row["metric_name"] for row in on_store.json("series")] == ["m"]
    assert on_store.json("latest", "s", "m")[0]["value"] == 1.5
    assert on_store.json("init")["created"] is False


@pytest.mark.parametrize("call", ["query s m", "latest s m --limit 2", "migrate", "migrate --check"])
@pytest.mark.slow_on("duckdb")
def test_commands_that_need_the_columns_are_busy_and_name_the_holder(
    on_store: Any, held: Callable[[], int], call: str
) -> None:
    on_store.write(("s", "m", T0, 1.5))
    pid = held()
    result = on_store(*call.split(), code=4)
    assert f"process {pid}" in result.stderr
    assert "holding on for a test" in result.stderr


def test_ingest_is_acknowledged_while_another_process_holds_the_columns(
    on_duckdb: Any, held: Callable[[], int]
) -> None:
    held()
    text = "sensor_id,metric_name,timestamp,value\ns,m,2024-05-01T00:00:00Z,1\n"
    result = on_duckdb("ingest", "-", stdin=text)
    assert "1 point in" in result.stdout
    assert "durable in the journal" in result.stderr
    assert on_duckdb.json("latest", "s", "m")[0]["value"] == 1


# --- schema ---------------------------------------------------------------------------------------------


def test_migrate_upgrades_both_databases_of_an_old_store(command: Any) -> None:
    make_old_store(command.folder)
    due = command.json("migrate", "--check", code=5)
    assert due["outdated"] is True
    assert [(d["database"], d["before"], d["after"]) for d in due["databases"]] == [
        ("timeseries", "0001", "0001"),
        ("metadata", "0001", "0001"),
    ]
    done = command.json("migrate")
    assert done.keys() == {
        *(
            "path",
            "head",
            "outdated",
            "databases",
            "steps",
            "needed_bytes",
            "free_bytes",
            "backup",
            "nan_points",
            "outside_points",
        ),
        *("records_restored", "records_without_original", "records_waiting"),
    }
    assert done["outdated"] is False
    assert [(d["engine"], d["before"], d["after"]) for d in done["databases"]] == [
        ("duckdb", "0001", "0004"),
        ("sqlite", "0001", "0004"),
    ]
    assert command.json("migrate", "--check")["outdated"] is False
    command.write(("s", "m", T0, 1.0))
    assert len(command.json("query", "s", "m")) == 1


@pytest.mark.slow_on("duckdb")
def test_migrate_creates_no_database(command: Any, engine: str) -> None:
    command("init", "--engine", engine)
    before = sorted(path.name for path in command.folder.glob("timeseries*"))
    assert [d["database"] for d in command.json("migrate")["databases"]] == ["metadata"]
    assert sorted(path.name for path in command.folder.glob("timeseries*")) == before == []


def test_an_outdated_store_is_not_migrated_if_auto_migrate_is_off(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old_store(command.folder)
    monkeypatch.setenv("HOLDFAST_AUTO_MIGRATE", "no")
    assert "migrate" in command("status", code=5).stderr
    assert command.json("migrate", "--check", code=5)["outdated"] is True


@pytest.mark.parametrize("call", ["status", "query s m", "migrate", "migrate --check", "init"])
@pytest.mark.slow_on("duckdb")
def test_a_store_of_a_newer_program_is_refused_and_unchanged(on_store: Any, call: str) -> None:
    set_version(on_store.folder, "9999")
    assert "update the package" in on_store(*call.split(), code=5).stderr


def test_times_of_the_first_centuries_have_four_digits_in_their_year() -> None:
    assert _second(-62_135_510_400_000_000) == "0001-01-02 00:00:00"
