"""Unpacks the databases of the legacy program that are kept, packed, beside this module."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

__all__ = ["LEGACY", "expected", "unpack"]

LEGACY = Path(__file__).resolve().parent / "legacy"


def unpack(source: Path, target: Path) -> Path:
    """Unpack a database, and its log if it has one, to `target` and beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    packed = [(tail, source.with_name(f"{source.name}{tail}.xz")) for tail in ("", ".wal", "-wal")]
    assert packed[0][1].exists(), f"there is no {packed[0][1]}"
    for tail, file in packed:
        if file.exists():
            target.with_name(target.name + tail).write_bytes(lzma.decompress(file.read_bytes()))
    return target


def expected(name: str) -> Any:
    """Return what the version that wrote the file in `legacy` reads in it."""
    return json.loads((LEGACY / "expected.json").read_text())["files"][name]
