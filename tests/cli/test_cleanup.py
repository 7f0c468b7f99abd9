"""`cleanup`: it shows the selection, asks, deletes exactly that, and returns the space."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from repo import OfflineBufferManager, Settings, Store
from repo.disk import space
from tests.cli.conftest import Command, MakeOnce

DAY = 86_400


@pytest.fixture
def site(command: Command, engine: str, make_once: MakeOnce) -> Any:
    """The command, on a store with ten days of two pumps until today, and with records that wait."""
    make_once(f"site-{engine}", command.folder, lambda: fill_site(command, engine))
    return command


def fill_site(command: Command, engine: str) -> None:
    command("init", "--engine", engine)
    now = datetime.now(UTC).timestamp()
    command.write(*((f"PUMP-{n}", "flow", now - day * DAY, 1.0) for n in (1, 2) for day in range(10)))
    with Store(command.folder, Settings(background=False)) as store:
        for n in range(6):
            store.records.add(f"r{n}", f"gw-{n % 2}", {"n": n}, timestamp=now - n * DAY)
        for _ in range(5):
            store.records.mark_failed(["r1"])
    command.create_columns()


def left(site: Any) -> tuple[int, int]:
    """How many points and records are there."""
    return len(site.json("query", "*", "*")), site.json("status")["records_pending"]


@pytest.mark.slow_on("duckdb")
def test_it_shows_what_is_selected_and_deletes_it_after_a_yes(site: Any) -> None:
    output = site("cleanup", "--older-than", "7d", stdin="y\n")
    assert re.search(r"PUMP-1 +flow +3 ", output.stdout)
    assert "selected 6 points, 20" in output.stdout
    assert "Delete this permanently? [y/N]" in output.stderr
    assert "deleted 6 points" in output.stdout
    assert left(site) == (14, 6)


@pytest.mark.slow_on("duckdb")
def test_answering_no_deletes_nothing(site: Any) -> None:
    site("cleanup", "--older-than", "7d", stdin="n\n", code=1)
    assert left(site) == (20, 6)


@pytest.mark.slow_on("duckdb")
def test_without_a_terminal_cleanup_asks_for_the_option_y(site: Any) -> None:
    assert "add -y" in site("cleanup", "--older-than", "7d", code=2).stderr
    assert left(site) == (20, 6)


@pytest.mark.slow_on("duckdb")
def test_a_dry_run_asks_nothing_and_drops_nothing(site: Any) -> None:
    output = site("cleanup", "--older-than", "7d", "--records", "--points", "--dry-run", "--shrink")
    assert "selected 6 points, 20" in output.stdout
    assert re.search(
        r"(0 bytes|[\d.]+ KiB) inside the files free; "
        r"shrinking may need [\d.]+ [KM]iB of disk space; [\d,.]+ [KMGTP]iB free",
        output.stdout,
    )
    assert left(site) == (20, 6)


@pytest.mark.slow_on("duckdb")
def test_points_not_sent_to_every_sink_are_named(site: Any) -> None:
    with Store(site.folder, Settings(background=False)) as store:
        store.sinks.add("cloud", "", start="beginning")
    kept = site("cleanup", "--sensor", "PUMP-1", "-y")
    assert "deleted 0 points" in kept.stdout
    assert "10 points kept for the sinks that have not confirmed them (cloud); --even-unsent" in kept.stderr
    assert left(site) == (20, 6)
    output = site("cleanup", "--sensor", "PUMP-1", "--even-unsent", "-y")
    assert "deleted 10 points (10 of them not sent to every sink)" in output.stdout
    assert left(site) == (10, 6)


@pytest.mark.parametrize(
    ("chosen", "points", "records"),
    [
        (["--sensor", "PUMP-*", "--older-than", "5d"], 10, 6),
        (["--sensor", "PUMP-1", "--sensor", "PUMP-9"], 10, 6),
        (["--metric", "nothing"], 20, 6),
        (["--source", "gw-1"], 20, 3),
        (["--failed", "5"], 20, 5),
        (["--failed", "6"], 20, 6),
        (["--records", "--older-than", "36h"], 20, 2),
        (["--points", "--records", "--older-than", "36h"], 4, 2),
        (["--all"], 0, 6),
        (["--all", "--records"], 20, 0),
        (["--all", "--points", "--records"], 0, 0),
        (["--start", "-30h", "--end", "now"], 16, 6),
    ],
)
@pytest.mark.slow_on("duckdb")
def test_cleanup_deletes_only_what_is_selected(
    site: Any, chosen: list[str], points: int, records: int
) -> None:
    site("cleanup", *chosen, "-y")
    assert left(site) == (points, records)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "select what to delete"),
        (["--records"], "select what to delete"),
        (["--points", "--shrink", "-y"], "select what to delete"),
        (["--older-than", "7d", "--end", "now"], "--older-than and --end"),
        (["--older-than", "30"], "--older-than: '30' is not a duration; write numbers with units"),
        (["--older-than", "7d", "--dry-run", "-y"], "--dry-run"),
        (["--sensor", "PUMP-1", "--records", "--source", "gw-1", "--json"], "add -y or --dry-run"),
        (["--sensor", "PUMP-1", "--records", "-y"], "delete all records"),
        (["--failed", "0"], "0 is not in the range"),
    ],
)
@pytest.mark.slow_on("duckdb")
def test_an_ambiguous_cleanup_is_refused(site: Any, given: list[str], message: str) -> None:
    assert message in site("cleanup", *given, code=2).stderr
    assert left(site) == (20, 6)


@pytest.mark.slow_on("duckdb")
def test_json_is_printed_for_programs(site: Any) -> None:
    meant = site.json("cleanup", "--sensor", "PUMP-1", "--source", "gw-0", "--dry-run", "--older-than", "1h")
    assert (meant["dry_run"], meant["points"], meant["records"], meant["shrunk"]) == (True, 9, 2, None)
    [series] = meant["series"]
    assert (series["sensor_id"], series["points"], series["unsent"]) == ("PUMP-1", 9, None)
    assert [(one["source"], one["records"]) for one in meant["sources"]] == [("gw-0", 2)]
    done = site.json("cleanup", "--sensor", "PUMP-1", "-y", "--shrink")
    assert (done["dry_run"], done["points"], done["records"]) == (False, 10, 0)
    assert done["first_us"] < done["last_us"]
    assert done["shrunk"]["columns_after_bytes"] > 0
    alone = site.json("cleanup", "--shrink")
    assert (alone["points"], set(alone["shrunk"])) == (0, set(done["shrunk"]))
    meant = site.json("cleanup", "--shrink", "--dry-run")["shrunk"]
    assert meant["columns_before_bytes"] == meant["columns_after_bytes"]
    assert 0 < meant["needed_bytes"] < meant["free_bytes"]


@pytest.mark.slow_on("duckdb")
def test_space_returns_to_the_disk_on_request(on_store: Any) -> None:
    on_store.write(*(("s", "m", second, second * 1.1) for second in range(40_000)))
    on_store("status")
    output = on_store("cleanup", "--all", "-y", "--shrink")
    assert "deleted 40,000 points, 1970-01-01T00:00:00Z to 1970-01-01T11:06:39Z" in output.stdout
    assert re.search(r"shrinking may need [\d.]+ [KM]iB of disk space", output.stderr)
    given = re.search(r"([\d.]+) ([KM])iB returned to the disk; the store takes [\d.]+ [KM]iB", output.stdout)
    assert given
    assert float(given[1]) * (1024 if given[2] == "M" else 1) > 200


@pytest.mark.slow_on("duckdb")
def test_the_deletion_is_reported_even_if_there_is_no_space_to_shrink(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "NEW_FILE_BYTES", 2**62)
    output = site("--json", "cleanup", "--sensor", "PUMP-1", "-y", "--shrink", code=1)
    done = json.loads(output.stdout)
    assert (done["points"], done["shrunk"]) == (10, None)
    assert (
        f"is deleted; run `holdfast --store {shlex.quote(str(site.folder))} cleanup --shrink`"
        in output.stderr
    )
    assert "nothing was changed" not in output.stderr
    assert left(site) == (10, 6)
    alone = site("--json", "cleanup", "--shrink", code=1)
    assert (alone.stdout, "is deleted" in alone.stderr) == ("", False)


@pytest.mark.slow_on("duckdb")
def test_a_misspelt_name_that_deletes_nothing_is_pointed_out(site: Any) -> None:
    for confirmed in ("-y", "--dry-run"):
        output = site("cleanup", "--sensor", "PUMP1", confirmed)
        assert "did you mean the sensor 'PUMP-1' or 'PUMP-2'?" in output.stderr


@pytest.mark.slow_on("duckdb")
def test_status_reports_what_cleanup_dropped(site: Any) -> None:
    site("cleanup", "--points", "--records", "--all", "-y")
    assert site.json("status")["ledger_dropped"] == 26


def test_points_are_deleted_later_while_another_process_has_the_columns(
    site: Any, held: Callable[[], int]
) -> None:
    held()
    assert "process" in site("cleanup", "--older-than", "7d", "--dry-run", code=4).stderr
    output = site("cleanup", "--older-than", "7d", "-y")
    assert "will be applied when that process releases them" in output.stderr
    assert output.stderr.count("warning: ") == 1  # one warning, not one for each step
    assert "deleted" not in output.stdout
    assert site.json("cleanup", "--sensor", "PUMP-1", "-y")["points"] is None


def test_no_store_is_created_in_a_folder_without_one(command: Any) -> None:
    assert "there is no store" in command("cleanup", "--all", "-y", code=1).stderr
    assert not command.folder.exists()


def test_a_full_buffer_takes_records_again_once_there_is_room(tmp_path: Path, command: Any) -> None:
    def fill() -> int:
        buffer = OfflineBufferManager(command.folder, max_buffer_size_mb=4)
        added = 0
        while buffer.add_record(f"{datetime.now(UTC)}-{added}", "s", {"text": "x" * 20_000}):
            added += 1
        buffer.shutdown()
        return added

    assert fill() > 10
    assert fill() <= 1
    command("cleanup", "--records", "--all", "-y", "--shrink")
    assert fill() > 10


@pytest.mark.slow_on("duckdb")
def test_times_are_those_of_the_zone_that_was_named(site: Any) -> None:
    end = datetime.now(UTC) - timedelta(hours=12)
    local = (end + timedelta(hours=9)).strftime("%Y-%m-%dT%H:%M:%S")
    found = site.json("cleanup", "--end", local, "--tz", "Asia/Tokyo", "--dry-run")
    assert found["points"] == 18
