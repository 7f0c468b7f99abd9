"""Ctrl-C in a driver written in C++, which raises its own error instead of KeyboardInterrupt."""

from __future__ import annotations

import re
from contextlib import ContextDecorator
from types import TracebackType

__all__ = ["KeyboardInterrupts", "is_interrupt"]

_IN_A_CALLBACK = re.compile(r"(\A|\n|: )(RuntimeError: Query interrupted|KeyboardInterrupt:?)\s*\Z")
"""How the message of an error ends where Ctrl-C came while the driver called Python, for the next rows of a table."""

_DRIVERS = ("_duckdb", "duckdb", "pyarrow.lib")


class KeyboardInterrupts(ContextDecorator):
    """Raises `KeyboardInterrupt` if the block or the decorated function ends with a driver's error for it."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Replace such an error, and keep its notes; other errors pass unchanged."""
        if error is None or not is_interrupt(error):
            return
        interrupt = KeyboardInterrupt()
        for note in getattr(error, "__notes__", ()):
            interrupt.add_note(note)
        raise interrupt from error


def is_interrupt(error: BaseException) -> bool:
    """Return whether DuckDB or pyarrow raised it in place of an exception from a signal handler, usually Ctrl-C."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen) is RuntimeError and str(seen) == "Query interrupted":
            return True
        if type(seen).__module__ in _DRIVERS and _IN_A_CALLBACK.search(str(seen)):
            return True
        seen = seen.__cause__
    return False
