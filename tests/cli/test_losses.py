"""`losses`: the loss ledger on the screen."""

from __future__ import annotations

from typing import Any

import pytest

T0 = 1_714_521_600

pytestmark = pytest.mark.slow_on("duckdb")


def test_losses_are_listed_for_people_and_as_json(on_store: Any) -> None:
    assert on_store("losses").stdout == "lost nothing\n"
    on_store.write(*(("WELL-3", "pressure", T0 + n, 1.0) for n in range(12)))
    on_store("cleanup", "--sensor", "WELL-*", "--end", T0 + 11, "-y")
    said = on_store("losses").stdout.splitlines()
    assert said[0].endswith("Z  11 points: deleted by cleanup")
    assert said[1].strip() == "sensor WELL-*"
    assert said[2].strip() == "2024-05-01T00:00:00Z to 2024-05-01T00:00:10Z"
    assert said[3] == "lost 11 points, in 1 entry"
    assert "11 points, in 1 entry" in on_store("status").stdout
    [entry] = on_store.json("losses")
    assert (entry["dropped"], entry["sensor_id"], entry["reason"]) == (11, "WELL-*", "cleanup")
    on_store.write(("WELL-3", "pressure", T0 + 20, 1.0))
    on_store("cleanup", "--all", "-y")
    assert len(on_store.json("losses", "--limit", "1")) == 1


def test_points_that_only_a_sink_does_not_get_are_not_lost(command: Any) -> None:
    command("init")
    command.write(*(("WELL-3", "pressure", T0 + n, 1.0) for n in range(30)))
    command("sinks", "add", "far", "https://host/in", "--from", "beginning")
    command("sinks", "skip", "far", "--to", 25, "-y")
    said = command("losses").stdout.splitlines()
    assert said[0].endswith(
        "25 points: an operator skipped seqs 1 to 25 for the sink far; the points are still stored"
    )
    assert said[-2:] == ["lost nothing", "given up for sinks, but still stored: 25 points, in 1 entry"]
    command("cleanup", "--end", T0 + 11, "--even-unsent", "-y")
    assert command("losses").stdout.splitlines()[-2:] == [
        "lost 11 points, in 1 entry",
        "given up for sinks, but still stored: 25 points, in 1 entry",
    ]
    said = command("status").stdout.splitlines()
    assert "lost        11 points, in 1 entry" in said
    assert "given up    25 points, in 1 entry; still stored, but not for a sink" in said
    assert [(one["dropped"], one["given_up"]) for one in command.json("losses")] == [(11, False), (25, True)]
    found = command.json("status")
    counts = ("ledger_entries", "ledger_dropped", "lost_points", "given_up_points", "given_up_entries")
    assert [found[name] for name in counts] == [2, 11, 11, 25, 1]
