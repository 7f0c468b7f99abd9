"""`compact`: it says what it sorted, or that there was nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from repo.core import compaction

ROWS = [(f"s{at % 2}", "m", at, float(at)) for at in range(12)]


def test_points_are_sorted_and_then_there_is_nothing_left(
    on_duckdb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SLICE_ROWS", 4)
    on_duckdb.write(*ROWS)
    assert on_duckdb("compact", "--dry-run").stdout == "12 points in 3 slices would be sorted\n"
    output = on_duckdb("compact").stdout
    assert output.startswith("12 points in 3 slices sorted\nthe column file has ")
    assert on_duckdb("compact").stdout == "there is nothing to do: all points are sorted\n"
    assert [row["value"] for row in on_duckdb.json("query", "s0", "m")] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_points_that_came_in_sorted_are_named(on_duckdb: Any) -> None:
    on_duckdb.write(*ROWS[::2])
    found = on_duckdb.json("compact")
    assert (found["noted_slices"], found["noted_points"], found["sorted_slices"]) == (1, 6, 0)
    on_duckdb.write(*(("s0", "m", at, 1.0) for at in range(20, 24)))
    assert on_duckdb("compact").stdout == "4 points in 1 slice arrived sorted\n"


def test_on_sqlite_there_is_nothing_to_do(command: Any) -> None:
    command("init", "--engine", "sqlite")
    assert command("compact").stdout == "there is nothing to do: SQLite keeps the points sorted\n"
    assert command.json("compact", "--dry-run")["engine"] == "sqlite"


@pytest.mark.duckdb
def test_it_stops_waiting_for_the_holder_of_the_columns(on_duckdb: Any, held: Callable[[], int]) -> None:
    on_duckdb.write(*ROWS)
    pid = held()
    assert f"process {pid}" in on_duckdb("compact", code=4).stderr


def test_no_store_is_created_in_a_folder_without_one(command: Any) -> None:
    assert "there is no store" in command("compact", code=1).stderr
    assert not command.folder.exists()
