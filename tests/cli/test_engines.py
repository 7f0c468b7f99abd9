"""`promote` and `demote`: the columns change engines, and the command says what it did and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.duckdb

VERBS = {"duckdb": ("demote", "sqlite"), "sqlite": ("promote", "duckdb")}


def test_the_columns_move_and_the_old_file_is_named(on_store: Any, engine: str) -> None:
    on_store.write(("s", "m", 1, 1.5), ("s", "m", 2, 2.5))
    verb, other = VERBS[engine]
    moved = on_store(verb)
    assert f"moved 2 points of {on_store.folder} from {engine} to {other}" in moved.stdout
    kept = f"timeseries.{engine}.inactive-2"
    assert kept in moved.stdout
    status = on_store.json("status")
    assert (status["engine"], status["generation"]) == (other, 2)
    assert kept in status["bytes_by_kept_file"]
    assert kept in on_store("status").stdout
    assert [row["value"] for row in on_store.json("query", "s", "m")] == [1.5, 2.5]


def test_moving_to_the_engine_in_use_does_nothing(on_store: Any, engine: str) -> None:
    verb, _ = VERBS[VERBS[engine][1]]
    assert f"are already in {engine}" in on_store(verb).stdout
    done = on_store.json(verb)
    assert (done["before"], done["after"], done["points"], done["generation"]) == (engine, engine, 0, 1)


def test_the_result_is_available_as_json(on_store: Any, engine: str) -> None:
    on_store.write(("s", "m", 1, 1.5))
    verb, other = VERBS[engine]
    assert on_store.json(verb) == {
        "path": str(on_store.folder),
        "before": engine,
        "after": other,
        "points": 1,
        "generation": 2,
    }


@pytest.mark.parametrize("verb", ["promote", "demote"])
def test_no_store_is_created_in_a_folder_without_one(command: Any, verb: str) -> None:
    assert "there is no store" in command(verb, code=1).stderr
    assert not command.folder.exists()


def test_a_move_stops_waiting_for_the_holder_of_the_columns(
    on_store: Any, engine: str, held: Callable[[], int]
) -> None:
    pid = held()
    result = on_store(VERBS[engine][0], code=4)
    assert f"process {pid}" in result.stderr
    assert on_store.json("status")["engine"] == engine


def test_migrations_find_the_file_in_use_among_inactive_ones(on_store: Any, engine: str) -> None:
    on_store.write(("s", "m", 1, 1.5))
    on_store(VERBS[engine][0])
    [metadata, columns] = sorted(
        on_store.json("migrate", "--check")["databases"], key=lambda one: one["database"]
    )
    assert metadata["before"] == columns["before"] == "0004"
    assert columns["file"].endswith(f"timeseries.{VERBS[engine][1]}")
