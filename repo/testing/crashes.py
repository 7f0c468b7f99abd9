"""Crashes of a sink: an exception at a chosen line of its code. Traces the calling thread, as a debugger does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any, NamedTuple

__all__ = ["Line", "crashed_at", "files_of", "lines_of"]


class Line(NamedTuple):
    """A line of Python code."""

    file: str
    number: int


class _Crash(BaseException):
    """Ends a call, as the end of its process would. No code of a sink expects it."""


def files_of(thing: object) -> set[str]:
    """Return the files that define the class of an object and its base classes."""
    modules = [sys.modules.get(kind.__module__) for kind in type(thing).__mro__ if kind is not object]
    return {module.__file__ for module in modules if module is not None and getattr(module, "__file__", None)}  # type: ignore[misc]


def lines_of(call: Callable[[], object], files: Collection[str]) -> list[Line]:
    """Call a function, and return the lines of these files that it runs, in order of their first time."""
    found: dict[Line, None] = {}
    _traced(call, files, lambda line: found.setdefault(line))
    return list(found)


def crashed_at(line: Line, call: Callable[[], object]) -> bool:
    """Call a function, and leave it before it runs a line for the first time; False if it did not get there."""

    def reach(reached: Line) -> None:
        if reached == line:
            raise _Crash

    try:
        _traced(call, {line.file}, reach)
    except _Crash:
        return True
    return False


def _traced(call: Callable[[], object], files: Collection[str], reach: Callable[[Line], object]) -> None:
    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            reach(Line(frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
