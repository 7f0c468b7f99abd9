"""The global options, suggestions for what was mistyped, and errors as JSON."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from repo.commands import holdfast

T0 = 1_714_521_600

pytestmark = pytest.mark.slow_on("duckdb")


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(holdfast, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}"
    return result


def test_global_options_work_before_and_after_the_command_and_a_path_alone_names_the_store(
    on_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = on_store.folder
    asked = (["--json", "--store", store, "status"], ["status", "--store", store, "--json"])
    for arguments in (*asked, ["status", store, "--json"]):
        assert json.loads(call(*arguments).stdout)["path"] == str(store)
    assert call("status", store, "-q").stdout == ""
    for command in ("init", "migrate", "promote"):
        assert str(store) in call(command, store).stdout
    monkeypatch.setenv("HOLDFAST_STORE", "/nowhere")
    assert str(store) in call("status", store).stdout


def test_contradicting_global_options_are_refused(on_store: Any) -> None:
    store = on_store.folder
    assert "two stores are given" in call("--store", store, "status", "other", code=2).stderr
    assert "-q and -v" in call("status", store, "-q", "-v", code=2).stderr
    assert "no such option" in call("demo", "--store", store, code=2).stderr.lower()


def test_typos_get_a_suggestion(on_store: Any) -> None:
    assert "did you mean 'status'?" in call("staus", code=2).stderr
    assert "did you mean 'status --check'?" in call("verify", code=2).stderr
    assert "did you mean 'status --check'?" in call("repair", code=2).stderr
    assert "did you mean '--version'?" in call("version", code=2).stderr
    assert "holdfast status './a store'" in call("./a store", code=2).stderr
    assert "--since" in call("query", "s", "m", "--sinse", "1h", code=2).stderr
    on_store.write(("WELL-3", "pressure", T0, 1.0))
    assert "did you mean the sensor 'WELL-3'?" in on_store("query", "well3", "pressure").stderr
    assert "did you mean the metric 'pressure'?" in on_store("latest", "WELL-3", "presure").stderr
    assert "did you mean the metric 'pressure'?" in on_store("series", "Pressure").stderr
    assert "did you mean the sensor 'WELL-3'?" in on_store("cleanup", "--sensor", "WEL-3", "--dry-run").stderr


def test_messages_repeat_the_store_that_was_given(on_store: Any, tmp_path: Path) -> None:
    on_store.write(("WELL-3", "pressure", T0, 1.0))
    assert (
        f"`holdfast --store {shlex.quote(str(on_store.folder))} series`" in on_store("query", "x", "y").stderr
    )
    absent = tmp_path / "no store"
    assert f"`holdfast --store '{absent}' init`" in call("status", absent, code=1).stderr


def test_with_json_each_line_of_stderr_is_json(on_store: Any, tmp_path: Path) -> None:
    failed = json.loads(call("status", tmp_path / "none", "--json", code=1).stderr)
    assert (failed["level"], failed["error"], failed["exit_code"]) == ("error", "StoreMissing", 1)
    assert "there is no store" in failed["message"]
    wrong = json.loads(call("--json", "query", "s", code=2).stderr)
    assert (wrong["error"], wrong["exit_code"]) == ("MissingParameter", 2)
    refused = json.loads(on_store("cleanup", "--all", "--json", code=2).stderr)
    assert (refused["error"], "add -y" in refused["message"]) == ("UsageError", True)
    note = json.loads(on_store("query", "s", "m", "--json").stderr)
    assert (note["level"], "no points" in note["message"]) == ("info", True)


def test_several_exact_names_may_have_glob_characters(on_store: Any, tmp_path: Path) -> None:
    on_store.write(("A*", "m", T0, 1.0), ("AB", "m", T0, 1.0), ("C", "m", T0, 1.0))
    out = tmp_path / "out.parquet"
    assert on_store.json("export", out, "--sensor", "A*", "--sensor", "C")["points"] == 2
    two = on_store.json("cleanup", "--sensor", "A*", "--sensor", "C", "--dry-run")
    assert [row["sensor_id"] for row in two["series"]] == ["A*", "C"]
    refused = on_store("export", out, "--sensor", "C", "--sensor", "[A]*", code=2).stderr
    assert "'[A]*' is a glob" in refused
