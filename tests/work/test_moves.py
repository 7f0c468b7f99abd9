"""The way of a call through the code: how often it passes from one module to another, so that layers do not add up.

A move is a call of a function in another file of the package than the one that was called before it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import repo
from tests.conftest import OpenStore

PACKAGE = str(Path(repo.__file__).parent)

MOST = {"insert": 21, "range": 48, "latest": 6, "aggregate": 68}
"""The maximum number of moves of each call, after the same call was made a few times."""


def moves(call: Callable[[], object]) -> list[str]:
    """Return the files that the call moves to, in order."""
    files: list[str] = []

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<") or not code.co_filename.startswith(PACKAGE):
            return
        file = str(Path(code.co_filename).relative_to(PACKAGE))
        if not files or files[-1] != file:
            files.append(file)

    was_enabled = gc.isenabled()
    gc.disable()  # it could run finalizers of other tests here, which are calls, too
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        if was_enabled:
            gc.enable()
    return files


@pytest.mark.parametrize("call", MOST)
def test_a_warm_call_passes_few_modules(call: str, open_store: OpenStore) -> None:
    store = open_store()
    points = store.points
    calls: dict[str, Callable[[], object]] = {
        "insert": lambda: points.insert("a", "m", 2.0, timestamp=9.0),
        "range": lambda: points.range("a", "m").all(),
        "latest": lambda: points.latest("a", "m"),
        "aggregate": lambda: points.aggregate("a", "m", agg=["avg", "max"], every="1m"),
    }
    points.insert_many([("a", "m", float(at), 1.0) for at in range(4)])
    for _ in range(3):
        calls[call]()
    passed = moves(calls[call])
    assert len(passed) <= MOST[call], " > ".join(passed)
