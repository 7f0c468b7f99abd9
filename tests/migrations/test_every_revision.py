"""Every revision that there is, up, down and up again with rows in every table; a new one is among them by itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from repo.errors import HoldfastError
from repo.schema import runner
from repo.schema.version import REVISIONS
from tests.migrations.structure import Rows, rows_of, structure_of

OpenEngine = Callable[[Path], Engine]

POINT = {
    "sensor_id": "s",
    "metric_name": "m",
    "timestamp_us": 1_700_000_000_000_000,
    "value": 0.1,
    "quality": 192,
}
SUMMARY = {
    "sensor_id": "s",
    "metric_name": "m",
    "count": 3,
    "first_us": -5,
    "last_us": 2**62,
    "last_value": 1e308,
}
LOSS = {"entry_id": "e", "what": "points", "reason": "retention", "dropped": 7, "recorded_us": 2**53 + 1}
RECORD = {"record_id": "r-1", "source": "gw ü", "data": '{"v": 1}', "timestamp": 1.5, "created_at": 2.0}

ROWS: dict[str, dict[str, Rows]] = {
    "0001": {
        "metadata": {
            "buffered_records": [
                RECORD | {"id": 7, "retry_count": 3, "last_retry": None},
                RECORD | {"id": 5000, "record_id": "r-2", "retry_count": 0, "last_retry": 1e9},
            ],
            "buffer_metadata": [{"key": "note", "value": "kept"}],
        },
        "timeseries": {
            "time_series_data": [
                POINT | {"metadata": '{"k": "ü"}'},
                POINT | {"timestamp_us": -5, "value": float("-inf"), "metadata": None, "quality": None},
                POINT | {"sensor_id": "", "value": 5e-324, "metadata": "{not json"},
            ],
            "storage_metadata": [{"key": "note", "value": "kept", "updated_at": None}],
        },
    },
    "0002": {
        "metadata": {
            "buffered_records": [RECORD | {"id": 9, "retry_count": 1, "last_retry": 3.5}],
            "buffer_metadata": [{"key": "note", "value": "kept"}],
            "journal": [{"seq": 9, "count": 1, "kind": "points", "payload": b"\x00\xff", "created_us": 1}],
            "store_state": [
                {"id": 1, "store_id": "i", "last_seq": 9, "copied_through": 8, "pruned_through": 7}
                | {"engine": "duckdb", "file_id": "f", "generation": 1, "created_us": 1}
            ],
            "series": [
                {"sensor_id": "s", "metric_name": "m", "kind": "number", "unit": "bar", "labels": "{}"}
            ],
            "sinks": [{"name": "s", "confirmed_seq": 4, "created_us": 1, "updated_us": 2}],
            "latest": [SUMMARY | {"last_seq": 9}, SUMMARY | {"sensor_id": "t", "last_seq": None}],
            "loss_ledger": [LOSS],
        },
        "timeseries": {
            "time_series_data": [
                POINT | {"seq": 9, "value_text": None},
                POINT | {"timestamp_us": 2**62, "value": None, "value_text": "OPEN", "seq": None},
            ],
            "storage_metadata": [{"key": "note", "value": "kept", "updated_at": None}],
            "series": [SUMMARY | {"last_seq": 9}, SUMMARY | {"sensor_id": "t", "last_seq": None}],
            "timeseries_state": [
                {"id": 1, "store_id": "i", "file_id": "f", "generation": 1, "watermark": 9}
                | {"flushed_from": 8, "flush_digest": -1}
            ],
            "loss_ledger": [LOSS],
        },
    },
}
ROWS["0003"] = {
    "metadata": ROWS["0002"]["metadata"] | {"latest": [SUMMARY | {"last_seq": -9}]},
    "timeseries": ROWS["0002"]["timeseries"]
    | {
        "time_series_data": [
            POINT | {"seq": 9, "value_text": None},
            POINT | {"timestamp_us": 2**62, "value": None, "value_text": "OPEN", "seq": -1},
        ],
        "series": [SUMMARY | {"last_seq": -9}],
        "slices": [{"first_seq": -(2**62), "last_seq": 2**62, "rows": 0, "sorted_through": 9}],
    },
}
RANGE = {"sink": "s", "first_seq": 6, "last_seq": 9}
ROWS["0004"] = {
    "metadata": ROWS["0003"]["metadata"]
    | {
        "sinks": [
            {"name": "s", "confirmed_seq": 4, "created_us": 1, "updated_us": 2, "kind": "http"}
            | {"target": "https://h/x", "options": '{"token": "env:T"}', "rate": "{}", "points_per_s": 0.5}
        ],
        "sink_ranges": [RANGE],
        "attempts": [
            RANGE | {"points": 4, "checksum": "c", "token": "t", "lane": "live", "tries": 1, "begun_us": 3}
        ],
        "quarantine": [
            {
                "id": 3,
                "sink": "s",
                "seq": -2,
                "timestamp_us": -5,
                "value": 0.5,
                "kind": "refused",
                "reason": "no",
            }
            | {"retry": 0, "recorded_us": 1}
        ],
        "positions": [
            {"store_id": "i", "epoch": 2, "sink": "s", "token": "t", "low": -1, "ranges": "[]", "points": 3}
            | {"updated_us": 1}
        ],
        "senders": [{"token_sha256": "0f", "store_id": "i", "created_us": 1}],
    },
    "timeseries": ROWS["0003"]["timeseries"],
}
"""Rows for every table that there is at a revision. A new revision needs an entry; the test says what is missing."""

CHANGED: dict[tuple[str, str], set[str]] = {
    ("0003", "time_series_data"): {"seq"},
    ("0003", "series"): {"last_seq"},
    ("0003", "latest"): {"last_seq"},
    ("0003", "store_state"): {"file_id"},
}
"""By revision and table, the columns that a revision changes on its way up, and keeps on its way down."""

RECOMPUTED: dict[str, set[str]] = {"0003": {"slices"}}
"""By revision, the tables that a downgrade may drop with their rows."""


def _database(path: Path) -> runner.Database:
    return "metadata" if path.suffix == ".db" else "timeseries"


def _filled(path: Path, revision: str, open_engine: OpenEngine) -> Engine:
    """Make a database at this revision, with rows in each of its tables."""
    engine, database = open_engine(path), _database(path)
    runner.upgrade(engine, database, revision)
    given = ROWS.get(revision, {}).get(database, {})
    there = set(rows_of(engine)) - {"sqlite_sequence"}
    assert set(given) == there, f"ROWS[{revision!r}][{database!r}] has to have rows for {sorted(there)}"
    with engine.begin() as connection:
        for table, rows in given.items():
            for row in rows:
                names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
                connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), row)
    return engine


def _common(before: Rows, after: Rows, revision: str) -> tuple[Rows, Rows]:
    """Return what can be compared: the tables and columns that both have."""

    def cut(rows: Rows, table: str, names: set[str]) -> list[dict[str, Any]]:
        kept = [{name: row[name] for name in sorted(names)} for row in rows[table]]
        return sorted(kept, key=str)

    tables = before.keys() & after.keys()
    names = {
        t: set(before[t][0]) & set(after[t][0]) - CHANGED.get((revision, t), set())
        for t in tables
        if after[t]
    }
    return tuple({t: cut(rows, t, names.get(t, set())) for t in tables} for rows in (before, after))  # type: ignore[return-value]


@pytest.mark.parametrize(("below", "revision"), list(pairwise(REVISIONS)))
def test_rows_survive_up_down_and_up_again(
    below: str, revision: str, database_file: Path, open_engine: OpenEngine
) -> None:
    engine, database = _filled(database_file, below, open_engine), _database(database_file)
    rows, structure = rows_of(engine), structure_of(engine)
    runner.upgrade(engine, database, revision)
    upgraded, new_structure = rows_of(engine), structure_of(engine)
    before, after = _common(rows, upgraded, revision)
    assert before == after
    runner.downgrade(engine, database, below)
    before, after = _common(rows, rows_of(engine), revision)
    assert before == after
    assert structure_of(engine) == structure
    runner.upgrade(engine, database, revision)
    assert rows_of(engine) == upgraded
    assert structure_of(engine) == new_structure


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_full_database_goes_down_and_keeps_all_or_stays_as_it_is(
    revision: str, database_file: Path, open_engine: OpenEngine
) -> None:
    engine, database = _filled(database_file, revision, open_engine), _database(database_file)
    rows, structure = rows_of(engine), structure_of(engine)
    below = "base" if revision == REVISIONS[0] else REVISIONS[REVISIONS.index(revision) - 1]
    try:
        runner.downgrade(engine, database, below)
    except HoldfastError as refused:
        assert "othing was changed" in str(refused)  # noqa: PT017
    else:
        runner.upgrade(engine, database, revision)
    assert runner.current(engine) == revision
    kept = rows | {name: [] for name in RECOMPUTED.get(revision, set()) & set(rows)}
    assert rows_of(engine) == kept
    assert structure_of(engine) == structure


def test_every_revision_declares_the_tables_that_it_rewrites() -> None:
    for script in ScriptDirectory.from_config(runner.config()).walk_revisions():
        assert isinstance(script.module.REWRITES, dict), f"{script.path} needs REWRITES, if only an empty one"
