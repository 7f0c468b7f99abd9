"""Arguments: checks what callers pass besides points: counts, switches, choices, durations, texts, paths, functions.

Each check returns the argument in the form that the library uses, or raises a typed error that names it. The messages
show values shortened, because a caller may pass anything, including what cannot be printed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import cache
from math import isfinite
from numbers import Real
from operator import index
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from repo.errors import HoldfastError, InvalidFile, InvalidQuery

__all__ = [
    "LARGEST",
    "check_choice",
    "check_count",
    "check_fields",
    "check_flag",
    "check_function",
    "check_number",
    "check_path",
    "check_seconds",
    "check_text",
    "shown",
]

LARGEST = 2**63 - 1
"""The largest integer of both engines."""

_SHOWN_CHARS = 40

_MOST_BYTES = 255
"""The longest name of a file in all file systems that matter here."""

Choice = TypeVar("Choice", bound=str)


def shown(value: object) -> str:
    """Return a short form of any value for a message: texts and numbers as Python writes them, others by their type."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, (str, bytes)):
        return repr(value[:_SHOWN_CHARS]) + ("..." if len(value) > _SHOWN_CHARS else "")
    if isinstance(value, int):  # Python refuses to print an int of more than 4,300 digits
        return repr(value) if value.bit_length() <= 128 else f"an int of {value.bit_length()} bits"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def check_count(
    value: object, name: str, least: int = 1, *, error: type[HoldfastError] = InvalidQuery
) -> int:
    """Return an integer from `least` to 2**63 - 1; NumPy's integers are accepted, bools and floats are not."""
    try:
        number = None if _is_bool(value) or _is_span(value) else index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise error(f"{name} = {shown(value)}: an integer is expected")
    if number < least:
        raise error(f"{name} = {shown(number)}: at least {least}")
    if number > LARGEST:
        raise error(f"{name} = {shown(number)}: at most {LARGEST}")
    return number


def check_flag(value: object, name: str, *, error: type[HoldfastError] = InvalidQuery) -> bool:
    """Return a switch: True or False, also NumPy's, or 0 or 1. A text is refused: "no" would count as true."""
    if _is_bool(value) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise error(f"{name} = {shown(value)}: True or False is expected")


def check_choice(
    value: object, name: str, choices: Collection[Choice], *, error: type[HoldfastError] = InvalidQuery
) -> Choice:
    """Return one of the texts in `choices`."""
    if isinstance(value, str):
        for choice in choices:
            if value == choice:
                return choice
    raise error(f"{name} = {shown(value)}: {' or '.join(map(repr, choices))}")


def check_seconds(
    value: object, name: str, least: float = 0.0, *, error: type[HoldfastError] = InvalidQuery
) -> float:
    """Return a duration in seconds, which is given as a number or a `timedelta`: finite, and at least `least`."""
    given = value.total_seconds() if isinstance(value, timedelta) else value
    seconds = check_number(given, name, least, what="a number of seconds or a timedelta", error=error)
    if not isfinite(seconds):
        raise error(f"{name} = {seconds!r}: a finite number of seconds is expected")
    return seconds


def check_number(
    value: object,
    name: str,
    least: float = 0.0,
    *,
    what: str = "a number",
    error: type[HoldfastError] = InvalidQuery,
) -> float:
    """Return a real number as a float, at least `least`; infinity is accepted, NaN is not."""
    if not isinstance(value, Real) or _is_bool(value) or _is_span(value):
        raise error(f"{name} = {shown(value)}: {what} is expected")
    try:
        number = float(value)
    except OverflowError as fault:
        raise error(f"{name} = {shown(value)}: too large for a number") from fault
    if not number >= least:
        raise error(f"{name} = {number!r}: {what}, at least {least:g}")
    return number


def check_text(value: object, name: str, *, error: type[HoldfastError] = InvalidQuery) -> str:
    """Return a text that can be encoded as UTF-8."""
    if not isinstance(value, str):
        raise error(f"{name} = {shown(value)}: a text is expected")
    try:
        value.encode()
    except UnicodeEncodeError as fault:
        raise error(f"{name} = {shown(value)}: contains a lone surrogate, which cannot be stored") from fault
    return value


def check_path(value: object, name: str, *, error: type[HoldfastError] = InvalidFile) -> Path:
    """Return a path, given as a text or a path object: not empty, and possible as a file name."""
    if not isinstance(value, (str, os.PathLike)):
        raise error(f"{name} = {shown(value)}: a path is expected, as a text or a pathlib.Path")
    given = os.fspath(value)
    if not isinstance(given, str):
        raise error(f"{name} = {shown(given)}: a path is expected as a text, not as bytes")
    try:
        encoded = os.fsencode(given)
    except UnicodeEncodeError as fault:
        raise error(f"{name} = {shown(given)}: contains a lone surrogate, which paths cannot") from fault
    if not given.strip() or b"\0" in encoded:
        what = "contains a zero byte" if given.strip() else "is empty"
        raise error(f"{name} = {shown(given)} {what}; name a file or folder")
    if any(len(part) > _MOST_BYTES for part in encoded.split(b"/")):
        raise error(f"{name} = {shown(given)}: the longest name of a file has {_MOST_BYTES} bytes")
    return Path(given)


def check_function(value: Any, name: str, *, error: type[HoldfastError] = InvalidQuery) -> Callable[..., Any]:
    """Return a function of the caller; exceptions that it raises when called pass through."""
    if not callable(value):
        raise error(f"{name} = {shown(value)}: a function is expected")
    checked: Callable[..., Any] = value
    return checked


def check_fields(instance: object, *, error: type[HoldfastError]) -> None:
    """Check that every field of a dataclass has a value of its declared type; numbers must be finite.

    Checks plain types, `Literal`, unions of them and `tuple[X, ...]`; a field of another type may hold anything.
    """
    kind: Any = type(instance)
    for name, hint in _hints(kind).items():
        value = getattr(instance, name)
        if not _fits(value, hint):
            raise error(f"{name} = {shown(value)}: {_expected(hint)} is expected")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, get_args(hint)[0]) for one in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= LARGEST  # type: ignore[arg-type]  # also refuses NaN
    if hint is int:
        return type(value) is int and abs(value) <= LARGEST
    if hint is str:
        return isinstance(value, str) and not _has_surrogate(value)
    if hint in (bool, NoneType):
        return type(value) is hint
    return True


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


_TYPE_NAMES = {
    str: "a text",
    int: "an integer of 64 bits",
    float: "a finite number",
    bool: "True or False",
    NoneType: "None",
}


def _expected(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_expected, get_args(hint)))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if origin is tuple:
        return f"a tuple, each item {_expected(get_args(hint)[0])},"
    return _TYPE_NAMES.get(hint, str(hint))


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or _numpy_kind(value) == "b"


def _is_span(value: object) -> bool:
    """Recognize NumPy's timedelta64, which passes for an integer."""
    return _numpy_kind(value) == "m"


def _numpy_kind(value: object) -> str | None:
    kind: str | None = getattr(getattr(value, "dtype", None), "kind", None)
    return kind if getattr(value, "shape", None) == () else None
