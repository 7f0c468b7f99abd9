"""Reports: each job returns a frozen report, and the command prints its as_dict() as JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from repo import Settings, Store
from repo.commands import holdfast

pytestmark = pytest.mark.slow_on("duckdb")


def printed(store: Path, *arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(holdfast, ["--json", "--store", str(store), *arguments])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_command_prints_the_report_of_the_job(tmp_path: Path, engine: Any) -> None:
    path, out, text = tmp_path / "store", tmp_path / "a.ndjson.gz", tmp_path / "a.csv"
    text.write_text("sensor_id,metric_name,timestamp,value\na,m,2026-01-01,1\nb,m,2026-01-01,2\n")
    with Store(path, Settings(engine=engine, background=False)) as store:
        stay = store.promote if engine == "duckdb" else store.demote
        reports: dict[tuple[str, ...], Any] = {
            ("ingest", str(text)): store.ingest(text),
            ("export", str(out), "--format", "ndjson"): store.export_ndjson(out),
            ("import", str(out)): store.import_parquet(out),
            ("cleanup", "--sensor", "a", "--dry-run"): store.cleanup(sensor_id="a", dry_run=True),
            (stay.__name__,): stay(),
        }
        shrunk = store.shrink(dry_run=True)
    for arguments, report in reports.items():
        said, reported = printed(path, *arguments), json.loads(json.dumps(report.as_dict()))
        assert list(said)[: len(reported)] == list(reported), arguments
        for varies in ("elapsed_s", "points_per_s", "bytes"):
            said.pop(varies, None)
            reported.pop(varies, None)
        assert reported.items() <= said.items(), arguments
        with pytest.raises(FrozenInstanceError):
            setattr(report, fields(report)[0].name, None)
    assert printed(path, "cleanup", "--shrink", "--dry-run")["shrunk"].keys() == shrunk.as_dict().keys()


def test_a_cleanup_that_only_shrinks_prints_the_keys_of_every_cleanup(tmp_path: Path, engine: Any) -> None:
    path = tmp_path / "store"
    with Store(path, Settings(engine=engine, background=False)) as store:
        store.points.insert("a", "m", 1.0)
    only, both = (
        printed(path, "cleanup", *given, "--dry-run")
        for given in (["--shrink"], ["--sensor", "a", "--shrink"])
    )
    assert only.keys() == both.keys()
    assert (only["points"], only["records"], only["series"], only["bytes"]) == (0, 0, [], 0)
    assert both["points"] == 1
