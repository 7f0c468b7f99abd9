"""The page of the benchmarks, its pictures and the README's table are those of the stored results; and they run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.document import PAGES, RESULTS, pages, pictures
from benchmarks.jobs import KEYS
from benchmarks.report import load_targets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stored() -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_pages_have_the_stored_figures(stored: Any) -> None:
    assert pages(stored) == {path: path.read_text(encoding="utf-8") for path in PAGES}


def test_the_pictures_show_the_stored_figures(stored: Any) -> None:
    drawn = pictures(stored)
    kept = {path.name: path.read_text(encoding="utf-8") for path in RESULTS.parent.glob("*.svg")}
    assert drawn == kept
    assert all(f"benchmarks/{name}" in PAGES[0].read_text(encoding="utf-8") for name in drawn)


def test_a_changed_figure_changes_the_page(stored: Any) -> None:
    changed = json.loads(json.dumps(stored))
    for figure in changed["figures"]:
        figure["values"] = [value * 1000 for value in figure["values"]]
    assert pages(changed)[PAGES[0]] != PAGES[0].read_text(encoding="utf-8")


def test_a_target_that_is_met_leaves_the_table_of_missed_ones(stored: Any) -> None:
    def missed(results: Any) -> str:
        return pages(results)[PAGES[0]].split("<!-- figures: missed -->\n")[1].split("<!--")[0]

    assert "| 1-minute averages of all series over 24 h | " in missed(stored)
    better = json.loads(json.dumps(stored))
    for figure in better["figures"]:
        if figure["key"] == "buckets-all":
            figure["values"] = [value * 2 for value in figure["values"]]
    assert "1-minute averages of all series" not in missed(better)


def test_the_results_name_no_folder_and_no_host(stored: Any) -> None:
    text = json.dumps(stored)
    own = " ".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").rglob("*.py"))
    words, own_words = (set(re.findall(r"[\w.-]+", each)) for each in (text, own))
    assert os.uname().nodename not in words - own_words  # a host may be called `disk` or `edge`
    for run in stored["runs"]:
        assert re.fullmatch(r"\w+ on \w+, \d+ cores, \d+ GiB", run["conditions"]["machine"])
    assert "/tmp" not in text
    assert "/home" not in text


def test_each_job_has_its_targets_and_each_target_its_job() -> None:
    keys = [key for found in KEYS.values() for key in found]
    assert sorted(keys) == sorted(load_targets())


@pytest.mark.bench
def test_the_benchmarks_run_in_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--data", str(tmp_path)]
    jobs = ["--job", "claims", "queries", "tuples", "tables", "carrying", "compaction"]
    done = subprocess.run([*command, *jobs], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "claim-range-1h" in done.stdout
