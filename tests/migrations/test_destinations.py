"""Revision 0004 makes destinations of the sinks that there are, and never drops what a destination is owed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from repo.errors import HoldfastError
from repo.repositories.sinks import SinkRepository
from repo.schema import runner

OpenEngine = Callable[[Path], Engine]

FAILURES = {"far": ["unreachable", "no route", 7], "shut": ["refused", "400", 8], "gone": ["refused", "?", 9]}


@pytest.fixture
def engine(tmp_path: Path, open_engine: OpenEngine) -> Engine:
    """Metadata at revision 0003 with three sinks, two of which fail, and a failure of one that is not there."""
    opened = open_engine(tmp_path / "offline_buffer.db")
    runner.upgrade(opened, "metadata", "0003")
    with opened.begin() as connection:
        for name, seq in (("far", 4), ("fine", 9), ("shut", 0)):
            connection.execute(text(f"INSERT INTO sinks VALUES ('{name}', {seq}, 1, 2)"))
        for name, failure in FAILURES.items():
            connection.execute(
                text("INSERT INTO buffer_metadata VALUES (:key, :value)"),
                {"key": f"holdfast.sink-failure:{name}", "value": json.dumps(failure)},
            )
        connection.execute(text("INSERT INTO buffer_metadata VALUES ('note', 'kept')"))
        connection.execute(
            text("INSERT INTO store_state VALUES (1, 'i', 9, 9, 9, 'duckdb', 'f', 1, 1)"),
        )
    return opened


def asked(engine: Engine, query: str) -> list[Any]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_sinks_keep_their_cursors_and_their_failures(engine: Engine) -> None:
    runner.upgrade(engine, "metadata")
    with engine.connect() as connection:
        far, fine, shut = SinkRepository(connection).list()
    assert (far.confirmed_seq, fine.confirmed_seq, shut.confirmed_seq) == (4, 9, 0)
    assert (far.state, far.last_error, far.since_us) == ("failing", "no route", 7)
    assert (shut.state, shut.last_error, shut.since_us) == ("halted", "400", 8)
    assert (fine.state, fine.last_error, fine.since_us) == ("running", None, None)
    assert asked(engine, "SELECT key FROM buffer_metadata") == [("note",)]
    assert asked(engine, "SELECT DISTINCT kind, target, state = 'halted', hold FROM sinks ORDER BY 3") == [
        ("own", "", 0, 1),
        ("own", "", 1, 1),
    ]
    assert asked(engine, "SELECT epoch FROM store_state") == [(1,)]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sinks SET kind = 'http' WHERE name = 'far'",
        "UPDATE sinks SET token = 't' WHERE name = 'far'",
        "UPDATE sinks SET hold = 0 WHERE name = 'far'",
        "INSERT INTO sink_ranges VALUES ('far', 6, 9)",
        "INSERT INTO senders VALUES ('0f', 'i', 1)",
        "UPDATE store_state SET epoch = 2",
    ],
)
def test_a_downgrade_that_would_lose_something_is_refused(engine: Engine, change: str) -> None:
    runner.upgrade(engine, "metadata")
    with engine.begin() as connection:
        connection.execute(text(change))
    with pytest.raises(HoldfastError, match="nothing was changed"):
        runner.downgrade(engine, "metadata", "0003")
    assert runner.current(engine) == "0004"
