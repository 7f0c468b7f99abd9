"""Single values as text: JSON, and texts that are safe to print."""

from __future__ import annotations

import json
from math import isfinite, isnan
from typing import Any

from repo.errors import counted

__all__ = ["as_text", "json_text", "printable", "size_text"]


def printable(text: str) -> str:
    """Return the text with all non-printable characters escaped, except line breaks."""
    if text.isprintable():
        return text
    return "\n".join("".join(map(_escaped, line)) for line in text.split("\n"))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return one value as JSON in ASCII."""
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(_without_infinity(value), allow_nan=False, indent=indent)


def as_text(value: Any) -> str:
    """Return a value as a cell of a table or of CSV."""
    if value is None:
        return ""
    return json_text(value) if isinstance(value, dict | list) else str(value)


def size_text(size_bytes: int) -> str:
    """Return a size for people, in binary units: `0 bytes`, `1 byte`, `3.2 MiB`."""
    size, units = float(size_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    if units[0] == "bytes":
        return counted(size_bytes, "byte")
    return f"{size:,.1f} {units[0]}"


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    if not isinstance(value, float) or isfinite(value):
        return value
    return None if isnan(value) else "Infinity" if value > 0 else "-Infinity"
