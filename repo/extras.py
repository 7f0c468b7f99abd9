"""Extras: imports optional packages, and names the command that installs one, however Holdfast was installed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from repo.errors import MissingExtra

__all__ = ["FEW_ROWS", "imported", "install_command", "missing_extra", "numpy_for"]

_NAME = "holdfast-edge"

_MANY_ROWS, _MANY_IN_ALL = 20_000, 100_000
"""From this many rows on, at once or in the life of the process, NumPy is worth its import (0.1 s, once)."""

FEW_ROWS = 64
"""Fewer rows than this are converted faster without it."""

_rows_without = 0


def numpy_for(rows: int) -> Any | None:
    """Return NumPy for converting this many rows; None if it is not installed, or not worth it."""
    global _rows_without
    if rows < FEW_ROWS:
        return None
    if "numpy" not in sys.modules:
        _rows_without += rows
        if rows < _MANY_ROWS and _rows_without < _MANY_IN_ALL:
            return None
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def imported(package: str) -> Any:
    """Import an optional package while other threads may use a store. Raises `ImportError` if it is not installed.

    pyarrow, which pandas imports too, has a class that is both a sequence and a mapping. While Python creates it, a
    tuple or a list is an instance of `Mapping` in other threads (python/cpython#116093). Python caches that answer, and
    from then on DuckDB raises `std::bad_cast` for every statement with parameters. So the right answers are cached
    before the import, but after that of NumPy, which drops them. Wrong answers about other classes are dropped
    afterwards.
    """
    if package in sys.modules:
        return import_module(package)
    with suppress(ImportError):
        import_module("numpy")
    _ = isinstance((), Mapping), isinstance([], Mapping)
    try:
        return import_module(package)
    finally:
        Mapping._abc_caches_clear()  # type: ignore[attr-defined]


def missing_extra(what: str, extra: str, otherwise: str = "") -> MissingExtra:
    """Return the error for a package of the extra that is not installed; `otherwise` is how to do without it."""
    return MissingExtra(f"{what}: {install_command(extra)}{otherwise and f'; {otherwise}'}")


def install_command(extra: str) -> str:
    """Return the command that installs an extra: from the index, the file, the folder or the repository as before."""
    try:
        origin = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return _from_checkout(extra, Path(__file__).parents[1])
    try:
        return _from_origin(extra, json.loads(origin)) if origin else _pip(f"{_NAME}[{extra}]")
    except (ValueError, KeyError, TypeError, AttributeError):  # written by another installer, in another form
        return _pip(f"{_NAME}[{extra}]")


def _from_origin(extra: str, origin: Mapping[str, Any]) -> str:
    """Return the command for an installation as PEP 610 describes its origin."""
    url: str = origin["url"]
    if "vcs_info" in origin:
        revision = origin["vcs_info"].get("requested_revision")
        at = f"@{revision}" if revision else ""
        return _pip(f"{_NAME}[{extra}] @ {origin['vcs_info']['vcs']}+{url}{at}")
    parts = urlsplit(url)
    if parts.scheme != "file":
        return _pip(f"{_NAME}[{extra}] @ {url}")
    editable = origin.get("dir_info", {}).get("editable", False)
    return _pip(f"{unquote(parts.path)}[{extra}]", *(["-e"] if editable else []))


def _from_checkout(extra: str, folder: Path) -> str:
    if (folder / "pyproject.toml").exists():
        return _pip(f"{folder}[{extra}]")
    return _pip(f"{_NAME}[{extra}]")


def _pip(requirement: str, *options: str) -> str:
    return f"pip install {' '.join([*options, shlex.quote(requirement)])}"
