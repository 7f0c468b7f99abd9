"""The rules for each field of a point: checks one value at a time, and knows nothing of rows.

Every function returns the value as it is stored, or raises `Unfit` with the reason. Text is stored without Unicode
normalization. Metadata may contain control characters, which JSON escapes, but no lone surrogates, and its keys must
be strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isfinite, isinf, nan
from numbers import Real
from operator import index
from typing import Any, Final, SupportsIndex

from repo.errors import InvalidPoint, Refusal
from repo.inputs.times import Unfit, is_time, moment_us, to_datetime

__all__ = [
    "DEFAULT_QUALITY",
    "EXACT_INT",
    "MAX_METADATA_BYTES",
    "MAX_NAME_CHARS",
    "MAX_TEXT_BYTES",
    "QUALITY_RANGE",
    "check_name",
    "described",
    "is_missing",
    "json_plain",
    "metadata_json",
    "name_of",
    "number_in",
    "number_of",
    "quality_of",
    "text_of",
]

DEFAULT_QUALITY: Final = 100
EXACT_INT: Final = 2**53
"""A float represents every integer exactly up to this one."""
QUALITY_RANGE: Final = (-(2**31), 2**31 - 1)
MAX_NAME_CHARS: Final = 255
MAX_TEXT_BYTES: Final = 65_536
"""The longest text reading, in UTF-8."""
MAX_METADATA_BYTES: Final = 1_048_576
"""The longest metadata of one point, as JSON in UTF-8; well below the size of a journal payload (4 MiB)."""

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNESCAPED_CONTROL = re.compile("[\x7f-\x9f]")


def json_plain(value: object) -> Any:
    """Return a value that JSON does not know as one that it does: NumPy scalars, times with a zone, what is missing."""
    if is_missing(value):
        return None
    if is_time(value):
        return to_datetime(moment_us(value)).isoformat()
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind in tuple("biufU") and getattr(value, "shape", None) == ():
        return value.item()  # type: ignore[attr-defined]
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encode = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=json_plain
).encode


def check_name(name: object, field: str) -> str:
    """Check a sensor or metric name as `name_of` does, but raise `InvalidPoint`, which names `field`."""
    try:
        return name_of(name)
    except Unfit as fault:
        raise InvalidPoint([Refusal(None, field, str(fault))]) from fault


def name_of(name: object) -> str:
    """Return a sensor or metric name: 1 to 255 characters, no control characters, no lone surrogates."""
    if not isinstance(name, str):
        raise Unfit(f"is {described(name)}, not a text")
    if not name:
        raise Unfit("is empty")
    if len(name) > MAX_NAME_CHARS:
        raise Unfit(f"has {len(name)} characters; at most {MAX_NAME_CHARS} are allowed")
    if not name.isprintable():
        _refuse_control(name)
    return name if type(name) is str else str.__str__(name)


def text_of(text: str) -> str:
    """Return a text reading, which may be empty: not a number, no control characters, no lone surrogates."""
    try:
        float(text)
    except ValueError:
        pass
    else:
        raise Unfit(f"{text[:40]!r} is a number given as text; pass it as a number")
    if not text.isprintable():
        _refuse_control(text)
    if len(text) > MAX_TEXT_BYTES // 4 and len(text.encode()) > MAX_TEXT_BYTES:
        raise Unfit(f"is longer than {MAX_TEXT_BYTES} bytes")
    return text if type(text) is str else str.__str__(text)


def number_of(value: Any, accept_bool: bool) -> float:
    """Return a number as a float: NaN for None (no reading), zero for minus zero.

    Accepts any real number, including Decimal and NumPy types. Refuses what a float cannot represent: numbers that
    are too large, and integers beyond 2**53 that would be rounded.
    """
    if value is None or is_missing(value):
        return nan
    kind = getattr(getattr(value, "dtype", None), "kind", None)  # NumPy's, without importing it
    if isinstance(value, bool) or kind == "b":
        if not accept_bool:
            raise Unfit("is a bool; set accept_bool to store it as 0 or 1")
        value, kind = bool(value), None
    if (kind is not None and (kind not in "iuf" or value.shape != ())) or not (
        isinstance(value, (Real, SupportsIndex)) or hasattr(type(value), "__float__")
    ):
        raise Unfit(f"is {described(value)}, not a number or a text")
    try:
        exact = value.__index__() if kind != "f" and isinstance(value, SupportsIndex) else value
        number = float(exact)
    except OverflowError:
        raise Unfit("is too large for a 64-bit float") from None
    except (TypeError, ValueError) as fault:
        raise Unfit(f"is not a number: {fault}") from fault
    if isinf(number) and exact != number:
        raise Unfit("is too large for a 64-bit float")
    if abs(number) >= EXACT_INT and not isinf(number) and exact != number:
        raise Unfit(f"{str(exact)[:40]} is an integer that a 64-bit float would round to {number!r}")
    return number + 0.0


def number_in(text: str) -> float | None:
    """Return the finite number that a text is; None for another text. Some devices write numbers as text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) and "_" not in text else None


def quality_of(quality: Any) -> int:
    """Return a quality, a 32-bit integer; 100 for None."""
    if quality is None or is_missing(quality):
        return DEFAULT_QUALITY
    try:
        grade = None if isinstance(quality, bool) else index(quality)
    except TypeError:
        grade = None
    if grade is None:
        raise Unfit(f"is {described(quality)}, not an integer")
    if not QUALITY_RANGE[0] <= grade <= QUALITY_RANGE[1]:
        raise Unfit("does not fit into 32 bits")
    return grade


def metadata_json(metadata: object) -> str | None:
    """Return a mapping as canonical JSON (sorted keys, no spaces, Unicode unescaped), or None for None."""
    if metadata is None or is_missing(metadata):
        return None
    if not isinstance(metadata, Mapping):
        raise Unfit(f"is {described(metadata)}, not a mapping")
    try:
        content = metadata if type(metadata) is dict else dict(metadata)
        text = _encode(content)
        keys_are_text = _keys_are_text(content)
    except (TypeError, ValueError) as fault:
        raise Unfit(f"is not JSON: {fault}") from fault
    except RecursionError:
        raise Unfit("is nested too deeply, or contains itself") from None
    if not keys_are_text:
        raise Unfit("has a key that is not a text")
    if not text.isprintable():
        if _SURROGATE.search(text):
            raise Unfit("contains a lone surrogate, which cannot be encoded")
        text = _UNESCAPED_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    if len(text) > MAX_METADATA_BYTES // 4 and len(text.encode()) > MAX_METADATA_BYTES:
        raise Unfit(f"is longer than {MAX_METADATA_BYTES} bytes of JSON")
    return text


def is_missing(value: object) -> bool:
    """Return whether a value is what pandas and NumPy write where there is none: `pd.NA`, `NaT`."""
    kind = type(value)
    if kind.__name__ in ("NAType", "NaTType"):
        return kind.__module__.startswith("pandas.")
    return kind.__name__ in ("datetime64", "timedelta64") and value != value


def described(value: object) -> str:
    """Return the type of a value, with an article, for a message."""
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _refuse_control(text: str) -> None:
    found = _FORBIDDEN.search(text)
    if found:
        what = "control character" if ord(found[0]) < 0xA0 else "lone surrogate"
        raise Unfit(f"{text[:40]!r} contains the {what} U+{ord(found[0]):04X} at position {found.start()}")


def _keys_are_text(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_keys_are_text, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_keys_are_text, value))
    return True
