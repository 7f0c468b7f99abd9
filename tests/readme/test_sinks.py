"""The page about sinks: its commands work, and its tables have the options that exist, with their defaults."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

from repo.store.sink_options import OPTIONS, PREFIXES, Option
from tests.starter import Starter

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "sinks.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
KINDS = {
    "http": ("HTTP", "InfluxDB and VictoriaMetrics"),
    "mqtt": ("MQTT",),
    "kafka": ("Kafka",),
    "holdfast": ("A Holdfast store",),
    "postgresql": ("PostgreSQL",),
    "folder": ("A folder",),
}


def rows(text: str) -> dict[str, tuple[str, str]]:
    """Return default and meaning by option."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return {
        name: (cells[1].strip(), cells[2].strip())
        for cells in lines
        for name in re.findall(r"`(.*?)`", cells[0])
    }


def test_each_option_is_described_and_none_that_does_not_exist() -> None:
    assert set(KINDS) == set(OPTIONS) - {"own"}
    for kind, sections in KINDS.items():
        described = {name for section in sections for name in rows(SECTIONS[section])}
        prefix = {f"{PREFIXES[kind]}NAME"} if kind in PREFIXES else set()
        assert described == {*OPTIONS[kind], *prefix}, kind


def test_the_defaults_and_choices_are_as_described() -> None:
    common = rows(PAGE.partition("## ")[0])
    for kind, sections in KINDS.items():
        described: dict[str, tuple[str, str]] = {}
        for section in reversed(sections):
            described |= rows(SECTIONS[section])
        influx = rows(SECTIONS["InfluxDB and VictoriaMetrics"])
        described |= {
            name: influx[name] for name, (_, about) in described.items() if "as for InfluxDB" in about
        }
        for name, option in OPTIONS[kind].items():
            default, about = common[name] if "see above" in described[name][1] else described[name]
            shown = default.strip("` ")
            if isinstance(option.default, bool):
                assert shown == str(option.default).lower(), (kind, name)
            elif option.default is not None:
                assert shown == f"{option.default:g}" if isinstance(option.default, float) else option.default
            _check_choices(option, default + about)


def _check_choices(option: Option, text: str) -> None:
    missing = [one for one in option.choices if one not in text]
    assert missing == []


def test_the_commands_of_the_page_add_sinks(starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    starter.program(tmp_path / "bin" / "holdfast", ROOT / "cli.py")
    commands = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    refused = "holdfast sinks add incomplete http://influx.example --from now --option format=influx2 || echo refused"
    path = shlex.quote(str(tmp_path / "bin"))
    script = f"PATH={path}:$PATH\nholdfast init >&2\n{commands}\n{refused} >&2\nholdfast --json sinks list"
    done = subprocess.run(
        ["sh", "-ec", script.replace("sinks add", "--quiet sinks add")],
        cwd=tmp_path,
        env={**os.environ, "HOLDFAST_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert "needs the option org" in done.stderr
    assert {one["name"] for one in json.loads(done.stdout)} == {
        "broker",
        "collector",
        "hub",
        "influx",
        "stream",
    }
