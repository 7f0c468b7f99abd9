"""The registry of sinks, their options, and their secrets."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repo.delivery.secrets import Secret
from repo.delivery.sinks import registry
from repo.errors import InvalidSettings, SinkHalted
from repo.store import sink_options
from repo.store.sink_options import Option, check_options
from repo.store.targets import KINDS as KINDS_OF_TARGETS

KINDS = set(sink_options.OPTIONS)

TRIAL = {
    "path": Option("a text"),
    "token": Option("a secret", "secret"),
    "mode": Option("a choice", "choice", "fast", ("fast", "slow")),
    "receipts": Option("a switch", "flag", default=True),
    "size": Option("a count", "count", 5, least=2, most=9),
    "timeout_s": Option("seconds", "seconds", 30.0, least=0.5, most=60),
}


@pytest.fixture(autouse=True)
def trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_options, "OPTIONS", {"trial": TRIAL, "bare": {}})
    monkeypatch.setattr(sink_options, "PREFIXES", {"trial": "lib."})


def test_targets_options_and_sinks_are_of_the_same_kinds() -> None:
    assert set(registry.SINKS) == set(KINDS_OF_TARGETS.values()) == KINDS - {"own"}


def test_options_become_the_types_that_the_sink_expects() -> None:
    given = {"mode": "slow", "receipts": "no", "size": "9", "timeout_s": "1.5", "token": "env:T", "lib.x": 5}
    assert check_options("trial", given, stored=True) == {
        "mode": "slow",
        "receipts": False,
        "size": 9,
        "timeout_s": 1.5,
        "token": "env:T",
        "lib.x": "5",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokn": "x"}, "no option 'tokn'; its options are mode, path, receipts, size, timeout_s, token"),
        ({"mode": "odd"}, "'fast' or 'slow'"),
        ({"receipts": "perhaps"}, "True or False"),
        ({"size": "many"}, "a number is expected"),
        ({"size": 1}, "at least 2"),
        ({"size": "10"}, "at most 9"),
        ({"size": 2.5}, "an integer is expected"),
        ({"timeout_s": "nan"}, "seconds"),
        ({"timeout_s": 10**400}, "seconds|number"),
        ({"path": ""}, "a text in one line"),
        ({"path": "a\nb"}, "a text in one line"),
        ({"path": 5}, "a text is expected"),
        ({"path": "\ud800"}, "surrogate"),
        ({5: "x"}, "no option 5"),
        ({"token": 5}, "a text in one line"),
        ({"token": "s3cret"}, "token=env:NAME or token=file:PATH"),
        ({"token": "s3cret\n"}, "a text in one line"),
        ({"lib.password": "s3cret"}, "not stored"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_known(options: dict[Any, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words) as raised:
        check_options("trial", options, stored=True)
    assert "s3cret" not in str(raised.value)


def test_a_kind_without_options_and_an_unknown_kind_are_named() -> None:
    with pytest.raises(InvalidSettings, match="its options are none"):
        check_options("bare", {"x": 1}, stored=True)
    with pytest.raises(InvalidSettings, match="the kinds are bare, trial"):
        check_options("odd", {}, stored=True)


def test_the_registry_makes_a_sink_of_a_row_and_imports_its_module_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trial_sink_module.py").write_text(
        "class TrialSink:\n"
        "    def __init__(self, target, *, name, **options):\n"
        "        self.name, self.target, self.options = name, target, options\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trial_sink_module", raising=False)
    monkeypatch.setitem(registry.SINKS, "trial", "trial_sink_module:TrialSink")
    assert "trial_sink_module" not in sys.modules
    sink: Any = registry.sink_of("there", "trial", "trial://x", {"size": "7", "token": "env:T"})
    assert vars(sink) == {"name": "there", "target": "trial://x", "options": {"size": 7, "token": "env:T"}}
    for kind, options in (("own", {}), ("trial", {"size": 0}), ("trial", {"token": "literal"})):
        with pytest.raises(InvalidSettings):
            registry.sink_of("there", kind, "trial://x", options)


def test_a_secret_is_read_each_time_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    from_file, from_env = Secret("token", f"file:{file}"), Secret("token", "env:HOLDFAST_TRIAL")
    literal = Secret("token", "s3cret")
    file.write_text("first\n")
    assert from_file.reveal() == "first"
    file.write_bytes(b"second\r\n")
    monkeypatch.setenv("HOLDFAST_TRIAL", "third")
    assert (from_file.reveal(), from_env.reveal(), literal.reveal()) == ("second", "third", "s3cret")
    assert repr(from_env) == "<Secret token: env:HOLDFAST_TRIAL>"
    assert "s3cret" not in repr(literal) + str(SimpleNamespace(token=literal))


def test_a_secret_that_cannot_be_read_halts_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOLDFAST_TRIAL", raising=False)
    bad = {"binary": b"\xff\xfe", "lines": b"s3cret\nmore\n", "empty": b"\n", "large": b"x" * 70_000}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    cases = {
        "env:HOLDFAST_TRIAL": "HOLDFAST_TRIAL.*is not set",
        f"file:{tmp_path}/none": "cannot be read: No such file",
        f"file:{tmp_path}": "cannot be read: Is a directory",
        f"file:{tmp_path}/binary": "not UTF-8",
        f"file:{tmp_path}/lines": "one line",
        f"file:{tmp_path}/empty": "not empty",
        f"file:{tmp_path}/large": "larger than",
        "file:a\0b": "cannot be read|not UTF-8",
        "file:none": f"{re.escape(str(Path.cwd()))}/none, which holds the token",
    }
    for reference, words in cases.items():
        with pytest.raises(SinkHalted, match=words) as raised:
            Secret("token", reference).reveal()
        assert "s3cret" not in str(raised.value)
