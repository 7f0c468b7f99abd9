"""Every option and argument of every command, with every wrong text: done, or refused in words, never a traceback.

The slow test tries all texts on both engines, the fast one a text for about every second option.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from repo import Settings, Store
from repo.commands import holdfast

WRONG = (
    *("", " ", "wrong", "*", "[", "é", "\udcff", "x" * 5_000, "'; DROP TABLE series; --", "{", "a,b=c,"),
    *("-1", "0", "1.5", "1e999", "nan", "-inf", "9" * 5_000, "9223372036854775808", "true"),
    *("2024-13-45", "2024-05-01T00:00:00", "0001-01-01", "now", "-1d", "1mo", "0s", "99999y", "10:99"),
    *("nowhere/at/all", ".", "..", "/dev/null", ":memory:", "http://host/path", "Europe/Nowhere", "utf-9"),
)

ARGUMENTS = {
    "query": ["s", "m"],
    "latest": ["s"],
    "export": ["out.parquet"],
    "import": ["in.parquet"],
    "ingest": ["in.csv"],
    "adopt": ["old", "new"],
    "sql": ["SELECT 1"],
    "cleanup": ["--dry-run", "--older-than", "1d"],
    "reconcile": ["there"],
    "sinks add": ["new", "http://127.0.0.1:9/points", "--from", "now"],
    "sinks kinds": ["http"],
    "sinks skip": ["there", "--dry-run"],
    "sinks replay": ["there", "--dry-run", "--from", "beginning"],
    "sinks confirm": ["there", "1", "--dry-run"],
    "sinks rekey": ["--dry-run"],
    "sinks remove": ["there", "--dry-run"],
    **{f"sinks {name}": ["there"] for name in ("change", "show", "test", "pause", "resume")},
    "quarantine show": ["1"],
    "quarantine retry": ["--all"],
    "quarantine drop": ["--all", "--dry-run"],
    "quarantine export": ["out.ndjson"],
}
"""What a command needs besides the option that is tried."""

LEFT_OUT = {"demo"}
"""Starts processes for a minute whatever its options are."""


def commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, with its words."""
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*above, word))
        else:
            yield " ".join((*above, word)), command


def options() -> Iterator[tuple[str, click.Parameter]]:
    """Every parameter of every command, and those of the command itself."""
    for parameter in holdfast.params:
        yield "", parameter
    for name, command in commands(holdfast):
        if name not in LEFT_OUT:
            for parameter in command.params:
                yield name, parameter


def command_lines(tries: Callable[[], list[str]]) -> Iterator[list[str]]:
    """The command lines to try, each with one wrong text."""
    for name, parameter in options():
        words, needed = name.split(), ARGUMENTS.get(name, [])
        for wrong in tries():
            if isinstance(parameter, click.Argument):
                yield [*words, "--", wrong, *needed[1:]]
            elif not name:
                yield [parameter.opts[0], wrong, "status"]
            elif getattr(parameter, "is_flag", False):
                yield [*words, *needed, parameter.opts[0], wrong]
            else:
                yield [*words, *needed, f"{parameter.opts[0]}={wrong}" if "--" in parameter.opts[0] else "-x"]


def tracebacks(engine: str, folder: Path, tries: Callable[[], list[str]]) -> list[str]:
    """Run every command line on one store; returns those that ended with an error of Python."""
    with Store(folder / "store", Settings(background=False, engine=engine)) as store:  # type: ignore[arg-type]
        store.points.insert_many([("s", "m", 1e9 + second, 1.0) for second in range(3)])
        store.export_parquet(folder / "in.parquet")
        store.sinks.add("there", "http://127.0.0.1:9/points", start="beginning")
    (folder / "in.csv").write_text("sensor_id,metric_name,timestamp,value\ns,m,2024-05-01T00:00:00Z,1\n")
    found = []
    for line in command_lines(tries):
        result = CliRunner().invoke(holdfast, ["--store", "store", *line] if line[0] != "--store" else line)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            shown = " ".join(word[:30] for word in line)
            found.append(f"{shown!r}: {type(result.exception).__name__}: {str(result.exception)[:90]!a}")
    return found


def test_a_wrong_option_is_refused_with_a_message(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chance = random.Random(seed)
    found = tracebacks("sqlite", tmp_path, lambda: chance.sample(WRONG, chance.randrange(2)))
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_no_wrong_option_ends_in_a_traceback(
    engine: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On DuckDB a quarter of the texts: few commands reach the columns before they refuse an option."""
    monkeypatch.chdir(tmp_path)
    chance = random.Random(seed)
    few = len(WRONG) // 4 if engine == "duckdb" else len(WRONG)
    found = tracebacks(engine, tmp_path, lambda: chance.sample(WRONG, few))
    assert not found, "\n".join(found)
