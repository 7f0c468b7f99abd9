"""The file of a run of the benchmarks, from which a stopped run continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import runs
from benchmarks.measure import Figure, Samples
from benchmarks.run import LEVELS


def test_a_stopped_run_continues_with_what_it_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_OUT", tmp_path / "out")
    first = replace(LEVELS["quick"], cache=tmp_path)
    unseen = replace(first, shape="irregular", seed=77)
    run = runs.Run.new("quick", [first, unseen])
    run.add_conditions({"load of the machine at the start": "0.5", "commit": "one"})
    whole = Figure("batch-1000-tuples", [2.5], [Samples("holdfast", [5.0])], "points/s", shape="regular")
    run.add(whole)
    run.end("tuples", first)
    run.begin("queries", first)
    run.add(Figure("range-1h", [1.0], shape="regular"))

    assert runs.newest_file("full") is None
    path = runs.newest_file("quick")
    assert path == run.path
    again = runs.Run.read(path, tmp_path)
    again.add_conditions({"load of the machine at the start": "0.9", "commit": "two"})
    assert [plan.seed for plan in again.plans] == [first.seed, 77]
    assert again.plans[0] == replace(first, growth_points=list(first.growth_points))
    assert again.has("tuples", first)
    assert not again.has("queries", first)
    assert not again.has("tuples", unseen)
    again.begin("queries", first)
    assert again.figures == [whole]
    assert again.conditions == {"load of the machine at the start": "0.9", "commit": "one; two"}
