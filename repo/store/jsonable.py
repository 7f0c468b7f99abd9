"""JSON forms: converts what the library returns to values that `json.dumps` accepts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from enum import Enum
from math import isfinite
from os import PathLike, fspath
from typing import Any

__all__ = ["jsonable"]


def jsonable(value: Any) -> Any:
    """Return results of this library as plain values for `json.dumps`: points, aggregates, results, reports, status.

    Times become ISO 8601 texts, and infinite numbers, which JSON lacks, the texts "Infinity" and "-Infinity". A
    `Result` is read to its end, and becomes a list. Values that are plain already are returned as they are.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float):
        return value if isfinite(value) else None if value != value else f"{'-' * (value < 0)}Infinity"
    if isinstance(value, date):  # also a datetime
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, PathLike):
        return fspath(value)
    if callable(as_dict := getattr(value, "as_dict", None)) or callable(
        as_dict := getattr(value, "_asdict", None)
    ):
        return jsonable(as_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Iterable):
        return [jsonable(one) for one in value]
    return str(value.value) if isinstance(value, Enum) else str(value)
