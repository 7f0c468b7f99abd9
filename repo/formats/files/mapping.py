"""Mapping: assigns the columns of a file to the fields of a point, and checks their types. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from repo.arguments import shown
from repo.errors import InvalidFile, InvalidQuery
from repo.times import UNIX_EXPONENTS

__all__ = ["FIELDS", "ColumnType", "ReadPlan", "check_mapping", "plan_of"]

FIELDS = {
    "sensor_id": ("text",),
    "metric_name": ("text",),
    "timestamp": ("moment", "float", "integer"),
    "timestamp_us": ("integer",),
    "value": ("float", "integer", "decimal", "text", "null"),
    "value_text": ("text", "null"),
    "quality": ("integer", "null"),
    "metadata": ("text", "null"),
}
"""The fields that a file may have, and the families of types that each may have."""

_TYPE_NAMES = {
    "text": "text",
    "moment": "times with a zone",
    "float": "numbers",
    "integer": "integers",
    "decimal": "decimals",
    "null": "nothing",
}
_OURS = frozenset({"seq"})
"""Written by exports but not read: a store numbers its writes itself."""


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type of a column: its family (from `FIELDS`, or `bool`, or `other`), and its name in the file."""

    family: str
    name: str


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What to read from a file: the column and type of each field. `ignored` has the other columns."""

    columns: dict[str, str]
    types: dict[str, ColumnType]
    ignored: tuple[str, ...]
    us_per_count: int = 1_000_000
    """The unit of numbers in the column `timestamp`, in microseconds."""


def check_mapping(columns: Mapping[str, str] | None, time_format: str = "unix") -> dict[str, str]:
    """Return the caller's mapping of fields to columns; `InvalidQuery` if it or the time format is invalid."""
    if columns is not None and not isinstance(columns, Mapping):
        raise InvalidQuery(f"columns = {shown(columns)}: a dict of fields and column names is expected")
    mapping = dict(columns or {})
    if time_format not in UNIX_EXPONENTS:
        raise InvalidQuery(f"time_format = {time_format!r}: one of {', '.join(UNIX_EXPONENTS)}")
    if "timestamp_us" in mapping and time_format not in ("unix", "unix_us"):
        raise InvalidQuery(f"columns: timestamp_us counts microseconds; with {time_format} map timestamp")
    for field, column in mapping.items():
        if field not in FIELDS:
            raise InvalidQuery(f"columns: there is no field {shown(field)}; there are {', '.join(FIELDS)}")
        if not isinstance(column, str):
            raise InvalidQuery(f"columns: the column of {field} is a name, not {type(column).__name__}")
    if {"timestamp", "timestamp_us"} <= mapping.keys():
        raise InvalidQuery("columns: give timestamp or timestamp_us, not both")
    return mapping


def plan_of(
    types: Mapping[str, ColumnType],
    mapping: Mapping[str, str],
    path: Path,
    *,
    accept_bool: bool,
    time_format: str = "unix",
) -> ReadPlan:
    """Assign the columns of a file to the fields; `InvalidFile`, naming it, for a missing column or a wrong type.

    `time_format`, one of `UNIX_EXPONENTS`, is the unit of numbers in the column `timestamp`.
    """
    columns = {field: field for field in FIELDS if field in types} | dict(mapping)
    if "timestamp_us" in mapping or ("timestamp_us" in columns and "timestamp" not in mapping):
        columns.pop("timestamp", None)
    else:
        columns.pop("timestamp_us", None)
    missing = [column for column in columns.values() if column not in types]
    missing += [field for field in ("sensor_id", "metric_name") if field not in columns]
    if not columns.keys() & {"timestamp", "timestamp_us"}:
        missing.append("timestamp")
    if not columns.keys() & {"value", "value_text"}:
        missing.append("value")
    if missing:
        raise InvalidFile(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {_listed(types)}. Assign its columns to "
            "fields with `columns`",
            path=path,
        )
    found = {field: types[column] for field, column in columns.items()}
    for field, kind in found.items():
        family = kind.family
        if family not in FIELDS[field] and not (field == "value" and family == "bool" and accept_bool):
            expected = " or ".join(_TYPE_NAMES[family] for family in FIELDS[field] if family != "null")
            hint = ""
            if field == "timestamp" and kind.name.lower().startswith("timestamp"):
                hint = ". Without a zone its times are ambiguous; write the column as UTC"
            raise InvalidFile(
                f"{path}: the column {columns[field]!r} is {kind.name}; {field} must be {expected}{hint}",
                path=path,
            )
    if "value" in found and found["value"].family == "text":
        if "value_text" in found and found["value_text"].family == "text":
            raise InvalidFile(f"{path}: both value and value_text are text", path=path)
        columns["value_text"], found["value_text"] = columns.pop("value"), found.pop("value")
    known = {*columns.values(), *FIELDS, *_OURS}
    ignored = tuple(name for name in types if name not in known)
    return ReadPlan(columns, found, ignored, 10 ** (6 + UNIX_EXPONENTS[time_format]))


def _listed(types: Mapping[str, ColumnType]) -> str:
    names = [repr(name[:40]) for name in types]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"
