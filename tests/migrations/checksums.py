"""The checksums that are noted beside the legacy samples: rows as text in any order, floats by their bits."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

__all__ = ["checksum"]


def checksum(rows: list[Any]) -> dict[str, Any]:
    """Return how many rows there are, and the SHA-256 of them all."""
    digest = hashlib.sha256()
    for row in sorted("\x1f".join(map(_canonical, row)) for row in rows):
        digest.update(row.encode("utf-8", "surrogatepass") + b"\x1e")
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def _canonical(value: Any) -> str:
    if value is None:
        return "N"
    if isinstance(value, float):
        return "fnan" if math.isnan(value) else "f" + struct.pack(">d", value).hex()
    if isinstance(value, bytes):
        return "x" + value.hex()
    return f"i{value}" if isinstance(value, int) else f"s{value}"
