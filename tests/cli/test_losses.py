"""`losses`: the loss ledger on the screen."""

from __future__ import annotations

from typing import Any

T0 = 1_714_521_600


def test_losses_are_listed_for_people_and_as_json(on_duckdb: Any) -> None:
    assert on_duckdb("losses").stdout == "lost nothing\n"
    on_duckdb.write(*(("WELL-3", "pressure", T0 + n, 1.0) for n in range(12)))
    on_duckdb("cleanup", "--sensor", "WELL-*", "--end", T0 + 11, "-y")
    said = on_duckdb("losses").stdout.splitlines()
    assert said[0].endswith("Z  11 points: deleted by cleanup")
    assert said[1].strip() == "sensor WELL-*"
    assert said[2].strip() == "2024-05-01T00:00:00Z to 2024-05-01T00:00:10Z"
    assert said[3] == "lost 11 points, in 1 entry"
    assert "11 points, in 1 entry" in on_duckdb("status").stdout
    [entry] = on_duckdb.json("losses")
    assert (entry["dropped"], entry["sensor_id"], entry["reason"]) == (11, "WELL-*", "cleanup")
    on_duckdb.write(("WELL-3", "pressure", T0 + 20, 1.0))
    on_duckdb("cleanup", "--all", "-y")
    assert len(on_duckdb.json("losses", "--limit", "1")) == 1
