"""Settings from the environment that are misspelt, and the command that installs an optional package."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repo import InvalidQuery, InvalidSettings, Settings, extras, settings
from repo.commands import holdfast
from repo.queries.aggregate import check_zone
from tests.conftest import RunPython


def test_a_misspelt_variable_is_logged_once_with_a_suggestion(caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "HOLDFAST_FLUSH_INTERVAL": "5",
        "HOLDFAST_NONSENSE": "1",
        "HOLDFAST_ENGINE": "sqlite",
        "HOLDFAST_STORE": "./data",
        "HOLDFAST_QUERY_LIMIT": "5",
        "HOME": "/root",
    }
    settings._warned.clear()
    with caplog.at_level(logging.WARNING, "holdfast"):
        for _ in range(2):
            assert Settings.load(environment=given).engine == "sqlite"
    flush, nonsense = (record.getMessage() for record in caplog.records)
    assert "HOLDFAST_FLUSH_INTERVAL names no setting" in flush
    assert flush.endswith("did you mean HOLDFAST_FLUSH_INTERVAL_S?")
    assert "HOLDFAST_NONSENSE names no setting" in nonsense
    with pytest.raises(InvalidSettings, match="'flush_interval'; did you mean flush_interval_s"):
        Settings.load(environment={}, flush_interval=5)


def test_no_option_of_a_command_is_taken_for_a_misspelt_setting() -> None:
    commands = {f"{name}_" for name in holdfast.list_commands(None)}  # type: ignore[arg-type]
    assert commands <= set(settings._OTHER_VARIABLES)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'holdfast-edge[arrow]'"),
        (
            {"url": "file:///opt/hold%20fast", "dir_info": {"editable": True}},
            "pip install -e '/opt/hold fast[arrow]'",
        ),
        ({"url": "file:///opt/h-0.1.whl", "archive_info": {}}, "pip install '/opt/h-0.1.whl[arrow]'"),
        ({"url": "https://host/h-0.1.whl"}, "pip install 'holdfast-edge[arrow] @ https://host/h-0.1.whl'"),
        (
            {"url": "https://host/h.git", "vcs_info": {"vcs": "git", "requested_revision": "v1"}},
            "pip install 'holdfast-edge[arrow] @ git+https://host/h.git@v1'",
        ),
        ({"unknown": 1}, "pip install 'holdfast-edge[arrow]'"),
    ],
)
def test_an_extra_is_installed_from_where_the_package_came_from(
    origin: dict[str, object] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(extras, "distribution", lambda _: SimpleNamespace(read_text=lambda _: text))
    assert extras.install_command("arrow") == command


def test_a_checkout_that_is_not_installed_is_named_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", missing)
    assert extras.install_command("arrow").endswith("[arrow]'")
    assert "holdfast-edge" not in extras.install_command("arrow").rpartition("/")[2]


def test_without_time_zones_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repo.inputs.times.ZoneInfo", _no_zone)
    monkeypatch.setattr("repo.inputs.times.available_timezones", set)
    with pytest.raises(InvalidQuery, match="pip install tzdata"):
        check_zone("Europe/Oslo")
    assert str(check_zone("UTC")) == "UTC"


def _no_zone(name: str) -> None:
    from zoneinfo import ZoneInfoNotFoundError

    raise ZoneInfoNotFoundError(name)


def test_numpy_is_imported_once_many_rows_were_converted(run_python: RunPython) -> None:
    pytest.importorskip("numpy")
    done = run_python(
        "from repo.extras import numpy_for\nprint([numpy_for(10_000) is not None for _ in range(11)])"
    )
    assert done.stdout.split() == f"{[False] * 9 + [True] * 2}".split(), done.stderr


_HALF_MADE = """
import abc
from collections.abc import Mapping, Sequence

# A moment in `ABCMeta.__new__`, at which other threads may run.
half_made = type.__new__(abc.ABCMeta, "HalfMade", (Sequence, Mapping), {})
seen = [isinstance(sequence, Mapping) for sequence in ((), [])]
Other = type("Other", (tuple,), {})
isinstance(Other(), Mapping)
abc._abc_init(half_made)
"""


def test_a_tuple_is_not_a_mapping_while_a_class_that_is_both_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance([], Sequence)  # remembered, so a list is mistaken, too

    def answers(module: str, load: Callable[[str], Any]) -> tuple[list[bool], list[bool]]:
        """Import such a class; return the answers that its module got during the import, and those after it."""
        (tmp_path / f"{module}.py").write_text(_HALF_MADE)
        Mapping._abc_caches_clear()  # type: ignore[attr-defined]
        loaded = load(module)
        afterwards = [isinstance((), Mapping), isinstance(loaded.Other(), Mapping)]
        Mapping._abc_caches_clear()  # type: ignore[attr-defined]
        del sys.modules[module]
        return loaded.seen, afterwards

    if answers("holdfast_plain", __import__) != ([True, True], [True, True]):
        pytest.skip("this Python makes its classes without that fault")
    assert answers("holdfast_guarded", extras.imported) == ([False, False], [False, False])
