"""What the output can show: its width, colours, and characters beyond ASCII."""

from __future__ import annotations

import os
import shutil
import sys

__all__ = ["has_colours", "has_unicode", "is_plain", "is_terminal", "width"]

_PIPE_COLUMNS = 160
"""The width of a table in a pipe or a file, unless COLUMNS says otherwise."""


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def width() -> int:
    """Return how many characters a line can have."""
    fallback = 80 if is_terminal() else _PIPE_COLUMNS
    return shutil.get_terminal_size((fallback, 24)).columns


def has_colours() -> bool:
    """Return whether to print colours: only on a terminal, and only where `is_plain` allows it."""
    return is_terminal() and not is_plain() and os.environ.get("TERM") != "dumb"


def is_plain() -> bool:
    """Return whether to draw in ASCII and without colour: NO_COLOR is set (no-color.org), or the locale needs it."""
    return bool(os.environ.get("NO_COLOR")) or not has_unicode()


def has_unicode() -> bool:
    """Return whether the locale and the encoding of stdout have more characters than ASCII.

    Python writes UTF-8 in the locales C and POSIX too; the terminal there may not show it.
    """
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))), None)
    if locale is not None:
        name, _, codeset = locale.partition("@")[0].partition(".")
        is_utf_8 = codeset.lower().replace("-", "") == "utf8"
        if not is_utf_8 and (codeset or name in ("C", "POSIX")):
            return False
    try:
        "…⣿".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
